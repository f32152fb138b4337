"""The flags of scripts that read a file of triplets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rl.errors import RewindError

CACHE_HELP = "a folder of encode_images.py: pictures are encoded once, ever, and what it lacks is added to it"


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--image_root` and `--strict`, as `read_triplets` takes them."""
    parser.add_argument("--image_root", type=Path, help="the folder that image paths start from, if not the file's own")
    parser.add_argument("--strict", action="store_true", help="stop at an entry that would be left out, and name it")


def add_cache_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--token_cache`, for scripts that read the pictures of triplets as tokens."""
    parser.add_argument("--token_cache", type=Path, help=CACHE_HELP)


def reading(arguments: Any) -> dict[str, Any]:
    """What `add_data_flags` added, as arguments of `read_triplets`."""
    return {"image_root": arguments.image_root, "strict": arguments.strict}


def check_data_flags(image_root: str | Path | None, strict: bool, file: object, token_cache: object = None) -> None:
    """Raise a `RewindError` if flags about a file of triplets are given without one."""
    if not file and (strict or image_root is not None or token_cache is not None):
        flag = "--strict" if strict else "--image_root" if image_root is not None else "--token_cache"
        raise RewindError(f"{flag} is about a file of triplets, and none is read: leave it out")
