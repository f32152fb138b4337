"""What a rollout looks like, beside its reward: copies, light, sharpness, codes, another inverse model's word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rl.codes import by_grid
from rl.pictures import Picture
from rl.triplets import Candidate, Scored, Triplet

NEAR = 0.02
"""Share of its tokens in which a near-copy may differ: none of 16, five of 256."""
PICTURES = 64
"""At most so many candidates of a rollout are looked at as pictures and judged: enough for means, at little cost."""


@torch.no_grad()
def measure(
    rows: Sequence[Triplet], scored: Sequence[Scored], group: int, judge: Any | None = None
) -> dict[str, float]:
    """What a rollout looks like; rows and candidates side by side, a group's one after the other.

    A row's source may be a `Candidate` of the same backbone, which stands for its own ids.

    Returns:
        `copy_rate`, share that copies its source, but for `NEAR` of its tokens; `duplicates`, share that copies an
        earlier candidate of the group; `entropy`, mean of minus the log-probability of the drawn tokens (nats a token,
        an estimate of the policy's entropy); `code_usage`, perplexity of the codes drawn, of that of the sources'
        codes; and on `PICTURES`
        evenly chosen candidates `brightness` and `colour` (saturation), mean of prediction minus source, -1..1;
        `sharpness`, mean step between neighbouring pixels, of the sources'; `survival`, share of ids that come back
        when the picture is decoded and encoded again; with a judge `judge_idm`, mean log-probability a token of the
        action, read from the decoded picture.
    """
    candidates = [s.candidate for s in scored]
    vlm, ids = candidates[0].backbone, [c.ids for c in candidates]
    source_ids = _source_ids(vlm, [row.source for row in rows])
    starts = range(0, len(rows), group)
    distinct = [_distinct(candidates[start : start + group]) for start in starts]
    shown = np.unique(np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int))
    images, look = _look(vlm, [rows[n] for n in shown], [candidates[n] for n in shown])
    found = {
        "copy_rate": float(np.mean([near_copy(vlm, a, b) for a, b in zip(ids, source_ids, strict=True)])),
        "duplicates": 1 - sum(distinct) / len(rows),
        "entropy": -float(np.mean([c.logprobs.mean() for c in candidates])),
        "code_usage": _perplexity(np.concatenate(ids)) / _perplexity(np.concatenate(source_ids)),
        **look,
    }
    if judge is not None:
        sources, actions = [rows[n].source for n in shown], [rows[n].action for n in shown]
        found["judge_idm"] = float(np.mean(judge.score(sources, images, actions)))
    return found


def near_copy(vlm: Any, ids_K: np.ndarray, other_K: np.ndarray) -> bool:
    """Whether two pictures, ids int [K] of one grid, are copies but for a few tokens, of which some are always wrongly
    told. Tokens differ where the model's calibrated distance says so (`PictureTokens.changed`).
    """
    return int(vlm.changed(ids_K, other_K).sum()) <= NEAR * len(ids_K)


def _distinct(group: Sequence[Candidate]) -> int:
    """How many candidates of a group are no near-copies of an earlier one."""
    different: list[np.ndarray] = []
    for ids in {c.ids.tobytes(): c.ids for c in group}.values():
        if not any(near_copy(group[0].backbone, ids, other) for other in different):
            different.append(ids)
    return len(different)


def _look(
    vlm: Any, rows: Sequence[Triplet], candidates: Sequence[Candidate]
) -> tuple[list[np.ndarray], dict[str, float]]:
    """Candidates as pictures uint8 [H, W, 3], and what their pixels say beside their sources'."""
    images: dict[int, np.ndarray] = {}
    sums = dict.fromkeys(("brightness", "sharp", "sharp_before", "colour", "survival"), 0.0)
    for grid, numbers in by_grid(candidate.codes for candidate in candidates).items():
        ids_BK, share = np.stack([candidates[n].ids for n in numbers]), len(numbers) / len(candidates)
        drawn = vlm.decode(ids_BK, grid=grid)
        before = np.stack([vlm.to_array(_picture(rows[n].source), grid) for n in numbers])
        each = torch.from_numpy(drawn).unflatten(1, (grid.views, -1)).flatten(0, 1)
        again = vlm.quantise(vlm.features_pixels(each.to(vlm.device))).cpu()
        again_BK = again.unflatten(0, (-1, grid.views)).flatten(1, 2).numpy()
        sums["brightness"] += share * (float(drawn.mean()) - float(before.mean())) / 255
        sums["sharp"] += share * _steps(drawn)
        sums["sharp_before"] += share * _steps(before)
        sums["colour"] += share * (_saturation(drawn) - _saturation(before))
        sums["survival"] += share * float((again_BK == ids_BK).mean())
        images |= dict(zip(numbers, drawn, strict=True))
    sharpness = sums.pop("sharp") / max(sums.pop("sharp_before"), 1e-6)
    return [images[n] for n in range(len(candidates))], {**sums, "sharpness": sharpness}


def _source_ids(vlm: Any, sources: Sequence[Picture | Candidate]) -> list[np.ndarray]:
    """Image-token ids int64 [K] each."""
    pictures = [source for source in sources if not isinstance(source, Candidate)]
    encoded = iter(vlm.codes(pictures) if pictures else ())
    return [source.ids if isinstance(source, Candidate) else np.array(next(encoded)) for source in sources]


def _picture(source: Picture | Candidate) -> Picture:
    return source.picture if isinstance(source, Candidate) else source


def _perplexity(ids_N: np.ndarray) -> float:
    _, counts = np.unique(ids_N, return_counts=True)
    shares = counts / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _steps(images_BHWC: np.ndarray) -> float:
    pixels = images_BHWC.astype(np.float32)
    return float(np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=2)).mean())


def _saturation(images_BHWC: np.ndarray) -> float:
    return float((images_BHWC.max(-1).astype(float) - images_BHWC.min(-1)).mean() / 255)
