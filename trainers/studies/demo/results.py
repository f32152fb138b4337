"""What the main job found: measured on the same test cases and noise for all systems, as the content of `results.json`.

Systems are compared at temperature 1 and each at its own best temperature, which is chosen on validation cases: a gain
that a colder baseline would also have is no gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewards import Batch, Reward, load_rewards, score
from rl.evaluation import oracle
from rl.evaluation.intervals import mean_of_runs
from rl.evaluation.oracle import triplets_of
from rl.evaluation.probes import prefers_truth
from rl.evaluation.ranking import auc
from rl.search.best_of_n import expected_best
from rl.triplets import Candidate
from rl.world import Judgement
from trainers.common.candidates import batch_of
from trainers.studies.demo.mixes import IMPROVED, START, grpo_rewards, mixed_rewards, start_of_rl
from trainers.studies.demo.story import Story

TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0)
OPTIONAL = ("sft_twice_as_long", "sft_equal_compute", "bootstrapped_greedy", "bootstrapped_continued")
SYSTEMS = (
    *("base", "sft", "sft_twice_as_long", "sft_equal_compute", "bootstrapped_greedy", "bootstrapped"),
    *("bootstrapped_continued", "best_of_n_training", "grpo"),
)
RERANKED = "trained_and_reranked"
"""The better one of the two that are trained by reward (their start, where both were held back), and the best of
`RERANKED_OF` of its candidates by its mix."""
UNTRAINED_RERANKED = "bootstrapped_and_reranked"
"""The same of `START`, or of `sft` where `START` was held back: what training by reward has to beat."""
RERANKED_OF = 8
COMPARED = (
    ("bootstrapped", "sft"),
    ("bootstrapped", "sft_equal_compute"),
    ("bootstrapped", "bootstrapped_greedy"),
    ("bootstrapped_continued", "bootstrapped"),
    ("grpo", START),
    ("best_of_n_training", START),
    ("grpo", "bootstrapped_continued"),
    ("best_of_n_training", "bootstrapped_continued"),
    ("best_of_n_training", "grpo"),
    (RERANKED, "sft"),
    (RERANKED, "sft_twice_as_long"),
    (RERANKED, "sft_equal_compute"),
    (RERANKED, UNTRAINED_RERANKED),
)
SEARCHED = ("sft", "grpo")
"""Systems for which best of N is measured."""
REWARDED_CASES = 100
"""Test cases on which rewards, KL and the judge IDM are taken, with a group of candidates of two systems on each; an
eighth of the test cases if those are fewer."""
SAMPLED_AT_ONCE = 256
MEASURES = ("success", "judge", "copy_rate", "minimality")


class Cases:
    """Test cases of a split; what is drawn or judged for them is kept, since systems share much of it."""

    def __init__(self, story: Story, split: str, count: int) -> None:
        self.story, self.world = story, story.splits[split]
        self.tasks = oracle.sample_tasks(self.world, count, story.seed)
        self.sources = [task.source for task in self.tasks]
        self.actions = [task.action for task in self.tasks]
        self._drawn: dict[tuple[str, float], list[list[Candidate]]] = {}
        self._searched: dict[str, list[list[Candidate]]] = {}
        self._judged: dict[tuple[int, bytes], Judgement] = {}

    def draw(self, name: str, count: int = 1, temperature: float = 1.0) -> list[list[Candidate]]:
        """`count` candidates a case by a system; the first ones are the same for any count."""
        known = self._drawn.get((name, temperature))
        if known is None or len(known[0]) < count:
            self._drawn[name, temperature] = known = self.sample(name, len(self.tasks), count, temperature)
        return [group[:count] for group in known]

    def forget(self, name: str) -> None:
        """Let go what a system drew: another one is to have its name."""
        self._drawn = {key: drawn for key, drawn in self._drawn.items() if key[0] != name}
        self._searched.pop(name, None)

    def search(self, name: str) -> list[list[Candidate]]:
        """The candidates of the first cases that best of N is measured on, drawn once."""
        if name not in self._searched:
            budget = self.story.budget
            self._searched[name] = self.sample(name, budget.searched, budget.candidates)
        return self._searched[name]

    def sample(self, name: str, cases: int, count: int, temperature: float = 1.0) -> list[list[Candidate]]:
        """`count` candidates of each of the first cases, drawn anew; the same as any other call's first ones."""
        fdm, seed = self.story.fdm(name), self.story.seed
        sources, actions = self.sources[:cases], self.actions[:cases]
        return fdm.sample(sources, actions, count, temperature=temperature, seed=seed, max_rows=SAMPLED_AT_ONCE)

    def judge(self, groups: Sequence[Sequence[Candidate]]) -> dict[str, np.ndarray]:
        """Each of `MEASURES` and 'editing', float [cases, candidates], for groups of the first cases."""
        keys = [[(n, candidate.ids.tobytes()) for candidate in group] for n, group in enumerate(groups)]
        ids = {key: c.ids for row, group in zip(keys, groups, strict=True) for key, c in zip(row, group, strict=True)}
        new = [key for key in ids if key not in self._judged]
        if new:
            images = self.story.vlm.decode(np.stack([ids[key] for key in new]))
            judged = oracle.judge_all(self.world, [self.tasks[number] for number, _ in new], images)
            self._judged |= dict(zip(new, judged, strict=True))
        source_ids = self.story.vlm.encode(self.sources[: len(groups)]).cpu().numpy()
        found = [[self._judged[key] for key in row] for row in keys]
        values = {
            name: np.array([[float(getattr(j, name)) for j in row] for row in found])
            for name in ("success", "editing", "minimality", "judge")
        }
        copies = [[(c.ids == source).all() for c in group] for group, source in zip(groups, source_ids, strict=True)]
        return {**values, "copy_rate": np.array(copies, dtype=float)}

    def judgements(self, groups: Sequence[Sequence[Candidate]]) -> list[Judgement]:
        """The oracle's word on the first candidate of each group."""
        self.judge(groups)
        return [self._judged[number, group[0].ids.tobytes()] for number, group in enumerate(groups)]


Differences = dict[str, dict[str, np.ndarray]]
"""Comparison -> measure -> ours minus theirs, case by case; kept so that several runs can be taken together."""


def measure(story: Story, test: Cases, validation: Cases) -> tuple[dict[str, Any], Differences]:
    """The content of `results.json` but for the times, and what its paired intervals were taken from."""
    tasks = test.tasks
    found: dict[str, Any] = {"world": test.world.name, "seed": story.seed, "data": story.data}
    said, named = oracle.describe_pairs(story.idm, test.world, tasks)
    overlap = [oracle.token_f1(words, task.action) for words, task in zip(said, tasks, strict=True)]
    found["idm"] = {"exact_match": float(np.mean(named)), "token_f1": float(np.mean(overlap))}
    found["idm"]["prefers_true_over"] = prefers_truth(story.idm.score, test.world, tasks, story.seed)["all"]
    if "idm_on_video" in story.seconds:
        again = np.array(oracle.describe_pairs(story.verifier(START), test.world, tasks)[1], dtype=float)
        found["idm_on_video"] = {"exact_match": float(again.mean())}
    found["ceiling"] = {"tokenizer": oracle.tokenizer_ceiling(story.vlm, test.world, tasks)}
    found["fdm"], each = {}, {}
    for name in systems_of(story):
        found["fdm"][name], each[name] = of_system(name, test, validation)
    start = start_of_rl(story)
    for row, name in ((UNTRAINED_RERANKED.replace(START, start), start), (RERANKED, better_trained(story))):
        found["fdm"][row], each[row] = _reranked(story, test, name)
    differences: Differences = {"idm-sft": {"success": np.array(named, dtype=float) - each["sft"]["success"]}}
    if "idm_on_video" in found:
        differences["idm_on_video-idm"] = {"success": again - np.array(named, dtype=float)}
    for ours, theirs in compared(start):
        if ours in each and theirs in each:
            differences[f"{ours}-{theirs}"] = {key: each[ours][key] - each[theirs][key] for key in each[ours]}
    curves: dict[str, dict[str, Any]] = {f"best_of_n{by}": {} for by in ("", "_mix", "_oracle")}
    for name in SEARCHED:
        for by, scores in _choosers(story, name, test).items():
            curve, gained = _best_of_n(story, name, test, scores)
            curves[f"best_of_n{by}"][name] = curve
            if name == "sft" and by != "_oracle":
                differences[f"best_of_8{by}-best_of_1"] = gained
    found["paired"] = {
        name: {key: list(mean_of_runs([values])) for key, values in entry.items()}
        for name, entry in differences.items()
    }
    found |= {**curves, "grpo": _rewarded(story, test)}
    return found, differences


def systems_of(story: Story) -> list[str]:
    """Systems that the budget has, in the order of the table."""
    return [name for name in SYSTEMS if name not in OPTIONAL or name in story.seconds]


def better_trained(story: Story) -> str:
    """Of the systems trained by reward the one whose single candidates are more like the validation targets; what they
    started from where both were held back.
    """
    left = [name for name in IMPROVED if name not in story.data.get("held_back", {})]
    return max(left, key=lambda name: story.data.get("likeness", {}).get(name, 0.0), default=start_of_rl(story))


def compared(start: str) -> list[tuple[str, str]]:
    """`COMPARED`, where training by reward started from `start`."""
    if start == START:
        return list(COMPARED)
    others = {START: start, UNTRAINED_RERANKED: UNTRAINED_RERANKED.replace(START, start)}
    by_reward = (*IMPROVED, RERANKED)
    kept = [(a, b) for a, b in COMPARED if not (a in by_reward and b == "bootstrapped_continued")]
    return [(a, others.get(b, b) if a in by_reward else b) for a, b in kept]


def _reranked(story: Story, test: Cases, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """M of the best of `RERANKED_OF` of a system's candidates by its mix, and its values case by case.

    They are drawn at temperature 1, its best one or not.
    """
    groups = test.sample(name, len(test.tasks), RERANKED_OF)
    scores = _mixed(story, name, test, groups)
    chosen = [[group[int(np.argmax(of))]] for group, of in zip(groups, scores, strict=True)]
    each = {key: values[:, 0] for key, values in test.judge(chosen).items() if key in MEASURES}
    each["success_at_best_temperature"] = each["success"]
    success = float(each["success"].mean())
    metrics = oracle.summary(test.judgements(chosen)) | {"copy_rate": float(each["copy_rate"].mean())}
    return metrics | {"best_temperature": 1.0, "success_at_best_temperature": success}, each


def of_system(name: str, test: Cases, validation: Cases) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """M of one system, and its values case by case for the paired differences."""
    groups = test.draw(name)
    rates = [validation.judge(validation.draw(name, 1, t))["success"].mean() for t in TEMPERATURES]
    best = TEMPERATURES[int(np.argmax(rates))]
    each = {key: values[:, 0] for key, values in test.judge(groups).items() if key in MEASURES}
    each["success_at_best_temperature"] = test.judge(test.draw(name, 1, best))["success"][:, 0]
    metrics = oracle.summary(test.judgements(groups)) | {
        "copy_rate": float(each["copy_rate"].mean()),
        "best_temperature": best,
        "success_at_best_temperature": float(each["success_at_best_temperature"].mean()),
    }
    return metrics, each


def _mixed(
    story: Story, name: str, test: Cases, groups: Sequence[Sequence[Candidate]], rewards: list[Reward] | None = None
) -> np.ndarray:
    """Totals of candidates of the first cases by rewards, a system's own mix where none are given, float [cases, N];
    the least known one where there is no total.
    """
    triplets = triplets_of(test.world, test.tasks[: len(groups)], "world")
    scored = score(rewards or mixed_rewards(story, name), batch_of(list(zip(triplets, groups, strict=True))))
    totals = np.array([np.nan if one.total is None else one.total for one in scored]).reshape(len(groups), -1)
    least = np.nanmin(totals) if np.isfinite(totals).any() else 0.0
    return np.where(np.isfinite(totals), totals, least - 1)


def _choosers(story: Story, name: str, test: Cases) -> dict[str, np.ndarray]:
    """What chooses among a system's candidates of the first cases, float [cases, N]: the paper's `idm_likelihood`, the
    system's own mix, and the oracle.
    """
    groups = test.search(name)
    return {
        "": _mixed(story, name, test, groups, load_rewards("idm_likelihood", story.idm, test.actions)),
        "_mix": _mixed(story, name, test, groups),
        "_oracle": test.judge(groups)["success"],
    }


def _best_of_n(
    story: Story, name: str, test: Cases, scores: np.ndarray
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Best of N at temperature 1 by some scores; what the best of 8 gains by them, case by case."""
    count, values = story.budget.candidates, test.judge(test.search(name))
    numbers = [2**k for k in range(count.bit_length()) if 2 * 2**k <= count]

    def best(of: list[list[float]], n: int) -> np.ndarray:
        return np.array([expected_best(s, v, n) for s, v in zip(scores.tolist(), of, strict=True)])

    curve = {str(n): float(best(values["success"].tolist(), n).mean()) for n in numbers}
    gained = {key: best(values[key].tolist(), min(8, count)) - values[key].mean(1) for key in MEASURES}
    return curve, gained


def _rewarded(story: Story, test: Cases) -> dict[str, Any]:
    """Rewards before and after GRPO, how far the policy moved, what the judge IDM says, and how well the reward ranks.

    Both systems' candidates are scored in one call, so that they are compared with the same rivals.
    """
    size, part = story.budget.group_size, min(REWARDED_CASES, max(len(test.tasks) // 8, 1))
    started = start_of_rl(story)
    triplets = triplets_of(test.world, test.tasks[:part], "world")
    before, after = (test.sample(name, part, size) for name in (started, "grpo"))
    rows = [triplet for triplet in triplets for _ in range(2 * size)]
    both = [c for a, b in zip(before, after, strict=True) for c in (*a, *b)]
    sources, actions = [row.source for row in rows], [row.action for row in rows]
    rewards = grpo_rewards(story, started)
    scored = score(rewards, Batch(actions, both, sources, task=[row.task for row in rows]))
    totals = np.array([np.nan if s.total is None else s.total for s in scored]).reshape(part, 2, size)
    judged = story.judge.score(sources, [np.asarray(candidate.image) for candidate in both], actions)
    said = np.array(judged).reshape(part, 2, size)
    drawn = [candidate for group in after for candidate in group]
    start = story.fdm(started).log_probs(
        [t.source for t in triplets for _ in range(size)], drawn, [t.action for t in triplets for _ in range(size)]
    )
    found = {
        "reward_before": float(np.nanmean(totals[:, 0])),
        "reward_after": float(np.nanmean(totals[:, 1])),
        "kl": float(np.mean([c.logprob - float(s.sum()) for c, s in zip(drawn, start, strict=True)])),
        "sampler_trainer_gap": story.gap,
        "judge_idm_before": float(said[:, 0].mean()),
        "judge_idm_after": float(said[:, 1].mean()),
    }
    right = np.concatenate([test.judge(before)["success"], test.judge(after)["success"]]) > 0
    values = np.concatenate([totals[:, 0], totals[:, 1]])
    areas = [auc(v, r) for v, r in zip(values, right, strict=True)]
    if np.isfinite(areas).any():
        found["within_group_auc"] = float(np.nanmean(areas))
    return found
