"""Drafted passes against passes of one token, on rows that stand behind one source as in `rerank.py --refine`.

Weights here are random, so nothing that is guessed comes true of itself: most tokens are kept, as when a candidate is
drawn again in part, and those come true by rule.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch

from rl.models.distribution import TokenDistribution
from rl.models.drafting import Counts
from rl.models.families.chameleon import ChameleonVLM
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from trainers.bench.measure import Size, in_turns
from trainers.bench.mid import ACTIONS, random_pictures

FREE = 8
"""Of so many tokens one is drawn. That is chosen: what refinement frees depends on how far candidates differ."""


def measure_drafted(vlm: ChameleonVLM, size: Size) -> dict[str, Any]:
    """What a drafted pass takes against a step of one token, both with the draw; and a whole picture of which an eighth
    is drawn again, a token a pass against drafted.
    """
    source, kept = random_pictures(vlm, 2)
    prompt, whole = vlm.fdm_prompt(source, ACTIONS[0]), size["image_tokens"]
    lengths = [(tokens, drafted) for drafted in (False, True) for tokens in (whole // 8, whole)]
    jobs = [partial(_redraw, vlm, prompt, kept, size, *how) for how in lengths]
    passes = [job().passes for job in jobs]
    spent = [median(each) for each in in_turns(jobs, size["repeats"], warm=0)]
    # Of seven eighths of a picture, without the prompt and recording.
    step, drafted = ((spent[n + 1] - spent[n]) / (passes[n + 1] - passes[n]) for n in (0, 2))
    figures = {"drafted_pass_of_step": drafted / step, "redraw_speedup": spent[1] / spent[3]}
    return {**figures, "raw": {"step_seconds": step, "pass_seconds": drafted, "spent": spent, "passes": passes}}


def _redraw(vlm: ChameleonVLM, prompt: list[int], kept: list[int], size: Size, tokens: int, drafted: bool) -> Counts:
    """Draw the first tokens of candidates of which most are given."""
    kept_PT = torch.tensor(kept * (1 + tokens // len(kept)))[None, :tokens]
    kept_PT[:, ::FREE] = -1
    found = sample_tokens(
        vlm,
        [prompt],
        TokenDistribution(vlm.layout.image_ids_V),
        num_samples=size["candidates"],
        max_tokens=tokens,
        noise=Noise(0),
        kept_PT=kept_PT,
        draft_PT=kept_PT.clamp(min=0) if drafted else None,
    )
    return found.counts
