"""What a rollout looks like, beside its reward: copies, light, sharpness, codes, another inverse model's word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rl.pictures import Picture, to_array
from rl.triplets import Candidate, Scored, Triplet

PICTURES = 64
"""At most so many candidates of a rollout are looked at as pictures and judged: enough for means, at little cost."""


@torch.no_grad()
def measure(
    rows: Sequence[Triplet], scored: Sequence[Scored], group: int, judge: Any | None = None
) -> dict[str, float]:
    """What a rollout looks like; rows and candidates side by side, a group's one after the other.

    A row's source may be a `Candidate` of the same backbone, which stands for its own ids.

    Returns:
        `copy_rate`, share that equals its source token by token; `duplicates`, share that an earlier candidate of the
        group equals; `entropy`, mean of minus the log-probability of the drawn tokens (nats a token, an estimate of the
        policy's entropy); `code_usage`, perplexity of the codes drawn, of that of the sources' codes; and on `PICTURES`
        evenly chosen candidates `brightness` and `colour` (saturation), mean of prediction minus source, -1..1;
        `sharpness`, mean step between neighbouring pixels, of the sources'; `survival`, share of ids that come back
        when the picture is decoded and encoded again; with a judge `judge_idm`, mean log-probability a token of the
        action, read from the decoded picture.
    """
    candidates = [s.candidate for s in scored]
    vlm = candidates[0].backbone
    ids_BK = np.stack([c.ids for c in candidates])
    source_BK = _source_ids(vlm, [row.source for row in rows])
    starts = range(0, len(rows), group)
    distinct = [len({c.ids.tobytes() for c in candidates[start : start + group]}) for start in starts]
    shown = np.unique(np.linspace(0, len(rows) - 1, min(PICTURES, len(rows))).astype(int))
    images = vlm.decode(ids_BK[shown])
    before = np.stack([to_array(_picture(rows[n].source), vlm.image_size) for n in shown])
    again_BK = vlm.quantise(vlm.features_pixels(torch.from_numpy(images).to(vlm.device))).cpu().numpy()
    found = {
        "copy_rate": float((ids_BK == source_BK).all(1).mean()),
        "duplicates": 1 - sum(distinct) / len(rows),
        "entropy": -float(np.mean([c.logprobs.mean() for c in candidates])),
        "code_usage": _perplexity(ids_BK) / _perplexity(source_BK),
        "brightness": (float(images.mean()) - float(before.mean())) / 255,
        "sharpness": _steps(images) / max(_steps(before), 1e-6),
        "colour": _saturation(images) - _saturation(before),
        "survival": float((again_BK == ids_BK[shown]).mean()),
    }
    if judge is not None:
        pictures, sources = list(images), [rows[n].source for n in shown]
        found["judge_idm"] = float(np.mean(judge.score(sources, pictures, [rows[n].action for n in shown])))
    return found


def _source_ids(vlm: Any, sources: Sequence[Picture | Candidate]) -> np.ndarray:
    """Image-token ids int64 [B, K]."""
    pictures = [source for source in sources if not isinstance(source, Candidate)]
    encoded = iter(vlm.encode(pictures).cpu().numpy() if pictures else ())
    return np.stack([source.ids if isinstance(source, Candidate) else next(encoded) for source in sources])


def _picture(source: Picture | Candidate) -> Picture:
    return source.image if isinstance(source, Candidate) else source


def _perplexity(ids_BK: np.ndarray) -> float:
    _, counts = np.unique(ids_BK, return_counts=True)
    shares = counts / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _steps(images_BHWC: np.ndarray) -> float:
    pixels = images_BHWC.astype(np.float32)
    return float(np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=2)).mean())


def _saturation(images_BHWC: np.ndarray) -> float:
    return float((images_BHWC.max(-1).astype(float) - images_BHWC.min(-1)).mean() / 255)
