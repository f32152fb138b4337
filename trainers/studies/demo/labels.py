"""The main job's labels: pairs of frames of video, named by the inverse model and selected."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rl.data.labels.labelling import Naming, choose, label_pairs, propose
from rl.data.labels.selection import select_stratified
from rl.data.triplet_files import read_triplets, write_triplets
from rl.data.video.keyframes import Mining, flow_magnitudes
from rl.evaluation.intervals import paired_difference
from rl.evaluation.oracle import sample_tasks, triplets_of
from rl.evaluation.premise import as_good_as_true
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet
from rl.words import words_of
from trainers.studies.demo.story import Story

logger = logging.getLogger("rl")
GREEDY = "labelled_greedy"
"""Folder of the labels that the paper's way gives."""


def compare_choices(
    idm: InverseDynamics, fdm: ForwardDynamics, triplets: Sequence[Triplet], count: int, seed: int
) -> dict[str, Any]:
    """Which of `count` sentences drawn for a pair is right more often: the IDM's own choice, or the one that the FDM
    verified.

    Returns:
        `verified` and `alone`, the shares that are as good as the true words; `use`, false where verifying is worse by
        more than noise (what verifies also tells what is right, so it is hardly wronged); `verdict`, a sentence.
    """
    drawn = propose(idm, triplets, Naming(1.0, count, seed), fdm)
    own = [[one._replace(verified=None) for one in group] for group in drawn]
    choices = [[choose(group, count) for group in groups] for groups in (drawn, own)]
    said = [["" if choice is None else choice.text for choice in row] for row in choices]
    verified_S, alone_S = (as_good_as_true(fdm, triplets, words).astype(float) for words in said)
    use = paired_difference(verified_S, alone_S)[2] >= 0
    told = f"{verified_S.mean():.0%} of labels are right with it and {alone_S.mean():.0%} without"
    verdict = f"{'' if use else 'do not '}verify labels by the forward model: {told}"
    return {"verified": float(verified_S.mean()), "alone": float(alone_S.mean()), "use": use, "verdict": verdict}


def mine_and_label(story: Story) -> None:
    """Key frames of videos (for a world without, scene and outcome), named by the IDM and verified by `sft`, unless the
    premise found the IDM's own choice better (`compare_choices`); the pairs of whose words the IDM is surest are
    selected. With `greedy_labels` also as in the paper: by the likeliest words.
    """
    budget = story.budget
    pairs, truths = mine(story)
    named, chosen = _selected(story, pairs, **ways_to_name(story))
    story.synthetic = [named[i] for i in chosen]
    story.tried = [replace(named[i], target=None) for i in sorted({*range(len(named))} - {*chosen})]
    write_triplets(story.synthetic, story.output / "labelled")
    if story.tried:
        write_triplets(story.tried, story.output / "tried")
    story.data |= {"unlabelled_pairs": len(pairs), "selected": len(story.synthetic)}
    story.data |= _truth_of_labels(story, named, chosen, truths)
    if budget.greedy_labels:
        named, chosen = _selected(story, pairs)
        write_triplets([named[i] for i in chosen], story.output / GREEDY)
        if right := _truth_of_labels(story, named, chosen, truths):
            story.data["greedy_label_accuracy"] = right["label_accuracy"]


def ways_to_name(story: Story) -> dict[str, Any]:
    """Arguments of `label_pairs` as the budget and the premise have it."""
    if story.budget.sentences == 1:
        return {}
    verified = story.data.get("premise", {}).get("verifying", {}).get("use", True)
    how: dict[str, Any] = {"temperature": 1.0, "num_samples": story.budget.sentences}
    return how | ({"fdm": story.fdm("sft")} if verified else {})


def mine(story: Story) -> tuple[list[Triplet], dict[int, set[tuple[Any, Any]]]]:
    """Pairs without words, and the scenes that each leads from and to, by the identity of its first picture."""
    world, budget = story.world, story.budget
    rng = np.random.default_rng((story.seed, 1))
    pairs: list[Triplet] = []
    truths: dict[int, set[tuple[Any, Any]]] = {}
    film = getattr(world, "video", None)
    if film is None:
        tasks = sample_tasks(world, budget.videos, (story.seed, 3))
        pairs = [replace(t, action="") for t in triplets_of(world, tasks, "pair")]
        return pairs, {id(t.source): {(t.scene, t.outcome)} for t in tasks}
    for _ in range(budget.videos):
        video = film(rng)
        for a, b in Mining("settled").pairs(flow_magnitudes(video.frames_THWC)):
            before, after = video.frames_THWC[a], video.frames_THWC[b]
            pairs.append(Triplet(before, "", after, label=video.label, provenance="video"))
            truths[id(before)] = {(s.source, s.target) for s in video.truth}
    return pairs, truths


def _selected(story: Story, pairs: Sequence[Triplet], **how: Any) -> tuple[list[Triplet], list[int]]:
    """Pairs with words, and which of them are learned from (`surest`)."""
    named = label_pairs(story.idm, pairs, seed=story.seed, **how)
    chosen = surest(named, story.budget.selected, story.data.get("premise", {}).get("min_score"))
    family = getattr(story.world, "family", lambda action: None)
    return [replace(triplet, task=family(triplet.action)) for triplet in named], chosen


def surest(named: Sequence[Triplet], count: int, min_score: float | None = None) -> list[int]:
    """The numbers of up to so many triplets, the surest of each class in turns; where videos have no classes, of each
    verb that was named, or what is easiest to name would be nearly all. Those below `min_score` are passed over.
    """
    sure = [n for n, t in enumerate(named) if min_score is None or (t.score or 0.0) >= min_score]
    if not sure:
        logger.warning("no label has a score of at least %s, as the premise asks: all are used", min_score)
        sure = list(range(len(named)))
    by_class = any(triplet.label for triplet in named)
    classes = [(named[n].label or "") if by_class else "".join(words_of(named[n].action)[:1]) for n in sure]
    return [sure[i] for i in select_stratified([named[n].score or 0.0 for n in sure], classes, count)]


def _truth_of_labels(
    story: Story, named: Sequence[Triplet], chosen: Sequence[int], truths: dict[int, set[tuple[Any, Any]]]
) -> dict[str, float]:
    """For the report alone: the share of pairs that hold exactly one action, and of selected labels that name it."""
    read = getattr(story.world, "read", None)
    if getattr(story.world, "video", None) is None:  # then each pair is a scene and its outcome
        shown = [next(iter(truths[id(t.source)])) for t in named]
        before, after = [a for a, _ in shown], [b for _, b in shown]
    elif read is None:
        return {}
    else:
        before = [reading.scene for reading in read(np.stack([np.asarray(t.source) for t in named]))]
        after = [reading.scene for reading in read(np.stack([np.asarray(t.target) for t in named]))]
    one = [(a, b) in truths[id(t.source)] for a, b, t in zip(before, after, named, strict=True)]
    right = [
        a is not None and b in story.world.outcomes(a, t.action) for a, b, t in zip(before, after, named, strict=True)
    ]
    return {
        "pairs_with_one_action": float(np.mean(one)),
        "label_accuracy": float(np.mean([right[i] for i in chosen])),
        "label_accuracy_before_selection": float(np.mean(right)),
    }


def labelled_by_idm(run: Path) -> tuple[list[Triplet], list[Triplet]]:
    """The selected triplets of a run, and those that are only tried in RL."""
    files = [run / name / "triplets.json" for name in ("labelled", "tried")]
    return list(read_triplets(files[0])), list(read_triplets(files[1])) if files[1].is_file() else []
