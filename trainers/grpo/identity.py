"""Whether the loss sees the distribution that was sampled from: the same log-probability for every token drawn."""

from __future__ import annotations

from torch import Tensor

from rl.errors import RewindError

GAP_TOLERANCE = 1e-3
"""Largest difference in nats between sampler and trainer in the log-probability of a token (float32: near 1e-6)."""
GAP_TOLERANCE_HALF = 0.2
"""The same in half precision, where cached and uncached attention round differently."""


def checked_gap(trainer_BK: Tensor, sampler_BK: Tensor, exact: bool) -> float:
    """The largest gap between two readings of the same tokens' log-probabilities, float [B, K] in nats.

    Args:
        trainer_BK: as the loss reads them.
        sampler_BK: as they were when the tokens were drawn.
        exact: whether both compute in float32.

    Raises:
        RewindError: a gap above `GAP_TOLERANCE`, or `GAP_TOLERANCE_HALF` where not exact.
    """
    gap = float((trainer_BK - sampler_BK).abs().max())
    if gap > (GAP_TOLERANCE if exact else GAP_TOLERANCE_HALF):
        raise RewindError(
            f"the sampler and the loss disagree by up to {gap:.2g} nats a token: dropout that is live in training, "
            "another adapter or a reduced precision would do that; training would be wrong"
        )
    return gap
