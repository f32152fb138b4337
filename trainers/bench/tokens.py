"""The token cache: memory and start of SFT over a large data set, and how near encoding comes to the encoder alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rl.codes import Codes
from rl.data.importance import Importance
from rl.data.lazy import Lazy
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import BATCH, BLOCK, encode_missing, grids_of, pairs_of
from rl.models.families.chameleon import ChameleonVLM
from rl.pictures import PictureFile
from rl.triplets import Triplet
from trainers.bench.measure import Size, seconds
from trainers.bench.mid import ACTIONS, mid_base
from trainers.sft.rows import SpanCollator, role_rows

BATCH_OF_SFT = 8


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
    with tempfile.TemporaryDirectory() as folder:
        filling = get_context("spawn").Process(target=_fill, args=(Path(folder), size))  # leaves nothing in memory here
        filling.start()
        filling.join()
        vlm, tokens = mid_base(size), Path(folder) / "tokens"
        triplets = Numbered(Path(folder), size["triplets"], int(vlm.image_size))
        on_disk = sum(file.stat().st_size for file in tokens.rglob("*.arrow"))
        before, begun = anonymous_bytes(), time.perf_counter()
        cache = TokenCache(tokens, vlm)
        rows = role_rows(vlm, "fdm", triplets, Importance(), cache=cache)
        start = time.perf_counter() - begun
        collate, order = SpanCollator(vlm.layout.pad), np.random.default_rng(0).permutation(len(rows))
        begun = time.perf_counter()
        for number in range(0, min(size["read"], len(rows)), BATCH_OF_SFT):
            collate([rows[int(n)] for n in order[number : number + BATCH_OF_SFT]])
        after = anonymous_bytes()
        read = (time.perf_counter() - begun) / min(size["read"], len(rows))
        found = {"seconds": start, "row_seconds": read, "bytes": after, "grown_bytes": after - before}
        return {**found, "bytes_a_triplet": on_disk / len(triplets)}


def encoding(size: Size) -> dict[str, Any]:
    """Pictures from files to codes and distances in shards, a picture."""
    return _on_pictures(size, lambda vlm, triplets, _: _encode(vlm, triplets))


def encoder(size: Size) -> dict[str, Any]:
    """The image encoder alone, on pixels in memory."""

    def run(vlm: ChameleonVLM, triplets: Sequence[Triplet], arrays: np.ndarray) -> None:
        for start in range(0, len(arrays), BATCH):
            vlm.encode_arrays(arrays[start : start + BATCH])

    return _on_pictures(size, run)


def _on_pictures(size: Size, run: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        vlm, rng = mid_base(size), np.random.default_rng(0)
        side = int(vlm.image_size)
        triplets = Numbered(Path(folder), size["triplets"], side)
        arrays = rng.integers(0, 256, (2 * len(triplets), side, side, 3), dtype=np.uint8)
        for number, array in enumerate(arrays):
            triplets.file(number).parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(triplets.file(number), compress_level=1)
        return {"seconds": seconds(lambda: run(vlm, triplets, arrays), size["repeats"])}


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
