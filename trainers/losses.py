"""Losses as pure functions on tensors."""

from __future__ import annotations

from torch import Tensor

from rl.errors import RewindError


def weighted_nll(log_probs_N: Tensor, weights_N: Tensor, total_weight: Tensor | float) -> Tensor:
    """- sum_n w_n log p_n / total weight: cross-entropy with a weight a token (arXiv 2506.06006, section 3).

    Args:
        log_probs_N: float [N], log-probability of each target token.
        weights_N: float [N], 0 or more.
        total_weight: sum of the weights over the whole optimizer step (all processes and accumulation steps), so that
            any split of the same batch gives the same gradient.

    Raises:
        RewindError: shapes that differ.
    """
    if log_probs_N.shape != weights_N.shape:
        raise RewindError(f"{list(log_probs_N.shape)} log-probabilities and {list(weights_N.shape)} weights")
    return -(weights_N * log_probs_N).sum() / total_weight
