"""The arguments of `scripts/pretrain_base.py`, free of torch, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from rl.running.model_flags import ROWS_HELP


def base_parser(description: str | None = None) -> argparse.ArgumentParser:
    """All flags with their defaults."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    model.add_argument(
        "--family",
        choices=["chameleon", "liquid"],
        help="of the language model: chameleon (default), or liquid (Gemma)",
    )
    model.add_argument("--base", help="go on training a base, by name or folder; its tokenizers and sizes are kept")
    model.add_argument("--image_size", type=int, default=64, help="pixels along one side (a world brings its own)")
    model.add_argument("--num_codes", type=int, default=1024, help="size of the codebook")
    model.add_argument("--hidden_size", type=int, default=128)
    model.add_argument("--num_layers", type=int, default=6)
    model.add_argument("--num_heads", type=int, default=4)
    model.add_argument("--text_vocabulary", type=int, default=512, help="size of the text vocabulary, bytes included")
    train = p.add_argument_group("training")
    train.add_argument("--tokenizer_steps", type=int, default=2200)
    train.add_argument(
        "--tokenizer_from",
        type=Path,
        help="go on from the tokenizer of another run of this script, or with --tokenizer_steps 0 take a base's",
    )
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
    train.add_argument(
        "--mixture",
        nargs="+",
        metavar="KIND=SHARE",
        help="shares of the sequences: describe, draw, compare, continue, text (default .3 .1 .3 .2 .1)",
    )
    train.add_argument("--learning_rate", type=float, default=2e-3)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--max_rows", type=int, help=ROWS_HELP)
    out = p.add_argument_group("output")
    out.add_argument("--output", type=Path, required=True)
    out.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --output")
    out.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p
