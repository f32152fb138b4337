"""How much better a sentence explains what truly came than other sentences do: `fdm_likelihood` held against rivals.

log p(target | source, sentence) - logsumexp over {sentence, rivals}: the log of the sentence's posterior among them, 0
or less. The rivals of a pair are the same for its whole group, all that the group says and others in near phrasing,
but for those that say the same as the sentence in other words: a paraphrase is no rival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rewards.fdm_likelihood import FDMLikelihood, readable
from rewards.rivals import Rivals, SameOutcome
from rl.errors import RewindError
from rl.models.roles import ForwardDynamics
from rl.pictures import Picture
from rl.words import words_of


class FDMMargin:
    """`fdm_margin`; for `train_grpo.py --role idm`.

    Args:
        fdm: the forward model, which does not train.
        actions: sentences of the data set to draw rivals from.
        num_rivals: rivals K of a pair: what the group says, always all of it, then others until there are as many.
        rivals: which others, `near` or `first` (`rewards.rivals.Rivals`).
        floor: what the margin levels off at, in nats; None for none. The order of sentences stays. An empty or
            unreadable sentence has the floor itself, without a floor what chance would give.
        same_outcome: `(source_picture, a, b) -> bool` where a world can tell that two sentences name one outcome.
        changed: count only tokens that change, as `fdm_likelihood`.
    """

    name = "fdm_margin"

    def __init__(
        self,
        fdm: ForwardDynamics,
        actions: Sequence[str] = (),
        num_rivals: int = 8,
        rivals: str = "near",
        floor: float | None = -5.0,
        same_outcome: SameOutcome | None = None,
        changed: bool = False,
    ) -> None:
        if num_rivals < 1:
            raise RewindError(f"fdm_margin needs at least one rival, not {num_rivals}")
        if floor is not None and not floor < 0:
            raise RewindError(f"the floor of fdm_margin must be below 0, which is its highest value, not {floor}")
        self.likelihood, self.num_rivals = FDMLikelihood(fdm, changed), num_rivals
        self.rivals = Rivals(actions, rivals, same_outcome)
        self.floor = -np.inf if floor is None else floor

    def __call__(
        self, completions: Sequence[str], source_image: Sequence[Picture], target_image: Sequence[Picture]
    ) -> list[float | None]:
        pairs: dict[tuple[int, int], list[int]] = {}
        for number, (source, target) in enumerate(zip(source_image, target_image, strict=True)):
            pairs.setdefault((id(source), id(target)), []).append(number)
        pools = {key: self._pool(source_image[ns[0]], [completions[n] for n in ns]) for key, ns in pairs.items()}
        asked = [(ns[0], text) for key, ns in pairs.items() for text in pools[key]]
        totals = self.likelihood(
            [text for _, text in asked], [source_image[n] for n, _ in asked], [target_image[n] for n, _ in asked]
        )
        found = iter(totals)
        scores: list[float | None] = [None] * len(completions)
        for key, numbers in pairs.items():
            by_text = {text: next(found) for text in pools[key]}
            margins = {text: self._margin(source_image[numbers[0]], text, by_text) for text in by_text}
            for number in numbers:
                scores[number] = margins[completions[number]]
        return scores

    def _pool(self, source: Picture, said: Sequence[str]) -> list[str]:
        """What a group says, the most usual first, and other sentences near to that until there are enough."""
        usual = [text for text, _ in Counter(said).most_common()]
        known = [text for text in usual if readable(self.likelihood.fdm, text)]
        if not known or len(known) > self.num_rivals:
            return usual
        others = self.rivals.of(source, known[0], self.num_rivals, known[1:])
        others = [text for text in others if readable(self.likelihood.fdm, text)]
        return list(dict.fromkeys([*usual, *others]))[: self.num_rivals + 1 + len(usual) - len(known)]

    def _margin(self, source: Picture, text: str, totals: dict[str, float | None]) -> float | None:
        """Of one sentence of the pool; None where it has no rival."""
        if not readable(self.likelihood.fdm, text) and np.isfinite(self.floor):
            return self._levelled(-np.inf)
        mine = totals[text]
        rivals = [
            total
            for other, total in totals.items()
            if readable(self.likelihood.fdm, other)
            and words_of(other) != words_of(text)
            and not self.rivals.same(source, text, other)
        ]
        if not rivals or mine is None:
            return None
        return self._levelled(float(mine - np.logaddexp.reduce(np.array([mine, *rivals], dtype=float))))

    def _levelled(self, margin: float) -> float:
        return float(np.logaddexp(margin, self.floor) - np.logaddexp(0.0, self.floor))
