"""Pairs that are named by several processes: each writes what it has named chunk by chunk, the last one merges.

Chunk c of the pairs belongs to process c % N, and its words are one line of JSON in that process's folder, written when
they are complete. A chunk is always named as a whole and by itself, so the words are the same for any number of
processes and after any kill.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rl.data.labels.labelling import Proposal
from rl.errors import RewindError
from rl.running import lock
from rl.running.files import json_lines, read_json
from rl.running.resumption import differences
from rl.running.run_folder import CONFIG_FILE, mark
from rl.triplets import Triplet

WORDS_FILE, CHECKED_FILE = "words.jsonl", "checked.jsonl"
"""What was said of the pairs, and of labelled pairs that the labels are calibrated on."""
LIMITS_OF_A_MACHINE = ("device", "device_map", "max_rows")
"""Arguments in which shards may differ."""
SCRIPT = "label.py"
_logger = logging.getLogger("rl")


@dataclass(frozen=True)
class Shards:
    """The folders of all processes: `output` itself for a single one, else `output/shard-I-of-N`.

    `mine` is (I, N), or None for a single one.
    """

    output: Path
    mine: tuple[int, int] | None

    @property
    def folder(self) -> Path:
        """Where this process writes."""
        return self.folders[self.mine[0] if self.mine else 0]

    @property
    def folders(self) -> list[Path]:
        """Those of all processes."""
        if self.mine is None:
            return [self.output]
        return [self.output / f"shard-{number}-of-{self.mine[1]}" for number in range(self.mine[1])]

    def make_room(self, resume: bool, overwrite: bool, inputs: Sequence[str | Path | None]) -> None:
        """See to it that the shards' results can be merged into `output`; nothing to do for a single process.

        Raises:
            RewindError: it holds something else, or results that may not be replaced.
        """
        if self.mine is None or not self.output.is_dir():
            return
        others = [path for path in self.output.iterdir() if not re.fullmatch(r"shard-\d+-of-\d+", path.name)]
        marker = self.output / CONFIG_FILE
        others = [path for path in others if path.name not in (lock.LOCK_FILE, f"{CONFIG_FILE}.partial")]
        if not others:
            return
        if not marker.is_file() or read_json(marker).get("script") != SCRIPT:
            raise RewindError(f"the output folder {self.output} is not empty and holds no run of {SCRIPT}: use another")
        if resume:
            return
        if not overwrite:
            raise RewindError(f"the output folder {self.output} exists: use --resume, --overwrite or another output")
        if any(p is not None and Path(p).resolve().is_relative_to(self.output.resolve()) for p in inputs):
            raise RewindError(f"--overwrite would replace in {self.output} what this run reads: use another --output")
        for name in ("triplets.json", WORDS_FILE):  # nobody is to take the old result for the new one
            (self.output / name).unlink(missing_ok=True)

    def name(
        self,
        file: str,
        pairs: Sequence[Triplet],
        chunk_size: int,
        name: Callable[[Sequence[Triplet]], list[list[Proposal]]],
    ) -> None:
        """Append the words of this process's chunks to its file, those that an earlier run wrote excepted."""
        number, count = self.mine or (0, 1)
        chunks = [pairs[start : start + chunk_size] for start in range(0, len(pairs), chunk_size)[number::count]]
        path = self.folder / file
        done = json_lines(path)
        with path.open("a", encoding="utf-8") as out, tqdm(total=sum(map(len, chunks)), desc="label") as bar:
            bar.update(sum(map(len, done)))
            for chunk in chunks[len(done) :]:
                out.write(json.dumps(name(chunk)) + "\n")
                out.flush()
                bar.update(len(chunk))

    def complete(self, chunks: Mapping[str, int]) -> bool:
        """Whether all processes have begun and written all chunks, so many in each file.

        One that has no chunk counts, too: it would find the results of a run that it is a part of.
        """
        begun = all((folder / CONFIG_FILE).is_file() for folder in self.folders)
        return begun and all(
            sum(_whole_lines(folder / file) for folder in self.folders) == count for file, count in chunks.items()
        )

    def words(self, file: str, chunks: int) -> Iterator[list[Proposal]]:
        """What was said of each pair, in the order of the pairs; a chunk is held at a time."""
        with ExitStack() as stack:
            files = [
                stack.enter_context((folder / file).open(encoding="utf-8")) for folder in self.folders[: max(1, chunks)]
            ]
            for chunk in range(chunks):
                for sentences in json.loads(files[chunk % len(self.folders)].readline()):
                    yield [Proposal(*one) for one in sentences]

    def take(self, config: dict[str, Any]) -> bool:
        """Hold `output`, to merge all shards into it; False if another process that ended just now does so.

        Raises:
            RewindError: a shard was begun with another config.
        """
        if self.mine is None:
            return True
        for marker in (folder / CONFIG_FILE for folder in self.folders):
            left = read_json(marker)
            begun_in = left.get("directory")
            changed = differences(left["config"], json.loads(json.dumps(config)), Path(begun_in) if begun_in else None)
            wrong = ", ".join(sorted({*changed} - {*LIMITS_OF_A_MACHINE}))
            if wrong:
                raise RewindError(f"{marker.parent} has labels with another {wrong} than {self.folder}: make it anew")
        try:
            lock.take(self.output)
        except RewindError as error:
            _logger.warning("all shards are done, and another process merges them (%s)", error)
            return False
        mark(self.output, SCRIPT, config)
        return True


def _whole_lines(file: Path) -> int:
    """How many lines of a file that another process may be writing are whole."""
    if not file.is_file():
        return 0
    with file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)
