"""Pairs that are named by several processes: each writes what it has named chunk by chunk, the last one merges.

A chunk is always named as a whole and by itself, so the words are the same for any number of processes and after any
kill (`rl.running.shards`). Its words are one line of JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tqdm.auto import tqdm

from rl.data.labels.labelling import Proposal
from rl.data.left_out import LEFT_OUT_FILE
from rl.data.parquet_files import FOLDER
from rl.errors import RewindError
from rl.pictures import Views, to_image
from rl.running import shards
from rl.running.files import json_lines
from rl.triplets import Triplet

WORDS_FILE, CHECKED_FILE = "words.jsonl", "checked.jsonl"
"""What was said of the pairs, and of labelled pairs that the labels are calibrated on."""
LIMITS_OF_A_MACHINE = ("device", "device_map", "max_rows")
"""Arguments in which shards may differ."""
SCRIPT = "label.py"


Name = Callable[[Sequence[Triplet]], Sequence[Sequence[tuple[Any, ...]]]]
"""Pairs -> the sentences of each, as JSON values."""
_logger = logging.getLogger("rl")


def unreadable(pair: Triplet) -> str | None:
    """Why a pair's pictures cannot be read, in words; None if they can."""
    try:
        for picture in (pair.source, pair.target):
            for view in () if picture is None else picture.pictures if isinstance(picture, Views) else (picture,):
                to_image(view)
    except RewindError as error:
        return str(error)
    return None


def _of_readable(pairs: Sequence[Triplet], name: Name) -> list[Sequence[tuple[Any, ...]]]:
    """The sentences of pairs; none of those that cannot be read, which are looked for only where the whole fails."""
    try:
        return list(name(pairs))
    except RewindError:
        faults = [unreadable(pair) for pair in pairs]
        told = [fault for fault in faults if fault is not None]
        if not told:
            raise
    _logger.warning("%d of %d pairs are left out; the first: %s", len(told), len(pairs), told[0])
    rest = [pair for pair, fault in zip(pairs, faults, strict=True) if fault is None]
    found = iter(name(rest) if rest else ())
    return [next(found) if fault is None else () for fault in faults]


@dataclass(frozen=True)
class Shards(shards.Shards):
    """Shards of labels."""

    script = SCRIPT
    holds = "labels"
    results = ("triplets.json", FOLDER, "images", WORDS_FILE, LEFT_OUT_FILE)
    may_differ: ClassVar[tuple[str, ...]] = (*LIMITS_OF_A_MACHINE, "parquet", "link_pictures")

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
        name: Name,
    ) -> None:
        """Append the words of this process's chunks to its file, those that an earlier run wrote excepted.

        A pair whose pictures cannot be read after all has none: of a large data set only the ends of files are looked
        at before the start, and one that is damaged in the middle must not end the work of days.
        """
        chunks = self.chunks(pairs, chunk_size)
        path = self.folder / file
        done = json_lines(path)
        with path.open("a", encoding="utf-8") as out, tqdm(total=sum(map(len, chunks)), desc=self.holds) as bar:
            bar.update(sum(map(len, done)))
            for chunk in chunks[len(done) :]:
                out.write(json.dumps(_of_readable(chunk, name)) + "\n")
                out.flush()
                bar.update(len(chunk))

    def words(self, file: str, chunks: int) -> Iterator[list[Proposal]]:
        """What was said of each pair, in the order of the pairs; a chunk is held at a time."""
        for chunk in self.lines(file, chunks):
            for sentences in chunk:
                yield [Proposal(*one) for one in sentences]
