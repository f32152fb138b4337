"""Pretrain a small unified vision-language model from scratch: a VQ tokenizer, then a language model over both.

python scripts/pretrain_base.py --world tabletop --output runs/base
python scripts/pretrain_base.py --frames my_videos/ my_photos/ --image_size 64 --output runs/base
python scripts/pretrain_base.py --base runs/base --world tabletop --mixture compare=0.6 describe=0.4 --output runs/more
"""

from __future__ import annotations

import argparse

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, run
from trainers.pretraining.arguments import base_parser


def parser() -> argparse.ArgumentParser:
    return base_parser(__doc__)


def main() -> None:
    arguments = parse_with_config(parser())
    from rl.models.memory import at_most
    from trainers.pretraining.recipe import make_base  # torch is imported only once the arguments are known to be right

    at_most(vars(arguments).pop("max_rows"))  # bounds memory alone: no part of what the run is
    make_base(arguments)


if __name__ == "__main__":
    run(main)
