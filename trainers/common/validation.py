"""What is shown of held-out triplets while a model trains: a grid of pictures in TensorBoard at every evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from rl.models.roles import ForwardDynamics, InverseDynamics, Role
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.report.grids import sheet
from rl.triplets import Triplet
from trainers.common.sharding import gathered

VALIDATION_NOISE = 2**31 - 1
"""The step under which validation candidates are drawn: the same noise every time, and none of training's."""
GRID_ROWS = 6
GRID_SAMPLES = 3
Row = list[tuple[Picture, str]]


def show_validation(trainer: Trainer, rows: Sequence[Row], tag: str = "validation") -> None:
    """Write rows of (picture, caption) as one picture to the TensorBoard of a trainer, if it has one."""
    if not rows or not trainer.is_world_process_zero():
        return
    grid = np.asarray(sheet(rows, 96))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            callback.tb_writer.add_image(tag, grid, trainer.state.global_step, dataformats="HWC")


def show_role(
    trainer: Trainer, vlm: UnifiedVLM, role: Role, adapter: str | None, triplets: Sequence[Triplet], tag: str
) -> None:
    """A grid of what a role makes of a few triplets: pictures that an FDM draws, the action that an IDM reads.

    Every process must call it: under ZeRO-3 the weights are gathered meanwhile. The noise is the same every time.
    """
    shown = [triplet for triplet in triplets[:GRID_ROWS] if triplet.target is not None]
    if not shown or not any(isinstance(c, TensorBoardCallback) for c in trainer.callback_handler.callbacks):
        return
    if role == "fdm" and not vlm.can_draw:  # which was said when the base was opened
        return
    with gathered(trainer):
        if not trainer.is_world_process_zero():
            return
        with trainer.accelerator.autocast():
            drawn = _drawn if role == "fdm" else _described
            rows = drawn(vlm, adapter, shown, trainer.args.seed)
    show_validation(trainer, rows, tag)


def _drawn(vlm: UnifiedVLM, adapter: str | None, triplets: Sequence[Triplet], seed: int) -> list[Row]:
    sources, actions = [triplet.source for triplet in triplets], [triplet.action for triplet in triplets]
    fdm = ForwardDynamics(vlm, adapter)
    groups = fdm.sample(sources, actions, GRID_SAMPLES, seed=seed, step=VALIDATION_NOISE)
    return [
        [*_pair(triplet, "true target"), *((c.image, f"{c.logprob:.2f}") for c in group)]
        for triplet, group in zip(triplets, groups, strict=True)
    ]


def _described(vlm: UnifiedVLM, adapter: str | None, triplets: Sequence[Triplet], seed: int) -> list[Row]:
    sources = [triplet.source for triplet in triplets]
    targets = [triplet.target for triplet in triplets if triplet.target is not None]
    words = InverseDynamics(vlm, adapter).describe(sources, targets)
    return [_pair(triplet, f"read: {said}") for triplet, said in zip(triplets, words, strict=True)]


def _pair(triplet: Triplet, said: str) -> Row:
    assert triplet.target is not None
    return [(triplet.source, triplet.action), (triplet.target, said)]
