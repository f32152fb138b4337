"""Pretrain a small unified vision-language model from scratch: a VQ tokenizer, then a language model over both.

python scripts/pretrain_base.py --world tabletop --output runs/base
python scripts/pretrain_base.py --frames my_videos/ my_photos/ --image_size 64 --output runs/base
"""

from __future__ import annotations

import argparse
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.arguments import parse_with_config, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = p.add_argument_group("what to learn from (one of --world, --frames)")
    source.add_argument("--world", help="a world's name, or file.py:Class")
    source.add_argument("--frames", nargs="+", type=Path, help="folders or files of pictures and videos")
    source.add_argument("--captions", type=Path, help='JSON list of {"image": path, "caption": words} for --frames')
    source.add_argument(
        "--text", nargs="+", type=Path, help="sentences without pictures: lines of text, or an AURORA JSON"
    )
    source.add_argument("--num_pairs", type=int, default=30_000, help="pairs of pictures drawn from a world")
    source.add_argument("--num_videos", type=int, default=800, help="videos drawn from a world")
    source.add_argument("--max_frames", type=int, default=20_000, help="most pictures taken from --frames")
    model = p.add_argument_group("the model")
    model.add_argument("--family", default="chameleon", choices=["chameleon"])
    model.add_argument("--image_size", type=int, default=64, help="pixels along one side (a world brings its own)")
    model.add_argument("--num_codes", type=int, default=1024, help="size of the codebook")
    model.add_argument("--hidden_size", type=int, default=128)
    model.add_argument("--num_layers", type=int, default=6)
    model.add_argument("--num_heads", type=int, default=4)
    model.add_argument("--text_vocabulary", type=int, default=512, help="size of the text vocabulary, bytes included")
    train = p.add_argument_group("training")
    train.add_argument("--tokenizer_steps", type=int, default=2200)
    train.add_argument("--tokenizer_from", type=Path, help="go on from the tokenizer of another run of this script")
    train.add_argument(
        "--merge_codes",
        type=float,
        default=0.0,
        help="join codes closer than this in latent space afterwards; 0 is off",
    )
    train.add_argument("--tokenizer_warmup", type=int, default=600, help="steps before the tokenizer quantises")
    train.add_argument("--tokenizer_batch_size", type=int, default=32)
    train.add_argument("--tokenizer_learning_rate", type=float, default=1.5e-3)
    train.add_argument("--steps", type=int, default=10_000, help="steps of the language model")
    train.add_argument("--batch_size", type=int, default=64)
    train.add_argument("--learning_rate", type=float, default=2e-3)
    train.add_argument("--seed", type=int, default=0)
    out = p.add_argument_group("output")
    out.add_argument("--output", type=Path, required=True)
    out.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    out.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from trainers.base_recipe import make_base  # torch is imported only once the arguments are known to be right

    make_base(arguments)


if __name__ == "__main__":
    run(main)
