"""What chooses among a system's candidates: a mix of rewards, fitted on validation triplets and kept with its run."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np

from rewards import Reward, load_rewards
from rewards.mix import CONFIDENCE, MIX_FILE
from rewards.totals import summed
from rl.data.candidates.store import Group
from rl.data.labels.labelling import name_pairs
from rl.errors import RewindError
from rl.evaluation.intervals import paired_difference
from rl.evaluation.oracle import sample_tasks, triplets_of
from rl.evaluation.premise import as_good_as_true, premise
from rl.models.roles import InverseDynamics
from rl.running.files import read_json, write_whole
from rl.triplets import Triplet
from trainers.common.candidates import scored_groups
from trainers.rerank.fitting import fitted, likeness_of, mix_of_fit, write_mix
from trainers.rerank.usual_change import UsualChange
from trainers.studies.demo.labels import compare_choices
from trainers.studies.demo.story import Story

logger = logging.getLogger("rl")
START = "bootstrapped"
"""What training by reward starts from, where video has done no harm (`start_of_rl`)."""
IMPROVED = ("grpo", "best_of_n_training")
"""Systems that are trained by reward, from `start_of_rl`."""
LIKENESS_FILE = "likeness.json"
"""In a system's run folder: how like its true target a candidate is, the mean for each validation triplet, by the
temperature it was drawn at."""
TERMS = ("idm_likelihood", "keep_unchanged", CONFIDENCE)
WITHOUT_FIT = ("idm_likelihood=1", "keep_unchanged=1")
"""Where there are too few triplets to fit weights on."""


def validation_triplets(story: Story) -> list[Triplet]:
    """Labelled triplets that no model learns from: weights are fitted on them and labels calibrated."""
    validation = story.splits["validation"]
    return triplets_of(validation, sample_tasks(validation, story.budget.validation, story.seed), "world")


def fit_mix(story: Story, name: str) -> list[Group]:
    """Fit weights for a system's own candidates of validation triplets, as `fit_reward.py` does; never by the oracle.

    Returns:
        What the weights were fitted on: the triplets and their candidates with every term's score.
    """
    budget = story.budget
    arguments = {"keep_unchanged": UsualChange(story.vlm, story.labelled).arguments}
    rewards = load_rewards(TERMS, story.verifier(name), [t.action for t in story.labelled], arguments=arguments)
    triplets, fdm = validation_triplets(story), story.fdm(name)
    groups = list(scored_groups(fdm, rewards, triplets, budget.fitted_candidates, seed=story.seed))
    greedy = list(scored_groups(fdm, rewards, triplets, 1, temperature=0.0, seed=story.seed))
    try:
        found, about = fitted(groups, rewards, story.vlm)
    except RewindError as error:
        logger.warning("%s: %s: its candidates are chosen by %s", name, error, " ".join(WITHOUT_FIT))
        mix: dict[str, Any] = {"rewards": list(WITHOUT_FIT), "reward_arguments": arguments}
    else:
        about |= {"idm": str(story.output / (story.verifier(name).adapter or "idm")), "temperature": 1.0}
        mix = mix_of_fit(found, TERMS, TERMS, arguments, about)
    write_mix(mix, [story.output / name])
    drawn = {"1.0": likeness_of(story.vlm, groups), "0.0": likeness_of(story.vlm, greedy)}
    kept = {temperature: values_SN.mean(1).tolist() for temperature, values_SN in drawn.items()}
    write_whole(story.output / name / LIKENESS_FILE, json.dumps(kept) + "\n")
    story.data.setdefault("likeness", {})[name] = round(float(drawn["1.0"].mean()), 4)
    story.data.setdefault("mixes", {})[name] = " ".join(mix["rewards"])
    return groups


def start_of_rl(story: Story) -> str:
    """What training by reward starts from: `START`, or `sft` where that one was held back, by what it draws or by the
    premise.
    """
    return "sft" if START in story.data.get("held_back", {}) else START


def hold_back(story: Story, name: str, start: str) -> None:
    """Say so where a system draws worse than what it comes from, by more than noise: where on the validation triplets
    its candidates are less like the true targets, at temperature 1 or greedily (training by reward sharpens, which
    helps the one and may cost the other). It is shown, and nothing starts from it or is chosen from its candidates.
    """
    if not (story.output / start / LIKENESS_FILE).is_file():  # the run was begun before there was one
        logger.warning("whether %s draws worse than %s is not known: %s was measured before that", name, start, start)
        return
    ours, theirs = (read_json(story.output / one / LIKENESS_FILE) for one in (name, start))
    for temperature in ours:
        difference, low, high = paired_difference(ours[temperature], theirs[temperature])
        if high < 0:
            sentence = (
                f"do not use `{name}`: at temperature {temperature} its candidates of validation triplets are less "
                f"like the true targets than those of `{start}`, {difference:+.3f} ({low:+.3f} to {high:+.3f})"
            )
            _hold(story, name, sentence)
            return


def follow_premise(story: Story) -> None:
    """Hold back what the premise says no to: it is trained and shown all the same, since the rows are to be compared.
    What was begun before there was a premise goes on as it was begun.
    """
    if any(name in story.seconds for name in IMPROVED):
        return
    found, shown = story.data["premise"], "is trained and shown all the same"
    if found["video"] == "no":
        sentence = f"nothing is trained by reward from `{START}`, which {shown}: the premise says no to labelled video"
        _hold(story, START, sentence)
    if found["rl"] == "no":
        for name in IMPROVED:
            sentence = f"nothing is chosen from `{name}`, which {shown}: the premise says no to training by reward"
            _hold(story, name, sentence)


def _hold(story: Story, name: str, sentence: str) -> None:
    logger.warning("held back: %s", sentence)
    held = story.data.setdefault("held_back", {})
    if sentence not in held.get(name, ""):  # a stage that is done again says the same
        held[name] = f"{held[name]}; {sentence}" if name in held else sentence


def mixed_rewards(story: Story, name: str, frozen: str | None = None) -> list[Reward]:
    """The mix that was fitted for a system, to choose among its candidates by.

    Args:
        story: of the system.
        name: of the system.
        frozen: the system whose likelihood counts, where candidates are a policy's in training; else each one's own.
    """
    mix = read_json(story.output / name / MIX_FILE)
    names = [item.partition("=")[0] for item in mix["rewards"]]
    given = {**mix.get("reward_arguments", {}), **({} if frozen is None else {CONFIDENCE: {"fdm": story.fdm(frozen)}})}
    arguments = {key: value for key, value in given.items() if key in names}
    return load_rewards(mix["rewards"], story.verifier(name), [t.action for t in story.labelled], arguments=arguments)


def grpo_rewards(story: Story, start: str, idm: InverseDynamics | None = None) -> list[Reward]:
    """What GRPO from `start` is rewarded by: the terms of a mix at the budget's weights, with `start`'s likelihood, by
    `idm` or else the one that verifies.

    Not the fitted weights, which differ from seed to seed: GRPO sharpens by itself, and more of the start's likelihood
    is no better for it (docs/findings/few-labels.md).
    """
    weights = zip(TERMS, (1.0, story.budget.grpo_keep, story.budget.grpo_confidence), strict=True)
    specs = [f"{name}={weight}" for name, weight in weights if weight]
    given = {"keep_unchanged": UsualChange(story.vlm, story.labelled).arguments, CONFIDENCE: {"fdm": story.fdm(start)}}
    arguments = {name: value for name, value in given.items() if any(s.startswith(f"{name}=") for s in specs)}
    return load_rewards(specs, idm or story.verifier(start), [t.action for t in story.labelled], arguments=arguments)


def look_at_premise(story: Story, name: str, groups: list[Group]) -> None:
    """Whether video and reinforcement learning can help here (`rl.evaluation.premise`), before either; it is said, kept
    and shown. The rows are trained all the same, but only on labels that are as sure as it says, and where it says no
    they are held back (`follow_premise`).
    """
    triplets = validation_triplets(story)
    named = name_pairs(story.idm, triplets)
    said = [words for words, _ in named]
    rewards = mixed_rewards(story, name)
    totals = [[one.total for one in summed(rewards, group)] for _, group in groups]
    found = premise(
        [triplet.action for triplet in triplets],
        said,
        [score for _, score in named],
        np.array([[np.nan if total is None else total for total in row] for row in totals]),
        likeness_of(story.vlm, groups),
        as_good_as_true(story.fdm(name), triplets, said),
    )
    if story.budget.sentences > 1:
        found["verifying"] = compare_choices(story.idm, story.fdm(name), triplets, story.budget.sentences, story.seed)
        found["verdicts"].append(found["verifying"]["verdict"])
    for sentence in found["verdicts"]:
        logger.warning("premise: %s", sentence)
    story.data["premise"] = found
    follow_premise(story)
