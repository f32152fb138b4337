"""What a judge answers: two marks, read from a model's words and kept on disk."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rl.errors import RewindError

MOST_BRACES = 1000
"""So many at the end of an answer are looked at: each could be where an object begins."""
_logger = logging.getLogger("rewards")


class Marks(NamedTuple):
    """Two marks from 0 to 10: was the action done, and did the rest stay as it was?"""

    editing: float
    minimality: float

    @property
    def score(self) -> float:
        """The judge's score of arXiv 2506.06006, min(editing, minimality), as 0 to 1."""
        return min(self) / 10


def read_marks(text: str) -> Marks | None:
    """The marks in a model's answer, or None if it does not give both, in range.

    They stand in a JSON object. Words or a fence may stand around it, braces in its texts, a comma after its last
    field. Of several objects with both marks the last one counts, for a model may think first; an outer one counts
    before what it holds.
    """
    text = re.sub(r",(\s*[}\]])", r"\1", text)
    found, end = None, 0
    for brace in [match.start() for match in re.finditer("{", text)][-MOST_BRACES:]:
        if brace >= end:
            try:
                read, stop = json.JSONDecoder().raw_decode(text, brace)
            except (ValueError, RecursionError):
                continue
            if all(name in read for name in Marks._fields):
                found, end = _marks_of(read), stop
    return found


def _marks_of(found: Any) -> Marks | None:
    if not isinstance(found, dict):
        return None
    marks: list[Any] = [found.get(name) for name in Marks._fields]
    # True and "7" are no marks, and no comparison with NaN holds.
    if all(type(mark) in (int, float) and 0 <= mark <= 10 for mark in marks):
        return Marks(*(float(mark) for mark in marks))
    return None


class MarksCache:
    """Marks on disk, a small JSON file each; many processes may share a folder."""

    def __init__(self, folder: Path) -> None:
        try:
            self.folder = folder.expanduser()
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            raise RewindError(f"the judge's cache {folder} cannot be made ({error}): give another folder") from error

    def get(self, key: str) -> Marks | None:
        """The marks, or None if there are none that can be read: then the judge is asked again."""
        file = self._file(key)
        try:
            marks = _marks_of(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError):
            marks = None
        if marks is None:
            _logger.warning("%s in the judge's cache cannot be read: the judge is asked again", file)
        return marks

    def put(self, key: str, marks: Marks, model: str, action: str) -> None:
        """Write an entry at once or not at all, so that an interrupted run leaves no half of one."""
        file = self._file(key)
        entry = {**marks._asdict(), "model": model, "action": action}
        try:
            file.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
                temporary.write(json.dumps(entry))
            Path(temporary.name).replace(file)
        except OSError as error:
            raise RewindError(f"the judge's cache cannot be written ({error}): make room, or give another") from error

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
