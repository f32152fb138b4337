"""Training on actions that are vectors, and rewards of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened_families import opened, pictures
from test_action_vectors import BINS, QUIET, triplets_of, with_vectors
from transformers import set_seed

from rewards import Reward
from rewards.idm_likelihood import IDMLikelihood
from rewards.idm_margin import IDMMargin
from rewards.idm_match import IDMMatch
from rewards.idm_token_f1 import IDMTokenF1
from rl import RewindError
from rl.actions import vector_of
from rl.evaluation.benchmark import compare
from rl.models.roles import ForwardDynamics, InverseDynamics
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer


@pytest.mark.parametrize("name", ["lumina", "univla"])
@pytest.mark.parametrize("role", ["fdm", "idm"])
def test_two_steps_of_sft_on_vectors(name: str, role: Any, tmp_path: Path) -> None:
    """The first loss is that of the log-probabilities that the role itself gives."""
    vlm = with_vectors(name, training=True)
    given = triplets_of(vlm)
    model = (ForwardDynamics if role == "fdm" else InverseDynamics)(vlm, "default")
    by_role = model.log_probs([t.source for t in given], [t.target for t in given], [t.action for t in given])
    config = RoleConfig(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, **QUIET
    )
    trainer = RoleSFTTrainer(vlm, role, config, role_rows(vlm, role, given))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(-np.concatenate(by_role).mean(), abs=1e-3)
    assert losses[1] < losses[0]


def test_two_steps_of_grpo_on_vectors(tmp_path: Path) -> None:
    set_seed(0)
    vlm = with_vectors("lumina", training=True)
    config = RewindGRPOConfig(
        output_dir=str(tmp_path), max_steps=2, num_generations=2, per_device_train_batch_size=2, **QUIET
    )
    reward = Reward.of(IDMLikelihood(InverseDynamics(vlm)))
    trainer = WorldModelGRPOTrainer(vlm, triplets_of(vlm), [reward], config)
    trainer.train()
    assert trainer.sampler_trainer_gap < 1e-3
    assert len([row for row in trainer.state.log_history if "reward" in row]) == 2


def test_rewards_on_vectors() -> None:
    vlm = with_vectors("lumina")
    fdm, idm, source = ForwardDynamics(vlm), InverseDynamics(vlm), pictures(opened("lumina"))[0]
    drawn = fdm.sample(source, "[0.5, 0.1, 0.0]", 2)
    said = idm.describe([source] * 2, drawn)
    assert IDMMatch(idm)(said, [source] * 2, drawn) == [1.0, 1.0]
    far = [json.dumps([-x if x else 1.0 for x in (vector_of(text) or ())]) for text in said]
    scores = IDMMatch(idm)(far, [source] * 2, drawn)
    wanted = [BINS.likeness(vector_of(a) or (), vector_of(b) or ()) for a, b in zip(far, said, strict=True)]
    assert scores == wanted
    assert max(wanted) < 1
    margins = IDMMargin(idm, far)(["[0.5, 0.1, 0.0]"] * 2, [source] * 2, drawn)
    assert all(margin is not None and margin < 0 for margin in margins)
    with pytest.raises(RewindError, match="compares words, and these actions are vectors: take idm_match"):
        IDMTokenF1(idm)(["[0.5, 0.1, 0.0]"] * 2, [source] * 2, drawn)
    given = triplets_of(vlm)
    found, drawn_once = compare(fdm, idm, given)
    average = found["tasks"]["average"]
    assert "idm_token_f1" not in average
    texts = idm.describe([t.source for t in given], drawn_once)
    near = [BINS.likeness(vector_of(a) or (), vector_of(t.action) or ()) for a, t in zip(texts, given, strict=True)]
    assert average["idm_match"] == pytest.approx(np.mean(near))
