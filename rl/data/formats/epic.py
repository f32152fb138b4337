"""EPIC-Kitchens and tables like it: a row is a video, the seconds between which something is done, and a narration.

Times are seconds or HH:MM:SS.ff. The two pictures are the frames at start and stop, of the video or, where that is not
there, of EPIC's extracted frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rl.data.formats.dialect import Dialect, Entries, Raw

_VIDEO = ("video_id", "clip", "video", "video_path", "video_name")
_START = ("start_timestamp", "start", "start_time", "start_second", "start_sec")
_STOP = ("stop_timestamp", "stop", "end", "end_timestamp", "stop_time", "end_time", "end_second", "end_sec")
_WORDS = ("narration", "instruction", "label", "caption")
_DOWNLOADED = "EPIC-KITCHENS/{person}/"
"""Where the authors' script puts a person's files."""
_FOLDERS = ("", "videos/", "{person}/videos/", "{person}/", f"{_DOWNLOADED}videos/", "videos/train/{person}/")
_FRAMES = ("{person}/rgb_frames/{video}/", "rgb_frames/{video}/", "{video}/", f"{_DOWNLOADED}rgb_frames/{{video}}/")


def seconds(given: Any) -> float | None:
    """Seconds of 12.5, '12.5' or '00:00:12.50'; None of something else."""
    try:
        total = 0.0
        for part in str(given).split(":"):
            total = 60 * total + float(part)
    except ValueError:
        return None
    return total if math.isfinite(total) else None


def _first(entry: Raw, names: tuple[str, ...]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _fits(entry: Raw) -> bool:
    return "input" not in entry and all(any(name in entry for name in names) for names in (_VIDEO, _START, _STOP))


def _facts(entry: Raw) -> dict[str, Any]:
    video = str(_first(entry, _VIDEO))
    person = entry.get("participant_id") or video.partition("_")[0]
    return {"video": video, "person": person, "frame": _frame(entry, "start_frame")}


def _frame(entry: Raw, name: str) -> int:
    try:
        return int(entry.get(name) or 0)
    except ValueError:
        return 0


def _convert(entry: Raw, places: Mapping[str, str]) -> Entries:
    facts = _facts(entry)
    used = {*_VIDEO, *_START, *_STOP, "narration", "instruction", "verb"}
    found = {"instruction": _first(entry, _WORDS), "class": entry.get("verb"), "source": facts["video"]}
    rest = {key: value for key, value in entry.items() if key not in used}
    for key, time, frame in (("input", _START, "start_frame"), ("output", _STOP, "stop_frame")):
        if "{frame" in places["pictures"]:
            found[key] = places["pictures"].format(**facts | {"frame": _frame(entry, frame)})
        else:
            second = seconds(_first(entry, time))
            name = places["pictures"].format(**facts)
            found[key] = {"video": name, "at": f"{_first(entry, time)}" if second is None else second}
    yield {**rest, **found}


EPIC = Dialect(
    "epic",
    _fits,
    _convert,
    _facts,
    {
        "pictures": [
            "{video}",
            *(f"{folder}{{video}}.{ending}" for folder in _FOLDERS for ending in ("MP4", "mp4", "mkv", "avi")),
            *(f"{folder}frame_{{frame:010d}}.jpg" for folder in _FRAMES),
        ]
    },
)
