"""Something-Something: labels as JSON, videos beside them; a triplet is a video's first and last frame.

An entry is {"id": "78687", "label": "holding potato next to box", "template": "Holding [something] next to
[something]", "placeholders": ["potato", "box"]}; test entries have an id alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rl.data.formats.dialect import Dialect, Entries, Raw

_SLOT = re.compile(r"\[[^\]]*\]")
_FOLDERS = ("", "videos/", "20bn-something-something-v2/", "something-something-v2/")


def sentence(entry: Raw) -> str | None:
    """The template with its placeholders filled in; without them the label."""
    template, placeholders = entry.get("template"), entry.get("placeholders")
    if isinstance(template, str) and isinstance(placeholders, list) and placeholders:
        slots = _SLOT.findall(template)
        if len(slots) == len(placeholders):
            words = iter(placeholders)
            return _SLOT.sub(lambda _: str(next(words)), template)
    label = entry.get("label")
    return label if isinstance(label, str) else None


def _fits(entry: Raw) -> bool:
    return "id" in entry and "input" not in entry and ("template" in entry or "label" in entry or len(entry) == 1)


def _convert(entry: Raw, places: Mapping[str, str]) -> Entries:
    video = places["video"].format(id=entry["id"])
    found: dict[str, Any] = {"instruction": sentence(entry), "input": {"video": video, "at": 0.0}}
    found |= {"output": {"video": video, "at": "last"}, "source": str(entry["id"])}
    if isinstance(entry.get("template"), str):
        found["class"] = re.sub(r"[\[\]]", "", entry["template"])
    yield {key: value for key, value in entry.items() if key not in ("id", "template")} | found


SOMETHING = Dialect(
    "something",
    _fits,
    _convert,
    lambda entry: {"id": entry.get("id")},
    {"video": [f"{folder}{{id}}.{ending}" for folder in _FOLDERS for ending in ("webm", "mp4", "avi")]},
)
