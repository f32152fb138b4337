"""How much likelier the commanded action is than other actions on the same source: a contrastive reward.

log p(a) - logsumexp over {a, a_1 .. a_K} of sequence log-likelihoods: the log of the posterior of the action among its
rivals, 0 or less. A picture that makes every action likely earns nothing. Without a in the denominator the reward would
be unbounded and would pay for pictures off the manifold. What the model itself says of a candidate is among the rivals,
so a policy cannot gain by leaving behind the rivals that its start named. A background rival, as in open-set
recognition, stands for whatever nobody names: without it a picture that fits no sentence wins by fitting its own least
badly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewards.rivals import Rivals
from rl.errors import RewindError
from rl.models.roles import InverseDynamics
from rl.models.streams import prefix_cache
from rl.pictures import Picture
from rl.triplets import Candidate


class IDMMargin:
    """`idm_margin`.

    Args:
        idm: the inverse model.
        actions: sentences of the data set to draw rivals from, the same for all candidates of a source.
        num_rivals: rivals K: what the model itself says of the group's candidates, always all of it, then others until
            there are as many.
        rivals: which others, `near` or `first` (`rewards.rivals.Rivals`).
        floor: what the margin levels off at, in nats; None for none. How much likelier something else is, of a picture
            that the model takes for something else, is mostly noise: without a floor it outweighs the difference
            between right and wrong. The order of candidates stays: log(e^margin + e^floor), moved so that 0 stays 0.
        same_outcome: `(source_picture, a, b) -> bool` where a world can tell that two sentences name one outcome.
        background: sequence log-likelihood, in nats, of the background rival; None for none. About what the model gives
            to the right sentence on true pictures, or a little less; far above that, only the likelihood counts.
    """

    name = "idm_margin"

    def __init__(
        self,
        idm: InverseDynamics,
        actions: Sequence[str] = (),
        num_rivals: int = 8,
        same_outcome: Callable[[Any, str, str], bool] | None = None,
        floor: float | None = -5.0,
        background: float | None = None,
        rivals: str = "near",
    ) -> None:
        if num_rivals < 1:
            raise RewindError(f"idm_margin needs at least one rival, not {num_rivals}")
        if floor is not None and not floor < 0:
            raise RewindError(f"the floor of idm_margin must be below 0, which is its highest value, not {floor}")
        if background is not None and not background <= 0:
            raise RewindError(f"the background of idm_margin is a log-likelihood: 0 or less, not {background}")
        self.idm, self.num_rivals, self.rivals = idm, num_rivals, Rivals(actions, rivals, same_outcome)
        self.floor = -np.inf if floor is None else floor
        self.background = [] if background is None else [background]

    def __call__(
        self, prompts: Sequence[str], source_image: Sequence[Picture], candidates: Sequence[Candidate]
    ) -> list[float | None]:
        groups: dict[tuple[int, str], dict[bytes, list[int]]] = {}  # equal pictures of a group are scored once
        for number, (source, action) in enumerate(zip(source_image, prompts, strict=True)):
            alike = groups.setdefault((id(source), action), {})
            alike.setdefault(candidates[number].ids.tobytes(), []).append(number)
        scores: list[float | None] = [None] * len(candidates)
        cache = prefix_cache(self.idm.backbone) if isinstance(self.idm, InverseDynamics) else None
        # Long pairs are named and then scored group by group: what was read for the one serves the other.
        parts = [groups] if cache is None else [{key: alike} for key, alike in groups.items()]
        for part in parts:
            self._score(part, source_image, candidates, scores, **({} if cache is None else {"prefixes": cache}))
        return scores

    def _score(
        self,
        groups: dict[tuple[int, str], dict[bytes, list[int]]],
        source_image: Sequence[Picture],
        candidates: Sequence[Candidate],
        scores: list[float | None],
        **reading: Any,
    ) -> None:
        """Write down the scores of some groups."""
        firsts = {key: [numbers[0] for numbers in alike.values()] for key, alike in groups.items()}
        rivals = self._rivals_of(firsts, source_image, candidates, **reading)
        rows = [(n, words) for key, numbers in firsts.items() for n in numbers for words in (key[1], *rivals[key])]
        pairs = [source_image[n] for n, _ in rows], [candidates[n] for n, _ in rows]
        found = self.idm.log_probs(*pairs, [words for _, words in rows], **reading)
        totals = iter([float(x.sum()) for x in found])
        for key, alike in groups.items():
            for numbers in alike.values():
                block = np.array([*(next(totals) for _ in range(1 + len(rivals[key]))), *self.background])
                # Without a rival there is nothing to compare with.
                margin = self._levelled(float(block[0] - np.logaddexp.reduce(block))) if len(block) > 1 else None
                for number in numbers:
                    scores[number] = margin

    def _levelled(self, margin: float) -> float:
        return float(np.logaddexp(margin, self.floor) - np.logaddexp(0.0, self.floor))

    def _rivals_of(
        self,
        firsts: dict[tuple[int, str], list[int]],
        source_image: Sequence[Picture],
        candidates: Sequence[Candidate],
        **reading: Any,
    ) -> dict[tuple[int, str], list[str]]:
        """The rivals of each source and action."""
        every = [n for numbers in firsts.values() for n in numbers]
        words = self.idm.describe([source_image[n] for n in every], [candidates[n] for n in every], **reading)
        said = dict(zip(every, words, strict=True))
        return {
            key: self._rivals(source_image[numbers[0]], key[1], [said[n] for n in numbers])
            for key, numbers in firsts.items()
        }

    def _rivals(self, source: Picture, action: str, said: Sequence[str]) -> list[str]:
        return self.rivals.of(source, action, self.num_rivals, said)
