"""Best-of-N training on a store of candidates: what is held in memory while it chooses, beside the model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from rewards import Reward
from rl.data.candidates.store import ROWS, CandidateStore
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import encode_missing
from rl.models.families.chameleon import ChameleonVLM
from rl.triplets import Candidate, Scored, Triplet
from trainers.bench.measure import Size
from trainers.bench.mid import ACTIONS, mid_base
from trainers.bench.tokens import anonymous_bytes
from trainers.best_of_n.keep import Keep, keep_best, kept_rows
from trainers.common.candidates import stored_groups

NAME = "bright"


def ours(size: Size) -> dict[str, Any]:
    """Seconds and bytes of choosing the best of every group in a store whose scores are known."""
    with tempfile.TemporaryDirectory() as folder:
        vlm = mid_base(size)
        store = CandidateStore(folder)
        _fill(store, vlm, size)
        vlm.cache = cache = TokenCache(Path(folder) / "tokens", vlm)  # as the script has one for stored candidates
        encode_missing(vlm, cache, store.triplets())
        rewards = [Reward.of(_unknown, NAME)]
        list(zip(stored_groups([folder], vlm, rewards, None), range(1), strict=False))  # what only the first call takes
        before, begun = anonymous_bytes(), time.perf_counter()
        kept, totals = keep_best(vlm, stored_groups([folder], vlm, rewards, None), Keep(size["candidates"]))
        rows = kept_rows(vlm, kept, cache)
        grown = anonymous_bytes() - before
        assert len(rows) <= len(totals)
        seconds, on_disk = time.perf_counter() - begun, sum(file.stat().st_size for file in Path(folder).glob("part-*"))
        millions = len(totals) / 1e6
        return {"seconds": seconds, "bytes_a_million": grown / millions, "disk_bytes_a_million": on_disk / millions}


def _unknown(predicted_ids: list[list[int]]) -> list[float | None]:
    raise AssertionError("the store has all scores")


def _fill(store: CandidateStore, vlm: ChameleonVLM, size: Size) -> None:
    """Draws of a few pictures at many steps, a part at a time."""
    rng, ids = np.random.default_rng(0), vlm.layout.image_ids_V.numpy()
    pictures = rng.integers(0, 256, (size["prompts"], 16, 16, 3), dtype=np.uint8)
    triplets = [Triplet(picture, ACTIONS[0]) for picture in pictures]
    tokens = vlm.layout.tokens_per_image

    def group() -> list[Scored]:
        made = [
            Candidate(rng.choice(ids, tokens), np.zeros(tokens, np.float32), vlm) for _ in range(size["candidates"])
        ]
        return [Scored(one, {NAME: float(number)}, float(number)) for number, one in enumerate(made)]

    for step in range(size["steps"]):
        for start in range(0, len(triplets), at_once := max(1, ROWS // size["candidates"])):
            store.append([(triplet, group()) for triplet in triplets[start : start + at_once]], seed=0, step=step)
