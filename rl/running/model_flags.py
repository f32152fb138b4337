"""The flags of scripts that open models, under the names that transformers and TRL use."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rl.errors import RewindError

NAMES = (
    *("base", "vq", "image_size", "dtype", "attn_implementation", "quantization", "device", "device_map", "max_rows"),
    "compile",
)
ROWS_HELP = "the most rows drawn, scored, encoded or decoded at once (default: as many as fit into memory)"
SIZE_HELP = (
    "of pictures, for families that take several: 512 (square), 384x672 (height x width), own:512 (each keeps its "
    "shape, at the area of 512x512)"
)


def add_model_flags(parser: argparse.ArgumentParser, rows: bool = True, base: bool = True, draws: bool = True) -> None:
    """Add what `load_fdm` and `load_idm` take beside the model's name.

    `rows` where something is drawn, scored or encoded, `draws` where tokens are drawn; `base` unless the script has a
    flag of that name.
    """
    group = parser.add_argument_group("how models are opened")
    if base:
        group.add_argument("--base", help="the base of the run, where the one that it names has been moved")
    group.add_argument("--vq", help="a folder or Hub id with the VQ image tokenizer, where the checkpoint lacks a part")
    group.add_argument("--image_size", help=SIZE_HELP)
    group.add_argument("--dtype", help="of the language model: auto, float32, bfloat16 or float16 (default: its own)")
    group.add_argument("--attn_implementation", help="sdpa, eager, flash_attention_2 (default: transformers' choice)")
    group.add_argument("--quantization", help="4bit or 8bit, through bitsandbytes (default: none)")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    group.add_argument(
        "--device_map",
        type=_device_map,
        help="divide the weights among devices: auto, balanced, sequential, or JSON by names of modules",
    )
    if rows:
        group.add_argument("--max_rows", type=int, help=ROWS_HELP)
    if rows and draws:
        group.add_argument(
            "--compile",
            action="store_true",
            default=None,
            help="torch.compile the step that draws a token: a minute at first, then 1.2 times the speed on a GPU",
        )


def opening(arguments: Any) -> dict[str, Any]:
    """What `add_model_flags` added and was given, as arguments of `load_fdm`.

    Raises:
        RewindError: less than one row at once.
    """
    check_max_rows(getattr(arguments, "max_rows", None))
    return {name: value for name in NAMES if (value := getattr(arguments, name, None)) is not None}


def check_max_rows(max_rows: int | None) -> None:
    """Raise a `RewindError` for less than one row at once."""
    if max_rows is not None and max_rows < 1:
        raise RewindError(f"--max_rows must be at least 1, not {max_rows}")


def _device_map(text: str) -> Any:
    """A word, or a mapping in JSON."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it is no JSON ({error})") from error
