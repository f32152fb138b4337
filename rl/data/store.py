"""The store of scored candidates: what was sampled and scored, in Parquet, for every stage that can learn from it.

A folder holds `part-*.parquet`, one row a candidate (columns: `SCHEMA`), and `pictures/KEY.png`, each source and target
once. A part is written beside and moved into place, so that a run that is cut off leaves whole parts behind.
`datasets.load_dataset("parquet", data_files="FOLDER/part-*.parquet")` opens it too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl.codes import Grid
from rl.data.columns import columns_text
from rl.errors import RewindError
from rl.paths import expanded
from rl.pictures import Picture, PictureFile, PictureLike, Views, pixels, to_image
from rl.triplets import Candidate, Scored, Triplet

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

logger = logging.getLogger("rl")

Group = tuple[Triplet, list[Scored]]
Known = dict[tuple[str, str, bytes], dict[str, "float | None"]]
"""`candidate_key` -> scores by the name of the reward."""

SCHEMA = pa.schema(
    [
        ("base", pa.string()),  # whose vocabulary the ids belong to
        ("idm", pa.string()),  # `scorer_key`: the inverse model that the rewards asked, and their arguments if any
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("prompt", pa.string()),  # key of source, action and further columns
        ("candidate", pa.int64()),  # its number in the group
        ("source", pa.string()),  # key of the source picture: pictures/KEY.png
        ("target", pa.string()),  # the same of the true target, null if unknown
        ("action", pa.string()),
        ("task", pa.string()),
        ("ids", pa.list_(pa.int64())),
        ("logprobs", pa.list_(pa.float32())),
        ("rewards", pa.list_(pa.string())),  # names, in the order of `scores`
        ("scores", pa.list_(pa.float64())),
        ("total", pa.float64()),
        ("scorers", pa.list_(pa.string())),  # what each score comes from where the reward's name does not say it
        ("more", pa.string()),  # further columns of the data as JSON, null if there are none
        (
            "grid",
            pa.list_(pa.int64()),
        ),  # rows, columns (and views) of the ids, null for the base's usual grid
        ("fingerprint", pa.string()),  # of the base's weights, by which it is known wherever it lies
    ]
)
LATER = ("scorers", "more", "grid", "fingerprint")
"""Columns that earlier stores lack. Without `scorers`, scores of a reward of one's own, or of a judge, match none."""


def picture_key(picture: PictureLike) -> str:
    """A key of a picture's size and pixels, 32 hexadecimal digits, the same for an array, a PIL image and a PNG."""
    found = pixels(picture)
    return hashlib.blake2b(repr(found.shape).encode() + found.tobytes(), digest_size=16).hexdigest()


def candidate_key(
    source: str, action: str, ids_K: np.ndarray | Sequence[int], more: str | None = None
) -> tuple[str, str, bytes]:
    """What a score belongs to: the source's key, the action and the tokens of the predicted target, and the further
    columns as the store holds them (`columns_text`), which a reward may have read.
    """
    return source, _with_columns(action, more), np.asarray(ids_K, dtype=np.int64).tobytes()


def scorer_key(idm: str | None, reward_arguments: Any = None) -> str | None:
    """What every score depends on beside the reward: the inverse model and the rewards' arguments."""
    return f"{idm} {json.dumps(reward_arguments, sort_keys=True)}" if reward_arguments else idm


class CandidateStore:
    """Scored candidates in a folder; several processes may append at once.

    Args:
        folder: made with the first part.
        idm: `scorer_key` of what the rewards ask, by name or folder: scores of another one are not mixed with its.
        scorers: by the reward's name, what its scores come from where the name does not say it (`rewards.scorers`): the
            scores of another reward of that name are not taken for its.
    """

    def __init__(self, folder: str | Path, idm: str | None = None, scorers: Mapping[str, str] | None = None) -> None:
        self.folder, self.idm, self.scorers = expanded(folder), idm, dict(scorers or {})

    def append(
        self, groups: Sequence[tuple[Triplet, Sequence[Scored]]], *, seed: int, step: int, first: int = 0
    ) -> None:
        """Add the candidates of some sources and actions, as they were drawn under `seed` and `step`.

        `first` is the number of a group's first candidate, for a process that drew only a part of it.

        Appending the same (seed, step, prompt, candidate) again leaves one, the last.

        Raises:
            RewindError: the folder cannot be written to, e.g. a full disk; earlier parts stay as they are.
        """
        rows = [row for triplet, group in groups for row in self._rows_of(triplet, group, seed, step, first)]
        if not rows:
            return
        numbers = [int(part.name.split("-")[1]) for part in self._parts()]
        part = self.folder / f"part-{max(numbers, default=-1) + 1:06d}-{uuid4().hex[:8]}.parquet"
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        _write(part, lambda file: pq.write_table(table, file))

    def rows(self) -> list[dict[str, Any]]:
        """Every candidate as a dict of the columns of `SCHEMA`, in the order of first appearance.

        A damaged part is left out with a warning.

        Raises:
            RewindError: no part, or a Parquet file with other columns.
        """
        found: dict[tuple[int, int, str, int], dict[str, Any]] = {}
        parts = self._parts()
        if not parts:
            raise RewindError(f"{self.folder} holds no scored candidates: give the folder 'candidates' of a run")
        for part in parts:
            for row in _read(part):
                found[row["seed"], row["step"], row["prompt"], row["candidate"]] = row
        return list(found.values())

    def triplets(self) -> list[Triplet]:
        """Each source and action once, with the true target where it is known."""
        pictures = self._pictures()
        return [self._triplet(row, pictures) for row in {row["prompt"]: row for row in self.rows()}.values()]

    def groups(self, backbone: UnifiedVLM) -> list[Group]:
        """The candidates of each draw together, as candidates of a backbone.

        Raises:
            RewindError: candidates of another base or size, or none that can be read.
        """
        groups: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
        for row in self.rows():
            if not _same_base(row, backbone):
                raise RewindError(
                    f"{self.folder} holds candidates of {row['base']}, whose tokens are not those of {backbone.name}"
                )
            groups.setdefault((row["seed"], row["step"], row["prompt"]), []).append(row)
        pictures, found = self._pictures(), []
        for rows in groups.values():
            rows.sort(key=lambda row: row["candidate"])
            triplet, group = self._triplet(rows[0], pictures), [_scored(row, backbone) for row in rows]
            grid, asked = group[0].candidate.codes.grid, backbone.grid_of(triplet.source)
            if grid != asked:
                raise RewindError(
                    f"{self.folder} holds candidates of {grid.rows}x{grid.columns} tokens where image_size "
                    f"{backbone.image_size} asks for {asked.rows}x{asked.columns}: give the one that they were drawn at"
                )
            found.append((triplet, group))
        return found

    def known_scores(self) -> Known:
        """The scores that each candidate has, so that none is scored twice; empty before the first part.

        Only those for which the same rewards (`scorers`) asked the same inverse model with the same arguments.
        """
        found: Known = {}
        for row in self.rows() if self._parts() else []:
            if _same(row["idm"] or "", self.idm or ""):
                key = candidate_key(row["source"], row["action"], row["ids"], row["more"])
                by_whom = row["scorers"] or [""] * len(row["rewards"])
                scores = zip(row["rewards"], row["scores"], by_whom, strict=True)
                same = {name: score for name, score, whom in scores if whom == self.scorers.get(name, "")}
                found.setdefault(key, {}).update(same)
        return found

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.parquet"))

    def _rows_of(
        self, triplet: Triplet, group: Sequence[Scored], seed: int, step: int, first: int
    ) -> Iterator[dict[str, Any]]:
        source = self._keep(triplet.source)
        target = None if triplet.target is None else self._keep(triplet.target)
        more = columns_text(triplet.more)
        prompt = f"{source} {_with_columns(triplet.action, more)}"
        prompt = hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()
        for number, scored in enumerate(group, first):
            candidate = scored.candidate
            base = candidate.backbone.fingerprint
            yield {
                "base": candidate.backbone.lasting_name,
                "idm": self.idm,
                "seed": seed,
                "step": step,
                "prompt": prompt,
                "candidate": number,
                "source": source,
                "target": target,
                "action": triplet.action,
                "task": triplet.task,
                "ids": candidate.ids,
                "logprobs": candidate.logprobs,
                "rewards": list(scored.scores),
                "scores": list(scored.scores.values()),
                "total": scored.total,
                "scorers": [self.scorers.get(name, "") for name in scored.scores],
                "more": more,
                "grid": None if candidate.grid is None else candidate.grid.numbers,
                "fingerprint": None if base is None else base.sha256,
            }

    def _keep(self, picture: Picture) -> str:
        """Write a picture unless it is there; returns its key."""
        key = picture_key(picture)
        file = self._picture_file(key)
        if not file.is_file():
            _write(file, lambda temporary: to_image(picture).save(temporary, format="PNG"))
        return key

    def _picture_file(self, key: str) -> Path:
        return self.folder / "pictures" / f"{key}.png"

    def _pictures(self) -> Callable[[str], Picture]:
        """Pictures by key, each opened once, so that a source's groups share one."""
        opened: dict[str, Picture] = {}

        def picture(key: str) -> Picture:
            if key not in opened:
                opened[key] = PictureFile.of(self._picture_file(key))
            return opened[key]

        return picture

    def _triplet(self, row: dict[str, Any], pictures: Callable[[str], Picture]) -> Triplet:
        views = Grid(*row["grid"]).views if row["grid"] else 1

        def whole(key: str) -> Picture:
            return pictures(key) if views == 1 else Views.of_stack(np.asarray(pictures(key)), views)

        target = None if row["target"] is None else whole(row["target"])
        more = json.loads(row["more"]) if row["more"] else {}
        return Triplet(whole(row["source"]), row["action"], target, row["task"], more=more)


def store_of(folder: str | Path) -> CandidateStore:
    """The store in a folder, which may be a run folder that holds one in `candidates`."""
    inner = expanded(folder) / "candidates"
    return CandidateStore(inner if inner.is_dir() else folder)


def _with_columns(action: str, more: str | None) -> str:
    """What tells sources with the same action apart: their further columns, too."""
    return action if more is None else f"{action}\n{more}"


def _scored(row: dict[str, Any], backbone: UnifiedVLM) -> Scored:
    ids, logprobs = np.array(row["ids"], dtype=np.int64), np.array(row["logprobs"], dtype=np.float32)
    scores = dict(zip(row["rewards"], row["scores"], strict=True))
    grid = None if row["grid"] is None else Grid(*row["grid"])
    return Scored(Candidate(ids, logprobs, backbone, grid), scores, row["total"])


def _same_base(row: dict[str, Any], backbone: UnifiedVLM) -> bool:
    """Whether a candidate was drawn on a backbone's base: by its weights, or by name where one of them has no word."""
    if row["fingerprint"] is not None and backbone.fingerprint is not None:
        return bool(row["fingerprint"] == backbone.fingerprint.sha256)
    return _same(row["base"], backbone.name)


def _same(first: str, second: str) -> bool:
    return first == second or Path(first).resolve() == Path(second).resolve()


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write beside and move into place, so that a file is whole or absent."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(beside)
        beside.replace(path)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            beside.unlink()
        raise RewindError(f"the scored candidates cannot be written to {path}: {error}") from error


def _read(part: Path) -> list[dict[str, Any]]:
    try:
        table = pq.ParquetFile(part).read()
    except (OSError, pa.ArrowException) as error:
        logger.warning("%s is damaged and left out: %s", part, " ".join(str(error).split())[:200])
        return []
    there = set(table.schema.names)
    wanted = pa.schema([field for field in SCHEMA if field.name not in LATER or field.name in there])
    if not table.schema.equals(wanted):
        raise RewindError(f"{part} has other columns than scored candidates: move it out of the folder")
    return [dict.fromkeys(LATER) | row for row in table.to_pylist()]
