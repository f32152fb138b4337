"""Improve a forward dynamics model on the best of its own candidates: draw, score, keep the best, fine-tune.

python scripts/train_best_of_n.py --config configs/best_of_n_tabletop.yaml --fdm runs/bootstrapped --idm runs/idm \
    --triplets runs/world/triplets.json --rewards idm_margin=1.0 keep_unchanged=0.25 --output_dir runs/best_of_n
"""

from __future__ import annotations

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import run
from trainers.common.help import show_help


def main() -> None:
    show_help("train_best_of_n")
    from trainers.best_of_n.arguments import BestOfNArguments
    from trainers.best_of_n.recipe import train_best_of_n
    from trainers.common.arguments import parse
    from trainers.sft.arguments import RoleConfig

    train_best_of_n(*parse((BestOfNArguments, RoleConfig)))


if __name__ == "__main__":
    run(main)
