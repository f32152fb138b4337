"""Improve a forward dynamics model by preferences between its own candidates, on TRL's DPOTrainer.

python scripts/train_dpo.py --config configs/dpo_tabletop.yaml --fdm runs/bootstrapped --idm runs/idm \
    --triplets runs/world/triplets.json --rewards idm_margin=1.0 keep_unchanged=0.25 --output_dir runs/dpo
"""

from __future__ import annotations

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import run
from trainers.common.help import show_help


def main() -> None:
    show_help("train_dpo")
    from trainers.common.arguments import parse
    from trainers.dpo.arguments import DPOArguments, RewindDPOConfig
    from trainers.dpo.recipe import train_dpo

    train_dpo(*parse((DPOArguments, RewindDPOConfig)))


if __name__ == "__main__":
    run(main)
