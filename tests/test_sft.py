"""SFT of a role on TRL 1.16's `SFTTrainer`: the weighted loss by hand, any split of a batch, importance weights."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed

from rl.data.importance import Importance, feature_distances
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter, save_adapter
from trainers.sft.arguments import RoleConfig
from trainers.sft.losses import weighted_nll, z_loss
from trainers.sft.rows import SpanCollator, mixed, role_rows
from trainers.sft.trainer import IGNORED, RoleSFTTrainer

ACTIONS = ["move the red circle left", "remove all rings", "paint the blue star green"]


def triplets(count: int) -> list[Triplet]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (count, 2, 32, 32, 3), dtype=np.uint8)
    return [Triplet(a, ACTIONS[i % 3], b) for i, (a, b) in enumerate(pictures)]


def trainer(vlm: ChameleonVLM, folder: Path, role: str, weighted: bool, **settings: object) -> RoleSFTTrainer:
    rows = role_rows(vlm, role, triplets(8), Importance() if weighted else None)  # type: ignore[arg-type]
    defaults = {"max_steps": 1, "learning_rate": 0.0, "gradient_checkpointing": False, "report_to": "none"}
    config = RoleConfig(output_dir=str(folder), disable_tqdm=True, **{**defaults, **settings})  # type: ignore[arg-type]
    return RoleSFTTrainer(vlm, role, config, rows, use_weights=weighted)  # type: ignore[arg-type]


def test_a_step_of_rows_without_weight_learns_nothing(tmp_path: Path) -> None:
    """Pairs in which nothing changes weigh 0 with `--importance_floor 0`: 0 / 0 would make every weight NaN."""
    vlm = make_tiny()
    told = role_rows(vlm, "fdm", triplets(4), Importance())
    columns = {name: [row[name] for row in told] for name in told.column_names}
    rows = Dataset.from_dict({**columns, "weights": [np.zeros(len(row), np.float32) for row in columns["weights"]]})
    rows.set_format("numpy")
    settings: dict[str, Any] = {"max_steps": 2, "learning_rate": 0.1, "logging_steps": 1, "report_to": "none"}
    config = RoleConfig(output_dir=str(tmp_path), disable_tqdm=True, gradient_checkpointing=False, **settings)
    run = RoleSFTTrainer(vlm, "fdm", config, rows, eval_dataset=rows, use_weights=True)
    before = {name: weight.detach().clone() for name, weight in vlm.model.named_parameters()}
    run.train()
    assert [row["loss"] for row in run.state.log_history if "loss" in row] == [0.0, 0.0]
    assert all(torch.equal(weight, before[name]) for name, weight in vlm.model.named_parameters())
    assert run.evaluate()["eval_loss"] == 0.0


def test_rows_hold_prompt_and_span(tiny: ChameleonVLM) -> None:
    data = triplets(3)
    fdm, idm = role_rows(tiny, "fdm", data, Importance()), role_rows(tiny, "idm", data)
    row = fdm[0]
    target = tiny.encode([data[0].target])[0].tolist()  # type: ignore[list-item]
    assert row["input_ids"][-4:].tolist() == row["labels"][-4:].tolist() == target
    assert set(row["labels"][:-4]) == {IGNORED}
    assert row["weights"][:-4].tolist() == [0.0] * (len(row["labels"]) - 4)
    assert np.mean([w for r in fdm for w in r["weights"][-4:]]) == pytest.approx(1.0, abs=1e-5)
    assert tiny.text(idm[1]["labels"][-len(tiny.action_ids(ACTIONS[1])) :]) == ACTIONS[1]
    assert "weights" not in idm.column_names
    with pytest.raises(RewindError, match="triplet 1 has no target"):
        role_rows(tiny, "fdm", [data[0], Triplet(data[0].source, "x")])
    with pytest.raises(RewindError, match="no triplet"):
        role_rows(tiny, "fdm", [])
    with pytest.raises(RewindError, match="an IDM predicts words"):
        role_rows(tiny, "idm", data, Importance())


@pytest.mark.parametrize("role", ["fdm", "idm"])
def test_the_loss_is_that_of_the_scorer(role: str, tmp_path: Path) -> None:
    """Against the public scoring functions: one distribution; token l's weight goes with the logits at l - 1."""
    vlm = make_tiny()
    weighted = role == "fdm"
    found = trainer(vlm, tmp_path, role, weighted)
    batch = SpanCollator(vlm.layout.pad)([found.train_dataset[i] for i in range(8)])
    loss = float(found.compute_loss(vlm.model, batch))
    total, count = 0.0, 0.0
    for number, triplet in enumerate(triplets(8)):
        assert triplet.target is not None
        scores = (ForwardDynamics if weighted else InverseDynamics)(vlm).log_probs(
            triplet.source, [triplet.target], triplet.action
        )[0]
        row = found.train_dataset[number]
        weights = np.array(row["weights"][-len(scores) :]) if weighted else np.ones(len(scores))
        total -= float((weights * scores).sum())
        count += float(weights.sum())
    assert loss == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("role", ["fdm", "idm"])
def test_the_z_loss_is_that_of_the_roles_ids(role: str, tmp_path: Path) -> None:
    """Against log Z from the whole model's logits, token by token; the weights are those of the loss."""
    vlm = make_tiny()
    plain = trainer(vlm, tmp_path / "a", role, role == "fdm")
    batch = SpanCollator(vlm.layout.pad)([plain.train_dataset[i] for i in range(8)])
    without = float(plain.compute_loss(vlm.model, batch))
    forward = {key: value for key, value in batch.items() if key != "weights"}
    assert vlm.model(**forward, fused_lm_head=True).log_z is None  # nothing is computed that nobody asked for
    found = float(trainer(vlm, tmp_path / "b", role, role == "fdm", z_loss=0.25).compute_loss(vlm.model, batch))
    ids = vlm.layout.image_ids_V if role == "fdm" else vlm.layout.text_ids_V
    hidden = vlm.hidden_states(batch["input_ids"]).last_hidden_state
    total, count = 0.0, 0.0
    for row, labels in enumerate(batch["labels"]):
        for place in (labels != IGNORED).nonzero()[:, 0].tolist():
            logits = vlm.head_weight()[ids] @ hidden[row, place - 1]
            weight = float(batch["weights"][row, place]) if "weights" in batch else 1.0
            total += weight * float(logits.exp().sum().log()) ** 2
            count += weight
    assert found - without == pytest.approx(0.25 * total / count, rel=1e-4)
    assert total / count > 1


def test_the_z_loss_is_logged(tmp_path: Path) -> None:
    losses = {}
    for coefficient in (0.0, 0.5):
        run = trainer(
            make_tiny(),
            tmp_path / str(coefficient),
            "fdm",
            True,
            z_loss=coefficient,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_steps=2,
            logging_steps=2,
        )
        run.train()
        (losses[coefficient],) = [row for row in run.state.log_history if "loss" in row]
    assert "z_loss" not in losses[0.0]
    assert losses[0.5]["loss"] - losses[0.0]["loss"] == pytest.approx(losses[0.5]["z_loss"], abs=2e-3)  # 4 decimals
    assert losses[0.5]["z_loss"] > 0.5
    with pytest.raises(RewindError, match="a coefficient of 0 or more"):
        RoleConfig(output_dir="x", z_loss=-1e-4)


def gradients(folder: Path, batch_size: int, accumulate: int, **settings: float) -> tuple[torch.Tensor, float]:
    set_seed(0)
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, lora_dropout=0.0, init_lora_weights=False))
    found: list[torch.Tensor] = []
    split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulate}
    run = trainer(vlm, folder, "fdm", True, **split, **settings)
    run.create_optimizer()
    step = run.optimizer.step

    def look(*args: object, **kwargs: object) -> object:
        trained = [p.grad.flatten().clone() for p in vlm.model.parameters() if p.grad is not None]
        found.append(torch.cat(trained))
        return step(*args, **kwargs)

    run.optimizer.step = look  # type: ignore[method-assign]
    run.args.max_grad_norm = 0.0
    result = run.train()
    return found[0], float(result.training_loss)


@pytest.mark.parametrize("z", [0.0, 0.1])
def test_any_split_of_a_batch_gives_the_same_gradient(z: float, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    whole, loss = gradients(tmp_path / "a", 8, 1, z_loss=z)
    assert float(whole.norm()) > 0
    for name, size, steps in (("b", 4, 2), ("c", 2, 4), ("d", 1, 8)):
        split, other = gradients(tmp_path / name, size, steps, z_loss=z)
        assert torch.allclose(split, whole, atol=1e-5 * float(whole.abs().max())), name
        assert other == pytest.approx(loss, abs=1e-5)


def test_weights_must_be_used(tmp_path: Path) -> None:
    vlm = make_tiny()
    rows = role_rows(vlm, "fdm", triplets(2), Importance())
    config = RoleConfig(output_dir=str(tmp_path), report_to="none")
    with pytest.raises(RewindError, match="the data holds a column of token weights and use_weights is False"):
        RoleSFTTrainer(vlm, "fdm", config, rows)
    with pytest.raises(RewindError, match="the data lacks a column of token weights and use_weights is True"):
        RoleSFTTrainer(vlm, "fdm", config, role_rows(vlm, "fdm", triplets(2)), use_weights=True)


def test_the_head_is_shared(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="the head stays frozen"):
        add_adapter(make_tiny(), LoraConfig(target_modules=["q_proj", "lm_head"]))
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    trainable = [name for name, p in vlm.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False), "idm")
    folder = save_adapter(vlm, tmp_path, "idm")
    assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(tmp_path.rglob("*.bin"))


def test_importance_by_hand() -> None:
    distance = torch.tensor([[0.0, 1.0], [4.0, 25.0]])
    none = Importance("none", floor=1.0, cap=10.0).weights(distance)
    assert torch.allclose(torch.stack(none), torch.tensor([[1.0, 2.0], [5.0, 11.0]]) / 4.75)
    sample = Importance("sample", floor=0.0, cap=9.0).weights(distance)
    assert torch.allclose(torch.stack(sample), torch.tensor([[0.0, 2.0], [8 / 29, 50 / 29]]))
    data = Importance("dataset", floor=0.5, cap=2.0).weights(distance)
    raw = torch.tensor([[0.0, 1 / 7.5], [4 / 7.5, 2.0]]) + 0.5
    assert torch.allclose(torch.stack(data), raw / raw.mean())
    still = Importance("none", floor=0.0).weights(torch.zeros(2, 2))
    assert torch.equal(torch.stack(still), torch.ones(2, 2))
    ragged = Importance("dataset", floor=0.5, cap=2.0).weights([distance[0], distance[1], torch.tensor([7.5])])
    assert [len(weights) for weights in ragged] == [2, 2, 1]  # pictures of different sizes
    assert torch.cat(ragged).mean().item() == pytest.approx(1.0)
    for wrong in ({"normalise": "batch"}, {"floor": -1.0}, {"cap": 0.0}):
        with pytest.raises(RewindError):
            Importance(**wrong)  # type: ignore[arg-type]


def test_the_mean_of_many_weights_keeps_none_of_the_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.data.importance.AT_ONCE", 100)
    generator, alive = torch.Generator().manual_seed(0), list[weakref.ref[torch.Tensor]]()
    ragged = [torch.rand(length, generator=generator) for length in range(1, 60)]

    class Read:
        """Distances that are made when they are looked at."""

        def __iter__(self) -> Iterator[torch.Tensor]:
            for one in ragged:
                assert sum(reference() is not None for reference in alive) <= 2
                made = one.clone()
                alive.append(weakref.ref(made))
                yield made

    found = Importance("dataset").fitted(Read())
    assert found.scale is not None
    assert found.scale.item() == pytest.approx(torch.cat(ragged).mean().item(), rel=1e-6)
    assert len(alive) == 2 * len(ragged)


def test_distances_are_those_of_the_features(tiny: ChameleonVLM) -> None:
    data = triplets(3)
    sources, targets = [t.source for t in data], [t.target for t in data if t.target is not None]
    expected = (tiny.features(sources) - tiny.features(targets)).pow(2).sum(-1)
    assert torch.allclose(torch.stack(feature_distances(tiny, sources, targets, chunk=2)), expected, rtol=1e-4)


def test_weighted_nll() -> None:
    log_probs, weights = torch.tensor([-1.0, -2.0]), torch.tensor([0.5, 2.0])
    assert float(weighted_nll(log_probs, weights, 2.5)) == pytest.approx(1.8)
    with pytest.raises(RewindError):
        weighted_nll(log_probs, weights[:1], 1.0)


def test_z_loss_by_hand() -> None:
    log_z, weights = torch.tensor([2.0, -1.0, 3.0]), torch.tensor([0.5, 2.0, 0.0])
    assert float(z_loss(log_z, weights, 5.0)) == pytest.approx((0.5 * 4 + 2 * 1) / 5)
    with pytest.raises(RewindError):
        z_loss(log_z, weights[:1], 1.0)


def test_a_mixture_has_its_share_and_uses_everything() -> None:
    rows = Dataset.from_dict({"number": list(range(100))})
    found = mixed(rows, 80, 0.5, seed=0)["number"]
    synthetic = [number for number in found if number >= 80]
    assert len(synthetic) / len(found) == pytest.approx(0.5, abs=0.1)
    assert set(found) == set(range(100))
    assert list(found) == list(mixed(rows, 80, 0.5, seed=0)["number"])
    with pytest.raises(RewindError, match="between 0 and 1"):
        mixed(rows, 80, 1.0, seed=0)
    with pytest.raises(RewindError, match="give --synthetic"):
        mixed(rows, 100, 0.5, seed=0)
