"""What `scripts/rerank.py` does for many triplets: blocks of them at a time, one JSON line a candidate, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm.auto import tqdm

from rl.codes import Grid
from rl.errors import RewindError
from rl.models.partial_attention import chunks
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.report.grids import sheet
from rl.search.best_of_n import Reranked
from rl.triplets import Triplet

CANDIDATES_FILE = "candidates.jsonl"
SHOWN_TRIPLETS, SHOWN_CANDIDATES, GRID_COLUMNS = 12, 6, 8


def take_own_gpu() -> None:
    """Under `accelerate launch`, every process of a machine uses a GPU of its own."""
    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def rerank_all(
    output: Path,
    triplets: Sequence[Triplet],
    numbers: Sequence[int],
    rerank: Callable[[Sequence[Triplet]], Sequence[Reranked]],
    block: int,
) -> None:
    """Append the candidates of every triplet that is not in `output/candidates.jsonl` yet, and save their pictures.

    A block is always drawn and scored as a whole, also if an interruption left a part of it to do: how many rows are
    computed together shows in the last digits, and a resumed run ends with the very same file.

    Args:
        output: a claimed folder.
        triplets: all of them; `numbers`: which ones are to be done.
        rerank: a `Reranked` for each of some triplets.
        block: triplets drawn and scored together.
    """
    done = set(complete_triplets(output / CANDIDATES_FILE))
    with (output / CANDIDATES_FILE).open("a", encoding="utf-8") as file, tqdm(total=len(numbers), desc="rerank") as bar:
        for part in chunks(len(numbers), block):
            here = numbers[part]
            if not done.issuperset(here):
                for number, found in zip(here, rerank([triplets[n] for n in here]), strict=True):
                    if number not in done:
                        _keep(output, file, number, triplets[number], found)
            bar.update(len(here))


def _keep(output: Path, file: TextIO, number: int, triplet: Triplet, found: Reranked) -> None:
    """The pictures of a triplet and then its lines, so that what has lines has pictures."""
    best = f"{number:04d}-best.png"
    found.best.image.save(output / best)
    cells = [(scored.image, caption(scored.total, scored.scores)) for scored in found.candidates]
    grid = [cells[part] for part in chunks(len(cells), GRID_COLUMNS)]
    sheet([_given(triplet), *grid]).save(output / f"{number:04d}-grid.png")
    lines = []
    for rank, scored in enumerate(found.candidates):
        row: dict[str, Any] = {"triplet": number, "action": triplet.action, "rank": rank, "total": scored.total}
        row |= {"scores": scored.scores, "logprob": scored.candidate.logprob, "ids": scored.candidate.ids.tolist()}
        lies = scored.candidate.codes.grid
        if lies != scored.candidate.backbone.layout.grammar.grid:
            row["grid"] = lies.numbers
        row |= {"image": best if rank == 0 else None}
        if rank == 0:
            row |= {"candidates": len(found.candidates), "lead": found.lead, "abstained": found.abstained}
            row |= {"sampled_tokens": found.sampled_tokens, "saved": found.saved}
        lines.append(json.dumps(row) + "\n")
    file.write("".join(lines))
    file.flush()


def _given(triplet: Triplet) -> list[tuple[Picture, str]]:
    """The source, and the true target where it is known."""
    truth = [] if triplet.target is None else [(triplet.target, "true target")]
    return [(triplet.source, triplet.action), *truth]


def caption(total: float | None, scores: dict[str, float | None]) -> str:
    """A total, and behind it the scores that it is made of if there are several."""
    text = "no score" if total is None else f"{total:.3f}"
    each = ", ".join("none" if value is None else f"{value:.2f}" for value in scores.values())
    return f"{text} ({each})" if len(scores) > 1 else text


def complete_triplets(path: Path) -> list[int]:
    """Numbers of the triplets with all their lines; what an interruption left behind the last of them is cut off.

    Raises:
        RewindError: a line that is not the last cannot be read.
    """
    if not path.is_file():
        return []
    done, whole, position, left, unread = [], 0, 0, 0, 0
    with path.open("rb") as lines:  # one at a time: at 1,024 tokens a picture the file may be many gigabytes
        for number, line in enumerate(lines, 1):
            if unread:
                raise RewindError(f"{path}, line {unread} cannot be read: repair it, or begin with --overwrite")
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                unread = number
                continue
            position += len(line)
            left = row["candidates"] - 1 if row["rank"] == 0 else left - 1
            if left == 0:
                done.append(row["triplet"])
                whole = position
    if whole < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(whole)
    return done


def summary(output: Path, triplets: Sequence[Triplet], backbone: UnifiedVLM) -> str:
    """Write `sheet.png` of the first triplets and say in a sentence what the whole file holds."""
    cells: dict[int, list[Any]] = {}
    sources = drawn = saved = abstained = 0
    with (output / CANDIDATES_FILE).open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            number = row["triplet"]
            drawn += 1
            if row["rank"] == 0:
                sources, saved, abstained = sources + 1, saved + row["saved"], abstained + row["abstained"]
            if (number in cells or len(cells) < SHOWN_TRIPLETS) and row["rank"] < SHOWN_CANDIDATES:
                grid = Grid(*row["grid"]) if "grid" in row else None
                picture = backbone.decode(np.array([row["ids"]]), grid=grid)[0]
                cells.setdefault(number, []).append((picture, caption(row["total"], row["scores"])))
    rows = []
    for number, shown in cells.items():
        rows.append([*_given(triplets[number]), *shown])
    sheet(rows).save(output / "sheet.png")
    text = f"{drawn} candidates for {sources} sources"
    text += f", {saved} saved by stopping early" if saved else ""
    text += f", abstained on {abstained}" if abstained else ""
    return f"{text}; look at {output / 'sheet.png'}"
