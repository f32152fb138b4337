"""`compile`: the same candidates and words through `torch.compile`, and what it is not for."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig

from rl import RewindError, load_fdm, load_idm
from rl.models import drafting
from rl.models.known import LINEAR_LAYERS
from rl.models.saving import save_base
from trainers.common.adapters import add_adapter, save_adapter
from trainers.common.arguments import parse
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.sft.arguments import FDMArguments, RoleConfig

WORDS = "move the red circle left"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    vlm = make_tiny()
    vlm.name = str(tmp_path / "base")
    save_base(vlm, tmp_path / "base", {})
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    save_adapter(vlm, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_same_ids_through_compile(
    backend: str, run: Path, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with copies of a short prompt, and rows that share one; a token a pass. 'eager' traces all that 'inductor'
    then makes C++ of, which takes a minute.
    """
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("nothing is compiled without a C++ compiler")
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(drafting, "TOKENS_A_PASS", 0)
    plain, compiled = load_fdm(run), load_fdm(run, compile=True)
    assert (plain.backbone.step, compiled.backbone.step is None) == (None, False)
    idm = load_idm(run, compiled.backbone)
    described = load_idm(run, plain.backbone).describe(picture, picture, max_tokens=4)
    for shared_from in (128, 1):
        monkeypatch.setattr("rl.models.streams.SHARED_FROM", shared_from)
        ours, theirs = (fdm.sample(picture, WORDS, 3, seed=1) for fdm in (compiled, plain))
        assert [c.ids.tolist() for c in ours] == [c.ids.tolist() for c in theirs]
        np.testing.assert_allclose([c.logprobs for c in ours], [c.logprobs for c in theirs], atol=1e-4)
    assert idm.describe(picture, picture, max_tokens=4) == described


def test_only_steps_without_gradients_are_compiled() -> None:
    vlm, seen = make_tiny(), []
    whole = vlm.transformer()
    vlm.step = lambda **given: (seen.append(given["input_ids"].shape[1]), whole(**given))[1]
    with torch.no_grad():
        vlm.hidden_states(torch.tensor([[0]]), use_cache=False)
        vlm.hidden_states(torch.tensor([[0, 5]]), use_cache=False)
    vlm.hidden_states(torch.tensor([[0]]), use_cache=False)
    assert seen == [1]


def test_what_cannot_be_compiled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RewindError, match="compile is for whole weights in one place: leave out compile or device_map"):
        load_fdm(run, compile=True, device_map="auto")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RewindError, match=r"torch.compile does not work here on cpu \(No working C"):
        load_fdm(run, compile=True)


@pytest.mark.parametrize("flags", [["--compile"], ["--compile=true"], "compile: true"])
def test_a_training_run_refuses_it(flags: list[str] | str, tmp_path: Path) -> None:
    if isinstance(flags, str):
        (tmp_path / "config.yaml").write_text(flags)
        flags = ["--config", str(tmp_path / "config.yaml")]
    for types in ([GRPOArguments, RewindGRPOConfig], [FDMArguments, RoleConfig]):
        with pytest.raises(RewindError, match=r"a training run draws without torch.compile.*: leave --compile out"):
            parse(types, flags)
