"""DPO on TRL 1.16: pairs from scores, restricted log-probabilities, a reference that is the policy's start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from transformers import set_seed

from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics
from rl.triplets import Candidate, Scored, Triplet
from trainers.common.adapters import add_adapter
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import Pairing, Preference, WorldModelDPOTrainer, preference_rows


def scored(vlm: ChameleonVLM, total: float | None, token: int) -> Scored:
    ids = vlm.layout.image_ids_V[[token] * 4].numpy()
    return Scored(Candidate(ids, np.zeros(4, np.float32), vlm), {}, total)


def test_the_best_is_paired_with_the_worst(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    triplet = Triplet(picture, "move it")
    group = [scored(tiny, total, i) for i, total in enumerate([0.1, None, 0.9, 0.4])]
    pair = Pairing(min_gap=0.5).pair(triplet, group)
    assert pair is not None
    assert (pair.chosen, pair.rejected) == (group[2], group[0])
    assert Pairing(min_gap=0.9).pair(triplet, group) is None
    assert Pairing(min_gap=0.0).pair(triplet, [group[0], scored(tiny, 0.1, 3)]) is None  # a tie
    assert Pairing(min_gap=0.0).pair(triplet, [group[0], scored(tiny, 0.9, 0)]) is None  # equal pictures
    assert Pairing().pair(triplet, group[:2]) is None
    for wrong in ({"num_candidates": 1}, {"min_gap": -1.0}):
        with pytest.raises(RewindError, match=r"at least 2 candidates|0 or more"):
            Pairing(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RewindError, match="there is no preference pair"):
        preference_rows(tiny, [])


def test_policy_and_reference_score_as_the_sampler_does(tmp_path: Path) -> None:
    set_seed(0)
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, lora_dropout=0.3, init_lora_weights=False))
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False), "idm")
    vlm.model.set_adapter("default")  # type: ignore[operator]
    other = {k: v.clone() for k, v in vlm.model.named_parameters() if ".idm." in k}
    fdm = ForwardDynamics(vlm, "default")
    pictures = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    groups = fdm.sample(pictures, ["move the red circle left"] * 6, 2)
    pairs = [
        Preference(Triplet(p, "move the red circle left"), Scored(a, {}, 1.0), Scored(b, {}, 0.0))
        for p, (a, b) in zip(pictures, groups, strict=True)
    ]
    settings = {"max_steps": 15, "per_device_train_batch_size": 6, "learning_rate": 0.02, "logging_steps": 1}
    settings |= {"gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    trainer = WorldModelDPOTrainer(
        vlm, RewindDPOConfig(output_dir=str(tmp_path), **settings), preference_rows(vlm, pairs)
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert logs[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # policy and reference are the same at first
    assert logs[0]["logps/chosen"] == pytest.approx(np.mean([group[0].logprob for group in groups]), abs=1e-3)
    assert logs[0]["logps/rejected"] == pytest.approx(np.mean([group[1].logprob for group in groups]), abs=1e-3)
    assert logs[-1]["rewards/margins"] > logs[0]["rewards/margins"] + 0.1
    assert logs[-1]["loss"] < logs[0]["loss"]
    after = {k: v for k, v in vlm.model.named_parameters() if ".idm." in k}
    assert all(torch.equal(other[k], after[k]) for k in other)  # the inverse model stays as it is
    WorldModelDPOTrainer(vlm, RewindDPOConfig(output_dir=str(tmp_path), **settings), preference_rows(vlm, pairs))
