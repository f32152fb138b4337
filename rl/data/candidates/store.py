"""The store of scored candidates: what was sampled and scored, in Parquet, for every stage that can learn from it.

A folder holds `part-*.parquet`, one row a candidate (columns: `SCHEMA`), and `pictures/KEY.png`, each source and target
once. A part is written beside and moved into place, so that a run that is cut off leaves whole parts behind; the next
candidates take its place with it, until it holds `ROWS`; `compact` joins those that are small.
`datasets.load_dataset("parquet", data_files="FOLDER/part-*.parquet")` opens it too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.candidates.part_folder import ROW_GROUP, PartFolder
from rl.data.candidates.stored import Index, KnownScores
from rl.data.candidates.stored_groups import (
    Group,
    PictureOfStore,
    StoredGroups,
    StoredTriplets,
    picture_file,
    same_name,
)
from rl.data.columns import columns_text
from rl.errors import RewindError
from rl.paths import expanded
from rl.picture_keys import key_of, stamp
from rl.pictures import Picture, PictureLike, pixels, to_image
from rl.triplets import Scored, Triplet

__all__ = ["SCHEMA", "CandidateStore", "Group", "Known", "candidate_key", "picture_key", "scorer_key", "store_of"]

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

logger = logging.getLogger("rl")

Known = Mapping[bytes, dict[str, "float | None"]]
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
ROWS = 1024
"""Rows from which on a part is not added to."""
LATER = ("scorers", "more", "grid", "fingerprint")
"""Columns that earlier stores lack. Without `scorers`, scores of a reward of one's own, or of a judge, match none."""


def picture_key(picture: PictureLike) -> str:
    """A key of a picture's size and pixels, 32 hexadecimal digits, the same for an array, a PIL image and a PNG."""
    if isinstance(picture, PictureOfStore):
        return picture.key
    its = stamp(picture)
    return _key_of_pixels(picture) if its is None else _known_key(its, _Read(picture))


@dataclass(frozen=True)
class _Read:
    """A picture that takes no part in a memory's key."""

    picture: PictureLike = field(compare=False)


@lru_cache(1 << 16)
def _known_key(_: bytes, read: _Read) -> str:
    return _key_of_pixels(read.picture)


def _key_of_pixels(picture: PictureLike) -> str:
    found = pixels(picture)
    return hashlib.blake2b(repr(found.shape).encode() + found.tobytes(), digest_size=16).hexdigest()


def candidate_key(source: str, action: str, ids_K: np.ndarray | Sequence[int], more: str | None = None) -> bytes:
    """What a score belongs to, as 16 bytes: the source's key, the action and the tokens of the predicted target, and
    the further columns as the store holds them (`columns_text`), which a reward may have read.
    """
    tokens = np.ascontiguousarray(ids_K, dtype=np.int64).tobytes()
    return key_of(source.encode(), _with_columns(action, more).encode(), tokens)


def scorer_key(idm: str | None, reward_arguments: Any = None) -> str | None:
    """What every score depends on beside the reward: the inverse model and the rewards' arguments."""
    return f"{idm} {json.dumps(reward_arguments, sort_keys=True)}" if reward_arguments else idm


class CandidateStore(PartFolder):
    """Scored candidates in a folder; several processes may append at once.

    Args:
        folder: made with the first part.
        idm: `scorer_key` of what the rewards ask, by name or folder: scores of another one are not mixed with its.
        scorers: by the reward's name, what its scores come from where the name does not say it (`rewards.scorers`): the
            scores of another reward of that name are not taken for its.
    """

    schema, later, what = SCHEMA, LATER, "candidates"

    def __init__(self, folder: str | Path, idm: str | None = None, scorers: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.idm, self.scorers = idm, dict(scorers or {})
        self._open_part: tuple[Path, pa.Table] | None = None  # that this object writes, with what is in it

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
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        part, before = self._open_part or (self.new_part(), SCHEMA.empty_table())
        if len(before) and not part.is_file():  # joined to another one, or moved away by somebody
            part, before = self.new_part(), SCHEMA.empty_table()
        table = pa.concat_tables([before, table])
        _write(part, lambda file: pq.write_table(table, file, row_group_size=ROW_GROUP))
        self._open_part = (part, table) if len(table) < ROWS else None

    def rows(self) -> list[dict[str, Any]]:
        """Every candidate as a dict of the columns of `SCHEMA`, in the order of first appearance: all in memory.

        A damaged part is left out with a warning.

        Raises:
            RewindError: no part, or a Parquet file with other columns.
        """
        found: dict[tuple[int, int, str, int], dict[str, Any]] = {}
        for _, _, table in self.opened().scan(SCHEMA.names):
            for row in table.to_pylist():
                found[row["seed"], row["step"], row["prompt"], row["candidate"]] = row
        return list(found.values())

    def triplets(self) -> Sequence[Triplet]:
        """Each source and action once, with the true target where it is known; made when looked at."""
        return StoredTriplets(self.folder, self.opened())

    def groups(self, backbone: UnifiedVLM) -> StoredGroups:
        """The candidates of each draw together, as candidates of a backbone; read when looked at.

        Raises:
            RewindError: candidates of another base or size, or none that can be read.
        """
        return StoredGroups(self.folder, self.opened(), backbone)

    def known_scores(self) -> KnownScores:
        """The scores that each candidate has, so that none is scored twice; empty before the first part.

        Only those for which the same rewards (`scorers`) asked the same inverse model with the same arguments.
        """
        found, mine = KnownScores(), dict[str, bool]()
        columns = ("idm", "source", "action", "ids", "more", "rewards", "scores", "scorers")
        for _, _, table in self.opened().scan(columns) if self.parts() else ():
            ids = table.column("ids").combine_chunks()
            flat, ends = ids.values.to_numpy(zero_copy_only=False), ids.offsets.to_numpy()
            for number, row in enumerate(table.drop_columns(["ids"]).to_pylist()):
                whose = row["idm"] or ""
                if not mine.setdefault(whose, same_name(whose, self.idm or "")):
                    continue
                by_whom = row["scorers"] or [""] * len(row["rewards"])
                scores = zip(row["rewards"], row["scores"], by_whom, strict=True)
                same = {name: score for name, score, whom in scores if whom == self.scorers.get(name, "")}
                key = candidate_key(row["source"], row["action"], flat[ends[number] : ends[number + 1]], row["more"])
                found.add(key, same)
        return found

    def _rows_of(
        self, triplet: Triplet, group: Sequence[Scored], seed: int, step: int, first: int
    ) -> Iterator[dict[str, Any]]:
        source = self._keep(triplet.source)
        target = None if triplet.target is None else self._keep(triplet.target)
        more = columns_text(triplet.more)
        prompt = self.prompt_of(triplet)
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

    def prompt_of(self, triplet: Triplet) -> str:
        """The key of a triplet's source, action and further columns."""
        prompt = f"{picture_key(triplet.source)} {_with_columns(triplet.action, columns_text(triplet.more))}"
        return hashlib.blake2b(prompt.encode(), digest_size=16).hexdigest()

    def drawn(self, seed: int, step: int) -> dict[str, int]:
        """How many candidates each prompt has that were drawn under a seed and a step."""
        if not self.parts():
            return {}
        found = Index(self.opened())
        counts = (len(found.of(number)) for number in range(len(found.draws)))
        return {draw[2]: count for draw, count in zip(found.draws, counts, strict=True) if draw[:2] == (seed, step)}

    def _keep(self, picture: Picture) -> str:
        """Write a picture unless it is there; returns its key."""
        key = picture_key(picture)
        file = picture_file(self.folder, key)
        if not file.is_file():
            _write(file, lambda temporary: to_image(picture).save(temporary, format="PNG"))
        return key


def store_of(folder: str | Path) -> CandidateStore:
    """The store in a folder, which may be a run folder that holds one in `candidates`.

    Raises:
        RewindError: a run that drew no pictures.
    """
    here = expanded(folder)
    if not (here / "candidates").is_dir() and ((here / "sentences").is_dir() or here.name == "sentences"):
        raise RewindError(
            f"{folder} is of a run of --role idm, which keeps the sentences that it said and no predicted pictures: "
            "give a run of train_grpo.py --role fdm, train_best_of_n.py, train_dpo.py or rerank.py"
        )
    return CandidateStore(here / "candidates" if (here / "candidates").is_dir() else here)


def _with_columns(action: str, more: str | None) -> str:
    """What tells sources with the same action apart: their further columns, too."""
    return action if more is None else f"{action}\n{more}"


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
