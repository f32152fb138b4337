"""Pico-Banana-400K: JSON lines, single edits (sft.jsonl) and several turns on one photograph (multi-turn.jsonl).

Source photographs are Open Images', named by their URL, by `local_input_image` (what Apple's script that maps URLs
writes) or by `open_image_input_file`. Each turn becomes a triplet that starts from the picture of the turn before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rl.data.formats.dialect import Dialect, Entries, Raw

_SOURCES = ("", "images/openimages/", "openimages/", "openimage_source_images/", "source_images/")
_PACKED = ("openimage_source_images/train_0/", "openimage_source_images/train_1/")
_USED = {
    *("open_image_input_url", "open_image_input_file", "original_input_image_file", "local_input_image", "url"),
    *("output_image", "summarized_text", "edit_type", "files", "metadata_edit_turn_prompts"),
}
_EDITED = ("", "images/sft/", "images/", "images/multi-turn/")


def _original(entry: Raw) -> Raw:
    """Where an entry says what the source photograph is."""
    files = entry.get("files")
    first = [one for one in files if one.get("id") == "original_input_image"] if isinstance(files, list) else []
    return {**entry, **(first[0] if first else {})}


def _source(entry: Raw) -> tuple[str, bool]:
    """The name of the source photograph, and whether that is its path."""
    original = _original(entry)
    if local := original.get("local_input_image"):
        return str(local), True
    named = original.get("open_image_input_file") or original.get("original_input_image_file")
    url = original.get("open_image_input_url") or original.get("url") or ""
    return str(named or url.rpartition("/")[2]), False


def _turns(entry: Raw) -> list[str]:
    """The edited pictures in their order; the last is called `final_image` and has its number in its name."""
    numbered = []
    for one in entry.get("files") or ():
        text = one.get("id") if str(one.get("id")).startswith("edit_turn") else one.get("url")
        number = re.search(r"turn_?(\d+)", str(text))
        if one.get("id") != "original_input_image" and number and one.get("url"):
            numbered.append((int(number[1]), str(one["url"])))
    return [url for _, url in sorted(numbered)]


def _fits(entry: Raw) -> bool:
    single = "output_image" in entry and any(
        name in entry for name in ("open_image_input_url", "local_input_image", "open_image_input_file")
    )
    return single or ("files" in entry and "metadata_edit_turn_prompts" in entry)


def _facts(entry: Raw) -> dict[str, Any]:
    edited = _turns(entry) or [str(entry.get("output_image"))]
    name, is_path = _source(entry)
    return {"source": "" if is_path else name, "edited": edited[0]}


def _convert(entry: Raw, places: Mapping[str, str]) -> Entries:
    name, is_path = _source(entry)
    rest = {key: value for key, value in entry.items() if key not in _USED}
    source = name if is_path else places["source"].format(source=name) if name else None
    if "files" not in entry:
        words = entry.get("summarized_text") or entry.get("text")
        output = entry.get("output_image")
        found = {"instruction": words, "input": source, "task": entry.get("edit_type")}
        found["output"] = None if output is None else places["edited"].format(edited=output)
        yield rest | found
        return
    prompts, turns = entry["metadata_edit_turn_prompts"], _turns(entry)
    if not turns or len(turns) != len(prompts):
        yield {"source": f"{len(turns)} pictures and {len(prompts)} turns"}  # cannot be used, and is counted as such
        return
    pictures = [source, *(places["edited"].format(edited=turn) for turn in turns)]
    for turn, words in enumerate(prompts):
        yield rest | {"instruction": words, "input": pictures[turn], "output": pictures[turn + 1], "turn": turn + 1}


PICO_BANANA = Dialect(
    "pico_banana",
    _fits,
    _convert,
    _facts,
    {
        "source": [f"{folder}{{source}}" for folder in (*_SOURCES, *_PACKED)],
        "edited": [f"{folder}{{edited}}" for folder in _EDITED],
    },
)
