"""Entries of a data set that cannot be used: left out, counted by reason, and listed in the run's folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rl.data.contents import add_contents
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


def for_resume(left_out: Sequence[LeftOut], files: Iterable[str | Path | None] = ()) -> dict[str, str]:
    """For the config of a run that can be resumed: what its files of data hold, and which entries are left out of them.

    What a run counts by the order of its entries would be mixed up if it went on with others, so `claim` compares this.
    Pictures are not looked at.
    """
    found = hashlib.sha256()
    given = [file for file in files if file is not None]
    for file in given:
        add_contents(file, found)
    contents = {"contents_of_data": found.hexdigest()[:16]} if given else {}
    which = json.dumps([(one.entry, one.key) for one in left_out])
    digest = hashlib.sha256(which.encode()).hexdigest()[:8]
    which_out = {"left_out": f"{len(left_out)} entries of the data ({digest})"} if left_out else {}
    return contents | which_out


def list_left_out(folder: Path, left_out: Sequence[LeftOut]) -> None:
    """Write `left_out.jsonl` into a run's folder, one entry a line; no file if there is none."""
    if left_out:
        file = folder / LEFT_OUT_FILE
        write_whole(file, "".join(json.dumps(asdict(one)) + "\n" for one in left_out))
        _logger.warning("the %d entries that are left out are listed in %s", len(left_out), file)
