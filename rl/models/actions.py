"""Actions that are vectors as tokens: one of 256 bins a number, between a family's markers where it has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.actions import NUM_BINS, ActionBins, action_text, vector_of
from rl.errors import RewindError
from rl.models.fast import FastCodec
from rl.models.layout import TokenLayout


@dataclass(frozen=True)
class BinTokens:
    """Ids of a vocabulary for the bins of a number, bin 0 first, and what stands around an action."""

    ids: tuple[int, ...]
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    @classmethod
    def last_words(cls, text_ids: Sequence[int]) -> BinTokens:
        """The last 256 words, the very last for bin 0: as OpenVLA (arXiv 2406.09246) does without ids of its own.

        Raises:
            RewindError: fewer words.
        """
        if len(text_ids) < NUM_BINS:
            raise RewindError(f"an action's bins take {NUM_BINS} words, and the vocabulary has {len(text_ids)}")
        return cls(tuple(sorted(text_ids, reverse=True)[:NUM_BINS]))


@dataclass(frozen=True)
class VectorActions:
    """A vector's text as ids and ids as the text."""

    bins: ActionBins
    tokens: BinTokens

    @property
    def most(self) -> int:
        """The most tokens that an action has; exactly as many without `stop`."""
        return self.bins.numbers

    @property
    def stop(self) -> int | None:
        """The id that an action ends with, where its length is not known before."""
        return None

    def card(self) -> dict[str, Any]:
        """For `rewind.json`."""
        return {"kind": "bins", **self.bins.card()}

    @property
    def vocabulary(self) -> Tensor:
        """What an inverse model draws from, int64 [256], in the order of the vocabulary."""
        return torch.tensor(sorted(self.tokens.ids))

    def ids(self, action: str) -> list[int]:
        """The ids of the bins, D of them: what an inverse model predicts.

        Raises:
            RewindError: words, or a vector of another length.
        """
        return [self.tokens.ids[number] for number in self.bins.bins(self._numbers(action))]

    def segment(self, action: str) -> list[int]:
        """The bins between their markers: an action in a prompt."""
        return [*self.tokens.begin, *self.ids(action), *self.tokens.end]

    def text(self, ids: Sequence[int]) -> str:
        """The vector at the centres of the bins."""
        numbers = {token: number for number, token in enumerate(self.tokens.ids)}
        return str(action_text(self.bins.values([numbers[token] for token in ids])))

    def _numbers(self, action: str) -> tuple[float, ...]:
        values = vector_of(action)
        if values is None:
            count = self.bins.numbers
            raise RewindError(f"actions are vectors of {count} numbers here, [0.1, ...], not words: '{action}'")
        return values


@dataclass(frozen=True)
class FastActions(VectorActions):
    """A vector's text as tokens of FAST and back; `tokens.ids` are those of the codec, `tokens.end` is one id."""

    codec: FastCodec

    @property
    def most(self) -> int:
        return 2 * self.bins.numbers + 1  # two bytes a coefficient at most, and the end

    @property
    def stop(self) -> int | None:
        return self.tokens.end[0]

    @property
    def vocabulary(self) -> Tensor:
        return torch.tensor(sorted({*self.tokens.ids, *self.tokens.end}))

    def card(self) -> dict[str, Any]:
        return {**super().card(), "kind": "fast", "codec": self.codec.card()}

    def ids(self, action: str) -> list[int]:
        shares_TD = self.bins.shares(self._numbers(action))
        return [*(self.tokens.ids[token] for token in self.codec.encode(2 * shares_TD - 1)), *self.tokens.end]

    def segment(self, action: str) -> list[int]:
        return [*self.tokens.begin, *self.ids(action)]

    def text(self, ids: Sequence[int]) -> str:
        numbers = {token: number for number, token in enumerate(self.tokens.ids)}
        until = list(ids).index(self.tokens.end[0]) if self.tokens.end[0] in ids else len(ids)
        tokens = [numbers[token] for token in ids[:until]]
        values_TD = self.codec.decode(tokens, self.bins.steps, len(self.bins.low))
        return str(action_text(self.bins.at((values_TD + 1) / 2)))


class SpeaksActions(ABC):
    """What of a backbone turns actions into tokens and back: words, or vectors once their ranges are known.

    Attributes:
        actions: how actions that are vectors become tokens; None for actions in words.
        trained_on_words: whether an adapter on it was trained on actions in words.
    """

    name: str
    layout: TokenLayout
    actions: VectorActions | None = None
    trained_on_words: bool = False

    @abstractmethod
    def text_ids(self, text: str) -> list[int]:
        """A text as ids."""

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """Ids as a text."""

    def bin_tokens(self) -> BinTokens:
        """The ids that stand for a vector's bins, and around them; a family that has its own says so."""
        layout = self.layout
        return BinTokens.last_words([i for i in layout.text_ids_V.tolist() if i != layout.end_text])

    def fast_tokens(self, size: int) -> BinTokens:
        """The ids that stand for the tokens of a FAST codec of some size, and around them.

        Raises:
            RewindError: a family that has none.
        """
        raise RewindError(f"{self.name} has no ids for FAST tokens, which are UniVLA's: leave out the codec for bins")

    def use_actions(self, bins: ActionBins, codec: FastCodec | None = None) -> None:
        """Take actions that are vectors, in bins of these ranges, or through a FAST codec.

        Raises:
            RewindError: the backbone has other ones already; a family without FAST tokens.
        """
        if codec is None:
            found = VectorActions(bins, self.bin_tokens())
        else:
            found = FastActions(bins, self.fast_tokens(codec.size), codec)
        if self.actions is not None and self.actions != found:
            raise RewindError(
                f"{self.name} has its actions in other ranges or tokens already (of its run, or of the other role on "
                "it): models that work together need the same, so train both with one file, --action_ranges"
            )
        self.actions = found

    @property
    def action_vocabulary(self) -> Tensor:
        """The ids that an action may consist of, int64 [V]."""
        return self.layout.text_ids_V if self.actions is None else self.actions.vocabulary

    def action_ids(self, action: str) -> list[int]:
        """The tokens of an action that an IDM predicts: words and the end of the text, or the bins of a vector."""
        self.check_action(action)
        return [*self.text_ids(action), self.layout.end_text] if self.actions is None else self.actions.ids(action)

    def action_segment(self, action: str) -> list[int]:
        """The tokens of an action in a prompt."""
        self.check_action(action)
        if self.actions is None or vector_of(action) is None:
            return self.text_ids(action)
        return self.actions.segment(action)

    def action(self, ids: Sequence[int]) -> str:
        """What an IDM has said, from its ids: words, or a vector's text."""
        return self.text(ids) if self.actions is None else self.actions.text(ids)

    def check_actions(self, actions: Iterable[str]) -> None:
        """Raise a `RewindError` for the first action that this backbone cannot read."""
        for action in dict.fromkeys(actions):
            self.check_action(action)

    def check_named(self, actions: Iterable[str]) -> None:
        """Raise a `RewindError` for the first action that an inverse model could not name, though a prompt may hold it:
        words, where vectors are named.
        """
        for action in dict.fromkeys(actions):
            self.check_action(action)
            if self.actions is not None:
                self.actions.ids(action)

    def check_action(self, action: str) -> None:
        """Raise a `RewindError` for a vector whose ranges are not known, or of another length."""
        vector = vector_of(action)
        if vector is not None and self.actions is not None:
            self.actions.bins.shares(vector)
        elif vector is not None:
            raise RewindError(
                f"{self.name} knows no ranges for the numbers of an action ({action[:40]}): take a run that was "
                "trained on vectors, or train one (train_fdm.py, train_idm.py)"
            )
