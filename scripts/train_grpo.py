"""Improve a forward dynamics model by rewards, on TRL's GRPOTrainer.

python scripts/train_grpo.py --config configs/grpo_tabletop.yaml --fdm runs/bootstrapped --idm runs/idm \
    --triplets runs/world/triplets.json --rewards idm_margin=1.0 keep_unchanged=0.25 --output_dir runs/grpo
"""

from __future__ import annotations

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import run
from trainers.common.help import show_help


def main() -> None:
    show_help("train_grpo")
    from trainers.common.arguments import parse
    from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
    from trainers.grpo.recipe import train_grpo

    train_grpo(*parse((GRPOArguments, RewindGRPOConfig)))


if __name__ == "__main__":
    run(main)
