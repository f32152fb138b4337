"""What an action is held against: exchanged phrases, the data set's own words, its nearest sentences."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.opposites import PAIRS, RINGS, VERBS, exchanges, forms
from rewards.rivals import DataRivals, Rivals, open_edits, same_words
from rl import RewindError

PICTURE = np.zeros((8, 8, 3), np.uint8)
SENTENCES = [
    "Move the mug to the left of the bowl",
    "Move the lemon to the right of the table",
    "Move the can to the right of the knife",
    "Open the door of the oven",
    "Paint the fence",
    "Remove the man.",
    "Delete the man",
    *(f"Show me number {n}" for n in range(40)),
]


@pytest.mark.parametrize(
    ("action", "edits"),
    [
        ("Move the mug to the left of the bowl", ["Move the mug to the right of the bowl"]),
        ("Pick up the cup.", ["Put down the cup.", "Pick down the cup."]),
        ("Opening the book", ["Closing the book"]),
        ("she closes it", ["she opens it"]),
        ("put it in front of the box", ["put it behind the box"]),
        ("Put the keys into the bowl.", ["Take the keys out of the bowl."]),
        ("she takes a cup from the shelf", ["she puts a cup onto the shelf"]),
        ("put it on top of the bus", ["take it off the bus", "put it under the bus"]),
        ("turn the blue shoe into a white one", ["turn the blue shoe into a brown one"]),
        ("paint the wall red", ["paint the wall blue", "paint the wall yellow"]),
        ("add 2 apples", ["remove 2 apples", "add 3 apples", "add 4 apples"]),
        ("Make the glass-like vase bigger!", ["Make the glass-like vase smaller!"]),
        ("hum a tune", []),
    ],
)
def test_edits_of_open_sentences(action: str, edits: list[str]) -> None:
    found = open_edits(action)
    assert set(edits) <= set(found)
    assert bool(found) == bool(edits)
    assert action not in found


def test_no_edit_names_the_same_outcome() -> None:
    """Keys taken into a bowl are in it; whatever shoe is turned into a white one, a white one is there."""
    for action, kept in [
        ("Put the keys into the bowl", "Take the keys into"),
        ("make her put the plate down", "take the plate down"),
        ("place the cup on the table", "take the cup on "),
    ]:
        assert not [edit for edit in open_edits(action) if kept in edit]
    shoes = open_edits("change the red shoe to a white one")
    shoes += DataRivals(SENTENCES).edits("change the man to a bowl")
    shoes += Rivals([]).of(PICTURE, "change the red shoe to a blue one", 8)
    assert len(shoes) > 4
    assert all(edit.startswith(("change the red shoe to a", "change the man to a")) for edit in shoes)


def test_the_table() -> None:
    assert forms("pick up") == ("pick up", "picks up", "picking up", "picked up")
    assert forms("close") == ("close", "closes", "closing", "closed")
    assert forms("push") == ("push", "pushes", "pushing", "pushed")
    table = exchanges()
    for one, other in [*PAIRS, *VERBS]:
        assert tuple(other.split()) in table[tuple(one.split())]
        assert tuple(one.split()) in table[tuple(other.split())]
    assert all(words not in others for words, others in table.items())
    assert not [word for ring in RINGS for word in ring if ring.count(word) > 1]


def test_words_that_say_the_same() -> None:
    assert same_words("Remove the man.", "delete the man")
    assert same_words("move the cup to the left", "Shift a cup to the left")
    assert not same_words("move the cup to the left", "move the cup to the right")
    assert not same_words("put the cup on the mat and the pen", "put the cup on the mat")


def test_the_data_sets_own_words() -> None:
    data = DataRivals(SENTENCES)
    edits = data.edits("Move the lemon to the left of the bowl")
    assert edits[0] == "Move the can to the left of the bowl"  # between 'the' and 'to' elsewhere
    assert "Move the lemon to the right of the bowl" in edits
    assert "Move the lemon to the left of the knife" in edits
    assert all(edit.startswith("Move the ") for edit in edits)
    near = data.nearest("Move the lemon to the left of the bowl", 3)
    assert near[0] in SENTENCES[:2]
    assert data.nearest(SENTENCES[0], 9)[0] != SENTENCES[0]
    assert data.nearest("whistle", 3) == []
    assert DataRivals([]).edits("go home") == DataRivals([]).nearest("go home") == []


def test_rivals_in_their_order() -> None:
    near = Rivals(SENTENCES).of(PICTURE, SENTENCES[0], 6, ["Move the pen", ""])
    assert near[:2] == ["Move the pen", "Move the mug to the right of the bowl"]
    assert len(near) == 6
    assert not {"Paint the fence", "Show me number 0"} & set(near)  # any picture beats those
    assert Rivals(SENTENCES).of(PICTURE, "Remove the man.", 20, ["delete the man"])[0] == "Add the man."
    first = Rivals(SENTENCES, "first").of(PICTURE, SENTENCES[4], 3)
    assert first == SENTENCES[:3]
    told = Rivals(SENTENCES, same_outcome=lambda source, one, other: "right" in other)
    assert all("right" not in rival for rival in told.of(PICTURE, SENTENCES[0], 6))
    assert len(Rivals(SENTENCES[:3]).of(PICTURE, "hum", 8)) == 3  # for want of better ones, any
    with pytest.raises(RewindError, match="near or first, not 'far'"):
        Rivals([], "far")


def test_many_sentences_are_quick_to_look_in() -> None:
    """280,000 sentences: an index once, then only the sentences that share a telling word."""
    nouns = [f"thing{n}" for n in range(3000)]
    data = DataRivals([f"move the {one} to the {other}" for one in nouns[:100] for other in nouns])
    assert len(data.nearest("move the thing5 to the thing2999", 8)) == 8
    assert sum(map(len, data._containing.values())) <= 2 * len(data.sentences)
