"""What the main job found, for people: the table that the demo prints and its HTML report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rl.data.importance import Importance, feature_distances
from rl.data.video.keyframes import Mining, flow_magnitudes
from rl.pictures import Picture
from rl.report.audit_page import premise_parts
from rl.report.grids import sheet
from rl.report.html import curves, page, paragraph, picture, table
from trainers.studies.demo.mixes import start_of_rl
from trainers.studies.demo.results import Cases
from trainers.studies.demo.story import Story

Row = list[tuple[Picture, str]]
MEANINGS = {
    "base": "the base as it is: it knows pictures and words, not what actions do",
    "sft": "fine-tuned on labelled data only",
    "sft_twice_as_long": "the same with twice the steps, so that extra steps are not mistaken for extra data; in "
    "`make demo` about as long as `bootstrapped` and GRPO take together",
    "sft_equal_compute": "the same for about as long as `bootstrapped`",
    "bootstrapped_greedy": "labelled data and video with the inverse model's likeliest words, as in the paper",
    "bootstrapped": "labelled data and video with its words that `sft` verified; tokens that change weigh more",
    "bootstrapped_continued": "from `bootstrapped`: as many seconds as GRPO of supervised training on the same data",
    "best_of_n_training": "from `bootstrapped`: rounds of fine-tuning on the best of its candidates, by the fitted mix",
    "grpo": "from `bootstrapped`: GRPO; reward: the terms of the fitted mix, at fixed weights",
    "bootstrapped_and_reranked": "the best of 8 of the candidates of `bootstrapped` by its fitted mix",
    "sft_and_reranked": "the best of 8 of the candidates of `sft`, from which training by reward started, by its mix",
    "trained_and_reranked": "the better one of those trained by reward (their start, where both were held back), and "
    "the best of 8 of its candidates by its mix",
}
COMPARISONS = {
    "idm-sft": "naming the action (exact match) against drawing its outcome (success), same labels",
    "idm_on_video-idm": "what the verified video adds to the inverse model's exact match",
    "bootstrapped-sft": "what labelled video and token weights add",
    "bootstrapped-sft_equal_compute": "the same over `sft` trained for about as long",
    "bootstrapped-bootstrapped_greedy": "what verifying the labels by the forward model adds",
    "bootstrapped_continued-bootstrapped": "what as long without reward adds",
    "grpo-bootstrapped": "what GRPO adds",
    "best_of_n_training-bootstrapped": "what training on the best of N adds",
    "grpo-bootstrapped_continued": "what GRPO adds over as long without reward",
    "best_of_n_training-bootstrapped_continued": "what training on the best of N adds over more time without reward",
    "grpo-sft": "what GRPO adds where `bootstrapped` was held back",
    "best_of_n_training-sft": "what training on the best of N adds where `bootstrapped` was held back",
    "best_of_n_training-grpo": "which of the two ways to train by reward draws better, from as many candidates",
    "trained_and_reranked-sft": "all of it together over labelled data alone",
    "trained_and_reranked-sft_twice_as_long": "the same over `sft` with twice the steps",
    "trained_and_reranked-sft_equal_compute": "the same over `sft` trained about as long as `bootstrapped`",
    "trained_and_reranked-bootstrapped_and_reranked": "of that, what training by reward adds where both are reranked",
    "trained_and_reranked-sft_and_reranked": "of that, what training by reward adds where both are reranked",
    "best_of_8-best_of_1": "what the best of 8 by `idm_likelihood`, as in the paper, adds to `sft` without training",
    "best_of_8_mix-best_of_1": "the same by the fitted mix",
}


def text_table(results: dict[str, Any]) -> str:
    """The summary that the demo prints."""
    head = f"{'system':<27}{'success':>9}{'95 %':>15}{'judge':>7}{'minimal':>9}{'copies':>8}{'best T':>8}{'success':>9}"
    lines = [head]
    for name, m in results["fdm"].items():
        interval = f"{100 * m['ci95'][0]:.1f} - {100 * m['ci95'][1]:.1f}"
        lines.append(
            f"{name:<27}{100 * m['success']:>8.1f}%{interval:>15}{m['judge']:>7.2f}{m['minimality']:>9.2f}"
            f"{100 * m['copy_rate']:>7.1f}%{m['best_temperature']:>8}{100 * m['success_at_best_temperature']:>8.1f}%"
        )
    lines.append("")
    for name, entry in results["paired"].items():
        lines.append(f"{name:<48}{how_sure(entry['success'])}")
    for by, key in (("the IDM", "best_of_n"), ("the mix", "best_of_n_mix")):
        for name, curve in results[key].items():
            shares = ", ".join(f"{n}: {100 * share:.1f}%" for n, share in curve.items())
            lines.append(f"{f'best of N by {by}, {name}':<48}{shares}")
    lines.append(f"{'IDM exact match':<48}{100 * results['idm']['exact_match']:.1f}%")
    lines += [f"{f'mix of {name}':<48}{mix}" for name, mix in results["data"]["mixes"].items()]
    lines += [f"premise: {sentence}" for sentence in results["data"]["premise"]["verdicts"]]
    lines += [f"held back: {sentence}" for sentence in results["data"].get("held_back", {}).values()]
    return "\n".join(lines)


def how_sure(
    entry: Sequence[float], unit: str = "points of success", times: float = 100.0, less_is_better: bool = False
) -> str:
    """A paired difference in words that fit it."""
    difference, low, high = (times * value if abs(value) > 1e-9 else 0.0 for value in entry)  # less is rounding
    amount = f"{difference:+.1f} {unit} (95 % interval {low:+.1f} to {high:+.1f})"
    if low <= 0 <= high:
        return f"no difference shown: {amount}"
    return f"{'better' if (low > 0) != less_is_better else 'worse'}: {amount}"


def report(story: Story, results: dict[str, Any], test: Cases) -> str:
    """The HTML report: self-contained, every picture drawn from the run."""
    name, data = results["world"], results["data"]
    intro = paragraph(
        f"A forward dynamics model (FDM) draws what a picture becomes after an action in words; an inverse dynamics "
        f"model (IDM) names the action between two pictures, which is easier to learn. Here an IDM trained on "
        f"{data['labelled']} labelled triplets of the world '{name}' labels video and rewards an FDM. Everything is "
        f"measured on {data['test']} test cases that no training has seen, by the world's own oracle, which rewards "
        "nothing."
    )
    sections = [
        ("The job", [intro]),
        ("The world", [picture(sheet(_world(test), 112), "test cases: source, action, target")]),
        ("What was found", _systems(results)),
        ("How sure that is", [_comparisons(results)]),
        ("What was known before video and reward", premise_parts(data["premise"])),
        ("Token importance: where an action changes the picture", _importance(story, test)),
        ("Video without labels, its key frames and the IDM's words", _video(story, data)),
        ("Candidates, best first by the inverse model", _candidates(story, test)),
        ("Best of N", [_best_of_n(results)]),
        ("Improving by reward", _improvement(story, results)),
    ]
    return page(f"Rewind on the world '{name}'", sections)


def _world(test: Cases) -> list[Row]:
    cells: Row = []
    for task in test.tasks[:8]:
        cells += [(task.source, "before"), (task.target, task.action)]
    return [cells[start : start + 8] for start in range(0, len(cells), 8)]


def _systems(results: dict[str, Any]) -> list[str]:
    head = ["system", "success", "95 % interval", "judge (0-10)", "copies", "best temperature", "success there", ""]
    rows = [
        [
            name,
            f"{100 * m['success']:.1f} %",
            f"{100 * m['ci95'][0]:.1f} - {100 * m['ci95'][1]:.1f} %",
            f"{m['judge']:.2f}",
            f"{100 * m['copy_rate']:.1f} %",
            f"{m['best_temperature']}",
            f"{100 * m['success_at_best_temperature']:.1f} %",
            MEANINGS[name],
        ]
        for name, m in results["fdm"].items()
    ]
    ceiling, idm = results["ceiling"]["tokenizer"], results["idm"]
    note = (
        "Success: one sample at temperature 1 reads exactly as a right outcome. Judge: the smaller of 'the action "
        "happened' and 'the rest was kept'. The best temperature was chosen on validation cases; the reranked row "
        "is drawn at 1. The IDM names "
        f"{100 * idm['exact_match']:.1f} % of the test actions rightly; the true targets after encoding and decoding, "
        f"the most that any model on this tokenizer can reach, count as {100 * ceiling['success']:.1f} %."
    )
    return [table(head, rows), paragraph(note, note=True)]


def _comparisons(results: dict[str, Any]) -> str:
    head = ["comparison", "what it asks", "answer on the same test cases and noise"]
    rows = [[name, COMPARISONS[name], how_sure(entry["success"])] for name, entry in results["paired"].items()]
    judge = [
        [f"{name} (judge)", COMPARISONS[name], how_sure(entry["judge"], "of 10", 1.0)]
        for name, entry in results["paired"].items()
        if "judge" in entry
    ]
    said = [f"Held back: {sentence}." for sentence in results["data"].get("held_back", {}).values()]
    return "\n".join([table(head, rows + judge), *(paragraph(sentence, note=True) for sentence in said)])


def _importance(story: Story, test: Cases) -> list[str]:
    tasks = test.tasks[:6]
    distances = feature_distances(story.vlm, [t.source for t in tasks], [t.target for t in tasks])
    weights = torch.stack(Importance().weights(distances))
    side = round(weights.shape[1] ** 0.5)
    shades = (weights / weights.max()).reshape(-1, side, side).numpy()
    heat = [np.stack([255 * s, 90 * s, 40 * (1 - s)], -1).astype(np.uint8) for s in shades]
    rows: list[Row] = [
        [(t.source, "source"), (t.target, t.action), (h, "weight")] for t, h in zip(tasks, heat, strict=True)
    ]
    note = "Bright tokens weigh most in the loss: their features before quantisation differ most between the pictures."
    pairs = [[*a, *b] for a, b in zip(rows[::2], rows[1::2], strict=False)]
    return [picture(sheet(pairs, 96), "importance maps"), paragraph(note, note=True)]


def _video(story: Story, data: dict[str, Any]) -> list[str]:
    parts = []
    film = getattr(story.world, "video", None)
    if film is not None:
        frames = film(np.random.default_rng((story.seed, 1))).frames_THWC
        motion = flow_magnitudes(frames)
        keys = sorted({frame for pair in Mining("settled").pairs(motion) for frame in pair})
        shown: Row = [(frame, f"key frame {t}" if t in keys else f"{t}") for t, frame in enumerate(frames)]
        parts += [
            picture(sheet([shown[start : start + 12] for start in range(0, len(shown), 12)], 72), "a video"),
            curves({"motion": [(t + 1.0, float(m)) for t, m in enumerate(motion)]}, "frame", "optical flow"),
        ]
    cells: Row = []
    for t in story.synthetic[:8]:
        if t.target is not None and t.score is not None:
            cells += [(t.source, "before"), (t.target, f"IDM: {t.action} ({t.score:.2f})")]
    parts.append(picture(sheet([cells[start : start + 8] for start in range(0, len(cells), 8)], 112), "labelled pairs"))
    words = f"{data['unlabelled_pairs']} pairs were mined and {data['selected']} selected by score, families alike. "
    if "label_accuracy" in data:
        words += (
            f"{100 * data['pairs_with_one_action']:.0f} % of the pairs hold exactly one action, and "
            f"{100 * data['label_accuracy']:.0f} % of the selected labels name an action that leads there "
            f"({100 * data['label_accuracy_before_selection']:.0f} % before selection)."
        )
    return [*parts, paragraph(words, note=True)]


def _candidates(story: Story, test: Cases) -> list[str]:
    groups = test.search("sft")[:6]
    right = test.judge(groups)["success"]
    rows: list[Row] = []
    for number, group in enumerate(groups):
        task = test.tasks[number]
        scores = story.idm.score(task.source, group[:6], task.action)
        ranked = sorted(zip(scores, group, right[number], strict=False), key=lambda row: -row[0])
        row: Row = [(task.source, task.action), (task.target, "true target")]
        rows.append(row + [(c.image, f"{value:.2f} {'right' if ok else 'wrong'}") for value, c, ok in ranked])
    note = "The number is the IDM's mean log-probability of the action; 'right' and 'wrong' are the oracle's."
    return [picture(sheet(rows, 96), "candidates"), paragraph(note, note=True)]


def _best_of_n(results: dict[str, Any]) -> str:
    points = {
        f"{name}, {how}": [(float(n), share) for n, share in curve.items()]
        for how, key in (
            ("by the IDM", "best_of_n"),
            ("by the mix", "best_of_n_mix"),
            ("by the oracle", "best_of_n_oracle"),
        )
        for name, curve in results[key].items()
    }
    return curves(points, "candidates N", "success")


def _improvement(story: Story, results: dict[str, Any]) -> list[str]:
    found, curve = results["grpo"], story.curves
    rewards: dict[str, list[tuple[float, float]]] = {
        name: curve[name] for name in ("reward", "validation reward") if name in curve
    }
    start = start_of_rl(story)
    entries = [("GRPO", f"grpo-{start}"), ("Best-of-N training", f"best_of_n_training-{start}")]
    entries.append(("The better one of both, and the best of 8 by its mix", "trained_and_reranked-sft"))
    words = [f"{name}: {how_sure(results['paired'][key]['success'])}." for name, key in entries]
    auc = f"{found['within_group_auc']:.2f}" if "within_group_auc" in found else "not measured"
    words.append(
        f"Reward on test cases {found['reward_before']:.3f} -> {found['reward_after']:.3f}; judge IDM "
        f"{found['judge_idm_before']:.3f} -> {found['judge_idm_after']:.3f}; {found['kl']:.2f} nats a sample away from "
        f"its start; within a group the reward ranks a right candidate above a wrong one in {auc} of the cases. "
        "Minutes of RL on two cores move little."
    )
    parts = [curves(rewards, "GRPO step", "reward")]
    if curve.get("success"):
        parts.append(curves({"validation success (only shown)": curve["success"]}, "GRPO step", "success"))
    return [*parts, *(paragraph(text) for text in words)]
