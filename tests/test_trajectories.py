"""GRPO with rollouts of several steps on TRL 1.16: a group is `num_generations` trajectories of M rows each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from test_grpo import low_tokens
from test_grpo_resume import RESUMED, whole_and_cut
from transformers import set_seed

from rewards import Reward, load_rewards
from rl.data.candidates.store import CandidateStore
from rl.errors import RewindError
from rl.evaluation.action_chains import sample_chains
from rl.models.distribution import TokenDistribution
from rl.models.known import LINEAR_LAYERS
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from rl.triplets import Candidate, Triplet
from rl.worlds import load_split
from trainers.common.adapters import add_adapter
from trainers.common.checkpoints import fit
from trainers.common.validation import VALIDATION_NOISE
from trainers.grpo.advantages import trajectory_advantages
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.monitors import Monitors, rules_of
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.trajectories import STEP_NOISE, Trajectories
from trainers.studies.grpo_settings import chain_success

ACTIONS = ["move the red circle left", "remove all rings", "move the red circle left"]


def chain_triplets(count: int, steps: int = 2) -> list[Triplet]:
    """`count` chains of `steps`, one after the other; the last target of each is unknown."""
    pictures = np.random.default_rng(0).integers(0, 256, (count, steps, 32, 32, 3), dtype=np.uint8)
    return [
        Triplet(chain[step], ACTIONS[step], chain[step + 1] if step + 1 < steps else None, task=f"task {step}")
        for chain in pictures
        for step in range(steps)
    ]


def trainer(
    folder: Path, rewards: list[Reward], dropout: float = 0.0, steps: int = 2, **settings: Any
) -> WorldModelGRPOTrainer:
    """Groups of four trajectories, two groups a rollout."""
    set_seed(0)
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, lora_dropout=dropout, init_lora_weights=False))
    ours = ("validation", "oracle", "dead_group_retries", "spread_floor", "importance_advantages", "monitors", "store")
    extra = {name: settings.pop(name) for name in (*ours, "rollout_credit") if name in settings}
    defaults = {"max_steps": 1, "learning_rate": 1e-3, "num_generations": 4, "per_device_train_batch_size": 8 * steps}
    defaults |= {"gradient_checkpointing": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
    arguments = RewindGRPOConfig(output_dir=str(folder), disable_tqdm=True, **{**defaults, **settings})
    rows = chain_triplets(8, steps)
    return WorldModelGRPOTrainer(vlm, rows, rewards, arguments, rollout_steps=steps, **extra)


def prompts_of(steps: int = 2) -> list[dict[str, str]]:
    return [{"prompt": str(number)} for number in (0, 1) for _ in range(4 * steps)]


def test_the_second_steps_prompt_holds_the_ids_drawn_at_the_first(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)])
    output = run._generate_and_score_completions(prompts_of())
    assert [(r.number, r.member, r.step) for r in run.last_rows] == [
        (number, member, step) for number in (0, 1) for member in range(4) for step in (0, 1)
    ]
    for place in range(0, 16, 2):
        first, second = run.last_rows[place : place + 2]
        chain = run.groups.role.chains[first.number]
        drawn = first.candidate.ids.tolist()
        seen = [output["prompt_ids"][place + k][output["prompt_mask"][place + k].bool()].tolist() for k in (0, 1)]
        (source,) = run.vlm.encode([chain[0].source]).tolist()
        assert seen == [run.vlm.fdm_prompt(source, ACTIONS[0]), run.vlm.fdm_prompt(drawn, ACTIONS[1])]
        assert output["completion_ids"][place].tolist() == drawn
        assert second.triplet.target is chain[1].target
        assert isinstance(second.triplet.source, Candidate)
    assert len({tuple(row.candidate.ids) for row in run.last_rows if row.step == 1}) > 1


def test_the_loss_sees_what_was_sampled(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)], dropout=0.3, beta=0.1, steps=3)
    run.train()
    assert len(run.last_rows) == 24
    assert 0 < run.sampler_trainer_gap < 1e-4
    (row,) = [row for row in run.state.log_history if "reward" in row]
    assert row["kl"] == pytest.approx(0.0, abs=1e-4)
    by_step = [np.mean([r.scored.total for r in run.last_rows if r.step == step]) for step in range(3)]  # type: ignore[misc]
    assert [row[f"reward_step_{step}"] for step in (1, 2, 3)] == pytest.approx(by_step)
    assert row["reward"] == pytest.approx(np.mean(by_step), abs=1e-5)


def test_noise_is_that_of_seed_step_and_member(tmp_path: Path) -> None:
    """Drawn in one process or two, in any chunks; each step of a trajectory has a stream of its own."""
    vlm, rows = make_tiny(), chain_triplets(2, 3)
    distribution, noise = TokenDistribution(vlm.layout.image_ids_V, 1.0), Noise(seed=3, step=5)
    trajectories = Trajectories(vlm, distribution, [rows[:3], rows[3:]])
    whole = trajectories.draw([(0, range(4)), (1, range(4))], noise, 512)
    parts = [trajectories.draw(part, noise, 3) for part in ([(0, range(4)), (1, range(1))], [(1, range(1, 4))])]
    for one, other in zip(whole, [*parts[0], *parts[1]], strict=True):
        assert (one.number, one.member, one.step, one.source_ids) == (
            other.number,
            other.member,
            other.step,
            other.source_ids,
        )
        assert one.candidate.ids.tolist() == other.candidate.ids.tolist()
    assert STEP_NOISE > VALIDATION_NOISE
    last = next(row for row in whole if (row.number, row.member, row.step) == (1, 2, 2))
    drawn = {
        step: sample_tokens(
            vlm, [last.prompt_ids()], distribution, num_samples=1, first=2, max_tokens=4, noise=Noise(3, step)
        )
        .ids_PGT[0, 0]
        .tolist()
        for step in (5, 5 + STEP_NOISE, 5 + 2 * STEP_NOISE)
    }
    assert drawn[5 + 2 * STEP_NOISE] == last.candidate.ids.tolist()
    assert len({tuple(ids) for ids in drawn.values()}) == 3


def test_rewards_see_each_step(tmp_path: Path) -> None:
    """Source tokens are those predicted before, action, task and true target those of the step."""
    seen: dict[str, list[Any]] = {}

    def watch(**columns: Any) -> list[float]:
        seen.update(columns)
        return [0.0] * len(columns["prompts"])

    def record(
        prompts: Any, source_ids: Any, predicted_ids: Any, source_image: Any, target_image: Any, task: Any
    ) -> list[float]:
        return watch(
            prompts=prompts, source=source_ids, drawn=predicted_ids, image=source_image, target=target_image, task=task
        )

    keep, distance = load_rewards(["keep_unchanged", "target_distance=0"], arguments={"keep_unchanged": {"default": 0}})
    run = trainer(tmp_path, [Reward.of(record), keep, distance])
    run._generate_and_score_completions(prompts_of())
    assert seen["prompts"] == ACTIONS[:2] * 8
    assert seen["task"] == ["task 0", "task 1"] * 8
    assert seen["source"][1::2] == seen["drawn"][::2]
    assert all(target is None for target in seen["target"][1::2])
    assert all(target is run.groups.role.chains[n // 4][0].target for n, target in enumerate(seen["target"][::2]))
    assert np.asarray(seen["image"][1]).shape == (32, 32, 3)
    for row in run.last_rows:
        changed = sum(a != b for a, b in zip(row.candidate.ids.tolist(), row.source_ids, strict=True))
        assert row.scored.scores["keep_unchanged"] == -changed  # default 0: in units of one token
        assert (row.scored.scores["target_distance"] is None) == (row.step == 1)


@pytest.mark.parametrize("credit", ["reward_to_go", "trajectory"])
def test_advantages_are_those_of_the_steps(tmp_path: Path, credit: Any) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)], rollout_credit=credit)
    found = run._generate_and_score_completions(prompts_of())["advantages"]
    totals = np.array([scored.total for scored in run.last_scored], dtype=float).reshape(2, 4, 2)
    to_go = np.stack([totals[..., 0] + totals[..., 1], totals[..., 1]], 2)
    credits = to_go if credit == "reward_to_go" else np.repeat(totals.mean(2, keepdims=True), 2, 2)
    assert found.tolist() == pytest.approx((credits - credits.mean(1, keepdims=True)).flatten().tolist(), abs=1e-6)
    extra = {"spread_floor": 10.0, "importance_advantages": "group"}
    weighed = trainer(tmp_path, [Reward.of(low_tokens)], rollout_credit=credit, **extra)
    shaped = weighed._generate_and_score_completions(prompts_of())["advantages"]
    assert shaped.shape == (16, 4)
    assert torch.allclose(shaped.mean(1), found / 10, atol=1e-6)  # the floor is above any spread; weights have mean 1
    weighed.train()


def test_a_step_without_a_score_stays_without_an_advantage(tmp_path: Path) -> None:
    unknown = Reward.of(lambda prompts: [None if n == 3 else float(n) for n in range(len(prompts))], "unknown")
    run = trainer(tmp_path, [unknown])
    found = run._generate_and_score_completions(prompts_of())["advantages"]
    totals = [None if n == 3 else float(n) for n in range(16)]
    assert found[2:4].tolist() == [0.0, 0.0]  # trajectory 1: its second step, and what its first one led to
    assert found[:2].tolist() == pytest.approx([1 - (1 + 9 + 13) / 3, 1 - (1 + 5 + 7) / 3])
    assert found.tolist() == pytest.approx(trajectory_advantages(totals, 4, 2).tolist())


def of_second_steps(predicted_ids: list[list[int]], task: list[str]) -> list[float]:
    """Alike at the first step."""
    return [sum(ids) / 100 if name == "task 1" else 1.0 for ids, name in zip(predicted_ids, task, strict=True)]


def test_dead_groups_are_alike_at_every_step(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(of_second_steps)], dead_group_retries=2)
    output = run._generate_and_score_completions(prompts_of())
    assert [row.number for row in run.last_rows] == [0] * 8 + [1] * 8
    assert (output["completion_mask"].sum(1) == 4).all()
    run = trainer(tmp_path, [Reward.of(of_second_steps)], rollout_credit="trajectory")
    assert (run._generate_and_score_completions(prompts_of())["completion_mask"].sum(1) == 4).all()
    alike = Reward.of(lambda task: [float(name == "task 1") for name in task], "alike")
    run = trainer(tmp_path, [alike], dead_group_retries=3)
    output = run._generate_and_score_completions(prompts_of())
    assert output["completion_mask"].sum() == 0
    assert [row.number for row in run.last_rows] != [0] * 8 + [1] * 8  # replaced, in vain
    assert [row.step for row in run.last_rows] == [0, 1] * 8


def test_evaluation_monitors_and_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.grpo.monitors.ENOUGH", 0)  # each of these small rollouts by itself
    judged: list[tuple[int, int]] = []

    def oracle(rows: Any, candidates: Any) -> dict[str, float]:
        judged.append((len(rows), sum(isinstance(row.source, Candidate) for row in rows)))
        return {"oracle_success": 0.5}

    store = CandidateStore(tmp_path / "candidates")
    monitors = Monitors(rules_of(["all"]))
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "per_device_eval_batch_size": 16}
    settings |= {"validation": chain_triplets(10)[16:], "oracle": oracle, "monitors": monitors, "store": store}
    run = trainer(tmp_path, [Reward.of(low_tokens)], report_to="tensorboard", **settings)
    run.train()
    logs = [row for row in run.state.log_history if "eval_reward" in row]
    assert [row["eval_oracle_success"] for row in logs] == [0.5, 0.5]
    assert {"eval_reward_step_1", "eval_reward_step_2"} <= set(logs[0])
    assert judged == [(8, 0)] * 2
    assert sum("monitors/copy_rate" in row for row in run.state.log_history) == 2
    rows = store.rows()
    assert len(rows) == 2 * 8  # two steps of training, two groups of four: only first steps start from a picture
    assert {row["action"] for row in rows} == {ACTIONS[0]}


def test_a_resumed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = whole_and_cut(trainer, tmp_path)
    again = trainer(tmp_path / "cut", [Reward.of(low_tokens)], **RESUMED)
    fit(again, tmp_path / "cut", resume=True)
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, again.model.get_parameter(name)), name


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (
            {"steps": 3, "per_device_train_batch_size": 16},
            "16 predictions do not divide into groups of 4 trajectories of 3",
        ),
        ({"eval_strategy": "steps", "per_device_eval_batch_size": 4}, r"multiple of 8.*per_device_eval_batch_size"),
        ({"scale_rewards": "group"}, "leave --scale_rewards 'none'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "leave --normalise_rewards false"),
        ({"rollout_credit": "last"}, "--rollout_credit is one of reward_to_go, trajectory, not 'last'"),
        ({"steps": 0, "per_device_train_batch_size": 8}, "--rollout_steps must be at least 1, not 0"),
        ({"per_device_train_batch_size": 80}, "draws 10 groups and there are 8 chains of 2 actions"),
        ({"importance_advantages": "target"}, "needs the true target"),
        ({"eval_strategy": "steps", "eval_steps": 1, "validation": chain_triplets(2, 1)}, "chains of 2"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence):
        trainer(tmp_path, [Reward.of(low_tokens)], **wrong)


def test_there_must_be_chains(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Reward.of(low_tokens)])
    apart = [row for row in chain_triplets(16) if row.target is None]
    with pytest.raises(RewindError, match="no 2 triplets follow one another"):
        WorldModelGRPOTrainer(run.vlm, apart, [Reward.of(low_tokens)], run.args, rollout_steps=2)


def test_success_on_chains_is_counted_by_step() -> None:
    """A model that draws the first outcome right and then nothing new: 1 after one step, 0 after three."""
    world = load_split("tabletop", "train")
    tested = sample_chains(world, 2, 3, 0)
    right = [chain.triplets(world, np.random.default_rng(0))[0].target for chain in tested]

    class First:
        def sample(self, sources: Any, actions: Any, count: int, *, step: int, **_: Any) -> list[list[Any]]:
            return [[one] for one in (right if step == 0 else sources)]

    found = chain_success(First(), world, tested, 0)  # type: ignore[arg-type]
    assert {name: values.tolist() for name, values in found.items()} == {"after 1": [1.0, 1.0], "after 3": [0.0, 0.0]}


@pytest.mark.slow
@pytest.mark.parametrize("credit", ["reward_to_go", "trajectory"])
def test_the_reward_of_every_step_goes_up(tmp_path: Path, credit: Any) -> None:
    settings = {"max_steps": 40, "per_device_train_batch_size": 64, "learning_rate": 2e-2}
    run = trainer(tmp_path, [Reward.of(low_tokens)], rollout_credit=credit, **settings)
    run.train()
    for step in (1, 2):
        rewards = [row[f"reward_step_{step}"] for row in run.state.log_history if "reward" in row]
        assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.1
