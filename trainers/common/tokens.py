"""Pictures into a token cache before training: each process encodes its part of what is missing, and then reads all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import encode_missing
from rl.data.tokens.growing import GrowingCache
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet
from trainers.common.sharding import on_main, tell

OWN = "tokens"
"""A run's own cache in its folder, where it was given none."""


def encoded(
    vlm: UnifiedVLM, folder: str | Path, *triplets: Sequence[Triplet], distances: bool = False, own: bool = False
) -> TokenCache:
    """A backbone's token cache with all pictures of triplets, which it reads from now on; every process must call it.

    Call it when the output folder is claimed. `distances`: of the features of source and target, too; `own`:
    it is the run's own, of which nobody need know.

    Raises:
        RewindError: a picture that cannot be read, a folder that holds something else or cannot be written.
    """
    state, cache = PartialState(), TokenCache(folder, vlm)
    shard = (state.process_index, state.num_processes)
    state.wait_for_everyone()  # else one looks into a folder that another has just begun
    counts = sum(encode_missing(vlm, cache, part, distances=distances, shard=shard).encoded for part in triplets)
    state.wait_for_everyone()
    cache.refresh()
    if counts and not own:
        tell("%d pictures encoded into %s%s", counts, cache.folder, " by each process" if shard[1] > 1 else "")
    vlm.cache = cache
    return cache


def use_cache(
    folder: str | Path | None, output: Path, backbones: Sequence[UnifiedVLM], *triplets: Sequence[Triplet]
) -> None:
    """Let backbones read the codes of triplets from a cache; every process must call it, when `output` is claimed.

    A cache that was given gets all that it lacks now. Without one, the run's own in `output` grows with the pictures
    that are looked at (`drop_own` removes it): a run by rewards may see a small part of its data. Each backbone has a
    part of the folder under its own tokenizer.

    Raises:
        RewindError: as for `encoded`.
    """
    each = {id(vlm): vlm for vlm in backbones}.values()
    if folder is not None:
        for vlm in each:
            encoded(vlm, folder, *triplets)
        return
    for vlm in each:
        vlm.cache = GrowingCache(output / OWN, vlm)
    PartialState().wait_for_everyone()  # as in `encoded`


def drop_own(output: Path, given: str | Path | None, *backbones: UnifiedVLM) -> None:
    """Remove a finished run's own cache, if it was `given` none; every process must call it."""
    if given is not None:
        return
    for vlm in backbones:
        vlm.cache = None
    PartialState().wait_for_everyone()  # nobody adds to it any more
    # Not only where the folder is there: the first process may have removed it before another one looks.
    on_main(lambda: shutil.rmtree(output / OWN, ignore_errors=True))
