"""GRPO's inverse role: sentences said of pairs of true pictures (SWIRL, arXiv 2602.06130, phase II).

The policy is p(words | source, target) in whole sentences, their end included. What rewards it is how well a frozen
forward model then foresees the true target, so pairs need no words. Prompts are those of SFT and of `describe`
(`idm_prompt`), token ids go from the sampler into the loss as they were drawn, and the loss counts no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from rewards.sentences import SentenceBatch
from rl.data.candidates.sentence_store import SentenceStore
from rl.models.distribution import TokenDistribution
from rl.models.inputs import token_ids
from rl.models.noise import Noise
from rl.models.roles import Role
from rl.models.saying import USUAL_TOKENS, ends_of, sampled_sentences
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.sentences import Sentence
from rl.triplets import Scored, Triplet
from rl.words import words_of
from trainers.grpo.role import Part


@dataclass(frozen=True)
class SentenceRow:
    """One sentence about one pair: `number` is the pair's, `member` the sentence's in its group."""

    number: int
    member: int
    step: int
    triplet: Triplet
    prompt: tuple[int, ...]
    candidate: Sentence

    def prompt_ids(self) -> list[int]:
        """What it was drawn from."""
        return list(self.prompt)


@dataclass(frozen=True)
class ScoredSentence(SentenceRow):
    """A sentence with its scores."""

    scored: Scored


class NamesActions:
    """The policy as inverse model (`trainers.grpo.role.PolicyRole`).

    Args:
        vlm: the backbone; the caller chooses the adapter.
        pairs: two pictures each; their words, where they have any, are only compared with.
        temperature: of the distribution.
        max_tokens: the most tokens of a sentence; one that has not ended by then is cut off.
    """

    role: Role = "idm"
    steps = 1

    def __init__(
        self, vlm: UnifiedVLM, pairs: Sequence[Triplet], temperature: float, max_tokens: int = USUAL_TOKENS
    ) -> None:
        self.vlm, self.pairs, self.max_tokens = vlm, pairs, max_tokens
        self.distribution = TokenDistribution(vlm.action_vocabulary, temperature)

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence, which is also the constant that `dr_grpo` divides by."""
        return self.max_tokens if self.vlm.actions is None else self.vlm.actions.most

    @property
    def ends(self) -> list[int] | None:
        """The end of the text, or of a vector."""
        return ends_of(self.vlm)

    def draw(self, parts: Sequence[Part], noise: Noise, max_rows: int | None = None) -> list[SentenceRow]:
        """The sentences of each part. Only its own pictures are encoded: there may be very many pairs."""
        numbers = list(dict.fromkeys(number for number, _ in parts))
        sources, targets = self._pictures(numbers)
        source_ids = token_ids(self.vlm, sources)
        target_ids = token_ids(self.vlm, targets, source_ids)
        prompts = {
            number: self.vlm.idm_prompt(a, b) for number, a, b in zip(numbers, source_ids, target_ids, strict=True)
        }
        drawn: dict[Part, list[Sentence]] = {}
        for members in dict.fromkeys(members for _, members in parts):
            these = [number for number, those in parts if those == members]
            how: Any = {"max_tokens": self.max_tokens, "max_rows": max_rows, "noise": noise, "first": members.start}
            asked = [prompts[number] for number in these]
            found = sampled_sentences(self.vlm, asked, self.distribution, num_samples=len(members), **how)
            drawn |= {(number, members): group for number, group in zip(these, found, strict=True)}
        return [
            SentenceRow(number, member, 0, self.pairs[number], tuple(prompts[number]), sentence)
            for number, members in parts
            for member, sentence in zip(members, drawn[number, members], strict=True)
        ]

    def _pictures(self, numbers: Sequence[int]) -> tuple[list[Picture], list[Picture]]:
        pairs = [self.pairs[number] for number in numbers]
        return [pair.source for pair in pairs], [pair.target for pair in pairs if pair.target is not None]

    def batch(self, rows: Sequence[SentenceRow], **told: Any) -> SentenceBatch:
        """Sentences as rewards take them."""
        sentences: list[Any] = [row.candidate for row in rows]
        return SentenceBatch(
            [""] * len(rows),
            sentences,
            [row.triplet.source for row in rows],
            [row.triplet.target for row in rows],
            [row.triplet.task for row in rows],
            more=[row.triplet.more for row in rows],
            true_action=[row.triplet.action or None for row in rows],
            vlm=self.vlm,
            **told,
        )

    def scored(self, row: SentenceRow, scored: Scored) -> ScoredSentence:
        """A sentence with its scores."""
        return ScoredSentence(**vars(row), scored=scored)

    def told(self, rows: Sequence[ScoredSentence]) -> dict[str, list[Any]]:
        """Prompts and sentences of their own lengths; TRL pads them and masks the padding."""
        return {
            "prompt_ids": [row.prompt_ids() for row in rows],
            "completion_ids": [row.candidate.ids.tolist() for row in rows],
            "logprobs": [row.candidate.logprobs.tolist() for row in rows],
        }

    def unread(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Behind the end of a sentence: by the mask, since a family may pad with the very id that ends a text."""
        return mask_BT == 0

    def figures(self, rows: Sequence[ScoredSentence]) -> dict[str, float]:
        """`exact_match`: share of sentences that are the pair's true words, among pairs that have any."""
        known = [row for row in rows if row.triplet.action]
        if not known:
            return {}
        right = [words_of(row.candidate.text) == words_of(row.triplet.action) for row in known]
        return {"exact_match": float(np.mean(right))}

    def shown(self, triplet: Triplet, group: Sequence[Scored]) -> list[tuple[Picture, str]] | None:
        """Both pictures: under the first the true words, under the second the best and the worst sentence."""
        ranked = sorted((s for s in group if s.total is not None), key=lambda s: -(s.total or 0.0))
        told = [f"{s.candidate.text} ({s.total:.2f})" for s in (ranked[:1] + ranked[-1:])]  # type: ignore[attr-defined]
        assert triplet.target is not None
        return [(triplet.source, triplet.action or "(no words)"), (triplet.target, "; ".join(told))]

    def keep(self, store: SentenceStore, parts: Sequence[Sequence[ScoredSentence]], seed: int, step: int) -> None:
        """Append to a `SentenceStore`."""
        groups = [(part[0].triplet, part[0].member, [row.scored for row in part]) for part in parts]
        store.append(groups, seed=seed, step=step)
