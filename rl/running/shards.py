"""Work that several processes share: each writes its part into a folder of its own, the last one to end merges.

Item i (a video, a chunk of pairs) belongs to process i % N and is one line of a file, written when it is complete. What
a line holds does not depend on the others, so the merged result is that of one process, for any N and after any kill.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rl.errors import RewindError
from rl.running import lock
from rl.running.files import read_json
from rl.running.resumption import differences
from rl.running.run_folder import CONFIG_FILE, mark

_logger = logging.getLogger("rl")


def shard_of(text: str | None) -> tuple[int, int] | None:
    """Which part of the work is this process's, from 'I/N' (I from 0) or, under `accelerate launch`, its rank.

    Raises:
        RewindError: something that is no I/N with 0 <= I < N, or that and a launch of several processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if text is None:
        return (int(os.environ["RANK"]), processes) if processes > 1 else None
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise RewindError(f"--shard takes I/N, from 0/N to N-1/N, not '{text}'")
    if processes > 1:
        raise RewindError(f"{processes} launched processes share the work by themselves: leave --shard {text} out")
    return int(number), int(count)


@dataclass(frozen=True)
class Shards:
    """The folders of all processes: `output` itself for a single one, else `output/shard-I-of-N`.

    `mine` is (I, N), or None for a single one. A subclass says which script's they are.
    """

    output: Path
    mine: tuple[int, int] | None

    script: ClassVar[str]
    holds: ClassVar[str]
    """What lies in a shard, in a word."""
    results: ClassVar[tuple[str, ...]]
    """Files and folders in `output` that no run may find which begins anew."""
    may_differ: ClassVar[tuple[str, ...]]
    """Arguments in which shards may differ."""

    @property
    def share(self) -> tuple[int, int]:
        """This process's number and how many there are, (0, 1) for a single one."""
        return self.mine or (0, 1)

    @property
    def folder(self) -> Path:
        """Where this process writes."""
        return self.folders[self.share[0]]

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
        if not marker.is_file() or read_json(marker).get("script") != self.script:
            raise RewindError(
                f"the output folder {self.output} is not empty and holds no run of {self.script}: use another"
            )
        if resume:
            return
        if not overwrite:
            raise RewindError(f"the output folder {self.output} exists: use --resume, --overwrite or another output")
        if any(p is not None and Path(p).resolve().is_relative_to(self.output.resolve()) for p in inputs):
            raise RewindError(f"--overwrite would replace in {self.output} what this run reads: use another --output")
        for name in self.results:  # nobody is to take the old result for the new one
            if (self.output / name).is_dir():
                shutil.rmtree(self.output / name)
            else:
                (self.output / name).unlink(missing_ok=True)

    def missing(self, items: Mapping[str, int]) -> list[str]:
        """Shards that have not begun, or not written all their lines, in words; `items`: how many each file has in all.

        One that has no item counts, too: it would find the results of a run that it is a part of.
        """
        found = []
        for number, folder in enumerate(self.folders):
            shares = {file: len(range(number, count, len(self.folders))) for file, count in items.items()}
            if not (folder / CONFIG_FILE).is_file():
                found.append(f"{number}/{len(self.folders)} has not begun")
            elif any(_whole_lines(folder / file) != count for file, count in shares.items()):
                found.append(f"{number}/{len(self.folders)} is at work or was stopped")
        return found

    def complete(self, items: Mapping[str, int]) -> bool:
        """Whether all processes have begun and written all lines, so many in each file."""
        return not self.missing(items)

    def last_to_end(self, items: Mapping[str, int], config: dict[str, Any]) -> bool:
        """Whether all shards are done and this process is to merge them; it is said if others are not."""
        missing = self.missing(items)
        if missing:
            told = f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
            print(f"this shard is done, but {told}: the last one to end merges all into {self.output}")
        return not missing and self.take(config)

    def lines(self, file: str, items: int) -> Iterator[Any]:
        """What the processes have written of each item, in the order of the items; one is held at a time."""
        with ExitStack() as stack:
            folders = self.folders[: max(1, items)]
            files = [stack.enter_context((folder / file).open(encoding="utf-8")) for folder in folders]
            for item in range(items):
                yield json.loads(files[item % len(files)].readline())

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
            wrong = ", ".join(sorted({*changed} - {*self.may_differ}))
            if wrong:
                raise RewindError(
                    f"{marker.parent} has {self.holds} with another {wrong} than {self.folder}: make it anew"
                )
        try:
            lock.take(self.output)
        except RewindError as error:
            _logger.warning("all shards are done, and another process merges them (%s)", error)
            return False
        mark(self.output, self.script, config)
        return True


def _whole_lines(file: Path) -> int:
    """How many lines of a file that another process may be writing are whole."""
    if not file.is_file():
        return 0
    with file.open("rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)
