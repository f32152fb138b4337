"""Words whose exchange names another action in the same phrasing, for sentences of any data set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

PAIRS = (
    # directions and places
    ("left", "right"),
    ("up", "down"),
    ("upwards", "downwards"),
    ("upward", "downward"),
    ("above", "below"),
    ("over", "under"),
    ("top", "bottom"),
    ("on top of", "under"),
    ("in front of", "behind"),
    ("front", "back"),
    ("forward", "backward"),
    ("forwards", "backwards"),
    ("inside", "outside"),
    ("into", "out of"),
    ("onto", "off"),
    ("towards", "away from"),
    ("toward", "away from"),
    ("closer to", "further from"),
    ("next to", "away from"),
    ("clockwise", "counterclockwise"),
    ("near", "far from"),
    ("horizontally", "vertically"),
    # states
    ("open", "closed"),
    ("opened", "closed"),
    ("full", "empty"),
    ("wet", "dry"),
    ("big", "small"),
    ("bigger", "smaller"),
    ("large", "small"),
    ("larger", "smaller"),
    ("tall", "short"),
    ("long", "short"),
    ("wide", "narrow"),
    ("bright", "dark"),
    ("brighter", "darker"),
    ("light", "dark"),
    ("high", "low"),
    ("higher", "lower"),
    ("hot", "cold"),
    ("old", "new"),
    ("clean", "dirty"),
    ("day", "night"),
    ("happy", "sad"),
    ("first", "last"),
    ("more", "less"),
)
"""Both ways; phrases too. Their order is that of the edits."""

VERBS = (
    ("open", "close"),
    ("add", "remove"),
    ("pick up", "put down"),
    ("turn on", "turn off"),
    ("switch on", "switch off"),
    ("push", "pull"),
    ("lift", "lower"),
    ("raise", "lower"),
    ("lean", "straighten"),
    ("stand up", "sit down"),
    ("fill", "empty"),
    ("cover", "uncover"),
    ("fold", "unfold"),
    ("wrap", "unwrap"),
    ("plug", "unplug"),
    ("lock", "unlock"),
    ("screw", "unscrew"),
    ("wash", "dry"),
    ("pour", "scoop"),
    ("attach", "detach"),
    ("insert", "remove"),
    ("drop", "catch"),
    ("throw", "catch"),
    ("give", "take"),
    ("tear", "fold"),
    ("squeeze", "stretch"),
    ("start", "stop"),
    ("enter", "exit"),
    ("show", "hide"),
    ("increase", "decrease"),
    ("heat", "cool"),
    ("peel", "cut"),
    ("wear", "take off"),
)
"""The same of verbs, in each of their forms."""

MOVES = (
    ("put", "on top of", "take", "off"),
    ("put", "into", "take", "out of"),
    ("put", "onto", "take", "off"),
    ("put", "in", "take", "out of"),
    ("put", "on", "take", "off"),
    ("take", "out of", "put", "into"),
    ("take", "off", "put", "onto"),
    ("take", "from", "put", "onto"),
)
"""A verb and the place that it leads to, exchanged together: keys that are taken *into* a bowl are in it, too."""

CHANGES = ("turn", "change", "transform", "convert")
"""Verbs whose outcome is what stands behind 'into' or 'to'; what stands before it only says what they are done to."""

RINGS = (
    ("red", "blue", "yellow", "purple", "green", "orange", "black", "pink", "white", "brown", "grey"),
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("1", "2", "3", "4", "5", "6", "7", "8", "9", "10"),
    ("wooden", "metal", "plastic"),
)
"""Of which any two exclude each other: a word is exchanged for the two that follow it."""

SAME = (
    ("move", "shift", "slide"),
    ("put", "place", "set"),
    ("remove", "delete", "erase"),
    ("turn", "change", "make", "transform", "convert"),
    ("picture", "image", "photo", "scene"),
    ("further", "farther"),
    ("gray", "grey"),
    ("person", "him", "her", "man", "woman"),
)
"""Words that say the same in an instruction: sentences that differ in them alone name one outcome."""

_IRREGULAR = {
    "put": ("puts", "putting", "put"),
    "take": ("takes", "taking", "took"),
    "cut": ("cuts", "cutting", "cut"),
    "sit": ("sits", "sitting", "sat"),
    "stand": ("stands", "standing", "stood"),
    "throw": ("throws", "throwing", "threw"),
    "catch": ("catches", "catching", "caught"),
    "give": ("gives", "giving", "gave"),
    "tear": ("tears", "tearing", "tore"),
    "hide": ("hides", "hiding", "hid"),
    "wear": ("wears", "wearing", "wore"),
    "unwrap": ("unwraps", "unwrapping", "unwrapped"),
    "wrap": ("wraps", "wrapping", "wrapped"),
    "plug": ("plugs", "plugging", "plugged"),
    "unplug": ("unplugs", "unplugging", "unplugged"),
    "drop": ("drops", "dropping", "dropped"),
    "stop": ("stops", "stopping", "stopped"),
    "empty": ("empties", "emptying", "emptied"),
    "dry": ("dries", "drying", "dried"),
}


def forms(verb: str) -> tuple[str, ...]:
    """A verb, or its first word, as it is, with -s, with -ing and in the past: 'pick up', 'picks up', ..."""
    first, space, rest = verb.partition(" ")
    found = _IRREGULAR.get(first)
    if found is None:
        stem = first.removesuffix("e")
        s = first + ("es" if first.endswith(("s", "sh", "ch", "x")) else "s")
        found = (s, f"{stem}ing", f"{stem}ed")
    return (verb, *(form + space + rest for form in found))


@cache
def exchanges() -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """Words of a phrase -> the phrases that it may be exchanged for."""
    found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for one, other in _both_ways():
        options = found.setdefault(tuple(one.split()), [])
        if tuple(other.split()) not in options:
            options.append(tuple(other.split()))
    return found


def _both_ways() -> Iterator[tuple[str, str]]:
    for one, other in PAIRS:
        yield one, other
        yield other, one
    for a, b in VERBS:
        pairs = list(zip(forms(a), forms(b), strict=True))
        ambiguous = pairs[3][0] == a or pairs[3][1] == b  # 'put' is its own past
        for one, other in pairs[: 3 if ambiguous else 4]:
            yield one, other
            yield other, one
    for ring in RINGS:
        for place, word in enumerate(ring):
            for step in (1, 2):
                yield word, ring[(place + step) % len(ring)]
