"""Under an adapter in half precision: `rl.models.lora` against peft's own forward, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear

from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.lora import InPlaceLinear, add_in_place
from trainers.bench import sampler, scorer
from trainers.bench.measure import Size, in_turns
from trainers.bench.mid import ACTIONS, random_pictures
from trainers.common.adapters import add_adapter

FEW, MANY = 48, 112
"""Tokens drawn; what a step takes is the difference, without prompts and recording."""


def measure_adapter(vlm: ChameleonVLM, size: Size, training: Callable[[], None]) -> dict[str, Any]:
    """Seconds of a step of the sampler, of scoring and of training under an adapter, as trainers and scripts read it.

    Args:
        vlm: in half precision, with the adapter `default` on it.
        size: of the load.
        training: a training step.
    """
    prompts = [vlm.fdm_prompt(ids, ACTIONS[0]) for ids in random_pictures(vlm, min(2, size["prompts"]))]
    source, *targets = random_pictures(vlm, 1 + size["targets"])
    behind, spans = [vlm.fdm_prompt(source, ACTIONS[0])] * len(targets), [vlm.target_span(ids) for ids in targets]
    drawing: dict[str, list[Callable[[], None]]] = {
        name: [partial(_draw, vlm, prompts, size, name, tokens) for tokens in (FEW, MANY)]
        for name in ("none", "peft", "fused")
    }
    spent = in_turns([part for parts in drawing.values() for part in parts], size["repeats"] + 1)
    step = {name: (median(spent[2 * n + 1]) - median(spent[2 * n])) / (MANY - FEW) for n, name in enumerate(drawing)}
    scoring = _both(vlm, size, partial(scorer.shared, vlm, behind, spans), "default")
    trained = _both(vlm, size, partial(_under_autocast, vlm, training), None)
    figures = {
        "adapter_step_speedup": step["peft"] / step["fused"],
        "adapter_step_of_none": step["fused"] / step["none"],
        "adapter_scorer_speedup": scoring["peft"] / scoring["fused"],
        "adapter_training_speedup": trained["peft"] / trained["fused"],
    }
    return {**figures, "raw": {"step_seconds": step, "scoring_seconds": scoring, "training_seconds": trained}}


def put_adapter(vlm: ChameleonVLM, size: Size) -> None:
    """A fresh adapter `default`, if there is none."""
    if not hasattr(vlm.model, "peft_config"):
        add_adapter(vlm, LoraConfig(r=size["r"], target_modules=list(LINEAR_LAYERS)))


@contextmanager
def peft_s_own(vlm: ChameleonVLM) -> Iterator[None]:
    """Adapters as peft reads them."""
    layers: Sequence[Any] = [layer for layer in vlm.model.modules() if type(layer) is InPlaceLinear]
    for layer in layers:
        layer.__class__ = Linear
    try:
        yield
    finally:
        add_in_place(vlm.model)


def _under_autocast(vlm: ChameleonVLM, work: Callable[[], None]) -> None:
    with torch.autocast(vlm.device.type, torch.bfloat16):
        work()


def _draw(vlm: ChameleonVLM, prompts: list[list[int]], size: Size, name: str, tokens: int) -> None:
    with torch.autocast(vlm.device.type, torch.bfloat16):
        if name == "peft":
            with peft_s_own(vlm), vlm.using("default", merged=True):
                sampler.draw(vlm, prompts, size, tokens)
        else:
            with vlm.using(None if name == "none" else "default", merged=True):
                sampler.draw(vlm, prompts, size, tokens)


def _both(vlm: ChameleonVLM, size: Size, work: Callable[[], Any], adapter: str | None) -> dict[str, float]:
    """Median seconds of work by peft's own forward and by ours, in turns; under an adapter, or as the model is."""

    def ours() -> None:
        if adapter is None:
            work()
        else:
            with vlm.using(adapter, merged=True):
                work()

    def theirs() -> None:
        with peft_s_own(vlm):
            ours()

    spent = in_turns([theirs, ours], size["repeats"] + 1)
    return {"peft": median(spent[0]), "fused": median(spent[1])}
