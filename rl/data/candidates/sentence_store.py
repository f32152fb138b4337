"""The store of scored sentences: what an inverse model said of pairs of pictures while it learned from rewards.

A folder holds `part-*.parquet`, one row a sentence (columns: `SCHEMA`), as the store of predicted pictures does,
and names the pictures by their keys alone, since both are the data's. `datasets.load_dataset("parquet",
data_files="FOLDER/part-*.parquet")` opens it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl.data.candidates.part_folder import PartFolder
from rl.data.candidates.store import picture_key
from rl.errors import RewindError
from rl.triplets import Scored, Triplet

SCHEMA = pa.schema(
    [
        ("fdm", pa.string()),  # the forward model that the rewards asked, and their arguments if any
        ("seed", pa.int64()),
        ("step", pa.int64()),
        ("source", pa.string()),  # `rl.data.candidates.store.picture_key`
        ("target", pa.string()),
        ("true_action", pa.string()),  # null if unknown
        ("task", pa.string()),
        ("number", pa.int64()),  # of the sentence in its group
        ("text", pa.string()),
        ("ids", pa.list_(pa.int64())),
        ("logprobs", pa.list_(pa.float32())),
        ("rewards", pa.list_(pa.string())),  # names, in the order of `scores`
        ("scores", pa.list_(pa.float64())),
        ("total", pa.float64()),
        ("scorers", pa.list_(pa.string())),  # what each score comes from where the reward's name does not say it
    ]
)


class SentenceStore(PartFolder):
    """Scored sentences in a folder; several processes may append at once.

    Args:
        folder: made with the first part.
        fdm: `rl.data.candidates.store.scorer_key` of what the rewards ask.
        scorers: by the reward's name, what its scores come from where the name does not say it.
    """

    schema, what = SCHEMA, "sentences"

    def __init__(self, folder: str | Path, fdm: str | None = None, scorers: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        self.fdm, self.scorers = fdm, dict(scorers or {})

    def append(self, groups: Sequence[tuple[Triplet, int, Sequence[Scored]]], *, seed: int, step: int) -> None:
        """Add sentences about some pairs: each pair with the number of the first of its sentences, and those.

        Appending the same (seed, step, source, target, number) again leaves one, the last.

        Raises:
            RewindError: the folder cannot be written to; earlier parts stay as they are.
        """
        rows = [row for group in groups for row in self._rows_of(*group, seed=seed, step=step)]
        if not rows:
            return
        part = self.new_part()
        beside = part.with_name(f".{part.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), beside)
            beside.replace(part)
        except (OSError, pa.ArrowException) as error:
            beside.unlink(missing_ok=True)
            raise RewindError(f"the scored sentences cannot be written to {part}: {error}") from error

    def rows(self) -> list[dict[str, Any]]:
        """Every sentence as a dict of the columns of `SCHEMA`, in the order of first appearance.

        A damaged part is left out with a warning.

        Raises:
            RewindError: no part, or a Parquet file with other columns.
        """
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for _, _, table in self.opened().scan(SCHEMA.names):
            for row in table.to_pylist():
                found[tuple(row[name] for name in ("seed", "step", "source", "target", "number"))] = row
        return list(found.values())

    def _rows_of(
        self, pair: Triplet, first: int, group: Sequence[Scored], seed: int, step: int
    ) -> list[dict[str, Any]]:
        assert pair.target is not None
        keys = {"source": picture_key(pair.source), "target": picture_key(pair.target)}
        sentences: list[Any] = [scored.candidate for scored in group]
        return [
            {
                "fdm": self.fdm,
                "seed": seed,
                "step": step,
                **keys,
                "true_action": pair.action or None,
                "task": pair.task,
                "number": number,
                "text": sentence.text,
                "ids": sentence.ids,
                "logprobs": sentence.logprobs,
                "rewards": list(scored.scores),
                "scores": list(scored.scores.values()),
                "total": scored.total,
                "scorers": [self.scorers.get(name, "") for name in scored.scores],
            }
            for number, (sentence, scored) in enumerate(zip(sentences, group, strict=True), first)
        ]
