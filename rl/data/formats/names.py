"""Names of columns: those that data sets are known to use for a triplet's parts, and those that a user maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl.errors import RewindError
from rl.words import did_you_mean

OURS = ("instruction", "action", "input", "output", "task", "class", "score", "source")
OTHERS: dict[str, tuple[str, ...]] = {
    "input": ("source_image", "input_image", "original_image", "source_img", "src_img", "before"),
    "output": ("target_image", "output_image", "edited_image", "target_img", "tgt_img", "after"),
    "instruction": ("edit_instruction", "edit_prompt_rewrite_instruction", "edit_prompt", "edit"),
    "task": ("edit_type",),
}
"""What a part of a triplet is called elsewhere, the first of several first (ByteMorph has two wordings)."""
ENDINGS = ("", "_file_name", "_path")


def parse_columns(given: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """`["input=before", "output=after"]`, or that as a mapping: the data's name of a column by ours.

    Raises:
        RewindError: no such form, or a part that a triplet does not have.
    """
    pairs: dict[str, str] = dict(given) if isinstance(given, Mapping) else {}
    for item in [] if isinstance(given, Mapping) else given or ():
        ours, equals, theirs = str(item).partition("=")
        if not (ours and equals and theirs):
            raise RewindError(f"--columns takes OURS=THEIRS, e.g. input=before, not '{item}'")
        if pairs.get(ours, theirs) != theirs:
            raise RewindError(f"--columns gives '{ours}' two columns, '{pairs[ours]}' and '{theirs}': leave one out")
        pairs[ours] = theirs
    for ours in pairs:
        if ours not in OURS:
            near = did_you_mean(ours, OURS)
            raise RewindError(f"--columns: a triplet has no '{ours}'{near}: its parts are {', '.join(OURS)}")
    return pairs


def renaming(keys: Sequence[str], columns: Mapping[str, str], what: str, known: bool = True) -> dict[str, str]:
    """The data's names of columns by ours, as they are mapped or, with `known`, as data sets are known to call them.

    Raises:
        RewindError: a column that is mapped and not there.
    """
    for ours, theirs in columns.items():
        if theirs not in keys:
            near = did_you_mean(theirs, keys)
            raise RewindError(
                f"--columns {ours}={theirs}: {what} has no column '{theirs}'{near}: it has {', '.join(keys) or 'none'}"
            )
    found = dict(columns)
    taken = set(columns.values())
    for ours, others in OTHERS.items() if known else ():
        if ours in found or (ours in keys and ours not in taken):
            continue
        if ours == "instruction" and ("prompt" in keys or "action" in found):
            continue
        named = (f"{name}{ending}" for name in (ours, *others) for ending in ENDINGS)
        if other := next((name for name in named if name in keys and name not in taken), None):
            found[ours] = other
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def renamed(entry: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """An entry under our names; what it called so before, it no longer has."""
    if not names:
        return dict(entry)
    rest = {key: value for key, value in entry.items() if key not in names and key not in names.values()}
    return rest | {ours: entry[theirs] for ours, theirs in names.items() if theirs in entry}
