"""GRPO on TRL 1.16: one distribution, our rewards in TRL's columns, and a reward that goes up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from transformers import set_seed

from rewards import Batch, Reward, load_rewards, score
from rl import rerank
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics
from rl.triplets import Triplet
from trainers.best_of_n.keep import Keep, keep_best
from trainers.common.adapters import add_adapter
from trainers.common.arguments import parse
from trainers.common.candidates import scored_groups
from trainers.dpo.trainer import Pairing
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.recipe import train_grpo, warn_of_divided_groups
from trainers.grpo.trainer import WorldModelGRPOTrainer


def triplets(count: int) -> list[Triplet]:
    pictures = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    actions = ["move the red circle left", "remove all rings"]
    return [Triplet(picture, actions[i % 2]) for i, picture in enumerate(pictures)]


def low_tokens(predicted_ids: list[list[int]], **_: Any) -> list[float]:
    """Share of tokens among the lower half of the codebook: something that a policy can learn in a few steps."""
    return [float(np.mean([token % 2 == 0 for token in ids])) for ids in predicted_ids]


def trainer(
    folder: Path, rewards: list[Reward], dropout: float = 0.0, extra: dict[str, Any] | None = None, **settings: Any
) -> WorldModelGRPOTrainer:
    set_seed(0)
    vlm = make_tiny()
    config = LoraConfig(r=4, target_modules=LINEAR_LAYERS, lora_dropout=dropout, init_lora_weights=False)
    add_adapter(vlm, config)
    defaults = {"max_steps": 1, "learning_rate": 1e-3, "num_generations": 4, "per_device_train_batch_size": 8}
    defaults |= {"gradient_checkpointing": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
    arguments = RewindGRPOConfig(output_dir=str(folder), disable_tqdm=True, **{**defaults, **settings})
    return WorldModelGRPOTrainer(vlm, triplets(8), rewards, arguments, **(extra or {}))


def test_sampler_and_loss_see_one_distribution(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)], dropout=0.3, beta=0.1)
    run.train()
    assert run.sampler_trainer_gap < 1e-4
    assert len(run.last_scored) == 8
    logs = [row for row in run.state.log_history if "reward" in row]
    assert logs[0]["reward"] == pytest.approx(np.mean([s.total for s in run.last_scored]), abs=1e-5)
    assert logs[0]["rewards/low_tokens/mean"] == pytest.approx(logs[0]["reward"], abs=1e-5)
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-4)  # the reference is the policy's own start


def test_a_gap_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl.models.drawing as module

    run = trainer(tmp_path, [Reward.of(low_tokens)])
    draw = module.sample_tokens

    def other(vlm: ChameleonVLM, prompts: Any, distribution: TokenDistribution, **settings: Any) -> Any:
        return draw(vlm, prompts, TokenDistribution(distribution.allowed_ids_V, temperature=1.1), **settings)

    monkeypatch.setattr(module, "sample_tokens", other)
    with pytest.raises(RewindError, match="the sampler and the loss disagree by"):
        run.train()


def test_a_candidate_without_a_total_teaches_nothing(tmp_path: Path) -> None:
    first = Reward.of(lambda prompts: [1.0] * len(prompts), "first")
    second = Reward.of(lambda prompts: [None if i % 4 == 0 else float(i) for i in range(len(prompts))], "second")
    run = trainer(tmp_path, [first, second])
    output = run._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])
    advantages = output["advantages"].tolist()
    assert advantages[0] == advantages[4] == 0.0
    assert advantages[1:4] == pytest.approx([-1.0, 0.0, 1.0])


def test_rewards_that_never_say_anything_stop_the_run(tmp_path: Path) -> None:
    silent = Reward.of(lambda prompts: [None] * len(prompts), "silent")
    with pytest.raises(RewindError, match="none of the first step's 8 candidates has a total: silent gave None for ea"):
        trainer(tmp_path / "a", [Reward.of(low_tokens), silent]).train()
    calls: list[int] = []

    def later(prompts: list[str]) -> list[float | None]:
        calls.append(len(prompts))
        return [float(n) if len(calls) == 1 else None for n in range(len(prompts))]

    run = trainer(tmp_path / "b", [Reward.of(later, "later")], max_steps=2)
    run.train()  # once it has been heard, a step without a total is a step lost
    assert len(calls) == 2


class Watched:
    """A reward that is an object: what it was asked and what it said."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.said = wanted, {}  # type: ignore[var-annotated]

    def __call__(
        self, prompts: list[str], completions: list[Any], predicted_ids: list[list[int]], source_image: list[Any]
    ) -> list[float]:
        assert len(prompts) == len(completions) == len(source_image)
        found = [float(np.mean([token % self.wanted == 0 for token in ids])) for ids in predicted_ids]
        self.said.update(zip(map(tuple, predicted_ids), found, strict=True))
        return found


def test_one_object_serves_everywhere(tmp_path: Path) -> None:
    watched = Watched(3)
    reward = Reward.of(watched, "watched")
    run = trainer(tmp_path, [reward], max_steps=2)
    fdm, rows = ForwardDynamics(run.vlm, "default"), triplets(8)
    best = rerank(fdm, None, rows[0].source, rows[0].action, 6, rewards=[watched], seed=4)
    assert best.best.score == max(watched.said.values())
    groups = list(scored_groups(fdm, [reward], rows[:1], 6, seed=4))
    assert sorted(s.total for s in groups[0][1]) == sorted(s.total for s in best.candidates)  # type: ignore[type-var]
    kept, _ = keep_best(run.vlm, groups, Keep(6))
    assert [one.scored.total for one in kept] == [best.best.total]
    pair = Pairing(6, min_gap=0.0).pair(*groups[0])
    assert pair is not None
    assert (pair.chosen.total, pair.rejected.total) == (best.best.total, best.candidates[-1].total)
    watched.said.clear()
    run.train()
    logs = [row for row in run.state.log_history if "reward" in row]
    assert [row["rewards/watched/mean"] for row in logs] == pytest.approx([row["reward"] for row in logs])
    assert logs[1]["reward"] == pytest.approx(np.mean([s.total for s in run.last_scored]), abs=1e-5)
    assert all(s.total == watched.said[tuple(s.candidate.ids.tolist())] for s in run.last_scored)


def test_terms_can_be_normalised_before_they_are_summed(tmp_path: Path) -> None:
    """TRL 1.16's `normalize_then_sum` and our `score(..., normalise=True)` are the same sum."""
    large = Reward.of(lambda predicted_ids: [100.0 * ids[0] for ids in predicted_ids], "large")
    small = Reward.of(lambda predicted_ids: [0.01 * (ids[1] % 5) for ids in predicted_ids], "small", 2.0)
    part = Reward.of(lambda prompts: [None if i == 2 else 0.0 for i in range(len(prompts))], "part")
    rewards = [large, small, part]
    run = trainer(tmp_path, rewards, multi_objective_aggregation="normalize_then_sum")
    output = run._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])
    sources = [run.groups.role.chains[n][0].source for n in (0, 0, 0, 0, 1, 1, 1, 1)]
    candidates = [s.candidate for s in run.last_scored]
    found = score(rewards, Batch([str(i // 4) for i in range(8)], candidates, sources), normalise=True)
    totals = torch.tensor([float("nan") if s.total is None else s.total for s in found])
    known = ~totals.isnan()
    advantages = (totals - totals[known].mean()) / (totals[known].std() + 1e-4)  # TRL's last step, over the batch
    assert output["advantages"].tolist() == pytest.approx(advantages.nan_to_num(0.0).tolist(), abs=1e-3)
    assert output["advantages"][2] == 0.0


def test_reward_arguments_from_yaml_and_from_flags(tmp_path: Path) -> None:
    config = tmp_path / "grpo.yaml"
    config.write_text("rewards: [keep_unchanged=0.5]\nreward_arguments: {keep_unchanged: {free: {move: 2}}}\n")
    for flags, default in (([], None), (["--reward_arguments", '{"keep_unchanged": {"default": 3}}'], 3)):
        found, _ = parse((GRPOArguments, RewindGRPOConfig), ["--config", str(config), "--output_dir", "x", *flags])
        (keep,) = load_rewards(found.rewards, arguments=found.reward_arguments)
        assert (keep.function.default, keep.weight) == (default, 0.5)  # type: ignore[attr-defined]
        assert keep.function.free == ({} if flags else {"move": 2})  # type: ignore[attr-defined]


def test_log_probs_by_hand(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)], temperature=0.7)
    output = run._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    with torch.no_grad():
        found, entropy, _ = run._get_per_token_logps_and_entropies(run.model, ids, mask, 4, 3, compute_entropy=True)
    drawn = torch.tensor(np.stack([s.candidate.logprobs for s in run.last_scored]))
    assert torch.allclose(found, drawn, atol=1e-5)
    assert entropy is not None
    assert float(entropy.min()) > 0
    assert float(entropy.max()) <= np.log(16) + 1e-5


def test_what_moves_the_support_is_refused(tmp_path: Path) -> None:
    for wrong in ({"top_k": 5}, {"top_p": 0.9}):
        with pytest.raises(RewindError, match=r"is not used: it would move the support of the policy"):
            trainer(tmp_path, [Reward.of(low_tokens)], **wrong)


def test_options_that_a_rollout_would_not_apply_are_refused(tmp_path: Path) -> None:
    for wrong, sentence in (
        ({"repetition_penalty": 1.2}, "--repetition_penalty 1.2 is not used"),
        ({"generation_kwargs": {"num_beams": 2}}, "--generation_kwargs is not used"),
        ({"mask_truncated_completions": True}, "--mask_truncated_completions true is not used: it would mask every"),
        ({"reward_weights": [1.0, 2.0]}, r"has 2 numbers and there are 1 rewards \(low_tokens\)"),
        ({"reward_weights": [float("nan")]}, "weight of the reward 'low_tokens' must be a number, not nan"),
    ):
        with pytest.raises(RewindError, match=sentence):
            trainer(tmp_path, [Reward.of(low_tokens)], **wrong)


def test_options_are_looked_at_before_a_model_is_loaded(tmp_path: Path) -> None:
    two = ["idm_margin", "b.py:score"]
    for rewards, flags, sentence in (
        (two, ["--reward_weights", "1"], r"has 1 numbers and there are 2 rewards \(idm_margin, b.py:score\)"),
        (["idm_margin", "b.py:score=.5"], ["--reward_weights", "1", "2"], "of 'b.py:score=.5' would be given twice"),
        (two, ["--mask_truncated_completions", "true"], "it would mask every prediction"),
        (two, ["--reward_weights", "1", "2"], "give the model to improve"),  # all is well up to there
    ):
        found = parse((GRPOArguments, RewindGRPOConfig), ["--output_dir", str(tmp_path), "--rewards", *rewards, *flags])
        with pytest.raises(RewindError, match=sentence):
            train_grpo(*found)


def test_trls_reward_weights_take_the_place_of_the_rewards_own(tmp_path: Path) -> None:
    """TRL 1.16 reads `reward_weights` in `GRPOTrainer.__init__` alone."""
    first = Reward.of(lambda predicted_ids: [float(ids[0]) for ids in predicted_ids], "first")
    second = Reward.of(lambda predicted_ids: [float(ids[1]) for ids in predicted_ids], "second", 7.0)
    run = trainer(tmp_path, [first, second], reward_weights=[2.0, -0.5])
    run.train()
    for one in run.last_scored:
        ids = one.candidate.ids
        assert (one.scores, one.total) == ({"first": ids[0], "second": ids[1]}, 2.0 * ids[0] - 0.5 * ids[1])
    logs = [row for row in run.state.log_history if "reward" in row]
    assert logs[0]["reward"] == pytest.approx(np.mean([s.total for s in run.last_scored]), rel=1e-5)
    assert run.reward_weights.tolist() == [2.0, -0.5]
    assert run.args.reward_weights == [2.0, -0.5]
    own = trainer(tmp_path, [first, second])
    assert own.reward_weights.tolist() == [1.0, 7.0]
    assert own.args.reward_weights is None  # a config may serve other rewards after these


def test_the_best_checkpoint_by_validation_reward_is_kept(tmp_path: Path) -> None:
    """Trainer's own choice of the best checkpoint works on TRL 1.16's `eval_reward`; the oracle decides nothing."""
    judged: list[int] = []

    def oracle(rows: Any, candidates: Any) -> dict[str, float]:
        judged.append(len(candidates))
        return {"oracle_success": float(len(judged))}

    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    settings |= {"max_steps": 3, "learning_rate": 0.05, "report_to": "tensorboard", "eval_on_start": True}
    extra = {"validation": triplets(10)[8:], "oracle": oracle}
    run = trainer(tmp_path, [Reward.of(low_tokens)], extra=extra, **settings)
    run.train()
    logs = [row for row in run.state.log_history if "eval_reward" in row]
    assert [row["eval_oracle_success"] for row in logs] == [1.0, 2.0, 3.0, 4.0]
    assert judged == [8] * 4
    rewards = [row["eval_reward"] for row in logs]
    assert len(set(rewards)) > 1
    assert run.state.best_metric == max(rewards[1:])
    run.model.eval()
    assert run.evaluate()["eval_reward"] == pytest.approx(max(rewards[1:]), abs=1e-6)  # same noise, best weights


def test_evaluation_needs_something_to_evaluate_on(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="evaluation while training needs both"):
        trainer(tmp_path, [Reward.of(low_tokens)], eval_strategy="steps", eval_steps=1)


def test_advantages_are_divided_and_weighed(tmp_path: Path) -> None:
    rows = [{"prompt": "0"}] * 4 + [{"prompt": "1"}] * 4
    plain = trainer(tmp_path, [Reward.of(low_tokens)])._generate_and_score_completions(rows)["advantages"]
    extra = {"spread_floor": 1.0, "importance_advantages": "group"}
    run = trainer(tmp_path, [Reward.of(low_tokens)], extra=extra)
    found = run._generate_and_score_completions(rows)["advantages"]
    assert found.shape == (8, 4)
    assert torch.allclose(found.mean(1), plain, atol=1e-6)  # the spread is below the floor of 1; weights have mean 1
    assert float((found - plain[:, None]).abs().max()) > 0.01
    run.train()  # TRL takes an advantage a token
    with pytest.raises(RewindError, match="needs the true target of every source"):
        trainer(tmp_path, [Reward.of(low_tokens)], extra={"importance_advantages": "target"})
    with pytest.raises(RewindError, match="takes the place of --scale_rewards"):
        trainer(tmp_path, [Reward.of(low_tokens)], extra={"spread_floor": 0.1}, scale_rewards="group")


def test_a_recipe_says_once_that_groups_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for processes, rows, strategy, said in (
        (1, 8, "no", ""),
        (2, 6, "steps", "groups of 4 candidates are divided among processes, which draw 6 each"),
        (2, 8, "no", ""),
        (2, 8, "steps", "a --per_device_eval_batch_size that is a multiple of 4 avoids it"),
    ):
        monkeypatch.setattr(RewindGRPOConfig, "world_size", property(lambda _, n=processes: n))
        caplog.clear()
        sizes = {"per_device_train_batch_size": rows, "num_generations": 4, "per_device_eval_batch_size": 2}
        steps = {"eval_strategy": strategy, "eval_steps": 1, "report_to": "none"}
        config = RewindGRPOConfig(output_dir=str(tmp_path), **sizes, **steps)
        with caplog.at_level(logging.WARNING, logger="rl"):
            warn_of_divided_groups(config)
        assert len(caplog.records) == bool(said)
        assert said in caplog.text


@pytest.mark.slow
def test_the_reward_goes_up(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)], max_steps=40, per_device_train_batch_size=32, learning_rate=5e-3)
    run.train()
    rewards = [row["reward"] for row in run.state.log_history if "reward" in row]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2
