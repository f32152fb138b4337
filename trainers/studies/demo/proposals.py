"""The main job's fresh prompts: actions for the frames of labelled data and video that were not done there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rl.data.labels.proposals import frames_of, new_actions
from rl.data.triplet_files import read_triplets, write_triplets
from rl.models.proposer import ActionProposer
from rl.triplets import Triplet
from trainers.studies.demo.fitting import PROPOSER
from trainers.studies.demo.story import Story

PROPOSED = "proposed"
"""Folder of the prompts, and the stage that makes them."""
AT_ONCE = 256
"""Frames that the proposer is asked about at once."""


def prompts_needed(story: Story) -> int:
    """As many as GRPO takes, each once."""
    return story.budget.grpo_steps * story.budget.grpo_prompts


def propose_prompts(story: Story) -> None:
    """One new action for each of as many frames as GRPO needs, at random; where there are fewer, more for each."""
    frames = frames_of([*story.labelled, *story.synthetic, *story.tried])
    order = np.random.default_rng((story.seed, 7)).permutation(len(frames))
    proposer, needed, found = ActionProposer(story.vlm, PROPOSER), prompts_needed(story), list[Triplet]()
    for start in range(0, len(order), AT_ONCE):
        here = [frames[n] for n in order[start : start + AT_ONCE]]
        said = proposer.propose([frame.picture for frame in here], seed=story.seed + start)
        most = max(1, -(-needed // len(frames)))
        found += [one for frame, group in zip(here, said, strict=True) for one in new_actions(frame, group, most)]
        if len(found) >= needed:
            break
    family = getattr(story.world, "family", lambda action: None)
    write_triplets([replace(one, task=family(one.action)) for one in found[:needed]], story.output / PROPOSED)


def proposed(story: Story) -> list[Triplet]:
    """What `propose_prompts` has written."""
    return list(read_triplets(story.output / PROPOSED / "triplets.json"))
