"""Supervised fine-tuning of either role on TRL's `SFTTrainer`, with a weight a token (arXiv 2506.06006).

A row is a prompt and the span that the role predicts: the action's words (IDM) or the target's image tokens (FDM). The
loss is taken under the role's own distribution, the one that sampler and scorer use, not under the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback
from trl import SFTTrainer

from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.roles import Role
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet
from trainers.common.checkpoints import WholeCheckpoints
from trainers.common.log_probs import IGNORED, score_under
from trainers.common.refusals import SFT, refuse_ignored
from trainers.common.sharding import ShardingCheck, keep_head_whole
from trainers.common.validation import show_role
from trainers.sft.arguments import RoleConfig
from trainers.sft.losses import weighted_nll, z_loss
from trainers.sft.rows import SpanCollator

METRICS = ("loss", "mean_token_accuracy")
"""What an evaluation measures, by which the best checkpoint can be chosen."""
NOTHING = torch.finfo(torch.float32).tiny
"""In the place of a sum of weights that is 0, as of a step of pairs that weigh nothing: it learns nothing, not NaN."""


class RoleSFTTrainer(WholeCheckpoints, SFTTrainer):
    """TRL's `SFTTrainer` with the loss of a role.

    Seams of TRL 1.16 / transformers 5.23 that it touches: `compute_loss`; `_get_num_items_in_batch`, which is called
    once an optimizer step to count its tokens and here sums their weights; `_metrics`, whose lists TRL averages and
    logs; `prediction_step` and `evaluation_loop`, whose mean over batches becomes one over tokens.

    An evaluation logs `eval_loss`, the training loss without `z_loss`, and `eval_mean_token_accuracy`, how often the
    true token is the likeliest of the role's. Both are exact means over all tokens of `eval_dataset` (of the loss, by
    their weights), however it is divided into batches and processes; nothing but four sums a row is kept.

    Args:
        vlm: the backbone, whose `model` is trained.
        role: which distribution the span is scored under.
        args: TRL's `SFTConfig` with our `z_loss`, a coefficient of 0 or more; dataset preparation is switched off,
            since rows are tokens already.
        train_dataset: rows of `role_rows`.
        eval_dataset: held-out rows, made in the same way.
        shown: held-out triplets of which TensorBoard gets a grid of pictures at every evaluation.
        use_weights: whether the column `weights` counts; a column that is there but unused is an error.
        collator: makes batches of rows; `SpanCollator` if not given.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        role: Role,
        args: RoleConfig,
        train_dataset: Dataset,
        *,
        eval_dataset: Dataset | None = None,
        shown: Sequence[Triplet] = (),
        use_weights: bool = False,
        callbacks: list[TrainerCallback] | None = None,
        collator: Callable[[list[dict[str, list[Any]]]], dict[str, Tensor]] | None = None,
    ) -> None:
        refuse_ignored(args, SFT)
        for rows in [train_dataset] if eval_dataset is None else [train_dataset, eval_dataset]:
            if use_weights != ("weights" in rows.column_names):
                has = "holds" if "weights" in rows.column_names else "lacks"
                raise RewindError(
                    f"the data {has} a column of token weights and use_weights is {use_weights}: they must agree"
                )
        self.vlm, self.shown = vlm, list(shown)
        self.noted = ["z_loss"] if args.z_loss > 0 else []
        self._evaluated: dict[Role, Tensor] = {}
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        super().__init__(
            model=vlm.model,
            args=args,
            data_collator=collator or SpanCollator(vlm.layout.pad),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=vlm.tokenizer,
            callbacks=callbacks,
        )
        args.dataset_kwargs = None  # TRL has read it
        self.answer_as(role)
        keep_head_whole(self, vlm)
        self.add_callback(ShardingCheck(self))
        self.loss_is_scaled_for_ga = True  # our divisor already covers all accumulation steps

    def answer_as(self, role: Role) -> None:
        """Let the model answer under the distribution of a role."""
        self.role, layout = role, self.vlm.layout
        ids = layout.image_ids_V if role == "fdm" else self.vlm.action_vocabulary
        score_under(self.vlm, TokenDistribution(ids), ["is_top1", *["log_z"] * (self.args.z_loss > 0)])

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        for name in self.noted:
            self._metrics["train"][name].append(0.0)
        return self._total(batch_samples, device)

    def _total(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """The sum of all weights of an optimizer step, on all processes."""
        total = torch.stack([_weights(batch).sum() for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total.clamp_min(NOTHING)

    def _note(self, name: str, part: Tensor) -> None:
        """Add a micro-batch's part, on every process, to what is logged of this optimizer step."""
        self._metrics["train"][name][-1] += float(self.accelerator.reduce(part, "sum"))

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, weights = inputs["labels"], _weights(inputs)[:, 1:]
        scores = self._scores(model, inputs)
        learned = labels[:, 1:] != IGNORED
        # Position t's logits predict token t + 1, so a token's weight goes with the state before it.
        total = weights[learned].sum().clamp_min(NOTHING) if num_items_in_batch is None else num_items_in_batch
        loss = weighted_nll(scores.log_probs[learned], weights[learned], total)
        if self.args.z_loss > 0:
            added = self.args.z_loss * z_loss(scores.log_z[learned], weights[learned], total)
            loss = loss + added
            if num_items_in_batch is not None:
                self._note("z_loss", added.detach())
        if num_items_in_batch is not None:
            loss = loss * self.args.world_size  # gradients are averaged over processes; the divisor is already global
        return (loss, {}) if return_outputs else loss

    def _scores(self, model: Any, inputs: dict[str, Tensor]) -> Any:
        """`TokenScores` of a batch; position t's are those of token t + 1."""
        with self.accelerator.autocast():
            return model(input_ids=inputs["input_ids"], labels=inputs["labels"], fused_lm_head=True)

    # ---- evaluation

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, None, None]:
        """A batch's mean loss, for the bar; what counts are its sums, which are noted a role."""
        return self._evaluate_batch(model, self._prepare_inputs(inputs)), None, None

    def _evaluate_batch(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            scores, weights = self._scores(model, batch), _weights(batch)[:, 1:]
            learned = batch["labels"][:, 1:] != IGNORED
            nll = -(scores.log_probs.float() * weights).sum(-1)
            right = (scores.is_top1.bool() & learned).sum(-1)
            sums = torch.stack([nll, weights.sum(-1), right, learned.sum(-1)], 1)  # [B, 4]
        # Processes without a row of their own left get one again, which this drops.
        everyone = self.accelerator.gather_for_metrics(sums).double().sum(0).cpu()
        self._evaluated[self.role] = self._evaluated.get(self.role, torch.zeros(4, dtype=torch.double)) + everyone
        return sums[:, 0].sum() / sums[:, 1].sum().clamp_min(NOTHING)

    def evaluation_loop(self, *arguments: Any, **settings: Any) -> Any:
        """transformers' loop, whose mean over batches is replaced by exact means over tokens."""
        self._evaluated = {}
        output = super().evaluation_loop(*arguments, **settings)
        self._metrics["eval"].clear()
        output.metrics.update(self._means(settings.get("metric_key_prefix", "eval")))
        return output

    def _means(self, prefix: str) -> dict[str, float]:
        """Loss and accuracy of what has been evaluated."""
        nll, weight, right, tokens = self._evaluated[self.role].tolist()
        return {f"{prefix}_loss": nll / max(weight, NOTHING), f"{prefix}_mean_token_accuracy": right / tokens}

    def evaluate(self, *arguments: Any, **settings: Any) -> dict[str, float]:
        """TRL's evaluation, and a grid of what the role makes of a few held-out triplets."""
        found: dict[str, float] = super().evaluate(*arguments, **settings)
        self._show()
        return found

    def _show(self) -> None:
        show_role(self, self.vlm, self.role, active_adapter(self.vlm), self.shown, "validation")


def _weights(batch: dict[str, Tensor]) -> Tensor:
    """The weights of a batch [B, T]: its column, or 1 for every learned token."""
    return batch["weights"] if "weights" in batch else (batch["labels"] != IGNORED).float()


def active_adapter(vlm: UnifiedVLM) -> str | None:
    """The adapter that trains on a backbone, or None for one without adapters."""
    model: Any = vlm.model
    return str(model.active_adapter) if hasattr(model, "peft_config") else None
