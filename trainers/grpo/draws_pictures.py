"""GRPO's forward role: targets drawn for sources and actions, one after the other where a rollout has several steps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rewards import Batch
from rl.errors import RewindError
from rl.models.costs import DRAFTED_TOKENS, LEAST_WINDOW
from rl.models.distribution import TokenDistribution
from rl.models.drafting import Counts
from rl.models.roles import Role
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.report.grids import candidate_row
from rl.triplets import Scored, Triplet
from trainers.grpo.advantages import AdvantageWeights
from trainers.grpo.trajectories import Row, ScoredRow, Trajectories, keep

logger = logging.getLogger("rl")


class DrawsPictures(Trajectories):
    """The policy as forward model (`trainers.grpo.role.PolicyRole`).

    Args:
        vlm: the backbone.
        chains: triplets that follow one another, equally many each.
        temperature: of the distribution.
        guidance: of the distribution; above 1 it needs pictures of one size.
        importance_advantages: weights of tokens need pictures of one size too.
        draft: whether sources are the drafts of what is drawn.
    """

    role: Role = "fdm"
    ends: list[int] | None = None

    def __init__(
        self,
        vlm: UnifiedVLM,
        chains: Sequence[Sequence[Triplet]],
        temperature: float,
        guidance: float = 1.0,
        importance_advantages: AdvantageWeights = "none",
        draft: bool = False,
    ) -> None:
        super().__init__(vlm, TokenDistribution(vlm.layout.image_ids_V, temperature, guidance), chains, draft)
        self._before, self._told = Counts(), False
        grids = self.source_ids.grids()
        self._grids = {*grids, vlm.layout.grammar.grid}
        if self.distribution.guided and len(self._grids) > 1:
            raise RewindError("guidance in training needs pictures of the base's one size, and one view each")
        if importance_advantages != "none" and len(grids) > 1:
            raise RewindError(
                "importance_advantages needs pictures of one size and as many views each: give a fixed --image_size"
            )

    @property
    def longest(self) -> int:
        """Tokens of the largest target, forced ones among them."""
        return max(len(self.vlm.layout.grammar.of(grid).free) for grid in self._grids)

    def batch(self, rows: Sequence[Row], **told: Any) -> Batch:
        """Predictions as rewards take them."""
        return Batch(
            [row.triplet.action for row in rows],
            [row.candidate for row in rows],
            [row.triplet.source for row in rows],
            [row.triplet.target for row in rows],
            [row.triplet.task for row in rows],
            more=[row.triplet.more for row in rows],
            **told,
        )

    def scored(self, row: Row, scored: Scored) -> ScoredRow:
        """A prediction with its scores."""
        return ScoredRow(**vars(row), scored=scored)

    def told(self, rows: Sequence[ScoredRow]) -> dict[str, list[Any]]:
        """Prompts, targets with forced tokens, log-probabilities (0 where forced), a mask if any is forced."""
        grammars = [self.vlm.layout.grammar_of(row.source_ids) for row in rows]
        drawn: dict[str, list[Any]] = {
            "prompt_ids": [row.prompt_ids() for row in rows],
            "completion_ids": [self.vlm.target_span(row.candidate.codes) for row in rows],
            "logprobs": [
                grammar.spread(row.candidate.logprobs.tolist(), 0.0)
                for grammar, row in zip(grammars, rows, strict=True)
            ],
        }
        if not all(all(grammar.free) for grammar in grammars):
            # Forced tokens are read and count nowhere, not in the mean over tokens either.
            drawn["env_mask"] = [[int(is_code) for is_code in grammar.free] for grammar in grammars]
        return drawn

    def unread(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Behind pictures that are smaller than others."""
        return ids_BT == self.vlm.layout.pad

    def figures(self, rows: Sequence[ScoredRow]) -> dict[str, float]:
        """With a draft, passes behind the prompts since the last time, and the share of guesses that came true."""
        if self.counts is None:
            return {}
        new, self._before = self.counts.since(self._before), replace(self.counts)
        if not self.counts.drafted and not self._told:
            self._told = True
            most = DRAFTED_TOKENS // LEAST_WINDOW
            logger.warning("--draft: up to %d candidates at once have one, and %d are drawn here", most, len(rows))
        return {"draft/passes": float(new.passes), "draft/accepted": new.share}

    def shown(self, triplet: Triplet, group: Sequence[Scored]) -> list[tuple[Picture, str]] | None:
        """The source, and candidates from best to worst."""
        return candidate_row(triplet, group) if self.vlm.can_draw else None

    def keep(self, store: Any, parts: Sequence[Sequence[ScoredRow]], seed: int, step: int) -> None:
        """Append to a `CandidateStore`."""
        keep(store, parts, seed, step)
