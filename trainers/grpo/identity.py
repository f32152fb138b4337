"""Whether the loss sees the distribution that was sampled from, token by token, and what is done where it does not.

In float32 both agree to rounding. In half precision cached and uncached attention round differently, so the policy
that drew is not quite the one that learns; and the difference may grow in training. It is measured at every step, at no
cost: the loss reads the tokens anyway. Truncated importance weights (https://fengyao.notion.site/off-policy-rl) take it
out of the gradient, as TRL has for vLLM; a run whose mean gap grows past a limit stops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.errors import RewindError
from trainers.common.preflight import at_least

LIMIT, LIMIT_HALF = 1e-4, 0.05
"""Largest mean gap in nats a token, in float32 (1e-6 is usual) and in half precision; ten times for its quantile."""
CAP = 2.0
"""Of importance weights."""


@dataclass(frozen=True)
class Gap:
    """|log-probability in the loss - log-probability when drawn|, nats a token: mean, 99 % quantile, largest.

    `kl` estimates KL(sampler || loss) a token without bias and above 0: the mean of exp(d) - 1 - d, d = loss - sampler.
    """

    mean: float
    q99: float
    largest: float
    kl: float

    @classmethod
    def of(cls, loss_N: Tensor, drawn_N: Tensor) -> Gap:
        """From two readings of the same tokens, float [N]; of no token all is 0."""
        if not len(loss_N):
            return cls(0.0, 0.0, 0.0, 0.0)
        difference = loss_N.float() - drawn_N.float()
        sizes = difference.abs().sort().values  # `quantile` takes no more than 16 million
        q99 = sizes[min(len(sizes) - 1, int(0.99 * len(sizes)))]
        kl = (difference.exp() - 1 - difference).mean()
        return cls(*(float(x) for x in (sizes.mean(), q99, sizes[-1], kl)))

    def check(self, limit: float, when: str = "") -> None:
        """Raise a `RewindError` if the mean is above the limit or the 99 % quantile above ten times it."""
        if not (self.mean <= limit and self.q99 <= 10 * limit):
            raise RewindError(
                f"the sampler and the loss disagree{when} by {self.mean:.2g} nats a token (99 % quantile "
                f"{self.q99:.2g}; {limit:g} is allowed, --max_sampler_gap): dropout that is live in training, another "
                "adapter or a reduced precision would do that; training would be wrong"
            )


def check_correction(max_sampler_gap: float | None, importance_correction: float | None) -> None:
    """Raise a `RewindError` for limits that are none."""
    at_least(0, importance_correction=importance_correction or 0)
    if 0 < (importance_correction or 0) < 1:
        raise RewindError(f"--importance_correction caps weights at 1 or more (0 is off), not {importance_correction}")
    if max_sampler_gap is not None and not max_sampler_gap > 0:
        raise RewindError(f"--max_sampler_gap must be above 0, not {max_sampler_gap}")


class ComparesWithSampler:
    """For TRL's `GRPOTrainer` 1.16, whose `_compute_loss` reads log-probabilities before it reads advantages.

    Attributes:
        gap_limit: of the mean gap, in nats a token.
        correction_cap: the largest importance weight; 0 for no correction.
    """

    gap_limit: float
    correction_cap: float
    _loss_inputs: dict[str, Any] | None = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        inputs = dict(inputs)  # the rollout is read again in another iteration, with the advantages that it had
        self._loss_inputs = inputs if self.model.training else None  # type: ignore[attr-defined]
        try:
            loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self._loss_inputs = None
        return loss

    def _check_identity(self, output: dict[str, Any]) -> float:
        """Before the first step: read what was drawn as the loss will, in train mode; returns the largest gap."""
        trainer: Any = self
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
        rows = trainer.args.per_device_train_batch_size  # as many as a pass of the loss has: a rollout may be far more
        with torch.no_grad():
            loss, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, output["completion_ids"].shape[1], rows
            )
        asked = _asked(output)
        gap = Gap.of(loss[asked], output["sampling_per_token_logps"][asked])
        gap.check(self.gap_limit)
        return gap.largest

    def _compare_with_sampler(self, log_probs_BT: Tensor) -> None:
        """Log the gap of what the loss has just read, stop if it is too large, and correct the advantages for it."""
        inputs, self._loss_inputs = self._loss_inputs, None
        if inputs is None or "sampling_per_token_logps" not in inputs:
            return
        drawn = inputs["sampling_per_token_logps"]
        # Where weights have moved since the draw, TRL has kept what they said then: that is what the sampler saw.
        then = inputs.get("old_per_token_logps")
        loss = log_probs_BT.detach() if then is None else then
        asked = _asked(inputs)
        weights = (loss - drawn).exp().clamp(max=self.correction_cap or None) if self.correction_cap else None
        gap = Gap.of(loss[asked], drawn[asked])
        self._log_gap(gap, None if weights is None else weights[asked], int(asked.sum()))
        if weights is None:
            return
        if self.loss_type == "vespo":  # type: ignore[attr-defined]  # it weighs whole sequences by themselves
            inputs["importance_sampling_ratio"] = weights
            return
        advantages = inputs["advantages"]
        inputs["advantages"] = (advantages[:, None] if advantages.dim() == 1 else advantages) * weights

    def _log_gap(self, gap: Gap, weights_N: Tensor | None, tokens: int) -> None:
        """What all processes have seen; one whose groups are all dead has no token."""
        trainer: Any = self
        weights = [1.0, 1.0] if weights_N is None or not tokens else [float(weights_N.mean()), float(weights_N.max())]
        told = torch.tensor([[gap.mean, gap.q99, gap.kl, weights[0], gap.largest, weights[1], float(tokens)]])
        everyone = trainer.accelerator.gather(told.to(trainer.accelerator.device))
        shares = everyone[:, 6:] / everyone[:, 6:].sum().clamp(min=1)
        mean, q99, kl, weight = (everyone[:, :4] * shares).sum(0).tolist()
        largest, most = everyone[:, 4:6].amax(0).tolist()
        metrics = trainer._metrics["train"]
        for name, value in (("mean", mean), ("q99", q99), ("max", largest)):
            metrics[f"sampling/sampling_logp_difference/{name}"].append(value)
        metrics["sampling/kl"].append(kl)
        if weights_N is not None and float(everyone[:, 6].sum()):
            metrics["sampling/importance_sampling_ratio/mean"].append(weight)
            metrics["sampling/importance_sampling_ratio/max"].append(most)
        Gap(mean, q99, largest, kl).check(self.gap_limit, f" at step {trainer.state.global_step + 1}")


def _asked(batch: dict[str, Any]) -> Tensor:
    """Tokens that the loss is about, bool [B, T]: no padding and none that is forced."""
    mask: Tensor = batch["completion_mask"]
    return mask.bool() if "tool_mask" not in batch else (mask * batch["tool_mask"]).bool()
