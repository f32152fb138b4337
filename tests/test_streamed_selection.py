"""Selection from files of any length: golden choices, the plain loop, and what each rule passes over."""

from __future__ import annotations

import io
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rl.data.labels.streamed_selection as streamed
from rl.data.labels.near import Seen, picture_hash
from rl.data.labels.selection_rules import Rules
from rl.data.labels.streamed_selection import Selection, select_entries
from rl.errors import RewindError
from rl.triplets import Triplet
from rl.worlds.tabletop import Tabletop

GREY = np.zeros((4, 4, 3), np.uint8)


def select(entries: Sequence[Any], k: int, rules: Rules, unusable: Sequence[int] = ()) -> Selection:
    def look(raw: dict[int, Any]) -> dict[int, Triplet]:
        return {n: Triplet(GREY, entry["instruction"], GREY) for n, entry in raw.items() if n not in unusable}

    return select_entries(lambda: entries, look, lambda n, entry: str(entry["instruction"]), k, rules, "data.json")


def entry(action: str, score: float, label: str | None = None, **more: Any) -> dict[str, Any]:
    return {"instruction": action, "input": "x", "score": score, **({"class": label} if label else {}), **more}


GOLDEN = [
    entry("push the cup", -1.0, "a", confidence=0.9, motion=1.0),
    entry("push the cup", -2.0, "a", confidence=0.2, motion=9.0),
    entry("lift the cup", -3.0, "b", confidence=0.8, motion=2.0),
    entry("turn", -0.5, "a", confidence=0.7, motion=8.0),
    entry("lift the big red cup", -0.1, "b", confidence=0.6, motion=3.0),
    entry("push the tray", -4.0, "c", confidence=0.5, motion=7.0),
]


@pytest.mark.parametrize(
    ("rules", "chosen", "passed_over"),
    [
        (Rules(), [3, 4, 5, 0, 2, 1], {}),  # a: 3 0 1, b: 4 2, c: 5
        (Rules(by="confidence"), [0, 2, 5, 3, 4, 1], {}),
        (Rules(least={"score": -2.0}), [3, 4, 0, 1], {"score below -2": 2}),
        (
            Rules(least={"score": -3.5, "confidence": 0.65}),
            [3, 2, 0],
            {"score below -3.5": 1, "confidence below 0.65": 2},
        ),
        (Rules(words=(2, 4)), [0, 2, 5, 1], {"fewer than 2 words": 1, "more than 4 words": 1}),
        (Rules(balance="none"), [4, 3, 0, 1, 2, 5], {}),
        (Rules(balance="verb"), [4, 0, 3, 2, 1, 5], {}),  # lift: 4 2, push: 0 1 5, turn: 3
        (Rules(balance="action"), [4, 2, 0, 5, 3, 1], {}),
        (Rules(max_per_class=1), [3, 4, 5], {}),
        (Rules(max_per_action=1, balance="none"), [4, 3, 0, 2, 5], {"beyond max_per_action": 1}),
        (Rules(motion_bins=2), [0, 3, 4, 5, 1, 2], {}),  # the median is 5: a still: 0, a moving: 3 1, b still: 4 2
        (Rules(near_duplicates=0), [3, 4, 5, 0, 2], {"near-duplicate": 1}),  # all pictures are one here
    ],
)
def test_golden_choices(rules: Rules, chosen: list[int], passed_over: dict[str, int]) -> None:
    found = select(GOLDEN, 10, rules)
    assert [*found.chosen] == chosen
    assert dict(found.passed_over) == passed_over
    assert found.total == len(GOLDEN)
    assert [*select(GOLDEN, 2, rules).chosen] == chosen[:2]


def plain_loop(entries: Sequence[Any], k: int, rules: Rules, unusable: set[int]) -> list[int]:
    """The rules as one reads them, with all entries at hand."""
    left: dict[Any, list[int]] = {}
    for number, one in enumerate(entries):
        if one["score"] >= rules.least.get("score", -np.inf):
            left.setdefault(rules.class_of(one, one["instruction"]), []).append(number)
    for numbers in left.values():
        numbers.sort(key=lambda n: -entries[n]["score"])
    chosen: list[int] = []
    of_class, of_action = Counter[Any](), Counter[str]()
    while len(chosen) < k and any(left.values()):
        for label in sorted(left):
            while left[label] and len(chosen) < k:
                if of_class[label] >= (rules.max_per_class or 10**9):
                    left[label] = []
                    break
                number = left[label].pop(0)
                action = entries[number]["instruction"]
                if number in unusable or of_action[action] >= (rules.max_per_action or 10**9):
                    continue
                chosen.append(number)
                of_class[label] += 1
                of_action[action] += 1
                break
    return chosen


@pytest.mark.parametrize("seed", range(6))
def test_streaming_equals_the_plain_loop(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where so little is kept that the file has to be read again, and half of the entries cannot be used."""
    monkeypatch.setattr(streamed, "BLOCK", 16)
    monkeypatch.setattr(streamed, "SPARE", 4)
    rng = np.random.default_rng(seed)
    verbs = ["push", "lift", "turn", "take"]
    entries = [
        entry(
            f"{verbs[int(rng.integers(4))]} {rng.integers(30)}", int(rng.integers(-50, 0)) / 10, f"c{rng.integers(5)}"
        )
        for _ in range(800)
    ]
    unusable = {int(n) for n in rng.choice(800, 400, replace=False)}
    each = [
        Rules(),
        Rules(balance="verb", max_per_action=3),
        Rules(least={"score": -2.0}, max_per_class=9),
        Rules(balance="none", max_per_action=2, max_per_class=40),
    ]
    for rules in each:
        for k in (1, 30, 170, 900):
            found = select(entries, k, rules, sorted(unusable))
            assert [*found.chosen] == plain_loop(entries, k, rules, unusable)
            assert found.classes == [rules.class_of(entries[n], entries[n]["instruction"]) for n in found.chosen]


def test_memory_does_not_grow_with_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "BLOCK", 1000)

    def peak(count: int) -> int:
        def read() -> Iterator[Any]:
            scores = np.random.default_rng(0).normal(size=count)
            return (entry(f"push {n}", float(score), f"c{n % 7}") for n, score in enumerate(scores))

        tracemalloc.start()
        select_entries(
            read,
            lambda raw: {n: Triplet(GREY, one["instruction"]) for n, one in raw.items()},
            lambda n, one: str(one["instruction"]),
            50,
            Rules(),
        )
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found - count * 8  # the scores of this test

    assert peak(40_000) < 1.1 * peak(10_000)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Rules(by="confidence"), r"data.json, triplet 1 has no 'confidence': label it with label.py --labelled"),
        (Rules(motion_bins=2), r"triplet 0 has no 'motion': motion is measured by mine_videos.py"),
        (Rules(by="beauty"), r"triplet 0 has no 'beauty': check --by"),
        (Rules(), r"triplet 2 has no finite score to be selected by, but nan"),
    ],
)
def test_entries_without_a_number_are_named(rules: Rules, told: str) -> None:
    rows = [entry("a", -1.0, confidence=0.5), entry("b", -1.0), entry("c", float("nan"))]
    with pytest.raises(RewindError, match=told):
        select(rows, 2, rules)
    with pytest.raises(RewindError, match="k must be at least 1"):
        select(rows, 0, rules)


@pytest.mark.parametrize(
    "wrong",
    [
        {"balance": "x"},
        {"max_per_class": 0},
        {"max_per_action": 0},
        {"motion_bins": 0},
        {"words": (3, 2)},
        {"near_duplicates": 510},
    ],
)
def test_wrong_rules(wrong: dict[str, Any]) -> None:
    with pytest.raises(RewindError):
        Rules(**wrong)


def test_near_duplicates_are_seen_through_jpeg_and_size_and_other_scenes_are_not() -> None:
    world, rng = Tabletop(), np.random.default_rng(0)
    pictures = [world.render(world.sample_scene(rng), rng) for _ in range(20)]
    hashes = [picture_hash(picture) for picture in pictures]
    apart = [(a ^ b).bit_count() for n, a in enumerate(hashes) for b in hashes[:n]]
    assert min(apart) > 40
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).resize((96, 96)).save(file, "JPEG", quality=80)
        assert (picture_hash(Image.open(file)) ^ picture_hash(picture)).bit_count() < 20
    seen = Seen(32)
    assert seen.take(Triplet(pictures[0], "Push the cup.", pictures[1]))
    assert not seen.take(Triplet(pictures[0], "push the cup", pictures[1]))
    assert seen.take(Triplet(pictures[0], "lift the cup", pictures[1]))
    assert seen.take(Triplet(pictures[0], "push the cup", pictures[2]))
    assert seen.take(Triplet(pictures[0], "push the cup"))


def test_near_duplicates_of_one_sentence_do_not_hide_others_of_it() -> None:
    """Of a sentence only the best rows are kept, and if those all show the same, the file is read again for others."""
    entries = [entry("push the cup", -0.001 * n, picture=0 if n < 100 else n) for n in range(110)]
    rng = np.random.default_rng(0)
    pictures = {n: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for n in (0, *range(100, 110))}

    def look(raw: dict[int, Any]) -> dict[int, Triplet]:
        return {n: Triplet(pictures[e["picture"]], e["instruction"], pictures[e["picture"]]) for n, e in raw.items()}

    for most in (None, 5):
        rules = Rules(balance="none", near_duplicates=8, max_per_action=most)
        found = select_entries(lambda: entries, look, lambda n, e: str(e["instruction"]), 5, rules, "data.json")
        assert len(found.chosen) == 5, most
