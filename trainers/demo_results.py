"""What the main job found: measured on the same test cases and noise for all systems; as JSON, table and report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl.data.importance import Importance, feature_distances
from rl.evaluation import oracle
from rl.evaluation.intervals import paired_difference
from rl.evaluation.oracle import Task
from rl.evaluation.probes import prefers_truth
from rl.images import Picture
from rl.report.grids import sheet
from rl.report.html import curves, page, paragraph, picture, table
from rl.search.best_of_n import expected_best
from rl.world import Judgement
from trainers.demo import Story, rewards_of, triplets_of

TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0)
SYSTEMS = ("base", "sft", "sft_twice_as_long", "bootstrapped", "best_of_n_training", "grpo")
ADAPTERS = {"grpo": "default"}
MEANINGS = {
    "base": "the shipped base: knows pictures and words, not dynamics",
    "sft": "fine-tuned on labelled data only",
    "sft_twice_as_long": "the same with twice the steps, so that extra steps are not mistaken for extra data",
    "bootstrapped": "labelled data and IDM-labelled video, tokens weighted by how much they change",
    "best_of_n_training": "bootstrapped, then fine-tuned on the best of its own candidates",
    "grpo": "bootstrapped, then GRPO with the IDM as reward",
}


def measure(story: Story) -> dict[str, Any]:
    """The content of `results.json` but for the times."""
    world, budget = story.splits["test"], story.budget
    tasks = oracle.sample_tasks(world, budget.test, story.seed)
    validation = oracle.sample_tasks(story.splits["validation"], budget.validation, story.seed)
    found: dict[str, Any] = {"world": world.name, "seed": story.seed, "data": story.data}
    described = oracle.idm_descriptions(story.idm, world, tasks)
    right_IDM = _matches(story, tasks)
    found["idm"] = {"exact_match": described["exact_match"], "token_f1": described["token_f1"]}
    found["idm"]["prefers_true_over"] = prefers_truth(story.idm.score, world, tasks, story.seed)["all"]
    found["ceiling"] = {"tokenizer": oracle.tokenizer_ceiling(story.vlm, world, tasks)}
    found["fdm"], judged = {}, {}
    for name in SYSTEMS:
        metrics, judged[name] = _system(story, name, tasks, validation)
        found["fdm"][name] = metrics
    pairs = [("bootstrapped", "sft"), ("grpo", "bootstrapped"), ("best_of_n_training", "bootstrapped")]
    found["paired"] = {
        "idm-sft": {"success": list(paired_difference(right_IDM, judged["sft"]["success"]))},
        **{f"{a}-{b}": {k: list(paired_difference(judged[a][k], judged[b][k])) for k in judged[a]} for a, b in pairs},
    }
    curve, by_oracle, difference = _best_of_n(story, tasks)
    found["best_of_n"], found["best_of_n_oracle"] = {"sft": curve}, {"sft": by_oracle}
    found["paired"]["best_of_8-best_of_1"] = {"success": difference}
    found["grpo"] = _grpo(story, tasks)
    return found


def _matches(story: Story, tasks: Sequence[Task]) -> list[float]:
    said = story.idm.describe([t.source for t in tasks], [t.target for t in tasks])
    return [float(oracle.names_the_outcome(story.world, t, words)) for t, words in zip(tasks, said, strict=True)]


def _judge(story: Story, name: str, tasks: Sequence[Task], temperature: float) -> tuple[list[Judgement], np.ndarray]:
    """One candidate a task under the story's noise: judgements, and which are copies."""
    fdm = story.fdm(ADAPTERS.get(name, name))
    sources = [task.source for task in tasks]
    drawn = fdm.sample(sources, [t.action for t in tasks], 1, temperature=temperature, seed=story.seed)
    ids = np.stack([group[0].ids for group in drawn])
    copies = (ids == story.vlm.encode(sources).cpu().numpy()).all(1)
    return oracle.judge_all(story.world, tasks, story.vlm.decode(ids)), copies


def _system(
    story: Story, name: str, tasks: Sequence[Task], validation: Sequence[Task]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """M of one system, and its values case by case for the paired differences."""
    judged, copies = _judge(story, name, tasks, 1.0)
    rates = [np.mean([j.success for j in _judge(story, name, validation, t)[0]]) for t in TEMPERATURES]
    best = TEMPERATURES[int(np.argmax(rates))]
    at_best = judged if best == 1.0 else _judge(story, name, tasks, best)[0]
    each = {
        "success": np.array([float(j.success) for j in judged]),
        "judge": np.array([j.judge for j in judged]),
        "copy_rate": copies.astype(float),
        "minimality": np.array([j.minimality for j in judged]),
        "success_at_best_temperature": np.array([float(j.success) for j in at_best]),
    }
    metrics = {**oracle.summary(judged), "copy_rate": float(copies.mean()), "best_temperature": best}
    metrics["success_at_best_temperature"] = float(each["success_at_best_temperature"].mean())
    return metrics, each


def _best_of_n(story: Story, tasks: Sequence[Task]) -> tuple[dict[str, float], dict[str, float], list[float]]:
    """`sft` at temperature 1, best of 1, 2, 4, 8 by `idm_likelihood` and by the oracle; best of 8 against 1, paired."""
    count = story.budget.candidates
    groups = story.fdm("sft").sample([t.source for t in tasks], [t.action for t in tasks], count, seed=story.seed)
    flat = story.idm.score(
        [t.source for t in tasks for _ in range(count)],
        [candidate for group in groups for candidate in group],
        [t.action for t in tasks for _ in range(count)],
    )
    scores = np.array(flat).reshape(len(tasks), count).tolist()
    numbers = [n for n in (1, 2, 4, 8) if 2 * n <= count]
    found = oracle.best_of_n(groups, scores, story.world, tasks, expected_best, numbers)
    ids = np.stack([candidate.ids for group in groups for candidate in group])
    every = oracle.judge_all(story.world, [t for t in tasks for _ in range(count)], story.vlm.decode(ids))
    right = np.array([float(j.success) for j in every]).reshape(len(tasks), count)
    best = [expected_best(s, r.tolist(), numbers[-1]) for s, r in zip(scores, right, strict=True)]
    return found["by_score"], found["by_oracle"], list(paired_difference(best, right.mean(1)))


def _grpo(story: Story, tasks: Sequence[Task]) -> dict[str, Any]:
    """Reward before and after on test scenes, how far the policy moved, and how well the reward ranks within groups."""
    from rewards import Batch, score

    rewards, size = rewards_of(story), story.budget.group_size
    part = tasks[: max(8, len(tasks) // 4)]
    triplets = triplets_of(story.splits["test"], part, "world")
    sources, actions = [t.source for t in part], [t.action for t in part]
    found: dict[str, Any] = {"sampler_trainer_gap": story.gap}
    for name, key in (("bootstrapped", "reward_before"), ("grpo", "reward_after")):
        groups = story.fdm(ADAPTERS.get(name, name)).sample(sources, actions, size, seed=story.seed)
        candidates = [candidate for group in groups for candidate in group]
        rows = [triplet for triplet in triplets for _ in range(size)]
        batch = Batch([r.action for r in rows], candidates, [r.source for r in rows], task=[r.task for r in rows])
        totals = [s.total for s in score(rewards, batch)]
        found[key] = float(np.mean([t for t in totals if t is not None]))
    before = story.fdm("bootstrapped").log_probs([r.source for r in rows], candidates, [r.action for r in rows])
    found["kl"] = float(np.mean([c.logprob - b.sum() for c, b in zip(candidates, before, strict=True)]))
    judged = oracle.judge_all(
        story.world, [t for t in part for _ in range(size)], story.vlm.decode(np.stack([c.ids for c in candidates]))
    )
    right = np.array([j.success for j in judged]).reshape(-1, size)
    values = np.array([np.nan if t is None else t for t in totals]).reshape(-1, size)
    areas = [auc(v, r) for v, r in zip(values, right, strict=True) if 0 < r.sum() < size]
    if np.isfinite(areas).any():
        found["within_group_auc"] = float(np.nanmean(areas))
    return found


def auc(scores_N: np.ndarray, right_N: np.ndarray) -> float:
    """Chance that a right candidate scores above a wrong one; ties count half."""
    known = np.isfinite(scores_N)
    good, bad = scores_N[right_N & known], scores_N[~right_N & known]
    if not len(good) or not len(bad):
        return float("nan")
    above = (good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean()
    return float(above)


def text_table(results: dict[str, Any]) -> str:
    """The summary that the demo prints."""
    head = f"{'system':<20}{'success':>9}{'95 %':>16}{'best T':>8}{'success':>9}{'judge':>7}{'copies':>8}"
    lines = [head]
    for name, m in results["fdm"].items():
        interval = f"{100 * m['ci95'][0]:.1f} - {100 * m['ci95'][1]:.1f}"
        lines.append(
            f"{name:<20}{100 * m['success']:>8.1f}%{interval:>16}{m['best_temperature']:>8}"
            f"{100 * m['success_at_best_temperature']:>8.1f}%{m['judge']:>7.2f}{100 * m['copy_rate']:>7.1f}%"
        )
    lines.append("")
    for name, entry in results["paired"].items():
        d, low, high = entry["success"]
        lines.append(f"{name:<34}success {100 * d:+6.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]")
    shares = [f"{n}: {100 * share:.1f}%" for n, share in results["best_of_n"]["sft"].items()]
    lines.append(f"best of n by the IDM: {', '.join(shares)}")
    lines.append(f"IDM exact match: {100 * results['idm']['exact_match']:.1f}%")
    return "\n".join(lines)


def how_sure(entry: Sequence[float]) -> str:
    """A paired difference in words that fit it."""
    difference, low, high = entry
    amount = f"{100 * difference:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    if low > 0:
        return f"better: {amount}"
    return f"worse: {amount}" if high < 0 else f"no difference shown: {amount}"


def report(story: Story, results: dict[str, Any]) -> str:
    """The HTML report."""
    world = story.splits["test"]
    tasks = oracle.sample_tasks(world, 6, story.seed)
    sources, actions = [t.source for t in tasks], [t.action for t in tasks]
    groups = story.fdm("bootstrapped").sample(sources, actions, 6, seed=story.seed)
    rows: list[list[tuple[Picture, str]]] = []
    for task, group in zip(tasks, groups, strict=True):
        scores = story.idm.score(task.source, group, task.action)
        ranked = sorted(zip(scores, group, strict=True), key=lambda pair: -pair[0])
        cells: list[tuple[Picture, str]] = [(task.source, task.action), (task.target, "true target")]
        rows.append(cells + [(candidate.image, f"{value:.2f}") for value, candidate in ranked])
    weights = Importance().weights(feature_distances(story.vlm, sources, [t.target for t in tasks]))
    side = round(weights.shape[1] ** 0.5)
    shades = (weights / weights.max()).reshape(-1, side, side).numpy()
    heat = [np.repeat((255 * shade[..., None]).astype(np.uint8), 3, -1) for shade in shades]
    maps: list[list[tuple[Picture, str]]] = [
        [(t.source, "source"), (t.target, t.action), (h, "importance")] for t, h in zip(tasks, heat, strict=True)
    ]
    named: list[list[tuple[Picture, str]]] = [
        [(t.source, "before"), (t.target, f"IDM: {t.action} ({t.score:.2f})")]
        for t in story.synthetic[:6]
        if t.target is not None
    ]
    systems = []
    for name, m in results["fdm"].items():
        shares = [f"{100 * m[key]:.1f} %" for key in ("success", "success_at_best_temperature")]
        systems.append([name, *shares, f"{m['judge']:.2f}", MEANINGS[name]])
    head = ["system", "success", "at its best temperature", "judge", "what it is"]
    sure = [[name, how_sure(entry["success"])] for name, entry in results["paired"].items()]
    numbers = {"by the IDM": results["best_of_n"]["sft"], "by the oracle": results["best_of_n_oracle"]["sft"]}
    points = {name: [(float(n), p) for n, p in curve.items()] for name, curve in numbers.items()}
    return page(
        f"Rewind on the world '{world.name}'",
        [
            ("What was found", [table(head, systems)]),
            ("How sure that is", [table(["comparison", "difference in success on the same test cases"], sure)]),
            ("Candidates of the bootstrapped model, best first", [picture(sheet(rows, 96), "candidates")]),
            ("Where the picture changes: token importance", [picture(sheet(maps, 96), "importance maps")]),
            ("Key frames of unlabelled video, and the IDM's words", [picture(sheet(named, 96), "labelled pairs")]),
            ("Best of N", [curves(points, "candidates N", "success")]),
            (
                "GRPO",
                [
                    curves(story.curves, "step", "reward"),
                    paragraph("Reward on the sampled candidates; minutes of RL on two cores move little.", note=True),
                ],
            ),
        ],
    )
