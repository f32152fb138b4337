"""Policy, reference and IDM: three adapters on one backbone against three models with an adapter each.

One step of the policy on a random batch, with AdamW; reference and IDM read it. Bytes are those of weights, gradients
and optimizer after the step, `peak` those and all that the step needs meanwhile.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig

from rl.models.distribution import TokenDistribution
from rl.models.families.chameleon import TINY_DECODER, new_chameleon, tiny_vq_config
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base
from rl.models.text_tokenizer import train_text_tokenizer
from rl.models.unified import UnifiedVLM
from trainers.bench.measure import Size, peak_bytes, state_bytes
from trainers.bench.mid import ACTIONS
from trainers.common.adapters import add_adapter

ROLES = ("default", "ref", "idm")


def ours(size: Size) -> dict[str, Any]:
    vlm = model(size)
    for role in ROLES:
        add_adapter(vlm, LoraConfig(r=size["r"], target_modules=list(LINEAR_LAYERS)), role)
    return _measured([vlm] * 3, list(ROLES), size)


def baseline(size: Size) -> dict[str, Any]:
    vlms = [model(size) for _ in ROLES]
    for vlm in vlms:
        add_adapter(vlm, LoraConfig(r=size["r"], target_modules=list(LINEAR_LAYERS)))
    return _measured(vlms, ["default"] * 3, size)


def model(size: Size) -> UnifiedVLM:
    """A random Chameleon of a hidden size and a number of layers, or the shipped base if the hidden size is 0."""
    if not size["hidden"]:
        return load_base("tabletop-chameleon")
    tokenizer = train_text_tokenizer([*ACTIONS] * 3, 300)
    sizes: Any = {"hidden_size": size["hidden"], "num_layers": size["layers"], "num_heads": size["hidden"] // 64}
    return new_chameleon(tokenizer, tiny_vq_config(64, 256), TINY_DECODER, name="random", **sizes)


def _measured(vlms: list[UnifiedVLM], adapters: list[str], size: Size) -> dict[str, Any]:
    policy = vlms[0]
    policy.model.set_adapter(adapters[0])  # type: ignore[operator]
    for vlm in vlms:
        for name, parameter in vlm.model.named_parameters():
            parameter.requires_grad_(vlm is policy and f".{adapters[0]}." in name)
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-5)
    distribution = TokenDistribution(policy.layout.image_ids_V)
    width = 2 * policy.layout.tokens_per_image
    ids = policy.layout.image_ids_V[torch.randint(len(policy.layout.image_ids_V), (size["rows"], width))]

    def log_probs(vlm: UnifiedVLM) -> torch.Tensor:
        hidden = vlm.hidden_states(ids, use_cache=False).last_hidden_state
        every = distribution.log_probs(hidden[:, :-1], vlm.head_weight())
        return every.gather(-1, distribution.positions(ids[:, 1:])[..., None])

    def step() -> None:
        for vlm, adapter in zip(vlms[1:], adapters[1:], strict=True):
            with torch.no_grad(), vlm.using(adapter):
                log_probs(vlm)
        optimizer.zero_grad()
        (-log_probs(policy).mean()).backward()
        optimizer.step()

    modules = [module for vlm in vlms for module in (vlm.model, vlm.decoder)]  # type: ignore[attr-defined]
    peak = state_bytes(modules) + peak_bytes(step)
    return {"bytes": state_bytes(modules, [optimizer]), "peak": peak}
