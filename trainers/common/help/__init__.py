"""`--help` of the training scripts at once: their parsers are built from TRL's configs, whose import takes seconds.

`SCRIPT.txt` holds what a parser prints, under a line of the versions that it is of. With other ones, or under
REWIND_HELP=parser, the parser itself answers. `python -m trainers.common.help` (or `make help-texts`) writes the texts
again after a change of arguments; a test holds them against the parsers.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPTS = ("train_idm", "train_fdm", "train_grpo", "train_best_of_n", "train_dpo")
WIDTH = 100
"""Columns of the texts."""


def show_help(script: str) -> None:
    """Print a script's help and end, if its flags ask for it and the text of the installed versions is there."""
    if not {"-h", "--help"} & {*sys.argv[1:]} or os.environ.get("REWIND_HELP") == "parser":
        return
    text = text_of(script)
    if text is not None:
        sys.stdout.write(text)
        sys.exit(0)


def text_of(script: str) -> str | None:
    """A script's help; None if there is no text for the installed versions."""
    file = FOLDER / f"{script}.txt"
    versions, _, text = file.read_text(encoding="utf-8").partition("\n") if file.is_file() else ("", "", "")
    return text if text and versions == versions_line() else None


def versions_line() -> str | None:
    """The first line of a text that fits the installed libraries."""
    try:
        return f"# trl {version('trl')}, transformers {version('transformers')}"
    except PackageNotFoundError:
        return None
