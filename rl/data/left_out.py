"""Entries of a data set that cannot be used: left out, counted by reason, and listed in the run's folder."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.errors import RewindError
from rl.running.files import write_whole

LEFT_OUT_FILE = "left_out.jsonl"
_logger = logging.getLogger("rl")


@dataclass(frozen=True)
class LeftOut:
    """An entry that was left out: of which file, its number in it (from 0), the key at fault, and why.

    `reason` is one of a few words to count by, `what` the whole sentence, with file and entry.
    """

    file: str
    entry: int
    key: str | None
    reason: str
    what: str


def check(path: Path, total: int, left_out: Sequence[LeftOut], strict: bool) -> None:
    """Say what is left out of `total` entries of a file.

    Raises:
        RewindError: more than half, or with `strict` any.
    """
    if not left_out:
        return
    first = left_out[0].what
    if strict:
        raise RewindError(f"{first} (without --strict it is left out)")
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(one.reason for one in left_out).most_common())
    if 2 * len(left_out) > total:
        raise RewindError(f"{path}: {len(left_out)} of {total} entries cannot be used ({counts}); the first: {first}")
    _logger.warning("%s: %d of %d entries are left out (%s); the first: %s", path, len(left_out), total, counts, first)


def list_left_out(folder: Path, left_out: Sequence[LeftOut], *, resume: bool | None = False) -> None:
    """Write `left_out.jsonl` into a run's folder, one entry a line; no file if there is none.

    Raises:
        RewindError: the run is resumed, and other entries are left out than when it began: what it counts by their
            order would be mixed up.
    """
    file = folder / LEFT_OUT_FILE
    text = "".join(json.dumps(asdict(one)) + "\n" for one in left_out)
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    if resume and text != before:
        raise RewindError(
            f"{len(left_out)} entries of the data are left out now, which are not those of {file} when the run began: "
            "bring the data back as they were, or begin anew"
        )
    if text and text != before:
        write_whole(file, text)
        _logger.warning("the %d entries that are left out are listed in %s", len(left_out), file)
