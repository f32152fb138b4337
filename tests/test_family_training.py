"""What every family trains and labels besides: best-of-N, labels of pairs, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_families import opened, trainable
from test_families import ACTION, settings, triplets

from rewards import Reward
from rl.data.labels.labelling import labelled, name_pairs
from rl.models.roles import ForwardDynamics, InverseDynamics
from trainers.best_of_n.keep import Keep, keep_best, kept_rows
from trainers.common.candidates import scored_groups
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["chameleon", "lumina", "liquid", "emu3"])
def vlm(request: pytest.FixtureRequest) -> Any:
    return opened(request.param)


def mean_id(predicted_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(np.mean(ids)) for ids in predicted_ids]


def test_two_steps_of_best_of_n(vlm: Any, tmp_path: Path) -> None:
    made = trainable(vlm)
    groups = list(scored_groups(ForwardDynamics(made, "default"), [Reward.of(mean_id)], triplets(made), 3))
    kept, totals = keep_best(made, groups, Keep(3))
    assert len(totals) == 6
    assert [one.scored.total for one in kept] == [max(s.total or 0.0 for s in group) for _, group in groups]
    config = RoleConfig(**settings(tmp_path, learning_rate=1e-3))
    trainer = RoleSFTTrainer(made, "fdm", config, kept_rows(made, kept))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[1] < losses[0]


def test_pairs_are_labelled(vlm: Any) -> None:
    idm, pairs = InverseDynamics(vlm), triplets(vlm)
    named = name_pairs(idm, pairs)
    assert [t.action for t in labelled(pairs, named)] == [words for words, _ in named if words]
    for triplet, (words, score) in zip(pairs, named, strict=True):
        assert triplet.target is not None
        if words:
            by_hand = idm.log_probs(triplet.source, [triplet.target], words)[0].sum()
            assert score == pytest.approx(float(by_hand), abs=1e-2)


def test_half_precision_draws_scores_and_trains(vlm: Any, tmp_path: Path) -> None:
    half = trainable(opened(vlm.family, "bfloat16"))
    fdm, given = ForwardDynamics(half, "default"), triplets(half)
    drawn = fdm.sample(given[0].source, ACTION, 2, seed=1)
    scores = np.array(fdm.log_probs(given[0].source, drawn, ACTION))
    assert np.isfinite(scores).all()
    assert np.abs(scores - [c.logprobs for c in drawn]).mean() < 0.2  # the same tokens, read at once: a rounding
    config = RoleConfig(**settings(tmp_path, max_steps=1, bf16=True))
    sft = RoleSFTTrainer(half, "idm", config, role_rows(half, "idm", given))
    sft.train()
    assert np.isfinite([row["loss"] for row in sft.state.log_history if "loss" in row]).all()
    made = trainable(opened(vlm.family, "bfloat16"))
    before = [weight.clone() for weight in made.model.parameters() if weight.requires_grad]
    steps = RewindGRPOConfig(**settings(tmp_path, max_steps=1, num_generations=2, bf16=True, learning_rate=1e-3))
    WorldModelGRPOTrainer(made, given, [Reward.of(mean_id)], steps).train()
    after = [weight for weight in made.model.parameters() if weight.requires_grad]
    assert all(bool(torch.isfinite(weight).all()) for weight in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert {p.dtype for p in made.vqmodel.parameters()} == {torch.float32}
