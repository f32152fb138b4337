"""LoRA in half precision in two products (peft 0.21): peft's own values and gradients, rounded alike."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn
from torch.utils.checkpoint import checkpoint

from rl.models.lora import InPlaceLinear, add_in_place, casts_kept
from trainers.common.adapters import add_adapter

IN, OUT = 48, 96


def model(dtype: torch.dtype = torch.bfloat16, **config: Any) -> Any:
    """A linear layer with an adapter that changes something, its weights float32."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(IN, OUT, bias=False)).to(dtype)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=12, target_modules=["0"], init_lora_weights=False, **config))


def layer_of(model: Any) -> Any:
    return next(layer for layer in model.modules() if isinstance(layer, Linear))


def outcome(model: Any, x: torch.Tensor, autocast: bool) -> list[torch.Tensor]:
    """What comes out, and the gradients of A, of B and of the input, of a loss that weighs all alike."""
    given = x.clone().requires_grad_()
    layer = layer_of(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = model(given)
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return [found, *torch.autograd.grad(found.float().square().sum(), [*weights, given])]


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_as_near_to_float64_as_peft(autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    plain = model(dtype)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    add_in_place(fused)
    assert [type(layer_of(one)) for one in (fused, plain)] == [InPlaceLinear, Linear]
    x = torch.randn(3, 40, IN).to(dtype)
    ours, theirs = outcome(fused, x, autocast), outcome(plain, x, autocast)
    true = outcome(exact, x.double(), autocast=False)
    for name, a, b, c in zip(("values", "A", "B", "input"), ours, theirs, true, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        errors = [float(((one.detach().double() - c).norm() / c.norm()).detach()) for one in (a, b)]
        # Without autocast peft multiplies the adapter's part in float32; ours is as under autocast there, too.
        assert errors[0] < (1.5 * errors[1] if autocast else 0.005), (name, errors)
    assert not torch.equal(ours[0], theirs[0])  # else the new way was not taken


def test_float32_and_other_kinds_of_lora_are_peft_s() -> None:
    x = torch.randn(5, IN)
    for dtype, config in (
        (torch.float32, {}),
        (torch.bfloat16, {"use_dora": True}),
        (torch.bfloat16, {"lora_bias": True}),
    ):
        plain = model(dtype, **config).eval()
        fused = copy.deepcopy(plain)
        add_in_place(fused)
        assert torch.equal(fused(x.to(dtype)), plain(x.to(dtype)))
        with fused.disable_adapter():
            assert torch.equal(fused(x.to(dtype)), nn.functional.linear(x.to(dtype), layer_of(fused).base_layer.weight))


def test_what_is_not_one_whole_adapter_is_peft_s() -> None:
    """Two active adapters, weights that ZeRO-3 has elsewhere, hooks, no rows; merged and unmerged again."""
    plain = model()
    plain.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    fused = copy.deepcopy(plain)
    add_in_place(fused)
    layers, x, seen = [layer_of(one) for one in (plain, fused)], torch.randn(5, IN).bfloat16(), []
    own = fused(x)
    assert not torch.equal(own, plain(x))
    assert fused(x[:0]).shape == plain(x[:0]).shape == (0, OUT)
    assert fused(x[None, :0]).shape == (1, 0, OUT)
    with torch.no_grad():
        hook = layers[1].base_layer.register_forward_hook(lambda _, __, found: seen.append(found))
        assert torch.equal(fused(x), plain(x))
        assert torch.equal(seen[0], layers[0].base_layer(x))
        hook.remove()
        layers[1].lora_A["default"].weight.ds_id = 0
        assert torch.equal(fused(x), plain(x))
        del layers[1].lora_A["default"].weight.ds_id
        for one in (plain, fused):
            one.base_model.set_adapter(["default", "other"])
        assert torch.equal(fused(x), plain(x))
        fused.base_model.set_adapter("default")
        assert torch.equal(fused(x), own)
        fused.merge_adapter()
        merged = fused(x)
        fused.unmerge_adapter()
    assert (merged - own).norm() / own.norm() < 0.01


def test_a_dropped_model_is_gone_and_a_pickled_one_the_same() -> None:
    fused, x = model(), torch.randn(5, IN).bfloat16()
    add_in_place(fused)
    again = pickle.loads(pickle.dumps(fused))
    assert torch.equal(again(x), fused(x))
    weight = weakref.ref(layer_of(again).base_layer.weight)
    gc.disable()
    try:
        del again
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_give_the_same_gradients(reentrant: bool) -> None:
    fused = model()
    add_in_place(fused)
    x, layer = torch.randn(7, IN).bfloat16().requires_grad_(), layer_of(fused)
    weights = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    found = []
    for run in (fused, lambda x: checkpoint(fused, x, use_reentrant=reentrant)):
        for weight in weights:
            weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            run(x).float().square().sum().backward()
        found.append([weight.grad for weight in weights])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_dropout_is_of_the_adapter_s_input() -> None:
    plain = model(lora_dropout=0.5)
    fused = copy.deepcopy(plain)
    add_in_place(fused)
    x = torch.randn(200, IN).bfloat16()
    found = []
    for one in (fused, plain):
        torch.manual_seed(3)
        found.append(one(x).float())
    assert (found[0] - found[1]).norm() / found[1].norm() < 0.01
    assert (found[0] - plain.eval()(x).float()).norm() / found[1].norm() > 0.1


def test_weights_are_cast_once_while_they_are_only_read() -> None:
    fused = model()
    add_in_place(fused)
    layer, x = layer_of(fused), torch.randn(2, IN).bfloat16()
    with torch.no_grad():
        with casts_kept([layer]):
            first = fused(x)
            kept = layer.casts["default", torch.bfloat16]
            with casts_kept([layer]):
                assert torch.equal(fused(x), first)
                assert layer.casts["default", torch.bfloat16][0] is not kept[0]
            assert torch.equal(fused(x), first)
            assert layer.casts["default", torch.bfloat16][0] is kept[0]
        layer.lora_B["default"].weight.mul_(2)
        assert not torch.equal(fused(x), first)  # nothing is kept outside
        with casts_kept([layer]), torch.enable_grad():
            assert fused(x).requires_grad
            assert not layer.casts  # nor in training


@pytest.mark.parametrize("names", [("default",), ("fdm", "idm")], ids=["one", "two"])
def test_adapters_of_a_backbone_are_fused(names: tuple[str, ...]) -> None:
    vlm = make_tiny()
    for name in names:
        add_adapter(vlm, LoraConfig(r=2, target_modules=["q_proj"]), name)
    layers = [layer for layer in vlm.model.modules() if isinstance(layer, Linear)]
    assert {type(layer) for layer in layers} == {InPlaceLinear}
    for layer in layers:
        nn.init.normal_(layer.lora_B[names[-1]].weight)
    vlm.model.to(torch.bfloat16)
    ids = torch.tensor([[0, 40, 41]])
    found = {}
    for name in (None, *names):
        with torch.no_grad(), vlm.using(name):
            found[name] = vlm.hidden_states(ids, use_cache=False).last_hidden_state
            assert [len(layer.casts) for layer in layers] == [int(name is not None)] * len(layers)
    assert all(layer.casts is None for layer in layers)
    assert torch.equal(found[None], found[names[0]]) == (len(names) == 2)  # B of the first is zero where there are two
    assert not torch.equal(found[None], found[names[-1]])
