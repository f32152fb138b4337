"""The token cache: memory and start of SFT and GRPO over a large data set, and how near encoding comes to the encoder
alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image

from rewards import Reward
from rl.codes import Codes
from rl.data.importance import Importance
from rl.data.lazy import Lazy
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import BATCH, BLOCK, encode_missing, grids_of, pairs_of
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.pictures import PictureFile
from rl.triplets import Triplet
from trainers.bench.measure import Size, seconds
from trainers.bench.mid import ACTIONS, mid_base
from trainers.common.adapters import add_adapter
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.rows import SpanCollator, role_rows

BATCH_OF_SFT = 8
OnPictures = Callable[[ChameleonVLM, Sequence[Triplet], np.ndarray], None]


class Numbered(Lazy[Triplet]):
    """Triplets of a folder, each made when it is asked for, as a table of them is read."""

    def __init__(self, folder: Path, total: int, side: int) -> None:
        self.folder, self.total, self.side = folder, total, side

    def __len__(self) -> int:
        return self.total

    def make(self, number: int) -> Triplet:
        source, target = (PictureFile(self.file(2 * number + n), (self.side, self.side)) for n in (0, 1))
        return Triplet(source, ACTIONS[number % len(ACTIONS)], target)

    def file(self, number: int) -> Path:
        """Where a picture lies, a thousand in a folder."""
        return self.folder / str(number // 1000) / f"{number}.png"


def ours(size: Size) -> dict[str, Any]:
    """SFT of the forward role with token weights from a full cache, without the model: what its data take."""
    with _filled(size) as (vlm, triplets, tokens):
        before, begun = anonymous_bytes(), time.perf_counter()
        cache = TokenCache(tokens, vlm)
        rows = role_rows(vlm, "fdm", triplets, Importance(), cache=cache)
        start = time.perf_counter() - begun
        read = row_seconds(rows, vlm, size["read"])
        after = anonymous_bytes()
        found = {"seconds": start, "row_seconds": read, "bytes": after, "grown_bytes": after - before}
        on_disk = sum(file.stat().st_size for file in tokens.rglob("*.arrow"))
        return {**found, "bytes_a_triplet": on_disk / len(triplets)}


def grpo(size: Size) -> dict[str, Any]:
    """GRPO of the forward role over a full cache, without a step: its trainer, and the sources of some batches."""
    with _filled(size) as (vlm, triplets, tokens):
        add_adapter(vlm, LoraConfig(r=4, target_modules=list(LINEAR_LAYERS)))
        config = RewindGRPOConfig(
            output_dir=str(tokens.parent / "run"), max_steps=1, per_device_train_batch_size=8, report_to="none"
        )
        before, begun = anonymous_bytes(), time.perf_counter()
        vlm.cache = TokenCache(tokens, vlm)
        trainer = WorldModelGRPOTrainer(vlm, triplets, [Reward.of(_unasked, "nothing")], config)
        start, begun = time.perf_counter() - begun, time.perf_counter()
        role: Any = trainer.role
        for number, batch in enumerate(trainer.get_train_dataloader(), 1):
            for prompt in {row["prompt"] for row in batch}:
                assert len(role.source_ids[int(prompt)]) == size["image_tokens"]
            if number == size["read"]:
                break
        after = anonymous_bytes()
        read = (time.perf_counter() - begun) / number
        return {"seconds": start, "batch_seconds": read, "bytes": after, "grown_bytes": after - before}


def _unasked(predicted_ids: list[list[int]]) -> list[float | None]:
    raise AssertionError("nothing is drawn")


def epoch(size: Size) -> dict[str, Any]:
    """The data of an epoch of SFT when the cache holds all pictures: from the start to the last batch."""
    return _epoch(size, cached=True)


def epoch_of_pictures(size: Size) -> dict[str, Any]:
    """The same without a cache: pictures are decoded and encoded at the start."""
    return _epoch(size, cached=False)


def _epoch(size: Size, cached: bool) -> dict[str, Any]:
    def run(vlm: ChameleonVLM, triplets: Sequence[Triplet], _: np.ndarray) -> None:
        cache = TokenCache(folder, vlm) if cached else None
        vlm._seen = None  # as at a start
        row_seconds(role_rows(vlm, "fdm", triplets, Importance(), cache=cache), vlm, len(triplets))

    with tempfile.TemporaryDirectory() as there:
        folder = Path(there) / "tokens"

        def fill(vlm: ChameleonVLM, triplets: Sequence[Triplet], _: np.ndarray) -> None:
            encode_missing(vlm, TokenCache(folder, vlm), triplets, distances=True)

        return _on_pictures(size, {"seconds": run}, fill if cached else None)


def row_seconds(rows: Dataset, vlm: ChameleonVLM, count: int) -> float:
    """Seconds a row of reading some, shuffled, in batches."""
    collate, order = SpanCollator(vlm.layout.pad), np.random.default_rng(0).permutation(len(rows))
    begun, count = time.perf_counter(), min(count, len(rows))
    for number in range(0, count, BATCH_OF_SFT):
        collate([rows[int(n)] for n in order[number : number + BATCH_OF_SFT]])
    return (time.perf_counter() - begun) / count


def encoding(size: Size) -> dict[str, Any]:
    """Pictures from files to codes and distances in shards, in turns with the image encoder alone on their pixels."""

    def alone(vlm: ChameleonVLM, _: Sequence[Triplet], arrays: np.ndarray) -> None:
        for start in range(0, len(arrays), BATCH):
            vlm.encode_arrays(arrays[start : start + BATCH])

    return _on_pictures(size, {"seconds": lambda vlm, triplets, _: _encode(vlm, triplets), "encoder_seconds": alone})


def _on_pictures(size: Size, runs: dict[str, OnPictures], prepare: OnPictures | None = None) -> dict[str, list[float]]:
    """Seconds of each run with a base, triplets whose pictures lie in files, and their pixels, uint8 [2 N, H, W, 3]."""
    with tempfile.TemporaryDirectory() as folder:
        vlm, rng = mid_base(size), np.random.default_rng(0)
        side = int(vlm.image_size)
        triplets = Numbered(Path(folder), size["triplets"], side)
        arrays = rng.integers(0, 256, (2 * len(triplets), side, side, 3), dtype=np.uint8)
        for number, array in enumerate(arrays):
            triplets.file(number).parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(triplets.file(number), compress_level=1)
        if prepare is not None:
            prepare(vlm, triplets, arrays)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(size["repeats"]):
            for name, run in runs.items():
                found[name] += seconds(partial(run, vlm, triplets, arrays), 1, warm=int(turn == 0))
        return found


@contextmanager
def _filled(size: Size) -> Iterator[tuple[ChameleonVLM, Numbered, Path]]:
    """A base, many triplets, and the folder of a cache that holds them all."""
    with tempfile.TemporaryDirectory() as folder:
        filling = get_context("spawn").Process(target=_fill, args=(Path(folder), size))  # leaves nothing in memory here
        filling.start()
        filling.join()
        vlm = mid_base(size)
        yield vlm, Numbered(Path(folder), size["triplets"], int(vlm.image_size)), Path(folder) / "tokens"


def _encode(vlm: ChameleonVLM, triplets: Sequence[Triplet]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encode_missing(vlm, TokenCache(Path(folder) / "tokens", vlm), triplets, distances=True)


def _fill(folder: Path, size: Size) -> None:
    """A cache of codes that nobody has encoded, for files that are no pictures: who looks at one fails."""
    vlm = mid_base(size)
    triplets, cache = Numbered(folder, size["triplets"], int(vlm.image_size)), TokenCache(folder / "tokens", vlm)
    ids, rng = vlm.layout.image_ids_V.numpy(), np.random.default_rng(0)
    for number in range(2 * len(triplets)):
        triplets.file(number).parent.mkdir(exist_ok=True)
        triplets.file(number).write_text(str(number))
    for block in _blocks(triplets):
        pairs, grid = pairs_of(vlm, cache, block), grids_of(vlm, block[0])[0]
        keys = [key for pair in pairs for key in pair.keys]
        cache.append(keys, [Codes(rng.choice(ids, grid.codes), grid) for _ in keys])
        apart = [rng.random(grid.codes, dtype=np.float32) for _ in pairs]
        cache.append_distances([pair.key or b"" for pair in pairs], apart)


def _blocks(triplets: Numbered) -> Iterator[list[Triplet]]:
    for start in range(0, len(triplets), BLOCK):
        yield triplets[start : start + BLOCK]


def anonymous_bytes() -> int:
    """What this process holds that no file backs; pages of mapped files can be taken back at any time."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
