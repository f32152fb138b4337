"""GRPO of the guided policy: sampler, loss and reference mix the conditional and the action-free branch alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from PIL import Image
from test_export import make_run
from test_grpo import low_tokens, trainer, triplets
from torch import Tensor

from rewards import Reward
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.roles import ForwardDynamics
from trainers.common.arguments import parse
from trainers.common.checkpoints import fit
from trainers.common.log_probs import score_under
from trainers.grpo import recipe as grpo_recipe
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer

GUIDANCE = 1.5
ROWS = [{"prompt": str(number)} for number in (0, 0, 0, 0, 1, 1, 1, 1)]  # actions of different lengths


def guided(folder: Path, guidance: float = GUIDANCE, **settings: Any) -> WorldModelGRPOTrainer:
    return trainer(folder, [Reward.of(low_tokens)], extra={"guidance": guidance}, **settings)


def rolled_out(run: WorldModelGRPOTrainer) -> tuple[Tensor, Tensor]:
    """Ids and mask of a rollout as the loss gets them."""
    output = run._generate_and_score_completions(ROWS)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    return ids, torch.cat([output["prompt_mask"], output["completion_mask"]], 1)


def test_sampler_loss_and_reference_are_guided_alike(tmp_path: Path) -> None:
    run = guided(tmp_path, dropout=0.3, beta=0.1)
    run.train()
    assert 0 < run.sampler_trainer_gap < 1e-4
    logs = [row for row in run.state.log_history if "reward" in row]
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-4)


def test_the_policy_is_what_the_public_sampler_draws_with_guidance(tmp_path: Path) -> None:
    run = guided(tmp_path, report_to="none")
    rolled_out(run)
    triplet = run.groups.role.chains[1][0]
    fdm = ForwardDynamics(run.vlm, "default")
    same, other = (
        fdm.sample(triplet.source, triplet.action, num_samples=4, guidance=g, seed=run.args.seed)
        for g in (GUIDANCE, 1.0)
    )
    drawn = [scored.candidate for scored in run.last_scored[4:]]
    assert [c.ids.tolist() for c in drawn] == [c.ids.tolist() for c in same]
    assert np.allclose([c.logprobs for c in drawn], [c.logprobs for c in same], atol=1e-5)
    assert not np.allclose([c.logprobs for c in drawn], [c.logprobs for c in other], atol=1e-2)


def test_a_loss_without_guidance_stops_the_run(tmp_path: Path) -> None:
    run = guided(tmp_path)
    score_under(run.vlm, TokenDistribution(run.vlm.layout.image_ids_V), ["entropy"])
    with pytest.raises(RewindError, match="the sampler and the loss disagree by"):
        run.train()


def test_without_words_is_the_action_free_prompt() -> None:
    """Left padding, words of two lengths: what the mask leaves is `fdm_prompt` without an action and the target."""
    vlm = make_tiny()
    source, target = (vlm.layout.image_ids_V[at : at + 4].tolist() for at in (0, 4))
    rows = [vlm.fdm_prompt(source, action) + target for action in ("remove all rings", "move the red circle left")]
    width = max(map(len, rows)) + 2
    ids = torch.tensor([[vlm.layout.pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    kept = vlm.without_words(mask)
    for row in range(2):
        assert ids[row][kept[row].bool()].tolist() == vlm.fdm_prompt(source, "") + target
    assert mask[:, :2].sum() == 0


def test_the_script_trains_the_guided_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # which the recipe sets
    run, data = make_run(tmp_path), tmp_path / "triplets.json"
    entries = []
    for number, triplet in enumerate(triplets(4)):
        Image.fromarray(triplet.source).save(tmp_path / f"{number}.png")  # type: ignore[arg-type]
        entries.append({"instruction": triplet.action, "input": f"{number}.png", "output": f"{number}.png"})
    data.write_text(json.dumps(entries))
    seen: list[WorldModelGRPOTrainer] = []
    monkeypatch.setattr(grpo_recipe, "fit", lambda trainer, *rest: (seen.append(trainer), fit(trainer, *rest)))
    flags = ["--fdm", run, "--triplets", data, "--rewards", "keep_unchanged", "--max_steps", 1]
    flags += ["--num_generations", 4, "--per_device_train_batch_size", 4, "--report_to", "none"]
    for guidance, folder in ((GUIDANCE, tmp_path / "out"), (1000, tmp_path / "never")):
        flags_of = [*flags, "--guidance", guidance, "--output_dir", folder]
        arguments = parse((GRPOArguments, RewindGRPOConfig), list(map(str, flags_of)))
        if guidance == 1000:
            with pytest.raises(RewindError, match="guidance must be a moderate number"):
                grpo_recipe.train_grpo(*arguments)
            assert not folder.exists()
        else:
            grpo_recipe.train_grpo(*arguments)
    assert seen[0].distribution.guidance == GUIDANCE
    assert 0 < seen[0].sampler_trainer_gap < 1e-4
    assert json.loads((tmp_path / "out" / "run.json").read_text())["config"]["guidance"] == GUIDANCE


def by_hand(run: WorldModelGRPOTrainer, action_free: bool) -> Tensor:
    """Log-probabilities of the drawn tokens from two plain passes a row, each over its own sequence."""
    vlm, found = run.vlm, []
    for row in run.last_rows:
        target, logits = row.candidate.ids.tolist(), []
        for words in (row.triplet.action, ""):
            sequence = torch.tensor([vlm.fdm_prompt(row.source_ids, words) + target])
            hidden = vlm.hidden_states(sequence).last_hidden_state[0, -len(target) - 1 : -1]
            logits.append((hidden @ vlm.head_weight().T)[:, vlm.layout.image_ids_V])
        other = logits[1] if action_free else logits[1].detach()
        every = (GUIDANCE * logits[0] + (1 - GUIDANCE) * other).log_softmax(-1)
        positions = run.distribution.positions(torch.tensor(target))
        found.append(every.gather(-1, positions[:, None])[:, 0])
    return torch.stack(found)


def test_gradients_flow_through_both_branches(tmp_path: Path) -> None:
    run = guided(tmp_path)
    ids, mask = rolled_out(run)
    keep = run.vlm.layout.tokens_per_image
    trained = [p for p in run.model.parameters() if p.requires_grad]

    def gradient(log_probs: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
        found = torch.autograd.grad((weights * log_probs).sum(), trained)
        return torch.cat([g.flatten() for g in found])

    run.model.train()
    ours, _, _ = run._get_per_token_logps_and_entropies(run.model, ids, mask, keep)
    expected = by_hand(run, action_free=True)
    assert torch.allclose(ours, expected, atol=1e-5)
    found, right, half = gradient(ours), gradient(expected), gradient(by_hand(run, action_free=False))
    scale = float(right.abs().max())
    assert torch.allclose(found, right, atol=1e-4 * scale)
    assert not torch.allclose(found, half, atol=1e-2 * scale)


def test_no_guidance_reads_nothing_twice(tmp_path: Path) -> None:
    """g = 1 is the pass of before: as many rows, and the same bytes after training."""
    weights, rows = {}, {}
    for name, extra in (("plain", {}), ("off", {"guidance": 1.0}), ("on", {"guidance": GUIDANCE})):
        run = trainer(tmp_path / name, [Reward.of(low_tokens)], extra=extra, max_steps=2)
        seen: list[int] = []
        run.vlm.transformer().register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(len(kwargs["input_ids"])) if module.training else None,
            with_kwargs=True,
        )
        run.train()
        weights[name] = torch.cat([p.detach().flatten() for p in run.model.parameters() if p.requires_grad])
        rows[name] = set(seen)
    assert torch.equal(weights["plain"], weights["off"])
    assert not torch.equal(weights["plain"], weights["on"])
    assert rows == {"plain": {8}, "off": {8}, "on": {16}}
