"""An exported run is the run: the same log-probabilities, opened by us and by transformers' own class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from script_runs import start
from transformers import AutoTokenizer, ChameleonForConditionalGeneration

from rewards.mix import MIX_FILE, resolve
from rl import RewindError, load_fdm, load_idm, rerank
from rl.models.export import save_merged
from rl.models.known import LINEAR_LAYERS
from rl.models.saving import save_base
from trainers.common.adapters import add_adapter, save_adapter, save_whole

ACTION = "move the red circle left"


def make_run(folder: Path) -> Path:
    """A run folder whose adapter changes the tiny base a lot."""
    vlm = make_tiny()
    vlm.name = str(folder / "base")
    save_base(vlm, folder / "base", {"pretraining": {}})
    torch.manual_seed(1)
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    save_adapter(vlm, folder / "run")
    return folder / "run"


def test_an_exported_run_is_the_run(tmp_path: Path, picture: np.ndarray) -> None:
    run, out = make_run(tmp_path), tmp_path / "out"
    mix = {"rewards": ["copy_penalty=2"], "reward_arguments": {"copy_penalty": {"least": 3}}}
    (run / MIX_FILE).write_text(json.dumps(mix))
    done = start("scripts/export.py", "--run", run, "--output", out)
    assert done.returncode == 0, done.stderr
    assert "with the fitted mix of rewards (reward.json)" in done.stdout
    fdm = load_fdm(run)
    candidates = fdm.sample(picture, ACTION, 4)
    targets = [c.image for c in candidates]
    with_adapter = fdm.log_probs(picture, targets, ACTION)
    idm = load_idm(run).log_probs(picture, targets, ACTION)
    base = load_fdm(str(tmp_path / "base")).log_probs(picture, targets, ACTION)
    shutil.rmtree(run)  # the folder stands alone
    shutil.rmtree(tmp_path / "base")

    asked = SimpleNamespace(rewards=["fitted"], reward_arguments=None, fdm=str(out))
    resolve(asked)
    assert {"rewards": asked.rewards, "reward_arguments": asked.reward_arguments} == mix
    chosen = rerank(load_fdm(out), None, picture, ACTION, num_candidates=2)  # by the mix, since nobody says by what
    assert set(chosen.best.scores) == {"copy_penalty"}

    merged = load_fdm(out)
    assert merged.adapter is None
    np.testing.assert_allclose(merged.log_probs(picture, targets, ACTION), with_adapter, atol=1e-5)
    np.testing.assert_allclose(load_idm(out).log_probs(picture, targets, ACTION), idm, atol=1e-5)
    assert np.abs(np.array(base) - np.array(with_adapter)).max() > 0.01  # the adapter did change something
    assert [c.ids.tolist() for c in merged.sample(picture, ACTION, 4)] == [c.ids.tolist() for c in candidates]

    plain, report = ChameleonForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(out)(ACTION)["input_ids"]
    ids = torch.tensor([merged.backbone.fdm_prompt(candidates[0].ids.tolist(), ACTION)])
    with torch.no_grad():
        hidden = merged.backbone.hidden_states(ids, use_cache=False).last_hidden_state
        assert torch.allclose(plain.model(input_ids=ids, use_cache=False).last_hidden_state, hidden, atol=1e-5)
    card = json.loads((out / "rewind.json").read_text())
    assert card["exported"] == {"run": str(run), "base": str(tmp_path / "base")}
    assert not list(out.glob("*.bin"))


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="no adapter to merge"):
        save_merged(make_tiny(), None, tmp_path / "out", {})
    done = start("scripts/export.py", "--run", "tabletop-chameleon", "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "holds no adapter: there is nothing to merge" in done.stderr
    save_whole(make_tiny(), tmp_path / "whole", role="fdm")
    done = start("scripts/export.py", "--run", tmp_path / "whole", "--output", tmp_path / "out")
    assert (
        f"trained all weights, so there is nothing to merge: {tmp_path / 'whole' / 'model'} is a plain" in done.stderr
    )
    assert load_fdm(tmp_path / "whole" / "model").adapter is None
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out").exists()
