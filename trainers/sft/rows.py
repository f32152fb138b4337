"""Triplets as rows of tokens: a prompt, the span that a role predicts, and a weight a token.

A row is put together when it is read, in arrays, from the codes of its pictures wherever they lie: in memory, or in a
token cache of any size. What a data set holds of a triplet are three numbers and the tokens of its action.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, interleave_datasets
from torch import Tensor

from rl.actions import vector_of
from rl.codes import Grid
from rl.data.importance import Importance, TokenWeights, feature_distances
from rl.data.tokens.cache import TokenCache
from rl.errors import RewindError
from rl.models.grammar import PictureGrammar
from rl.models.inputs import token_ids
from rl.models.roles import Role
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.spilled import Spilled
from rl.triplets import Candidate, Triplet
from trainers.common.log_probs import IGNORED
from trainers.sft.codes import CachedCodes, CachedDistances, CodesInMemory, CodesOnDisk, places_of

Piece = np.ndarray | str
Pictures = CachedCodes | CodesInMemory | CodesOnDisk


@dataclass(frozen=True)
class Rows:
    """What makes the rows of a data set when they are read (`Dataset.with_transform`).

    Args:
        role: who predicts.
        sources, targets: the pictures' codes.
        actions: the tokens of each action as it stands in a prompt (FDM) or as it is predicted (IDM), one behind the
            other, and where each begins.
        vectors: which actions are vectors, bool [N].
        prompts: by grid, and whether the action is a vector: the pieces of a prompt.
        grammars: of each grid that occurs.
        weights: a number a row, or what makes weights of the distances of each pair; None for no column.
    """

    role: Role
    sources: Pictures
    targets: Pictures
    actions: tuple[np.ndarray, np.ndarray]
    vectors: np.ndarray
    prompts: dict[tuple[Grid, bool], list[Piece]]
    grammars: dict[Grid, PictureGrammar]
    weights: np.ndarray | tuple[TokenWeights, Sequence[Tensor]] | None = None

    def __call__(self, batch: dict[str, list[int]]) -> dict[str, list[np.ndarray]]:
        made = [self.row(number) for number in next(iter(batch.values()))]
        return {name: [row[name] for row in made] for name in batch}

    @property
    def columns(self) -> list[str]:
        """The names of what a row has."""
        return ["input_ids", "labels", *(() if self.weights is None else ("weights",))]

    def row(self, number: int) -> dict[str, np.ndarray]:
        """`input_ids` and `labels` int64 [T], `weights` float32 [T]."""
        (source_K, grid), (target_K, its_grid) = self.sources[number], self.targets[number]
        flat, begins = self.actions
        action = flat[begins[number] : begins[number + 1]].astype(np.int64)
        grammar, its = self.grammars[grid], self.grammars[its_grid]
        whole = {"{source}": lambda: grammar.picture_array(source_K), "{target}": lambda: its.picture_array(target_K)}
        whole["{action}"] = lambda: action
        pieces = self.prompts[grid, bool(self.vectors[number])]
        prompt = np.concatenate([whole[piece]() if isinstance(piece, str) else piece for piece in pieces])
        fdm = self.role == "fdm"
        span, learned = (its.target_array(target_K), its.spread_array(target_K, IGNORED)) if fdm else (action, action)
        found = {"input_ids": np.concatenate([prompt, span]), "labels": _behind(prompt, learned, IGNORED)}
        if self.weights is not None:
            given = self._weights(number, len(target_K) if fdm else len(span))
            found["weights"] = _behind(prompt, its.spread_array(given, 0.0) if fdm else given, 0.0)
        return found

    def _weights(self, number: int, count: int) -> np.ndarray:
        if isinstance(self.weights, np.ndarray):
            return np.full(count, self.weights[number], np.float32)
        assert self.weights is not None
        fitted, distances = self.weights
        return fitted.of(distances[number]).numpy()  # type: ignore[no-any-return]


def role_rows(
    vlm: UnifiedVLM,
    role: Role,
    triplets: Sequence[Triplet],
    importance: Importance | None = None,
    candidates: Sequence[Candidate] | None = None,
    row_weights: Sequence[float] | np.ndarray | None = None,
    cache: TokenCache | None = None,
) -> Dataset:
    """Triplets as rows of `input_ids`, `labels` (-100 in the prompt) and, where asked for, `weights` (0 there).

    `candidates`, one a triplet, are learned in place of the targets, by their own tokens. `weights` come from
    `importance`, token by token, or from `row_weights`, a number a triplet. With `cache`, which holds all the pictures
    (`encode_missing`), their codes stay there.

    Raises:
        RewindError: no triplet, one without a target, importance weights for the words of an IDM.
    """
    if not triplets:
        raise RewindError("there is no triplet to train on")
    missing = next((number for number, triplet in enumerate(triplets) if triplet.target is None), None)
    if missing is not None and candidates is None:
        raise RewindError(f"triplet {missing} has no target picture, which training needs: leave it out")
    if role == "idm" and importance is not None:
        raise RewindError("token-importance weights belong to image tokens; an IDM predicts words")
    if row_weights is not None and importance is not None:
        raise RewindError("give either importance weights or a weight a row")
    sources, targets, distances = _pictures(vlm, triplets, candidates, importance is not None, cache)
    weights: Any = None if row_weights is None else np.array(row_weights, np.float32)
    if importance is not None:
        weights = importance.fitted(distances), distances
    return rows_of_codes(vlm, role, sources, targets, (triplet.action for triplet in triplets), weights)


def rows_of_codes(
    vlm: UnifiedVLM, role: Role, sources: Pictures, targets: Pictures, actions: Iterable[str], weights: Any = None
) -> Dataset:
    """The same from codes wherever they lie, and actions, one each; `weights` as `Rows` has them."""
    grids = sources.grids() | targets.grids()
    of = vlm.action_segment if role == "fdm" else vlm.action_ids
    is_vector = array("b")

    def noted() -> Iterator[Sequence[int]]:
        for action in actions:
            is_vector.append(vector_of(action) is not None)
            yield of(action)

    tokens, vectors = _joined(noted()), np.array(is_vector, bool)
    rows = Rows(
        role,
        sources,
        targets,
        tokens,
        vectors,
        {(grid, vector): _prompt(vlm, role, grid, vector) for grid in grids for vector in {*vectors.tolist()}},
        {grid: replace(vlm.layout.grammar.of(grid), header_of=None) for grid in grids},
        weights,
    )
    return dataset_of(rows, len(vectors), rows.columns)


def dataset_of(rows: Any, count: int, columns: Sequence[str]) -> Dataset:
    """A data set that reads its rows from something that makes them."""
    numbers = np.arange(count, dtype=np.int32)  # one piece of memory for all columns
    return Dataset.from_dict(dict.fromkeys(columns, numbers)).with_transform(rows)


def _pictures(
    vlm: UnifiedVLM,
    triplets: Sequence[Triplet],
    candidates: Sequence[Candidate] | None,
    far: bool,
    cache: TokenCache | None,
) -> tuple[Pictures, Pictures, Sequence[Tensor]]:
    """Codes of sources and targets, and with `far` the distances of their features."""
    if cache is not None and candidates is None:
        places = places_of(vlm, cache, triplets, far)
        return CachedCodes(cache, places[0]), CachedCodes(cache, places[1]), CachedDistances(cache, places[2])
    sources = [triplet.source for triplet in triplets]
    given: list[Picture] = [triplet.target for triplet in triplets if triplet.target is not None]
    source_ids = token_ids(vlm, sources)
    target_ids = token_ids(vlm, candidates or given, source_ids)
    pictures = [candidate.picture for candidate in candidates] if candidates and far else given
    distances = feature_distances(vlm, sources, pictures) if far else []
    at_hand = [CodesInMemory([(np.array(ids), ids.grid) for ids in each]) for each in (source_ids, target_ids)]
    return at_hand[0], at_hand[1], distances


def _prompt(vlm: UnifiedVLM, role: Role, grid: Grid, vector: bool) -> list[Piece]:
    """The pieces of a role's prompt."""
    segments = vlm.fdm_segments(vector) if role == "fdm" else vlm.template.idm
    pieces = [*vlm.pieces(segments, grid), *([list(vlm.before_action)] if role == "idm" else [])]
    return [piece if isinstance(piece, str) else np.array(piece, int) for piece in pieces]


def _joined(each: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids one behind the other, int32 and mapped from a file, and where those of each begin, int64."""
    flat, begins = Spilled(), array("q", [0])
    for ids in each:
        flat.add(np.array(ids, np.int32))
        begins.append(flat.size // 4)
    return np.frombuffer(flat.mapped(), np.int32), np.asarray(begins)


def _behind(prompt: np.ndarray, values: np.ndarray, fill: float) -> np.ndarray:
    """Values behind a prompt, in which all are `fill`."""
    return np.concatenate([np.full(len(prompt), fill, values.dtype), values])


class SpanCollator:
    """Pads rows on the right: `input_ids` and `labels` int64 [B, T], `weights` float32 [B, T]."""

    def __init__(self, pad: int) -> None:
        self.fill = {"input_ids": (pad, np.int64), "labels": (IGNORED, np.int64), "weights": (0.0, np.float32)}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        found = {}
        for key, (value, dtype) in self.fill.items():
            if key in rows[0]:
                padded = np.full((len(rows), width), value, dtype=dtype)
                for number, row in enumerate(rows):
                    padded[number, : len(row[key])] = row[key]
                found[key] = torch.from_numpy(padded)
        return found


def check_mixed(count: int, labelled: int, share: float) -> None:
    """Raise a `RewindError` for a share that is not between 0 and 1, or nothing to mix in."""
    if not 0 < share < 1:
        raise RewindError(f"--synthetic_share must lie between 0 and 1, not be {share}")
    if labelled == count:
        raise RewindError("--synthetic_share needs something to mix in: give --synthetic")


def mixed(rows: Dataset, labelled: int, share: float, seed: int) -> Dataset:
    """Rows of which `share` are from behind the first `labelled`; the smaller part is repeated until all are used.

    Raises:
        RewindError: a share that is not between 0 and 1, or nothing to mix in.
    """
    check_mixed(len(rows), labelled, share)
    parts = [rows.select(range(labelled)), rows.select(range(labelled, len(rows)))]
    return interleave_datasets(parts, [1 - share, share], seed=seed, stopping_strategy="all_exhausted")
