"""Rollouts that wait to be measured, in a checkpoint: a safetensors file for each process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from rl.codes import Grid
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture, Views, pixels
from rl.triplets import Candidate, Scored, Triplet


def write_waiting(file: Path, rows: Sequence[Triplet], scored: Sequence[Scored]) -> None:
    """Write what `rollout_measures.measure` reads of rows and their candidates: no scores, no true targets."""
    sources = {id(row.source): row.source for row in rows}  # a group's rows share theirs
    place = {key: number for number, key in enumerate(sources)}
    tensors = {f"source-{place[key]}": _array(source) for key, source in sources.items()}
    tensors["source_of_row"] = np.array([place[id(row.source)] for row in rows])
    candidates = [s.candidate for s in scored]
    width = max(len(c.ids) for c in candidates)  # pictures that keep their own sizes have more or fewer
    tensors["ids"] = np.stack([np.pad(c.ids, (0, width - len(c.ids)), constant_values=-1) for c in candidates])
    tensors["logprobs"] = np.stack([np.pad(c.logprobs, (0, width - len(c.ids))) for c in candidates])
    tensors["grids"] = np.array([(g.rows, g.columns, g.views) for g in (c.codes.grid for c in candidates)])
    save_file(tensors, file, metadata={"actions": json.dumps([row.action for row in rows])})


def read_waiting(file: Path, backbone: UnifiedVLM) -> tuple[list[Triplet], list[Scored]]:
    """The rows and candidates of `backbone` that `write_waiting` wrote."""
    tensors = load_file(file)
    with safe_open(file, framework="numpy") as opened:
        actions = json.loads(opened.metadata()["actions"])
    numbers = tensors["source_of_row"].tolist()
    grids = [Grid(*numbers_of_one) for numbers_of_one in tensors["grids"].tolist()]
    sources = {n: _source(tensors[f"source-{n}"], backbone, grids[numbers.index(n)]) for n in set(numbers)}
    rows = [Triplet(sources[number], action) for number, action in zip(numbers, actions, strict=True)]
    drawn = zip(tensors["ids"], tensors["logprobs"], grids, strict=True)
    return rows, [Scored(Candidate(i[: g.codes], p[: g.codes], backbone, g), {}, None) for i, p, g in drawn]


def _array(source: Picture | Candidate) -> np.ndarray:
    """A picture as uint8 [H, W, 3]; a candidate, which is the source of a trajectory's later step, as its ids [K]."""
    if isinstance(source, Candidate):
        return source.ids
    return np.ascontiguousarray(pixels(source))


def _source(array: np.ndarray, backbone: UnifiedVLM, grid: Grid) -> Any:
    if array.ndim == 3:
        return array if grid.views == 1 else Views.of_stack(array, grid.views)
    return Candidate(array, np.zeros(len(array), np.float32), backbone, grid)
