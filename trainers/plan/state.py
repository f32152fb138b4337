"""Bytes of weights, gradients and optimizer, and what several GPUs divide and send of them.

Trainable parameters take 16 bytes each with Adam: in half precision 2 of weight, 2 of gradient and 12 of optimizer (a
float32 copy and two moments); in float32 4 + 4 + 8. N GPUs divide the optimizer's part (ZeRO-1), the gradients too
(ZeRO-2), all weights too (ZeRO-3): arXiv 1910.02054, figure 1 and section 5. Frozen weights have neither gradient nor
optimizer; only ZeRO-3 divides them. Offload keeps all three in the host's memory (arXiv 2101.06840).
"""

from __future__ import annotations

from rl.errors import RewindError

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")


def strategies(gpus: int) -> tuple[str, ...]:
    """What makes a difference: on one GPU there is nothing to divide, only to offload."""
    return STRATEGIES if gpus > 1 else ("ddp", "zero3_offload")


def state_bytes(trainable: int, frozen: int, strategy: str, gpus: int, weight_bytes: int = 2) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer a GPU (arXiv 1910.02054, table 1), and in the host's memory a process.

    Raises:
        RewindError: an unknown strategy, fewer than one GPU.
    """
    if strategy not in STRATEGIES or gpus < 1:
        raise RewindError(f"'{strategy}' on {gpus} GPUs: choose one of {', '.join(STRATEGIES)} on at least one")
    gradient, optimizer = weight_bytes, 16 - 2 * weight_bytes
    stage = 0 if strategy == "ddp" else int(strategy[4])
    found = {
        "weights": weight_bytes * (trainable + frozen) / (gpus if stage >= 3 else 1),
        "gradients": gradient * trainable / (gpus if stage >= 2 else 1),
        "optimizer": optimizer * trainable / (gpus if stage >= 1 else 1),
        "host": 0.0,
    }
    if strategy.endswith("offload"):
        found = {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0, "host": sum(found.values())}
    return found


def sent_bytes(
    trainable: int, frozen: int, strategy: str, gpus: int, accumulation: int = 1, weight_bytes: int = 2
) -> float:
    """Bytes that a GPU sends an optimizer step (arXiv 1910.02054, section 7).

    Up to ZeRO-2 each trainable weight goes round twice (reduce, gather); under ZeRO-3 every weight is gathered in each
    forward and each backward pass, and the gradients are reduced in each.
    """
    if gpus == 1:
        return 0.0
    if strategy.startswith("zero3"):
        return weight_bytes * accumulation * (2 * (trainable + frozen) + trainable)
    return weight_bytes * 2 * trainable
