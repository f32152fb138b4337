"""plan.py's peaks against measured ones: what tensors hold in a rollout, a reward and a training step of a base
with random weights (hidden 256, 4 layers, 256 tokens a picture, float32).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from rewards import Batch, Reward, load_rewards, score
from rl.models import memory as rows
from rl.models.distribution import TokenDistribution
from rl.models.drawing import sampled_pictures
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.noise import Noise
from rl.models.roles import InverseDynamics
from rl.models.saving import save_base
from rl.triplets import Candidate, Triplet
from trainers.bench.measure import peak_bytes
from trainers.bench.mid import ACTIONS, mid_base, random_pictures
from trainers.common.adapters import add_adapter, only_policy_trains
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.plan.arithmetic import Job, memory
from trainers.plan.shapes import Shape, shape_of

TOKENS, WITHIN = 256, 0.1
Opened = tuple[ChameleonVLM, Shape, int]


@pytest.fixture(scope="module", params=[1024, 8192])
def opened(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The base with a policy and an IDM on it, its shape as plan.py reads it, and tokens of an action."""
    vlm = mid_base({"image_tokens": TOKENS, "codes": request.param})
    folder = tmp_path_factory.mktemp("mid")
    save_base(vlm, folder, {})
    for name in ("default", "idm"):
        add_adapter(vlm, LoraConfig(r=16, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
    only_policy_trains(vlm)
    shape = shape_of(str(folder))
    assert (shape.pixels, shape.vq_channels, shape.image_codes) == (256**2, 32, request.param)
    return vlm, shape, len(vlm.fdm_prompt(random_pictures(vlm, 1)[0], ACTIONS[0])) - TOKENS - 4


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "free_bytes", lambda device: 40 * 2**30)


def planned(opened: Opened, phase: str, **job: Any) -> float:
    """What a phase holds beside weights and optimizer."""
    _, shape, words = opened
    usual = {"rollout_rows": 0, "action_tokens": words, "frozen_adapters": 1}
    found = memory(shape, Job(**{**usual, **job}), "ddp", 1)
    return found[phase] - found["weights"] - found["optimizer"]


def nothing(predicted_ids: list[list[int]], **_: Any) -> list[float]:
    return [0.0] * len(predicted_ids)


class _EnoughError(Exception):
    pass


class _ShortNoise(Noise):
    """Ends a call after a few passes: room for all of them is reserved from the start."""

    def __init__(self) -> None:
        super().__init__(0)
        object.__setattr__(self, "calls", [])

    def uniform(self, prompt_keys_B: torch.Tensor, candidates_B: torch.Tensor, token: Any) -> torch.Tensor:
        calls: list[int] = vars(self)["calls"]
        calls.append(0)
        if len(calls) > 3:
            raise _EnoughError
        return super().uniform(prompt_keys_B, candidates_B, token)


@pytest.mark.parametrize(
    ("prompts", "each", "guidance"), [(3, 12, 1.0), (2, 16, 1.5), (1, 4, 1.0), (9, 1, 1.0)],
    ids=["shared", "guided", "few", "single"],
)  # fmt: skip
@torch.no_grad()
def test_a_rollout(opened: Opened, prompts: int, each: int, guidance: float) -> None:
    vlm = opened[0]
    sources = vlm.codes(vlm.decode(np.array(random_pictures(vlm, prompts))))
    distribution = TokenDistribution(vlm.layout.image_ids_V, 1.0, guidance)

    def rollout() -> None:
        with suppress(_EnoughError), vlm.using("default", merged=True):
            actions = [ACTIONS[0]] * prompts
            sampled_pictures(vlm, sources, actions, distribution, num_samples=each, noise=_ShortNoise())

    found = peak_bytes(rollout)
    branches = 1 if guidance == 1 else 2
    job: Any = {"rollout_rows": prompts * each, "candidates": each, "branches": branches}
    assert planned(opened, "rollout", **job) == pytest.approx(found, rel=WITHIN)


@pytest.mark.parametrize("candidates", [2, 10])
def test_a_reward(opened: Opened, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`idm_margin`: what the model says of each pair, and nine actions on it."""
    vlm = opened[0]
    source, *drawn = (
        Candidate(np.array(ids), np.zeros(TOKENS, np.float32), vlm) for ids in random_pictures(vlm, 1 + candidates)
    )
    described = InverseDynamics.describe

    def few_words(self: InverseDynamics, *pairs: Any, **reading: Any) -> list[str]:
        """A model with random weights would say 48 tokens of nonsense, other of each pair."""
        return [ACTIONS[1]] * len(described(self, *pairs, max_tokens=3, **reading))

    monkeypatch.setattr(InverseDynamics, "describe", few_words)
    rewards = load_rewards(["idm_margin"], InverseDynamics(vlm, "idm"), ACTIONS[1:])
    batch: Any = Batch([ACTIONS[0]] * candidates, drawn, [source] * candidates)  # type: ignore[list-item]
    assert planned(opened, "reward", scored=candidates) == pytest.approx(
        peak_bytes(lambda: score(rewards, batch)), rel=WITHIN
    )


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_training_step(opened: Opened, checkpointing: bool, tmp_path: Path) -> None:
    """GRPO's loss, backwards, and the optimizer's step, after one that has made the optimizer's state."""
    vlm, count = opened[0], 4
    config = RewindGRPOConfig(
        output_dir=str(tmp_path),
        num_generations=count,
        per_device_train_batch_size=count,
        gradient_checkpointing=checkpointing,
        max_steps=1,
        bf16=False,
        report_to="none",
        save_strategy="no",
    )
    picture = np.zeros((256, 256, 3), np.uint8)
    only_policy_trains(vlm)
    trainer: Any = WorldModelGRPOTrainer(vlm, [Triplet(picture, ACTIONS[0])], [Reward.of(nothing)], config)
    trainer.model.train()
    trainer.create_optimizer_and_scheduler(1)
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(config.gradient_checkpointing_kwargs)
        trainer.model.enable_input_require_grads()
    prompt = torch.tensor([vlm.fdm_prompt(random_pictures(vlm, 1)[0], ACTIONS[0])] * count)
    drawn = torch.tensor([vlm.target_span(ids) for ids in random_pictures(vlm, count)])
    batch = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "advantages": torch.ones(count)}
    batch |= {"completion_ids": drawn, "completion_mask": torch.ones_like(drawn)}
    batch["num_items_in_batch"] = torch.tensor(drawn.numel())
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        trainer.accelerator.backward(trainer.compute_loss(trainer.model, dict(batch)))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)

    step()
    job: Any = {"rows": count, "grouped": count, "checkpointing": checkpointing}
    found = peak_bytes(step)
    trainer.model.gradient_checkpointing_disable()
    assert planned(opened, "training", **job) == pytest.approx(found, rel=WITHIN)


@torch.no_grad()
def test_encoding(opened: Opened) -> None:
    """Of pictures, as many at once as `max_rows` allows."""
    vlm, _, _ = opened
    if len(vlm.layout.image_ids_V) > 1024:
        pytest.skip("with 32 channels, distances to 8,192 codes take more than the maps: not so in published ones")
    pictures = list(np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), dtype=np.uint8))
    vlm._seen = None
    found = peak_bytes(lambda: vlm.codes(pictures))
    shape = opened[1]
    whole = memory(shape, Job(lora_r=0, rollout_rows=0, max_rows=4), "ddp", 1)
    assert whole["pictures"] - whole["weights"] == pytest.approx(found, rel=WITHIN)  # no optimizer is there yet
