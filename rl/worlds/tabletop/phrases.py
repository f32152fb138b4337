"""Actions in English: several phrasings of each operation, and a parser that reads every one of them back.

Each operation has phrasings of the training data and phrasings kept for the split `test_phrasing`; the kept ones use
only words that the others use too (a test checks it).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rl.worlds.tabletop import operations as ops
from rl.worlds.tabletop.scene import COLOURS, SHAPES, colour_of, kind_of, shape_of

NUMBERS = {"one": 1, "two": 2, "three": 3}
NUMBER_WORDS = {number: word for word, number in NUMBERS.items()}


def plural(shape: str) -> str:
    """'circle' -> 'circles', 'cross' -> 'crosses'."""
    return shape + ("es" if shape.endswith("s") else "s")


PLURALS = {plural(shape): shape for shape in SHAPES}
SLOTS = {
    "colour": COLOURS,
    "shape": SHAPES,
    "shapes": tuple(PLURALS),
    "colour2": COLOURS,
    "shape2": SHAPES,
    "direction": tuple(ops.DIRECTIONS),
    "relation": (*ops.RELATIONS, "next to"),
    "corner": ops.CORNERS,
    "n": ("two", "three"),
}
Slots = dict[str, str]


@dataclass(frozen=True)
class Phrasing:
    """The phrasings of one operation.

    `seen` appear in training data, `unseen` only in the split `test_phrasing`. `build` makes the operation from the
    words in the slots, `words` the words from the operation; `matches` tells whether these phrasings express it.
    """

    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    build: Callable[[Slots], ops.Operation]
    words: Callable[[ops.Operation], Slots]
    matches: Callable[[ops.Operation], bool]


def _object(kind: int) -> Slots:
    return {"colour": colour_of(kind), "shape": shape_of(kind), "shapes": plural(shape_of(kind))}


def _kind(slots: Slots) -> int:
    return kind_of(slots["colour"], slots["shape"] if "shape" in slots else PLURALS[slots["shapes"]])


def _anchor(kind: int) -> Slots:
    return {"colour2": colour_of(kind), "shape2": shape_of(kind)}


def _is(kind: type, **fixed: object) -> Callable[[ops.Operation], bool]:
    return lambda op: isinstance(op, kind) and all(getattr(op, name) == value for name, value in fixed.items())


def _steps(op: ops.Operation) -> bool:
    return isinstance(op, ops.Move) and op.steps > 1


def _several(op: ops.Operation) -> bool:
    return isinstance(op, ops.Add) and op.count > 1


def _group(colour: bool, shape: bool) -> Callable[[ops.Operation], bool]:
    return lambda op: (
        isinstance(op, ops.RemoveAll) and (op.colour is not None) == colour and (op.shape is not None) == shape
    )


THE, A, MANY = "the {colour} {shape}", "a {colour} {shape}", "{colour} {shapes}"


def _remove_all(group: str, colour: bool, shape: bool) -> Phrasing:
    return Phrasing(
        (f"remove all {group}", f"take away all {group}", f"delete all {group}"),
        (f"remove all the {group}", f"take all {group} away"),
        lambda s: ops.RemoveAll(s.get("colour"), PLURALS[s["shapes"]] if "shapes" in s else None),
        lambda op: {"colour": op.colour or "", "shapes": plural(op.shape) if op.shape else ""},  # type: ignore[attr-defined]
        _group(colour, shape),
    )


# The lambdas below receive only operations for which `matches` holds, which the type checker cannot see.
PHRASINGS: tuple[Phrasing, ...] = (
    Phrasing(
        (f"paint {THE} {{colour2}}", f"make {THE} {{colour2}}", f"colour {THE} {{colour2}}"),
        (f"turn {THE} {{colour2}}",),
        lambda s: ops.Repaint(_kind(s), s["colour2"]),
        lambda op: {**_object(op.kind), "colour2": op.colour},  # type: ignore[attr-defined]
        _is(ops.Repaint),
    ),
    Phrasing(
        (f"turn {THE} into a {{shape2}}", f"change {THE} into a {{shape2}}", f"make {THE} a {{shape2}}"),
        (f"make {THE} into a {{shape2}}",),
        lambda s: ops.Reshape(_kind(s), s["shape2"]),
        lambda op: {**_object(op.kind), "shape2": op.shape},  # type: ignore[attr-defined]
        _is(ops.Reshape),
    ),
    Phrasing(
        (f"remove {THE}", f"take away {THE}", f"delete {THE}"),
        (f"take {THE} away",),
        lambda s: ops.Remove(_kind(s)),
        lambda op: _object(op.kind),  # type: ignore[attr-defined]
        _is(ops.Remove),
    ),
    Phrasing(
        (f"add {A} in the {{corner}} corner", f"put {A} in the {{corner}} corner"),
        (f"place {A} in the {{corner}} corner",),
        lambda s: ops.AddInCorner(_kind(s), s["corner"]),
        lambda op: {**_object(op.kind), "corner": op.corner},  # type: ignore[attr-defined]
        _is(ops.AddInCorner),
    ),
    Phrasing(
        (f"add {A}", f"put {A} on the table", f"place {A} on the table"),
        (f"add {A} on the table",),
        lambda s: ops.Add(_kind(s)),
        lambda op: _object(op.kind),  # type: ignore[attr-defined]
        _is(ops.Add, count=1),
    ),
    Phrasing(
        (f"move {THE} {{direction}}", f"slide {THE} {{direction}}", f"shift {THE} one cell {{direction}}"),
        (f"shift {THE} {{direction}}", f"move {THE} one cell {{direction}}"),
        lambda s: ops.Move(_kind(s), s["direction"]),
        lambda op: {**_object(op.kind), "direction": op.direction},  # type: ignore[attr-defined]
        _is(ops.Move, steps=1),
    ),
    Phrasing(
        (f"move {THE} {{n}} cells {{direction}}", f"slide {THE} {{n}} cells {{direction}}"),
        (f"shift {THE} {{n}} cells {{direction}}",),
        lambda s: ops.Move(_kind(s), s["direction"], NUMBERS[s["n"]]),
        lambda op: {**_object(op.kind), "direction": op.direction, "n": NUMBER_WORDS[op.steps]},  # type: ignore[attr-defined]
        _steps,
    ),
    Phrasing(
        (f"push {THE} {{direction}}",),
        (f"push {THE} one cell {{direction}}",),
        lambda s: ops.Push(_kind(s), s["direction"]),
        lambda op: {**_object(op.kind), "direction": op.direction},  # type: ignore[attr-defined]
        _is(ops.Push),
    ),
    Phrasing(
        (f"put {THE} {{relation}} the {{colour2}} {{shape2}}", f"place {THE} {{relation}} the {{colour2}} {{shape2}}"),
        (f"move {THE} {{relation}} the {{colour2}} {{shape2}}",),
        lambda s: ops.Place(_kind(s), s["relation"], kind_of(s["colour2"], s["shape2"])),
        lambda op: {**_object(op.kind), "relation": op.relation, **_anchor(op.anchor)},  # type: ignore[attr-defined]
        _is(ops.Place),
    ),
    Phrasing(
        (f"add {{n}} {MANY}", f"put {{n}} {MANY} on the table"),
        (f"place {{n}} {MANY} on the table",),
        lambda s: ops.Add(_kind(s), NUMBERS[s["n"]]),
        lambda op: {**_object(op.kind), "n": NUMBER_WORDS[op.count]},  # type: ignore[attr-defined]
        _several,
    ),
    _remove_all("{colour} objects", colour=True, shape=False),
    _remove_all("{shapes}", colour=False, shape=True),
    _remove_all(MANY, colour=True, shape=True),
    Phrasing(
        (f"remove one of the {MANY}", f"take away one of the {MANY}"),
        (f"delete one of the {MANY}",),
        lambda s: ops.RemoveOne(_kind(s)),
        lambda op: _object(op.kind),  # type: ignore[attr-defined]
        _is(ops.RemoveOne),
    ),
)


def say(op: ops.Operation, rng: np.random.Generator, unseen: bool = False) -> str:
    """An operation in words, in one of its phrasings drawn by `rng`."""
    phrasing = next(p for p in PHRASINGS if p.matches(op))
    templates = phrasing.unseen if unseen else phrasing.seen
    return templates[int(rng.integers(len(templates)))].format(**phrasing.words(op))


def all_templates(unseen: bool) -> list[str]:
    """Every phrasing with its slots unfilled."""
    return [template for phrasing in PHRASINGS for template in (phrasing.unseen if unseen else phrasing.seen)]


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[re.Pattern[str], Phrasing]]:
    slot = {name: f"(?P<{name}>{'|'.join(map(re.escape, words))})" for name, words in SLOTS.items()}
    return [
        (re.compile(template.format(**slot)), phrasing)
        for phrasing in PHRASINGS
        for template in (*phrasing.seen, *phrasing.unseen)
    ]


@lru_cache(maxsize=65536)
def parse(action: str) -> ops.Operation | None:
    """The operation that a sentence names, or None if it is no sentence of this world."""
    text = " ".join(action.lower().strip().rstrip(".").split())
    for pattern, phrasing in _patterns():
        found = pattern.fullmatch(text)
        if found:
            return phrasing.build(found.groupdict())
    return None
