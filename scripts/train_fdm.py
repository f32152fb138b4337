"""Fine-tune a forward dynamics model: source picture and action in, the target's image tokens out.

python scripts/train_fdm.py --config configs/fdm_tabletop.yaml --triplets runs/world/triplets.json --output_dir runs/fdm
python scripts/train_fdm.py --triplets labelled.json --synthetic idm_labelled.json --token_weights --output_dir runs/fdm
python scripts/train_fdm.py --triplets labelled.json --with_idm true --output_dir runs/both  # IDM: runs/both/idm
"""

from __future__ import annotations

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import run
from trainers.common.help import show_help


def main() -> None:
    show_help("train_fdm")
    from trainers.common.arguments import parse
    from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleConfig
    from trainers.sft.recipe import train_role

    train_role("fdm", *parse((FDMArguments, RoleConfig, LoraModelConfig)))


if __name__ == "__main__":
    run(main)
