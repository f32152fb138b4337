"""What differs between the two roles that GRPO trains: a forward model draws pictures, an inverse model says sentences.

Everything else, groups, advantages, dead groups, the check of sampler against loss, evaluation, checkpoints, is common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from rewards import Batch
from rl.models.distribution import TokenDistribution
from rl.models.noise import Noise
from rl.models.roles import Role
from rl.pictures import Picture
from rl.triplets import Scored, Triplet

Part = tuple[int, range]
"""The number of a chain, and which trajectories of its group."""


class PolicyRole(Protocol):
    """The policy in one of its two roles. A row is one completion, of a chain's number, a member and a step."""

    role: Role
    steps: int
    distribution: TokenDistribution
    """The one that the loss has too."""

    @property
    def longest(self) -> int:
        """Tokens of the longest completion."""

    @property
    def ends(self) -> list[int] | None:
        """Ids that a whole completion ends with, for TRL to tell those that were cut off; None where none can be."""

    def draw(self, parts: Sequence[Part], noise: Noise, max_rows: int | None = None) -> list[Any]:
        """Every row of the parts, ordered by part, trajectory and step, under the active adapter."""

    def batch(self, rows: Sequence[Any], **told: Any) -> Batch:
        """The rows as rewards take them."""

    def scored(self, row: Any, scored: Scored) -> Any:
        """A row with its scores."""

    def told(self, rows: Sequence[Any]) -> dict[str, list[Any]]:
        """What TRL's `rollout_func` returns: `prompt_ids`, `completion_ids`, `logprobs`, and maybe `env_mask`."""

    def unread(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Where no token was drawn, bool [B, T]: those have no log-probability."""

    def figures(self, rows: Sequence[Any]) -> dict[str, float]:
        """What is logged of a rollout or of a validation beside its rewards."""

    def shown(self, triplet: Triplet, group: Sequence[Scored]) -> list[tuple[Picture, str]] | None:
        """A row of pictures with captions for the grid of an evaluation; None where nothing can be shown."""

    def keep(self, store: Any, parts: Sequence[Sequence[Any]], seed: int, step: int) -> None:
        """Append what was drawn and scored to a store."""
