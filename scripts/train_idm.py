"""Fine-tune an inverse dynamics model: source and target pictures in, the action in words out.

python scripts/train_idm.py --config configs/idm_tabletop.yaml --triplets runs/world/triplets.json --output_dir runs/idm
"""

from __future__ import annotations

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import run
from trainers.common.help import show_help


def main() -> None:
    show_help("train_idm")
    from trainers.common.arguments import parse
    from trainers.sft.arguments import IDMArguments, LoraModelConfig, RoleConfig
    from trainers.sft.recipe import train_role

    train_role("idm", *parse((IDMArguments, RoleConfig, LoraModelConfig)))


if __name__ == "__main__":
    run(main)
