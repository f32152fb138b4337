"""Pairs that are named by several processes: each writes what it has named chunk by chunk, the last one merges.

A chunk is always named as a whole and by itself, so the words are the same for any number of processes and after any
kill (`rl.running.shards`). Its words are one line of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tqdm.auto import tqdm

from rl.data.labels.labelling import Proposal
from rl.data.left_out import LEFT_OUT_FILE
from rl.data.parquet_files import FOLDER
from rl.running import shards
from rl.running.files import json_lines
from rl.triplets import Triplet

WORDS_FILE, CHECKED_FILE = "words.jsonl", "checked.jsonl"
"""What was said of the pairs, and of labelled pairs that the labels are calibrated on."""
LIMITS_OF_A_MACHINE = ("device", "device_map", "max_rows")
"""Arguments in which shards may differ."""
SCRIPT = "label.py"


@dataclass(frozen=True)
class Shards(shards.Shards):
    """Shards of labels."""

    script = SCRIPT
    holds = "labels"
    results = ("triplets.json", FOLDER, "images", WORDS_FILE, LEFT_OUT_FILE)
    may_differ: ClassVar[tuple[str, ...]] = (*LIMITS_OF_A_MACHINE, "parquet")

    def chunks(self, pairs: Sequence[Triplet], chunk_size: int) -> list[Sequence[Triplet]]:
        """This process's chunks."""
        number, count = self.share
        return [pairs[start : start + chunk_size] for start in range(0, len(pairs), chunk_size)[number::count]]

    def own(self, pairs: Sequence[Triplet], chunk_size: int) -> list[Triplet]:
        """The pairs of this process's chunks."""
        return [pair for chunk in self.chunks(pairs, chunk_size) for pair in chunk]

    def name(
        self,
        file: str,
        pairs: Sequence[Triplet],
        chunk_size: int,
        name: Callable[[Sequence[Triplet]], Sequence[Sequence[tuple[Any, ...]]]],
    ) -> None:
        """Append the words of this process's chunks to its file, those that an earlier run wrote excepted."""
        chunks = self.chunks(pairs, chunk_size)
        path = self.folder / file
        done = json_lines(path)
        with path.open("a", encoding="utf-8") as out, tqdm(total=sum(map(len, chunks)), desc=self.holds) as bar:
            bar.update(sum(map(len, done)))
            for chunk in chunks[len(done) :]:
                out.write(json.dumps(name(chunk)) + "\n")
                out.flush()
                bar.update(len(chunk))

    def words(self, file: str, chunks: int) -> Iterator[list[Proposal]]:
        """What was said of each pair, in the order of the pairs; a chunk is held at a time."""
        for chunk in self.lines(file, chunks):
            for sentences in chunk:
                yield [Proposal(*one) for one in sentences]
