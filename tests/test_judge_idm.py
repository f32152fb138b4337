"""A judge IDM on the policy's base is a frozen adapter beside it: it judges as by itself and ends up nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file

from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base, load_fdm, load_idm
from rl.models.roles import IDM_ADAPTER, JUDGE_ADAPTER
from rl.models.saving import save_base
from trainers.common.adapters import add_adapter, save_adapter
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.judge import load_judge
from trainers.grpo.monitors import Monitors
from trainers.grpo.recipe import train_grpo
from trainers.grpo.trainer import WorldModelGRPOTrainer

ACTIONS = ["move the red circle left", "remove all rings", "paint the blue star green"]


def run_on(base: Path, folder: Path, role: Any, seed: int, **card: Any) -> Path:
    vlm = load_base(base)
    torch.manual_seed(seed)
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    save_adapter(vlm, folder, role=role)
    if card:
        file = folder / "adapter" / "rewind.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **card}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    for name, seed in (("base", 0), ("other", 1)):
        save_base(make_tiny(seed=seed), tmp_path / name, {})
    places = {"fdm": "base", "idm": "base", "judge": "base", "apart": "other"}
    roles = {name: "fdm" if name == "fdm" else "idm" for name in places}
    return {
        name: run_on(tmp_path / base, tmp_path / name, roles[name], seed)
        for seed, (name, base) in enumerate(places.items())
    }


def test_it_judges_as_a_model_of_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    fdm = load_fdm(runs["fdm"])
    vlm = fdm.backbone
    trained = {name for name, p in vlm.model.named_parameters() if p.requires_grad}
    judge, alone = load_judge(runs["judge"], vlm, max_rows=3), load_idm(runs["judge"])
    assert (judge.backbone, judge.adapter, judge.max_rows) == (vlm, JUDGE_ADAPTER, 3)
    pictures = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    before = fdm.score(pictures[0], pictures[1:], ACTIONS[0])
    scores = judge.score(pictures[:3], pictures[3:], ACTIONS)
    assert scores == pytest.approx(alone.score(pictures[:3], pictures[3:], ACTIONS), abs=1e-6)
    assert scores != pytest.approx(load_idm(runs["idm"]).score(pictures[:3], pictures[3:], ACTIONS), abs=1e-3)
    assert fdm.score(pictures[0], pictures[1:], ACTIONS[0]) == before
    assert {name for name, p in vlm.model.named_parameters() if p.requires_grad} == trained
    assert vlm.model.active_adapter == "default"
    apart = load_judge(runs["apart"], vlm)
    assert apart.backbone is not vlm
    assert load_judge(tmp_path / "base", vlm).backbone is vlm  # a bare base judges without an adapter


def test_it_changes_nothing_that_the_policy_is_read_by(runs: dict[str, Path], tmp_path: Path) -> None:
    """A judge of vectors is a model of its own; what it takes for unchanged is not what the policy does."""
    vlm = load_fdm(runs["fdm"]).backbone
    near = run_on(tmp_path / "base", tmp_path / "near", "idm", 5, same_below=0.25)
    assert load_judge(near, vlm).backbone is vlm
    assert vlm.same_below == 0
    bins = {"kind": "bins", "low": [-1.0], "high": [1.0]}
    vectors = run_on(tmp_path / "base", tmp_path / "vectors", "idm", 5, actions=bins)
    judge = load_judge(vectors, vlm)
    assert judge.backbone is not vlm
    assert (vlm.actions, judge.backbone.actions is None) == (None, False)


def test_a_run_watched_by_it(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same judgements and the same policy as with a second model; in no optimizer, checkpoint or result."""
    monkeypatch.setattr("trainers.grpo.monitors.ENOUGH", 0)
    rows = []
    for n, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        rows.append({"input": f"{n}.png", "instruction": ACTIONS[n % 3], "output": f"{7 - n}.png"})
    (tmp_path / "triplets.json").write_text(json.dumps(rows))
    seen: list[tuple[Monitors, WorldModelGRPOTrainer]] = []
    begin = WorldModelGRPOTrainer.__init__

    def noted(self: WorldModelGRPOTrainer, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        seen.append((more["monitors"], self))

    monkeypatch.setattr(WorldModelGRPOTrainer, "__init__", noted)

    def train(name: str, steps: int = 2, resume: bool = False) -> list[dict[str, Any]]:
        arguments = GRPOArguments(
            fdm=str(runs["fdm"]),
            idm=str(runs["idm"]),
            judge_idm=str(runs["judge"]),
            triplets=[str(tmp_path / "triplets.json")],
            monitors=["judge_idm"],
            rewards=["idm_likelihood"],
            resume=resume,
        )
        config = RewindGRPOConfig(
            output_dir=str(tmp_path / name),
            max_steps=steps,
            learning_rate=1e-2,
            num_generations=4,
            per_device_train_batch_size=4,
            logging_steps=1,
            save_steps=2,
            beta=0.1,
            gradient_checkpointing=False,
            lr_scheduler_type="constant",
            report_to="none",
            disable_tqdm=True,
        )
        train_grpo(arguments, config)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [row for line in lines if "monitors/judge_idm" in (row := json.loads(line))]

    shared = train("shared")
    (monitors, trainer), vlm = seen[0], seen[0][1].vlm
    assert monitors.judge is not None
    assert monitors.judge.backbone is vlm
    weights = load_file(runs["judge"] / "adapter" / "adapter_model.safetensors")
    own = {n: p for n, p in vlm.model.named_parameters() if f".{JUDGE_ADAPTER}." in n}
    assert len(own) == len(weights)
    for name, weight in own.items():
        assert torch.equal(weight.cpu(), weights[name.replace(f".{JUDGE_ADAPTER}", "")])
    inner: Any = trainer.optimizer
    trained = {id(p) for group in inner.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in own.values()}
    for folder in (tmp_path / "shared" / "checkpoint-2", tmp_path / "shared" / "adapter"):
        held = [str(f) for f in folder.rglob("*") if f.name in (IDM_ADAPTER, JUDGE_ADAPTER)]
        held += [k for f in folder.rglob("*.safetensors") for k in load_file(f) if "idm." in k]
        assert held == []
    whole, cut = train("whole", steps=3), train("shared", steps=3, resume=True)
    assert whole[-1]["reward"] == cut[-1]["reward"]
    policies = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("whole", "shared")]
    assert all(torch.equal(weight, policies[1][name]) for name, weight in policies[0].items())
    run_on(tmp_path / "base", runs["idm"], "idm", 9)  # another one under the same name
    with pytest.raises(RewindError, match="begun with other values of idm_weights"):
        train("shared", steps=4, resume=True)
    run_on(tmp_path / "base", runs["idm"], "idm", 1)

    monkeypatch.setattr("trainers.grpo.judge._writes_actions_alike", lambda *_: False)
    apart = train("second")
    judge = seen[-1][0].judge
    assert judge is not None
    assert judge.backbone is not seen[-1][1].vlm
    for ours, theirs in zip(shared, apart, strict=True):
        assert ours["monitors/judge_idm"] == pytest.approx(theirs["monitors/judge_idm"], abs=1e-6)
        assert ours["reward"] == theirs["reward"]
    assert len(shared) == 2
