"""What the sampler and the loss make of the same tokens: measured at every step, corrected, and a limit for it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from test_grpo import low_tokens, trainer, triplets
from transformers import TrainerCallback, set_seed

from rewards import Reward
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution, head_product
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics
from rl.triplets import Candidate
from trainers.common.adapters import add_adapter
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.identity import CAP, Gap, check_correction
from trainers.grpo.trainer import WorldModelGRPOTrainer

REWARD = Reward.of(low_tokens)
GAP = "sampling/sampling_logp_difference"


def told(run: WorldModelGRPOTrainer, name: str) -> list[float]:
    return [row[name] for row in run.state.log_history if name in row]


def shifted(run: WorldModelGRPOTrainer, shift: float, from_step: int = 0) -> None:
    """Let the sampler report other log-probabilities than it drew with: a mismatch of a known size."""
    draw = run._draw_and_score

    def other(parts: Any) -> Any:
        rows = draw(parts)
        if run.state.global_step >= from_step:
            for row in (row for part in rows for row in part):
                wrong = row.candidate.logprobs + shift * np.where(row.candidate.ids % 3 == 0, 1, -1).astype(np.float32)
                object.__setattr__(row, "candidate", Candidate(row.candidate.ids, wrong, row.candidate.backbone))
        return rows

    run._draw_and_score = other  # type: ignore[method-assign]


def test_a_gap_by_hand() -> None:
    loss, drawn = torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([-1.0, -2.1, -2.8, -4.0])
    gap = Gap.of(loss, drawn)
    assert gap.mean == pytest.approx(0.075)
    assert gap.q99 == gap.largest == pytest.approx(0.2)
    assert gap.kl == pytest.approx(np.mean([0, np.exp(0.1) - 1.1, np.exp(-0.2) - 0.8, 0]), abs=1e-6)
    gap.check(0.08)
    with pytest.raises(RewindError, match=r"disagree by 0.075 nats a token .*0.07 is allowed, --max_sampler_gap"):
        gap.check(0.07)
    with pytest.raises(RewindError, match="disagree"):
        Gap(0.001, 0.2, 0.2, 0.0).check(0.01)  # a hundredth of the tokens is far off
    with pytest.raises(RewindError, match="disagree"):
        Gap(float("nan"), 0.0, 0.0, 0.0).check(0.01)
    assert Gap.of(loss[:0], drawn[:0]) == Gap(0.0, 0.0, 0.0, 0.0)
    many = torch.zeros(1000)
    many[:10] = 5.0
    assert Gap.of(many, torch.zeros(1000)).q99 == 5.0
    assert Gap.of(many[1:], torch.zeros(999)).q99 == 0.0


def test_settings_that_are_none() -> None:
    check_correction(None, None)
    check_correction(0.1, 0)
    for gap, cap, said in (
        (0.0, None, "max_sampler_gap must be above 0"),
        (None, 0.5, "at 1 or more"),
        (None, -1, "0"),
    ):
        with pytest.raises(RewindError, match=said):
            check_correction(gap, cap)


def test_every_step_is_measured_and_a_gap_that_grows_stops_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, [REWARD], max_steps=3)
    run.train()
    for name in (f"{GAP}/mean", f"{GAP}/q99", f"{GAP}/max", "sampling/kl"):
        assert len(told(run, name)) == 3
        assert max(told(run, name)) < 1e-4
    assert not told(run, "sampling/importance_sampling_ratio/mean")  # nothing to correct in float32
    grows = trainer(tmp_path, [REWARD], max_steps=3)
    shifted(grows, 0.01, from_step=2)
    with pytest.raises(RewindError, match=r"sampler and the loss disagree at step 3 by 0\.01 nats a token"):
        grows.train()
    allowed = trainer(tmp_path, [REWARD], max_steps=3, extra={"max_sampler_gap": 0.02})
    shifted(allowed, 0.01, from_step=2)
    allowed.train()
    assert told(allowed, f"{GAP}/mean")[2] == pytest.approx(0.01, rel=0.01)


class Gradient(TrainerCallback):
    """The gradient of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_correction_by_hand(tmp_path: Path, loss_type: str, steps: int) -> None:
    """The gradient is that of advantages times min(p of the loss / p of the sampler, cap), token by token."""

    def gradient(correction: float, by_hand: bool) -> dict[str, torch.Tensor]:
        seen = Gradient()
        how = {"loss_type": loss_type, "gradient_accumulation_steps": 2, "steps_per_generation": 2 * steps}
        extra = {"max_sampler_gap": 9.0, "importance_correction": correction, "callbacks": [seen]}
        run = trainer(tmp_path, [REWARD], extra=extra, **how, max_grad_norm=0.0)
        shifted(run, 1.0)
        if by_hand:
            score = run._generate_and_score_completions

            def weighted(inputs: Any) -> Any:
                output = score(inputs)
                ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
                mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
                with torch.no_grad():
                    now, _, _ = run._get_per_token_logps_and_entropies(run.model, ids, mask, 4)
                ratio = (now - output["sampling_per_token_logps"]).exp()
                assert bool((ratio > CAP).any())
                assert bool((ratio < 1).any())
                output["advantages"] = output["advantages"][:, None] * ratio.clamp(max=CAP)
                return output

            run._generate_and_score_completions = weighted  # type: ignore[method-assign]
        run.train()
        return seen.found

    ours, theirs, without = gradient(CAP, False), gradient(0.0, True), gradient(0.0, False)
    assert ours
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-7)
    assert any(not torch.allclose(value, without[name], rtol=1e-2, atol=1e-7) for name, value in ours.items())


# ---- half precision


@pytest.mark.parametrize("kind", ["weights", "autocast"])
def test_a_run_in_bfloat16(tmp_path: Path, kind: str) -> None:
    """A base in bfloat16, and one in float32 under autocast: drawn, measured, corrected, learned."""
    set_seed(0)
    vlm = make_tiny()
    if kind == "weights":
        vlm.model.to(torch.bfloat16)
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    before = {n: p.detach().clone() for n, p in vlm.model.named_parameters() if p.requires_grad}
    how: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 8, "max_steps": 3, "report_to": "none"}
    args = RewindGRPOConfig(
        output_dir=str(tmp_path),
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        bf16=kind == "autocast",
        **how,
    )
    run = WorldModelGRPOTrainer(vlm, triplets(8), [REWARD], args)
    run.train()
    assert 0 < run.sampler_trainer_gap < 0.5
    gaps = told(run, f"{GAP}/mean")
    assert len(gaps) == 3
    assert 0 < max(gaps) < 0.05
    assert told(run, "sampling/importance_sampling_ratio/mean")[0] == pytest.approx(1.0, abs=0.05)
    after = dict(vlm.model.named_parameters())
    assert all(torch.isfinite(after[n]).all() for n in before)
    assert any(not torch.equal(after[n], value) for n, value in before.items())


def test_logits_in_half_precision_are_not_rounded() -> None:
    """bfloat16 operands, float32 result, forwards and backwards; an autocast around it changes nothing."""
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 64).bfloat16().requires_grad_()
    rows = torch.randn(40_000, 64).bfloat16().requires_grad_()
    exact = hidden.double() @ rows.double().T
    with torch.autocast("cpu", torch.bfloat16):
        found = head_product(hidden, rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    assert (torch.nn.functional.linear(hidden, rows).double() - exact).abs().max() > 1e-2  # what rounding would do
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((found * weight).sum(), (hidden, rows))
    theirs = torch.autograd.grad((exact * weight).sum(), (hidden, rows))
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right.to(mine.dtype), rtol=2e-2, atol=2e-2)
    plain = head_product(hidden.float(), rows.float())
    assert torch.equal(plain, torch.nn.functional.linear(hidden.float(), rows.float()))
    wide = TokenDistribution(torch.arange(40_000)).log_probs(hidden, rows)
    torch.testing.assert_close(wide.double(), exact.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_an_autocast_leaves_codes_and_merging_alone(picture: np.ndarray) -> None:
    vlm = make_tiny()
    ids, features = vlm.encode([picture]), vlm.features([picture])
    with torch.autocast("cpu", torch.bfloat16):
        other = copy.copy(vlm)
        other._seen = None
        assert torch.equal(other.encode([picture]), ids)
        assert torch.equal(other.features([picture]), features)
        assert (other.decode(ids) == vlm.decode(ids)).all()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    weight = vlm.transformer().layers[0].self_attn.q_proj.get_base_layer().weight
    kept = weight.detach().clone()
    with vlm.using("default", merged=True):
        assert not torch.equal(vlm.transformer().layers[0].self_attn.q_proj.get_base_layer().weight, kept)
    with torch.autocast("cpu", torch.bfloat16), vlm.using("default", merged=True):
        assert torch.equal(vlm.transformer().layers[0].self_attn.q_proj.get_base_layer().weight, kept)
    assert len(ForwardDynamics(vlm, "default").sample(picture, "remove all rings", 1)) == 1
