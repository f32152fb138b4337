"""The flags of scripts that read triplets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rl.errors import RewindError

HELP = {
    "image_root": "the folder that image paths in files of triplets start from, if not their own",
    "strict": "stop at an entry that would be left out, and name it",
    "format": "what the data set is, where that is not found out: plain, something, epic, pico_banana, instructpix2pix",
    "columns": "names of columns where they are others: input=before output=after instruction=edit",
    "data_split": "the split of a data set that has several (default: train)",
    "check_pictures": "before the start: 'decode' all of each picture, or look at the 'ends' of its file (default: "
    "decode up to 4,096 entries)",
}
"""What the flags say; `read_triplets` takes them (`data_split` as `split`)."""
CACHE_HELP = "a folder of encode_images.py: pictures are encoded once, ever, and what it lacks is added to it"


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `HELP`."""
    parser.add_argument("--image_root", type=Path, help=HELP["image_root"])
    parser.add_argument("--strict", action="store_true", help=HELP["strict"])
    parser.add_argument("--format", help=HELP["format"])
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help=HELP["columns"])
    parser.add_argument("--data_split", help=HELP["data_split"])
    parser.add_argument("--check_pictures", help=HELP["check_pictures"])


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--token_cache`, for scripts that read the pictures of triplets as tokens."""
    parser.add_argument("--token_cache", type=Path, help=CACHE_HELP)


def reading(arguments: Any) -> dict[str, Any]:
    """What `add_data_flags` added, as arguments of `read_triplets`."""
    same = {name: getattr(arguments, name) for name in HELP if name != "data_split"}
    return {**same, "split": arguments.data_split}


def check_data_flags(arguments: Any, file: object) -> None:
    """Raise a `RewindError` if flags about triplets that are read are given without any."""
    names = (*HELP, "token_cache")
    given = next((name for name in names if getattr(arguments, name, None)), None)
    if not file and given is not None:
        raise RewindError(f"--{given} is about a file of triplets, and none is read: leave it out")
