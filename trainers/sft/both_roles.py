"""SFT of both roles at once: two LoRA adapters on one backbone learn from the same rows, each as it would alone.

A row is a triplet as either role reads it, so both roles see the same triplets in the same order. A micro-batch is read
twice, forward and backward under one adapter and then under the other. The adapters share no weight that trains, AdamW
keeps its state by weight, each role has its own distribution, its own divisor and its own gradient norm to clip: where
there is no dropout (whose draws the roles share) each adapter ends as a run of that role alone would leave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from rl.errors import RewindError
from rl.models.roles import FDM_ADAPTER, IDM_ADAPTER, Role
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet
from trainers.common.validation import show_role
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import Rows, SpanCollator, dataset_of
from trainers.sft.trainer import RoleSFTTrainer

ADAPTERS: dict[Role, str] = {"fdm": FDM_ADAPTER, "idm": IDM_ADAPTER}
"""The roles in the order in which they read a micro-batch, and their adapters."""
PREFIX = "idm_"
"""Before the names of the inverse role's columns."""


def both_rows(fdm_rows: Dataset, idm_rows: Dataset) -> Dataset:
    """Rows of `role_rows` for either role and the same triplets, side by side.

    Raises:
        RewindError: other numbers of rows, which cannot be the same triplets.
    """
    if len(fdm_rows) != len(idm_rows):
        raise RewindError(f"both roles learn from the same triplets, but got {len(fdm_rows)} and {len(idm_rows)} rows")
    fdm, idm = (rows.format["format_kwargs"]["transform"] for rows in (fdm_rows, idm_rows))
    both = BothRows(fdm, idm)
    return dataset_of(both, len(fdm_rows), [*fdm.columns, *(PREFIX + name for name in idm.columns)])


@dataclass(frozen=True)
class BothRows:
    """What makes the rows of both roles when they are read."""

    fdm: Rows
    idm: Rows

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        """The columns of both for some numbers of rows."""
        parts: dict[Role, dict[str, Any]] = {role: of_role(role, batch) for role in ADAPTERS}
        fdm = self.fdm(parts["fdm"]) if parts["fdm"] else {}
        idm = self.idm(parts["idm"]) if parts["idm"] else {}
        return {**fdm, **{PREFIX + name: values for name, values in idm.items()}}


def of_role(role: Role, columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of one role in a row or a batch of both, under their usual names."""
    if role == "idm":
        return {name.removeprefix(PREFIX): value for name, value in columns.items() if name.startswith(PREFIX)}
    return {name: value for name, value in columns.items() if not name.startswith(PREFIX)}


def check_one_best(config: RoleConfig) -> None:
    """Raise a `RewindError` if the best checkpoint is asked for, which would be one for two roles."""
    if config.load_best_model_at_end:
        raise RewindError(
            "the best checkpoint of one role is not that of the other: leave out --load_best_model_at_end, or train "
            "the roles one after the other"
        )


class BothRolesCollator:
    """`SpanCollator` for each role's columns by themselves."""

    def __init__(self, pad: int) -> None:
        self.collate = SpanCollator(pad)

    def __call__(self, rows: list[dict[str, list[Any]]]) -> dict[str, Tensor]:
        fdm, idm = (self.collate([of_role(role, row) for row in rows]) for role in ADAPTERS)
        return {**fdm, **{PREFIX + name: value for name, value in idm.items()}}


class BothRolesSFTTrainer(RoleSFTTrainer):
    """`RoleSFTTrainer` for the adapters `default` (FDM) and `idm` of one backbone.

    `loss` is the sum of `loss_fdm` and `loss_idm`, `grad_norm` the norm of both roles' gradients.

    Seams of transformers 5.23 that it touches beside those of `RoleSFTTrainer`: `training_step`, which it runs once a
    role with that role's part of the batch; `_get_num_items_in_batch`, whose answer reaches `compute_loss` as it is;
    `_clip_grad_norm`; `create_optimizer`, which takes the weights that are trainable then.

    An evaluation reads each batch as either role: `eval_loss_fdm`, `eval_mean_token_accuracy_fdm` and so on, and
    `eval_loss`, their sum.

    Args:
        vlm: the backbone with both adapters on it.
        args: as for `RoleSFTTrainer`.
        train_dataset: `both_rows`.
        eval_dataset: held-out rows, made in the same way.
        shown: as for `RoleSFTTrainer`.
        use_weights: whether the forward role's column `weights` counts.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        args: RoleConfig,
        train_dataset: Dataset,
        *,
        eval_dataset: Dataset | None = None,
        shown: Sequence[Triplet] = (),
        use_weights: bool = False,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_one_best(args)
        args.ddp_find_unused_parameters = True  # a pass of one role uses no weight of the other
        super().__init__(
            vlm,
            "fdm",
            args,
            train_dataset,
            eval_dataset=eval_dataset,
            shown=shown,
            use_weights=use_weights,
            callbacks=callbacks,
            collator=BothRolesCollator(vlm.layout.pad),
        )
        kinds = ["loss", *self.noted]
        self.noted = [f"{kind}_{role}" for kind in kinds for role in ADAPTERS]

    def _take(self, role: Role) -> None:
        """Make a role's adapter the active one and answer under its distribution."""
        self.vlm.model.set_adapter(ADAPTERS[role])  # type: ignore[operator]
        self.answer_as(role)

    def _weights_of(self, role: Role) -> list[Any]:
        return [p for name, p in self.model.named_parameters() if f".{ADAPTERS[role]}." in name]

    def create_optimizer(self, model: Any = None) -> Any:
        for role in ADAPTERS:  # of which switching, and loading a checkpoint, leave only one trainable
            for weight in self._weights_of(role):
                weight.requires_grad_(True)
        return super().create_optimizer(model)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        for name in self.noted:
            self._metrics["train"][name].append(0.0)
        return torch.stack([self._total([of_role(role, b) for b in batch_samples], device) for role in ADAPTERS])

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        losses = []
        for role, total in zip(ADAPTERS, num_items_in_batch, strict=True):
            self._take(role)
            losses.append(super().training_step(model, of_role(role, inputs), total))
            self._note("loss", losses[-1] / self.args.world_size)
        self._take("fdm")
        return torch.stack(losses).sum()

    def _evaluate_batch(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        losses = []
        for role in ADAPTERS:
            self._take(role)
            losses.append(super()._evaluate_batch(model, of_role(role, batch)))
        self._take("fdm")
        return torch.stack(losses).sum()

    def _means(self, prefix: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for role in ADAPTERS:
            self.role = role
            found |= {f"{name}_{role}": value for name, value in super()._means(prefix).items()}
        self.role = "fdm"
        return {**found, f"{prefix}_loss": sum(found[f"{prefix}_loss_{role}"] for role in ADAPTERS)}

    def _show(self) -> None:
        for role, adapter in ADAPTERS.items():
            show_role(self, self.vlm, role, adapter, self.shown, f"validation_{role}")

    def _note(self, name: str, part: Tensor) -> None:
        super()._note(f"{name}_{self.role}", part)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.accelerator.unscale_gradients()
        limit = self.args.max_grad_norm
        norms = [torch.nn.utils.clip_grad_norm_(self._weights_of(role), limit) for role in ADAPTERS]
        return torch.stack(norms).norm()
