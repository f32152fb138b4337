"""SFT's data on lists in AURORA's form: what reading them and a full token cache take in memory."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rl.codes import Codes
from rl.data.importance import Importance
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import BLOCK, grids_of, pairs_of
from rl.data.triplet_files import read_triplets
from rl.data.triplet_table import Triplets
from rl.errors import RewindError
from trainers.bench.measure import Size
from trainers.bench.mid import mid_base
from trainers.bench.tokens import anonymous_bytes, row_seconds
from trainers.sft.rows import role_rows

COPIES = 5
WORDS = ("the", "woman", "has", "placed", "a", "shoe", "on", "her", "right", "foot", "and", "door", "book", "table")


def ours(size: Size) -> dict[str, Any]:
    """SFT of the forward role with token weights, without the model: a mixture of lists is read, then a full cache."""
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        filling = get_context("spawn").Process(target=_fill, args=(folder, size))  # leaves nothing in memory here
        filling.start()
        filling.join()
        if filling.exitcode:
            raise RewindError(f"the lists and their cache could not be made (exit status {filling.exitcode})")
        vlm = mid_base(size)
        before, begun = anonymous_bytes(), time.perf_counter()
        triplets = _read(folder)
        read, read_bytes = time.perf_counter() - begun, anonymous_bytes()
        begun = time.perf_counter()
        rows = role_rows(vlm, "fdm", triplets, Importance(), cache=TokenCache(folder / "tokens", vlm))
        start = time.perf_counter() - begun
        row_seconds(rows, vlm, size["read"])
        found = {"rows": len(triplets), "read_seconds": read, "seconds": start, "bytes": anonymous_bytes()}
        return {**found, "read_bytes": read_bytes - before, "grown_bytes": found["bytes"] - before}


def _read(folder: Path) -> Triplets:
    return read_triplets(folder / "mixture.yaml", with_targets=True, check_pictures="ends")


def _fill(folder: Path, size: Size) -> None:
    """Copies of two lists with tiny pictures, a mixture of all, and a cache of codes that nobody has encoded."""
    each, rng = size["triplets"] // (2 * COPIES), np.random.default_rng(0)
    lists = [
        folder / f"copy-{n}" / "data" / name / "train.json" for n in range(COPIES) for name in ("ag", "magicbrush")
    ]
    for file in lists:
        (file.parent / "images").mkdir(parents=True)
        make = _charades if file.parent.name == "ag" else _turns
        file.write_text(json.dumps([_with_pictures(file, entry, rng) for entry in make(each, rng)], indent=2))
    named = [f"  - {{triplets: {file.relative_to(folder)}, name: set-{n}}}" for n, file in enumerate(lists)]
    (folder / "mixture.yaml").write_text("\n".join(["mixture:", *named]))
    vlm, triplets = mid_base(size), _read(folder)
    cache, ids = TokenCache(folder / "tokens", vlm), vlm.layout.image_ids_V.numpy()
    for start in range(0, len(triplets), BLOCK):
        block = [*triplets[start : start + BLOCK]]
        pairs, grid = pairs_of(vlm, cache, block), grids_of(vlm, block[0])[0]
        keys = [key for pair in pairs for key in pair.keys]
        cache.append(keys, [Codes(rng.choice(ids, grid.codes), grid) for _ in keys])
        cache.append_distances([one.key or b"" for one in pairs], [rng.random(grid.codes, np.float32) for _ in pairs])


def _charades(count: int, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    """As `data/ag/train.json` has them: frames beside a cut of a clip."""
    for _ in range(count):
        clip, cut = "".join(rng.choice([*"ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"], 5)), int(rng.integers(1000))
        names = (f"data/ag/images/{clip}.mp4_{cut}_{side}.png" for side in ("left", "right"))
        yield {"instruction": _sentence(rng), "input": next(names), "output": next(names)}


def _turns(count: int, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    """As `data/magicbrush/train.json` has them: turns of an edit."""
    for n in range(count):
        names = {"input": f"data/magicbrush/images/{n}-input.png", "mask": f"{n}-mask.png"}
        words = {"instruction": _sentence(rng), "img_id": str(rng.integers(10**6))}
        yield {**names, "output": f"data/magicbrush/images/{n}-output.png", **words}


def _sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(4, 16)))


def _with_pictures(file: Path, entry: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    for key in ("input", "output"):
        content = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(content, "PNG")
        (file.parents[2] / entry[key]).write_bytes(content.getvalue())
    return entry
