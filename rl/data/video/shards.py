"""Videos that are mined by several processes: video c belongs to process c % N, the last one to end merges."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.data.left_out import LEFT_OUT_FILE
from rl.data.video.clips import CLIPS_FILE, PAIRS_FILE, pictures_of
from rl.errors import RewindError
from rl.running import shards
from rl.running.files import partial

HARMLESS = {"workers": "the pairs stay the same"}


@dataclass(frozen=True)
class Shards(shards.Shards):
    """Shards of mined videos."""

    script = "mine_videos.py"
    holds = "pairs"
    results = (PAIRS_FILE, CLIPS_FILE, LEFT_OUT_FILE)
    may_differ = tuple(HARMLESS)

    def merge(self, files: Sequence[Path], labels: Sequence[str]) -> None:
        """Make the `clips.jsonl` and `images/` of one process in `output`, which this process holds.

        Pictures stay in the shards, too, under a second name (copied where a disk has no such), so that what a kill
        has left half merged is merged anew.

        Raises:
            RewindError: a shard has mined other videos, or lacks a picture.
        """
        if self.mine is None:
            return
        shutil.rmtree(self.output / "images", ignore_errors=True)
        clips = self.output / CLIPS_FILE
        with partial(clips).open("w", encoding="utf-8") as out:
            for number, line in enumerate(self.lines(CLIPS_FILE, len(files))):
                shard = self.folders[number % len(self.folders)]
                if (line["file"], line["class"]) != (str(files[number]), labels[number]):
                    told = f"{line['file']} of class {line['class']}, which is no longer the video {number}"
                    raise RewindError(f"{shard} has mined {told}: make it anew")
                for name in pictures_of(number, line):
                    _link(shard, self.output, name)
                out.write(json.dumps(line) + "\n")
        partial(clips).replace(clips)


def _link(shard: Path, output: Path, name: str) -> None:
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            os.link(shard / name, output / name)
        except OSError:
            shutil.copyfile(shard / name, output / name)
    except FileNotFoundError as error:
        raise RewindError(f"{shard} has lost its picture {name}: make it anew, with --overwrite") from error
