"""`--validation` while SFT and DPO train: exact means on held-out triplets, grids, the best checkpoint (TRL 1.16)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_refusals import run, small_task
from test_sft import triplets
from transformers import TrainerCallback, set_seed

from rl import load_fdm, load_idm
from rl.data.candidates.store import store_of
from rl.data.importance import Importance
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics, InverseDynamics, Role
from trainers.common.adapters import add_adapter
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

HELD_OUT = 5
REWARD = "def even(predicted_ids, **_):\n    return [float(sum(t % 2 == 0 for t in ids)) for ids in predicted_ids]\n"


def evaluated(folder: Path, role: Role, importance: Importance | None, **settings: Any) -> RoleSFTTrainer:
    set_seed(0)
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    rows = role_rows(vlm, role, triplets(8), importance)
    held_out = role_rows(vlm, role, triplets(8 + HELD_OUT)[8:], importance)
    defaults = {"per_device_eval_batch_size": 2, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    defaults |= {"gradient_checkpointing": False, "save_strategy": "no", "z_loss": 0.1, "eval_strategy": "steps"}
    config = RoleConfig(output_dir=str(folder), **{**defaults, "eval_steps": 1, **settings})
    return RoleSFTTrainer(vlm, role, config, rows, eval_dataset=held_out, use_weights=importance is not None)


class BlowUp(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        with torch.no_grad():
            for parameter in model.parameters() if state.global_step > 2 else ():
                parameter.mul_(3 if parameter.requires_grad else 1)


def likeliest(vlm: ChameleonVLM, row: dict[str, list[int]], allowed: torch.Tensor) -> list[bool]:
    """Whether each token of a row's span is the likeliest of the allowed ones, by the model's own forward."""
    with vlm.using("default"), torch.no_grad():
        hidden = vlm.hidden_states(torch.tensor([row["input_ids"]]), use_cache=False).last_hidden_state[0]
        logits = (hidden @ vlm.head_weight().T)[:-1, allowed]
    labels = torch.tensor(row["labels"][1:])
    learned = labels != -100
    return (allowed[logits[learned].argmax(-1)] == labels[learned]).tolist()


@pytest.mark.parametrize("role", ["fdm", "idm"])
def test_an_evaluation_is_the_mean_over_all_tokens(role: Role, tmp_path: Path) -> None:
    """Five rows in batches of two: a mean over batches, and for words of different lengths one over rows, is another
    number. The loss is the training loss, with its weights and without its z-loss.
    """
    settings = {"max_steps": 15, "learning_rate": 0.02, "eval_steps": 100}  # an untrained IDM hits no word
    found = evaluated(tmp_path, role, Importance() if role == "fdm" else None, **settings)
    found.train()
    measured = found.evaluate()
    vlm: Any = found.vlm
    scorer = (ForwardDynamics if role == "fdm" else InverseDynamics)(vlm, "default")
    nll, weight, right = 0.0, 0.0, []
    for number, triplet in enumerate(triplets(8 + HELD_OUT)[8:]):
        row = found.eval_dataset[number]
        scores = scorer.log_probs(triplet.source, [triplet.target], triplet.action)[0]  # type: ignore[list-item]
        weights = np.array(row["weights"][-len(scores) :]) if role == "fdm" else np.ones(len(scores))
        nll, weight = nll - float((weights * scores).sum()), weight + float(weights.sum())
        right += likeliest(vlm, row, vlm.layout.image_ids_V if role == "fdm" else vlm.layout.text_ids_V)
    assert measured["eval_loss"] == pytest.approx(nll / weight, rel=1e-5)
    assert measured["eval_mean_token_accuracy"] == pytest.approx(np.mean(right), abs=1e-9)
    assert 0 < np.mean(right) < 1
    assert not any(key.startswith("eval_z") for key in measured)


def test_the_best_checkpoint_is_restored(tmp_path: Path) -> None:
    """Its weights are blown up after the second step, so the best is not the last."""
    settings = {"max_steps": 4, "learning_rate": 0.01, "lr_scheduler_type": "constant", "save_strategy": "steps"}
    settings |= {"save_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    found = evaluated(tmp_path, "fdm", None, **settings)
    found.add_callback(BlowUp())
    found.train()
    losses = [row["eval_loss"] for row in found.state.log_history if "eval_loss" in row]
    best = int(np.argmin(losses)) + 1
    assert found.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert best <= 2
    kept, last = (load_file(tmp_path / f"checkpoint-{n}" / "adapter_model.safetensors") for n in (best, 4))
    now = {name.replace(".default.", "."): p for name, p in found.model.named_parameters() if ".default." in name}
    assert now.keys() == kept.keys()
    assert all(torch.equal(now[name], weight) for name, weight in kept.items())
    assert not all(torch.equal(now[name], weight) for name, weight in last.items())
    assert found.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_evaluating_changes_no_training(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    weights = []
    for name, strategy in (("with", "steps"), ("without", "no")):
        found = evaluated(tmp_path / name, "idm", None, max_steps=3, learning_rate=0.01, eval_strategy=strategy)
        found.train()
        weights.append([p.detach().clone() for name, p in found.model.named_parameters() if ".default." in name])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def pictures(run_folder: Path) -> dict[str, int]:
    """Tag -> number of pictures in a run's TensorBoard."""
    events = EventAccumulator(str(run_folder / "tensorboard")).Reload()
    return {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}


def rows_of(run_folder: Path, key: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if key in row]


def test_the_recipes_evaluate_on_held_out_triplets(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    task += ["--validation", tmp_path / "triplets.json", "--max_steps", 2, "--per_device_train_batch_size", 2]
    each = ["--eval_strategy", "steps", "--eval_steps", 1, "--learning_rate", 0.05, "--lora_r", 4]
    best = ["--save_strategy", "steps", "--save_steps", 1, "--load_best_model_at_end", "true"]
    best += ["--metric_for_best_model", "eval_mean_token_accuracy"]
    for role in ("fdm", "idm"):
        folder = run(role, *task, *each, *best, "--output_dir", tmp_path / role)
        assert [row["step"] for row in rows_of(folder, "eval_loss")] == [1, 2]
        assert all(0 <= row["eval_mean_token_accuracy"] <= 1 for row in rows_of(folder, "eval_loss"))
        assert pictures(folder) == {"validation": 2}
    load_fdm(tmp_path / "fdm")
    load_idm(tmp_path / "idm")
    both = run("fdm", *task, *each, "--with_idm", "true", "--token_weights", "true", "--output_dir", tmp_path / "both")
    measured = rows_of(both, "eval_loss")
    assert [row["step"] for row in measured] == [1, 2]
    for row in measured:
        assert row["eval_loss"] == pytest.approx(row["eval_loss_fdm"] + row["eval_loss_idm"])
        assert {"eval_mean_token_accuracy_fdm", "eval_mean_token_accuracy_idm"} <= row.keys()
    assert pictures(both) == {"validation_fdm": 2, "validation_idm": 2}
    (tmp_path / "base" / "decoder.safetensors").unlink()  # measured all the same; there is nothing to draw
    blind = run("fdm", *task, *each, "--output_dir", tmp_path / "blind")
    assert (len(rows_of(blind, "eval_loss")), pictures(blind)) == (2, {})


def test_dpo_evaluates_on_pairs_that_are_drawn_once(tmp_path: Path) -> None:
    """In both rounds on the same pairs, those of the policy that the run starts from."""
    task = small_task(tmp_path, 4)
    start = run("fdm", *task, "--max_steps", 1, "--report_to", "none", "--output_dir", tmp_path / "start")
    (tmp_path / "rewards.py").write_text(REWARD)
    flags = ["--fdm", start, "--rewards", f"{tmp_path / 'rewards.py'}:even", "--triplets", tmp_path / "triplets.json"]
    flags += ["--validation", tmp_path / "triplets.json", "--num_candidates", 4, "--min_gap", 0, "--rounds", 2]
    flags += ["--eval_on_start", "true", "--eval_strategy", "steps", "--eval_steps", 1, "--max_steps", 2, "--beta", 1]
    flags += ["--learning_rate", 0.05, "--save_strategy", "no", "--report_to", "none"]
    folder = run("dpo", *flags, "--output_dir", tmp_path / "dpo")
    chosen = []
    for number in range(2):
        rows = rows_of(folder / f"round-{number}", "eval_loss")
        assert [row["step"] for row in rows] == [0, 1, 2]
        assert rows[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)  # policy and reference are one at first
        assert all(0 <= row["eval_rewards/accuracies"] <= 1 for row in rows)
        assert rows[2]["eval_loss"] != rows[0]["eval_loss"]
        chosen.append([row["eval_logps/chosen"] for row in rows])
    assert chosen[1][0] == pytest.approx(chosen[0][2], abs=1e-4)  # a round goes on where the one before ended
    # Nothing of --validation is among what a later run could train on.
    again = run("dpo", *flags, "--rounds", 1, "--output_dir", tmp_path / "again")
    assert [row["eval_logps/chosen"] for row in rows_of(again / "round-0", "eval_loss")] == chosen[0]
    assert len(list(store_of(str(again)).groups(load_fdm(start).backbone))) == 4
