"""Two roles as LoRA adapters on one backbone (peft 0.21): the right one is active, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rewards.ensemble import Ensemble
from rl import load_fdm, load_idm
from rl.errors import RewindError
from rl.models.opening import load_base
from rl.models.saving import save_base


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base folder and two run folders with different adapters on it."""
    base = tmp_path / "base"
    save_base(make_tiny(), base, {})
    folders = []
    for seed, name in ((1, "fdm"), (2, "idm")):
        model = load_base(base).model
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)
        model = get_peft_model(model, config)
        model.peft_config["default"].base_model_name_or_path = str(base)
        model.save_pretrained(tmp_path / name / "adapter")
        folders.append(tmp_path / name)
    return base, folders[0], folders[1]


def test_each_role_uses_its_own_adapter(runs: tuple[Path, Path, Path], picture: np.ndarray) -> None:
    base, fdm_run, idm_run = runs
    action = "move the red circle left"
    fdm_alone, idm_alone, plain = load_fdm(fdm_run), load_idm(idm_run), load_fdm(base)
    fdm = load_fdm(fdm_run)
    idm = load_idm(idm_run, backbone=fdm.backbone)
    assert idm.backbone is fdm.backbone
    for _ in range(2):  # in turn, so that switching back is tested too
        assert fdm.score(picture, [255 - picture], action) == pytest.approx(
            fdm_alone.score(picture, [255 - picture], action), abs=1e-5
        )
        assert idm.score(picture, [255 - picture], action) == pytest.approx(
            idm_alone.score(picture, [255 - picture], action), abs=1e-5
        )
    assert fdm.score(picture, [255 - picture], action) != pytest.approx(
        plain.score(picture, [255 - picture], action), abs=1e-3
    )
    with fdm.backbone.using(None):
        hidden = fdm.backbone.hidden_states(torch.tensor([[0, 40, 41]]), use_cache=False).last_hidden_state
    expected = plain.backbone.hidden_states(torch.tensor([[0, 40, 41]]), use_cache=False).last_hidden_state
    assert torch.allclose(hidden, expected, atol=1e-6)


def test_an_ensemble_shares_one_backbone(runs: tuple[Path, Path, Path], picture: np.ndarray) -> None:
    base, fdm_run, idm_run = runs
    action = "move the red circle left"
    alone = [load_idm(run).score(picture, [255 - picture], action)[0] for run in (idm_run, fdm_run, base)]
    idm = load_idm(idm_run)
    ensemble = Ensemble(idm, [fdm_run, str(base)])
    assert all(member.backbone is idm.backbone for member in ensemble.members)
    found = ensemble.by_member([action], [picture], [255 - picture])  # type: ignore[list-item]
    assert found[:, 0].tolist() == pytest.approx(alone, abs=1e-5)
    assert Ensemble(idm, [fdm_run]).members[1].adapter != ensemble.members[1].adapter  # a second one may be made


def test_scoring_leaves_the_trainable_set_and_the_mode(runs: tuple[Path, Path, Path], picture: np.ndarray) -> None:
    _, fdm_run, idm_run = runs
    fdm = load_fdm(fdm_run)
    model = fdm.backbone.model
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    model.train()

    def state() -> tuple[set[str], str | list[str], bool]:
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        return trainable, model.active_adapter, model.training

    before = state()
    idm = load_idm(idm_run, backbone=fdm.backbone)
    assert state() == before
    idm.score(picture, [255 - picture], "move the red circle left")
    fdm.sample(picture, "move the red circle left")
    with fdm.backbone.using(None):
        pass
    assert state() == before
    with pytest.raises(ValueError, match="boom"), fdm.backbone.using("idm"):
        raise ValueError("boom")
    assert state() == before


def test_an_adapter_is_used_as_by_peft_s_own_switches(runs: tuple[Path, Path, Path]) -> None:
    """peft 0.21: what `_active_adapter` and `_disable_adapters` of its layers say is all that a pass reads."""
    _, fdm_run, idm_run = runs
    vlm = load_fdm(fdm_run).backbone
    load_idm(idm_run, backbone=vlm)
    model: Any = vlm.model

    def hidden() -> torch.Tensor:
        state: torch.Tensor = vlm.hidden_states(torch.tensor([[0, 40, 41, 42]]), use_cache=False).last_hidden_state
        return state.detach()

    def states() -> list[Any]:
        return [(m.training, getattr(m, "active_adapters", None), getattr(m, "disable_adapters", None)) for m in every]

    expected: dict[str | None, torch.Tensor] = {}
    for name in ("idm", "default"):
        model.set_adapter(name)
        expected[name] = hidden()
    with model.disable_adapter():
        expected[None] = hidden()
    every = list(model.modules())
    model.train()
    every[-1].training = False  # a part that the user holds in evaluation mode stays in it
    before = states()
    for name in ("idm", None, "default"):
        with vlm.using(name):
            assert torch.equal(hidden(), expected[name])
            assert not any(module.training for module in every)
            with vlm.using("idm"):
                assert torch.equal(hidden(), expected["idm"])
            assert torch.equal(hidden(), expected[name])
        assert states() == before
    assert not torch.equal(expected["idm"], expected["default"])
    assert not torch.equal(expected[None], expected["default"])


def test_one_role_inside_another(runs: tuple[Path, Path, Path], picture: np.ndarray) -> None:
    _, fdm_run, idm_run = runs
    fdm = load_fdm(fdm_run)
    idm = load_idm(idm_run, backbone=fdm.backbone)
    expected = idm.score(picture, [255 - picture], "remove all rings")
    with fdm.backbone.using(None):
        assert idm.score(picture, [255 - picture], "remove all rings") == expected
    with fdm.backbone.using("idm"), fdm.backbone.using(None):
        pass
    assert idm.score(picture, [255 - picture], "remove all rings") == expected
    with pytest.raises(RewindError, match="no adapter named 'judge'"), fdm.backbone.using("judge"):
        pass


def test_merged_weights_say_the_same_and_are_put_back(runs: tuple[Path, Path, Path]) -> None:
    """peft 0.21: `get_delta_weight`, `_disable_adapters` and `lora_variant` of its layers."""
    _, fdm_run, idm_run = runs
    vlm = load_fdm(fdm_run).backbone
    load_idm(idm_run, backbone=vlm)
    weights = {name: value.clone() for name, value in vlm.model.state_dict().items()}

    def hidden() -> torch.Tensor:
        state: torch.Tensor = vlm.hidden_states(torch.tensor([[0, 40, 41, 42]]), use_cache=False).last_hidden_state
        return state.detach()

    for adapter in ("idm", "default"):
        with vlm.using(adapter):
            expected = hidden()
        with vlm.using(adapter, merged=True):
            found, changed = hidden(), vlm.model.state_dict()
            assert any(not torch.equal(changed[name], value) for name, value in weights.items())
            with pytest.raises(RewindError, match=f"hold '{adapter}' merged"), vlm.using("idm"):
                pass
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, hidden(), atol=1e-3) or adapter == "default"  # the active one is back
    assert all(torch.equal(vlm.model.state_dict()[name], value) for name, value in weights.items())
    vlm.model.to(torch.bfloat16)  # there the sum would be rounded
    with vlm.using("idm", merged=True):
        assert torch.equal(vlm.model.state_dict()[name := next(iter(weights))], weights[name].to(torch.bfloat16))
        assert not any("holds" in vars(module) for module in vlm.model.modules())


def _change(run: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = run / "adapter" / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda run: (run / "adapter" / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
        (lambda run: (run / "adapter" / "adapter_model.safetensors").write_bytes(b"x" * 50), "cannot be read"),
        (lambda run: _change(run, lambda w: dict(list(w.items())[1:])), "it has 11 tensors for 12 places"),
        (lambda run: _change(run, lambda w: {k: torch.cat([v, v]) for k, v in w.items()}), "does not fit"),
        (lambda run: _change(run, lambda w: {**w, "base_model.model.lm_head.weight": torch.ones(2)}), "lm_head"),
    ],
)
def test_a_damaged_adapter(runs: tuple[Path, Path, Path], damage, sentence: str) -> None:  # type: ignore[no-untyped-def]
    damage(runs[1])
    with pytest.raises(RewindError, match=sentence):
        load_fdm(runs[1])


def test_an_adapter_of_another_base(runs: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, fdm_run, _ = runs
    other = tmp_path / "other"
    save_base(make_tiny(), other, {})
    with pytest.raises(RewindError, match=r"belongs to .*base, not to .*other"):
        load_fdm(fdm_run, backbone=load_base(other))
    with pytest.raises(RewindError, match="there is no base"):
        load_fdm(tmp_path / "nothing")
    fdm = load_fdm(fdm_run)
    with pytest.raises(RewindError, match="already has an adapter named 'default'"):
        load_fdm(fdm_run, backbone=fdm.backbone)
