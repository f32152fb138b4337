"""Other actions to hold the commanded one against: in comparable phrasing, and never one with the same outcome."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import zip_longest
from math import log

from rewards.opposites import CHANGES, MOVES, SAME, exchanges, forms
from rl.errors import RewindError
from rl.pictures import Picture
from rl.words import words_of

SameOutcome = Callable[[Picture, str, str], bool]
"""`(source_picture, a, b)`: whether two sentences name one outcome, where a world can tell."""

SWAPS = (
    ("left", "right"),
    ("up", "down"),
    ("above", "under"),
    ("above", "below"),
    ("add", "remove"),
    ("open", "close"),
    ("into", "out of"),
    ("red", "blue"),
    ("blue", "yellow"),
    ("green", "purple"),
    ("white", "black"),
    ("circle", "square"),
    ("star", "cross"),
    ("triangle", "ring"),
)
"""Words whose exchange names another action in the same phrasing, for sentences like the tabletop's."""
COMMON = 0.1
"""A word in more of the sentences than that tells nothing of what is alike."""


def word_edits(action: str) -> list[str]:
    """The action with one word exchanged for its counterpart, for each word of `SWAPS` in it."""
    words, found = action.split(), []
    for one, other in [*SWAPS, *((b, a) for a, b in SWAPS)]:
        if one in words:
            found.append(" ".join(other if word == one else word for word in words))
    return list(dict.fromkeys(found))


def open_edits(action: str) -> list[str]:
    """The action with one phrase exchanged, for each in the table (`rewards.opposites`): directions, states, verbs,
    colours, numbers; before those, put somewhere for taken from there. Longer phrases first; capitals and punctuation
    stay, and so does what only says to what something is done.
    """
    pieces, places = _pieces(action)
    words, table = [pieces[number].lower() for number in places], exchanges()
    found = _moved_back(pieces, places, words)
    for length in (3, 2, 1):
        for start in range(_outcome_from(words), len(words) - length + 1):
            for other in table.get(tuple(words[start : start + length]), ()):
                found.append(_exchanged(pieces, places[start], places[start + length - 1], " ".join(other)))
    return list(dict.fromkeys(found))


def _moved_back(pieces: Sequence[str], places: Sequence[int], words: Sequence[str]) -> list[str]:
    """What was put somewhere taken from there, and what was taken put back: verb and place are exchanged together."""
    for verb, place, other_verb, other_place in MOVES:
        length = len(place.split())
        for one, other in zip(forms(verb), forms(other_verb), strict=True):
            if one not in words:
                continue
            first = words.index(one)
            for start in range(first + 1, len(words) - length + 1):
                if list(words[start : start + length]) == place.split():
                    text = _exchanged(pieces, places[start], places[start + length - 1], other_place)
                    return [_exchanged(_pieces(text)[0], places[first], places[first], other)]
    return []


def _outcome_from(words: Sequence[str]) -> int:
    """The first word that tells an outcome: in 'turn the blue shoe into a white one' the one behind 'into'. Another
    shoe turned into it would be the same outcome.
    """
    marks = [words.index(mark) for mark in ("into", "to") if mark in words]
    return min(marks) + 1 if marks and words[0] in CHANGES else 0


def _pieces(text: str) -> tuple[list[str], list[int]]:
    """A text as words and what stands between them, and the places of the words."""
    pieces = re.findall(r"[^\W_]+|[\W_]+", text)
    return pieces, [number for number, piece in enumerate(pieces) if piece[0].isalnum()]


def _exchanged(pieces: Sequence[str], first: int, last: int, text: str) -> str:
    text = text.capitalize() if pieces[first][0].isupper() and first < 2 else text
    return "".join([*pieces[:first], text, *pieces[last + 1 :]])


def same_words(one: str, other: str) -> bool:
    """Whether two sentences name one outcome as far as words tell: the same ones, or `SAME` in their place."""
    return _meant(one) == _meant(other)


def _meant(text: str) -> Counter[str]:
    return Counter(_CANONICAL.get(word, word) for word in words_of(text) if word not in _EMPTY)


_CANONICAL = {word: group[0] for group in SAME for word in group}
_EMPTY = frozenset(("a", "an", "the", "to", "of", "please", "have", "there", "be", "is", "it", "and", "in", "on"))


class DataRivals:
    """Rivals from the sentences of a data set: one word exchanged for another that stands between the same two
    neighbours elsewhere, and the sentences that share the most telling words.

    Args:
        sentences: of the data set; each counts once.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = list(dict.fromkeys(sentences))

    @cached_property
    def _words(self) -> list[list[str]]:
        return [words_of(sentence) for sentence in self.sentences]

    @cached_property
    def _between(self) -> dict[tuple[str, str], Counter[str]]:
        """Two neighbours -> the words between them, the begin and the end of a sentence among the neighbours."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for words in self._words:
            padded = ["", *words, ""]
            for before, word, after in zip(padded[:-2], words, padded[2:], strict=True):
                found.setdefault((before, after), Counter())[word] += 1
        return found

    @cached_property
    def _containing(self) -> dict[str, list[int]]:
        """A word that tells something -> the sentences that hold it."""
        found: dict[str, list[int]] = {}
        for number, words in enumerate(self._words):
            for word in set(words) - _EMPTY:
                found.setdefault(word, []).append(number)
        most = max(3, COMMON * len(self.sentences))
        return {word: numbers for word, numbers in found.items() if len(numbers) <= most}

    def edits(self, action: str, most: int = 4) -> list[str]:
        """The action with one word exchanged for another of the same part of other sentences, the most usual first.

        A word and what replaces it are both words that tell something; at most `most` of each place. The first word,
        mostly a verb, stays: what may follow a verb is no matter of its neighbour alone (`open_edits` knows verbs).
        """
        pieces, places = _pieces(action)
        words = [pieces[place].lower() for place in places]
        by_place: list[list[str]] = []
        for number in range(max(1, _outcome_from(words)), len(words)):
            if words[number] in _EMPTY:
                continue
            others = self._between.get((words[number - 1], [*words, ""][number + 1]), Counter())
            options = sorted((-count, other) for other, count in others.items() if other not in {*words, *_EMPTY})
            place = places[number]
            by_place.append([_exchanged(pieces, place, place, other) for _, other in options[:most]])
        return list(_in_turns(by_place))

    def nearest(self, action: str, most: int = 8) -> list[str]:
        """The sentences that share the most telling words with the action, the nearest first.

        By the sum of log(N / sentences with the word) over shared words, divided by the root of the sentence's length.
        """
        total, score = len(self.sentences), Counter[int]()
        for word in set(words_of(action)):
            numbers = self._containing.get(word, [])
            for number in numbers:
                score[number] += log(1 + total / len(numbers))  # type: ignore[assignment]
        ranked = sorted(score, key=lambda n: (-score[n] / len(self._words[n]) ** 0.5, n))
        return [self.sentences[n] for n in ranked if self._words[n] != words_of(action)][:most]


def _in_turns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first of each row, then the second of each, and so on."""
    for place in range(max(map(len, rows), default=0)):
        yield from (row[place] for row in rows if place < len(row))


RIVALS = ("near", "first")


class Rivals:
    """What else might have happened, for one action after the other.

    Args:
        sentences: of the data set.
        kind: `near`: phrases exchanged by a table, words exchanged for others of the same part of the sentence, the
            data set's nearest sentences, and only then any; what differs by words that say the same is left out.
            `first`: words exchanged by a table made for the tabletop, then the data set's sentences in their order,
            which on an open vocabulary are beaten by any picture.
        same_outcome: where a world can tell.

    Raises:
        RewindError: another kind.
    """

    def __init__(self, sentences: Sequence[str], kind: str = "near", same_outcome: SameOutcome | None = None) -> None:
        if kind not in RIVALS:
            raise RewindError(f"rivals are {' or '.join(RIVALS)}, not '{kind}'")
        self.sentences, self.kind, self.same_outcome = list(sentences), kind, same_outcome
        self._data = DataRivals(self.sentences)

    def of(self, source: Picture, action: str, count: int, said: Sequence[str] = (), start: int = 0) -> list[str]:
        """The rivals of an action: all of what was `said`, and others until there are `count`.

        `start` is the first of the data set's sentences where they come in their order.
        """
        if self.kind == "first":
            offered = (*said, *word_edits(action), *self.sentences[start:], *self.sentences[:start])
            return pick_rivals(source, action, offered, count, self.same_outcome, always=len(said))
        words = words_of(action)
        told = _outcome_from(words)
        swapped = [edit for edit in word_edits(action) if words_of(edit)[:told] == words[:told]]
        offered = (*said, *swapped, *open_edits(action))
        # Half of what is left for the data's own words, else a sentence of many known words has no near one.
        near, edits = self._data.nearest(action, count), self._data.edits(action)
        mixed = [x for pair in zip_longest(edits, near) for x in pair if x is not None]
        return pick_rivals(source, action, (*offered, *mixed, *self.sentences), count, self.same, always=len(said))

    def same(self, source: Picture, one: str, other: str) -> bool:
        """Whether two sentences name one outcome: as the world says, or as far as words tell."""
        if self.same_outcome is not None:
            return self.same_outcome(source, one, other)
        return same_words(one, other)


def pick_rivals(
    source: Picture,
    action: str,
    offered: Sequence[str],
    count: int,
    same_outcome: SameOutcome | None = None,
    always: int = 0,
) -> list[str]:
    """The first `count` of the offered sentences, and in any case what the first `always` of them hold.

    Left out are empty ones, the action itself and repetitions (by their words), and what names the same outcome.
    """
    seen: set[tuple[str, ...]] = {tuple(words_of(action))}
    rivals: list[str] = []
    for number, rival in enumerate(offered):
        if number >= always and len(rivals) >= count:
            break
        key = tuple(words_of(rival))
        if not key or key in seen:
            continue
        seen.add(key)
        if same_outcome is not None and same_outcome(source, action, rival):
            continue
        rivals.append(rival)
    return rivals
