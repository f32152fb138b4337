"""The main job on a world, in one process: from video without labels to a forward model improved by its inverse model.

Each stage trains one adapter on the one backbone and keeps it in a run folder of its own (arXiv 2506.06006; GRPO and
best-of-N training after 2509.23958). The oracle only measures: no stage is rewarded or selected by it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from peft import LoraConfig
from transformers import set_seed

from rl.data.importance import Importance
from rl.data.triplet_files import read_triplets, write_triplets
from rl.data.triplet_table import joined, without_outcomes
from rl.evaluation.oracle import sample_tasks, triplets_of
from rl.models.known import JUDGES, LINEAR_LAYERS, SHIPPED_RUNS
from rl.models.roles import Role
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet
from rl.world import World
from trainers.common.adapters import add_adapter
from trainers.sft.rows import role_rows
from trainers.studies.demo.fitting import LORA_ALPHA, PROPOSER, fit_adapter
from trainers.studies.demo.improvement import train_best_of_n, train_grpo
from trainers.studies.demo.labels import GREEDY, labelled_by_idm, mine_and_label
from trainers.studies.demo.mixes import IMPROVED, START, fit_mix, hold_back, look_at_premise, start_of_rl
from trainers.studies.demo.proposals import PROPOSED, propose_prompts
from trainers.studies.demo.story import Budget, Story

logger = logging.getLogger("rl")
CONTINUED = "bootstrapped_continued"
JUDGE_SEED = 1_000_003
"""Added to the seed for what a judge IDM learns from, so that it never sees the rewarding IDM's labels."""


def begin(splits: dict[str, World], vlm: UnifiedVLM, output: Path, seed: int, budget: Budget) -> Story:
    """Draw the labelled data and write the test cases; what an interrupted run finished is taken over."""
    story = Story(splits["train"], splits, vlm, output, seed, budget)
    story.restore()
    story.labelled = triplets_of(splits["train"], sample_tasks(splits["train"], budget.labelled, seed), "world")

    def write() -> None:
        test = triplets_of(splits["test"], sample_tasks(splits["test"], budget.test, seed), "world")
        write_triplets(test, output / "test")
        story.data |= {"labelled": len(story.labelled), "test": len(test)}

    story.stage("data", write)
    return story


def train_roles(story: Story) -> None:
    """The inverse model, and the forward model on labelled data: with the usual steps, and with twice as many or so
    many that it takes about as long as `bootstrapped`. Then the premise of what follows is looked at.
    """
    budget = story.budget
    _sft(story, "idm", "idm", story.labelled, budget.idm_steps, budget.idm_learning_rate)
    story.stage("judge_idm", lambda: _judge_idm(story), "judge_idm")
    longer = {"sft_twice_as_long": 2 * budget.fdm_steps}
    if budget.equal_compute_steps:
        longer = {"sft_equal_compute": budget.equal_compute_steps}
    for name, count in ({"sft": budget.fdm_steps} | longer).items():
        _sft(story, name, "fdm", story.labelled, count, budget.sft_learning_rate)
    story.stage("premise", lambda: look_at_premise(story, "sft", fit_mix(story, "sft")))


def bootstrap(story: Story) -> None:
    """Labels for video by the inverse model, and models on both kinds of data: an inverse one that rewards from now on,
    if the budget has it, and a forward one with token weights.
    """
    story.stage("labels", lambda: mine_and_label(story))
    if not story.synthetic:
        story.synthetic, story.tried = labelled_by_idm(story.output)
    budget, synthetic = story.budget, {"bootstrapped": story.synthetic}
    if budget.idm_on_video_steps:
        both = [*story.labelled, *story.synthetic]
        _sft(story, "idm_on_video", "idm", both, budget.idm_on_video_steps, budget.idm_learning_rate)
    if budget.greedy_labels:
        synthetic = {"bootstrapped_greedy": list(read_triplets(story.output / GREEDY / "triplets.json")), **synthetic}
    steps = budget.bootstrapped_steps or budget.fdm_steps
    for name, more in synthetic.items():
        both = [*story.labelled, *more]
        _sft(story, name, "fdm", both, steps, budget.bootstrapped_learning_rate, Importance())
    if budget.continued_steps:
        story.stage(CONTINUED, lambda: _go_on(story), CONTINUED)


def _go_on(story: Story) -> None:
    """`bootstrapped` for more supervised steps on its own data: what training by reward has to beat in as long."""
    budget, vlm, both = story.budget, story.vlm, [*story.labelled, *story.synthetic]
    set_seed(story.seed)
    vlm.attach_adapter(story.output / START / "adapter", CONTINUED)
    rows = role_rows(vlm, "fdm", both, Importance())
    fit_adapter(story, CONTINUED, CONTINUED, "fdm", rows, budget.continued_steps, budget.continued_learning_rate)


def improve(story: Story) -> None:
    """GRPO and best-of-N training, both from `bootstrapped` (`sft` where that is held back) by the mix that is fitted
    for it, with the same number of sampled candidates, for actions that a proposer has for known pictures, if the
    budget has one; a mix for the outcome of each, to choose among those of it by.
    """

    def compare(name: str, start: str) -> None:
        fit_mix(story, name)
        hold_back(story, name, start)

    story.stage("mix", lambda: compare(START, "sft"))
    if story.budget.proposer_steps:
        seen = without_outcomes(joined([[*story.labelled, *story.synthetic, *story.tried]]))
        _sft(story, PROPOSER, "idm", seen, story.budget.proposer_steps, story.budget.idm_learning_rate)
        story.stage(PROPOSED, lambda: propose_prompts(story))
    story.stage("grpo", lambda: train_grpo(story), "default")
    story.stage("best_of_n_training", lambda: train_best_of_n(story), "best_of_n_training")
    for name in IMPROVED:
        story.stage(f"mix_{name}", partial(compare, name, start_of_rl(story)))


def _sft(
    story: Story,
    name: str,
    role: Role,
    triplets: Sequence[Triplet],
    steps: int,
    learning_rate: float,
    importance: Importance | None = None,
) -> None:
    """A fresh adapter `name` for a role, kept in the run folder `name`."""

    def work() -> None:
        set_seed(story.seed)
        rank = story.budget.idm_rank if role == "idm" else story.budget.fdm_rank
        dropout = story.budget.idm_dropout if role == "idm" else 0.0
        lora = LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, target_modules=set(LINEAR_LAYERS), lora_dropout=dropout)
        add_adapter(story.vlm, lora, name)
        fit_adapter(story, name, name, role, role_rows(story.vlm, role, triplets, importance), steps, learning_rate)

    story.stage(name, work, name)


def _judge_idm(story: Story) -> None:
    """The judge that ships with the base, or one trained on labels of its own. It never rewards or labels."""
    shipped = JUDGES.get(story.vlm.name)
    if shipped is not None:
        shutil.copytree(SHIPPED_RUNS[shipped], story.output / "judge_idm", dirs_exist_ok=True)
        story.vlm.attach_adapter(story.output / "judge_idm" / "adapter", "judge_idm")
        return
    budget, seed = story.budget, story.seed + JUDGE_SEED
    story.data["judge_labelled"] = budget.labelled
    triplets = triplets_of(story.world, sample_tasks(story.world, budget.labelled, seed), "world")
    set_seed(seed % 2**32)
    rank = budget.idm_rank
    lora = LoraConfig(r=rank, lora_alpha=LORA_ALPHA * rank, target_modules=set(LINEAR_LAYERS), lora_dropout=0.0)
    add_adapter(story.vlm, lora, "judge_idm")
    rows = role_rows(story.vlm, "idm", triplets)
    fit_adapter(story, "judge_idm", "judge_idm", "idm", rows, budget.idm_steps, budget.idm_learning_rate)
