"""Best-of-N training and DPO on a store of candidates: what is held in memory of them, beside the model."""

from __future__ import annotations

import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rewards import Reward
from rl.data.candidates.store import ROWS, CandidateStore, Group
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import encode_missing
from rl.models.families.chameleon import ChameleonVLM
from rl.triplets import Candidate, Scored, Triplet
from trainers.bench.measure import Size
from trainers.bench.mid import ACTIONS, mid_base
from trainers.bench.tokens import anonymous_bytes
from trainers.best_of_n.keep import KEPT_FILE, Keep, kept_rows
from trainers.common.candidates import stored_groups
from trainers.common.rows_on_disk import in_passing
from trainers.dpo.trainer import ROWS_FILE, Pairing, preference_rows

NAME = "bright"


def ours(size: Size) -> dict[str, Any]:
    """Of best-of-N training."""
    keep = Keep(size["candidates"])
    return _learned_from(size, lambda vlm, groups, folder: kept_rows(vlm, keep.of(vlm, groups), folder / KEPT_FILE))


def dpo(size: Size) -> dict[str, Any]:
    """Of preference training."""
    pairing = Pairing(size["candidates"])
    return _learned_from(size, lambda vlm, groups, at: preference_rows(vlm, pairing.pairs(groups), at / ROWS_FILE))


def _learned_from(size: Size, rows_of: Callable[[ChameleonVLM, Any, Path], Any]) -> dict[str, Any]:
    """Seconds of choosing in every group of a store whose scores are known, and bytes.

    What each further million of candidates takes is told by a store and one of a quarter of its draws, which goes
    first: what any store takes is there by then.
    """
    with tempfile.TemporaryDirectory() as folder:
        vlm, found = mid_base(size), list[tuple[int, int]]()
        for part, steps in (("quarter", max(1, size["steps"] // 4)), ("whole", size["steps"])):
            _fill(CandidateStore(Path(folder) / part), vlm, size, steps)
        for part in ("quarter", "whole"):
            store, begun = CandidateStore(Path(folder) / part), time.perf_counter()
            vlm.cache = cache = TokenCache(Path(folder) / "tokens", vlm)  # as the script has one for stored candidates
            encode_missing(vlm, cache, store.triplets())
            rewards, totals, most = [Reward.of(_unknown, NAME)], array("d"), [0]
            groups = in_passing(_watched(stored_groups([str(store.folder)], vlm, rewards, None), most), totals)
            rows = rows_of(vlm, groups, store.folder)
            assert len(rows) <= len(totals)
            found.append((len(totals), max(most[0], anonymous_bytes())))
            seconds = time.perf_counter() - begun
        on_disk = sum(file.stat().st_size for file in store.folder.glob("part-*"))
    (few, little), (many, much) = found
    a_million = max(0, much - little) / (many - few) * 1e6
    return {"seconds": seconds, "bytes_a_million": a_million, "disk_bytes_a_million": on_disk / many * 1e6}


def _watched(groups: Iterable[Group], most: list[int]) -> Iterator[Group]:
    """Groups as they are, while the most that was held at once is noted."""
    for number, group in enumerate(groups):
        if number % 32 == 0:
            most[0] = max(most[0], anonymous_bytes())
        yield group


def _unknown(predicted_ids: list[list[int]]) -> list[float | None]:
    raise AssertionError("the store has all scores")


def _fill(store: CandidateStore, vlm: ChameleonVLM, size: Size, steps: int) -> None:
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

    for step in range(steps):
        for start in range(0, len(triplets), at_once := max(1, ROWS // size["candidates"])):
            store.append([(triplet, group()) for triplet in triplets[start : start + at_once]], seed=0, step=step)
