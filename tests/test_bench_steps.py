"""`grpo_step_speedup`: a step of ours and one of plain TRL do the same work."""

from __future__ import annotations

import numpy as np
import pytest

from rl.models.roles import InverseDynamics
from trainers.bench import grpo_step
from trainers.bench.arms import PARTS
from trainers.bench.figures import FIGURES
from trainers.bench.mid import mid_base
from trainers.bench.plain_grpo import InverseReward, rows, tokenizer_with_pictures

SIZE = PARTS["grpo_step"][2] | PARTS["grpo_step"][3] | {"image_tokens": 16}


def test_plain_trl_reads_the_same_prompts_and_scores_alike() -> None:
    vlm = mid_base(SIZE)
    sources, actions = grpo_step.prompts(vlm, SIZE)
    assert len(sources) == 4  # two prompts a step, two steps
    tokenizer = tokenizer_with_pictures(vlm)
    texts = rows(tokenizer, vlm, sources, actions)["prompt"]
    prompts = [vlm.fdm_prompt(ids, words) for ids, words in zip(sources, actions, strict=True)]
    assert tokenizer(list(texts))["input_ids"] == prompts
    pictures = list(vlm.decode(np.array(sources)))
    theirs = InverseReward(vlm, vlm)(sources[::-1], vlm.encode(pictures).tolist(), actions)
    ours = InverseDynamics(vlm).score(pictures, pictures[::-1], actions)
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_steps_of_both_are_timed() -> None:
    """`grpo_step_speedup`: plain TRL draws codes alone (decoding refuses anything else), and has a reference."""
    assert FIGURES["grpo_step_speedup"] == ("grpo_step", "seconds", "speedup")
    for arm in (grpo_step.ours, grpo_step.baseline):
        assert [seconds > 0 for seconds in arm(SIZE)["seconds"]] == [True]
