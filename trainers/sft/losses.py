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
    return -_weighted_mean(log_probs_N, weights_N, total_weight)


def z_loss(log_z_N: Tensor, weights_N: Tensor, total_weight: Tensor | float) -> Tensor:
    """sum_n w_n (log Z_n)^2 / total weight: keeps logits from drifting (PaLM, arXiv 2204.02311, section 5).

    Args:
        log_z_N: float [N], logarithm of the partition function over the allowed ids at each target token.
        weights_N: float [N], 0 or more.
        total_weight: as for `weighted_nll`.

    Raises:
        RewindError: shapes that differ.
    """
    return _weighted_mean(log_z_N.square(), weights_N, total_weight)


def _weighted_mean(values_N: Tensor, weights_N: Tensor, total_weight: Tensor | float) -> Tensor:
    if values_N.shape != weights_N.shape:
        raise RewindError(f"{list(values_N.shape)} values of tokens and {list(weights_N.shape)} weights")
    return (weights_N * values_N).sum() / total_weight
