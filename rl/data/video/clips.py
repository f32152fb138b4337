"""Many videos -> a folder of pairs that grows clip by clip, so that a run that is killed goes on to the same bytes.

The folder holds `images/CLIP/FRAME.png`, `clips.jsonl` (a line a video, in their order, written when its pictures are)
and, once all are through, `pairs.json` made of it.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rl.data.video.keyframes import Mining
from rl.data.video.mining import mined
from rl.errors import RewindError
from rl.paths import expanded
from rl.pictures import to_image
from rl.running.files import json_lines, partial

CLIPS_FILE, PAIRS_FILE = "clips.jsonl", "pairs.json"
AHEAD = 4
"""Clips a worker that may be through before one that was begun earlier."""


@dataclass(frozen=True)
class Miner:
    """Writes the pairs of a clip into `output`; see `rl.data.video.mining.mined` for the arguments."""

    output: Path
    mining: Mining
    size: int
    per_seconds: float | None = None

    def __call__(self, number: int, file: Path, label: str) -> dict[str, Any]:
        """The line of `clips.jsonl`: file, class, pairs of frame numbers with the motion between them, and what is
        wrong with the file if it breaks off.
        """
        pairs: list[tuple[int, int, float]] = []
        fault, last = None, -1
        try:
            for pair in mined(file, self.mining, self.size, self.per_seconds):
                for frame, picture in ((pair.start, pair.before), (pair.end, pair.after)):
                    if frame != last:
                        path = self.output / picture_name(number, frame)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        to_image(picture).save(path)
                        last = frame
                pairs.append((pair.start, pair.end, round(pair.motion, 3)))
        except RewindError as error:
            fault = str(error)
        return {"file": str(file), "class": label, "pairs": pairs, "fault": fault}


def picture_name(clip: int, frame: int) -> str:
    """Where a key frame lies in the folder, by the numbers of the video and of the frame in it."""
    return f"images/{clip:06d}/{frame:07d}.png"


def pictures_of(clip: int, line: Mapping[str, Any]) -> list[str]:
    """Where the key frames of a line of `clips.jsonl` lie, each once, in the order of time."""
    return [picture_name(clip, frame) for frame in sorted({t for a, b, _ in line["pairs"] for t in (a, b)})]


def mine_clips(
    miner: Miner, files: Sequence[Path], labels: Sequence[str], workers: int = 1, share: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, Any]]:
    """The lines of `clips.jsonl` in the order of the files, of those first that an earlier run has written.

    Args:
        miner: what mines a clip.
        files: the videos; `labels`: their classes.
        workers: processes that mine a clip each.
        share: (I, N): only the videos I, I + N, I + 2 N, ...

    Raises:
        RewindError: the earlier run had other files, or a worker process died; what was written stays.
    """
    if workers < 1:
        raise RewindError(f"mining needs at least 1 worker, not {workers}")
    manifest = miner.output / CLIPS_FILE
    done = json_lines(manifest)
    clips = list(zip(range(len(files)), files, labels, strict=True))[share[0] :: share[1]]
    if [line["file"] for line in done] != [str(file) for _, file, _ in clips[: len(done)]]:
        raise RewindError(f"{manifest} lists other videos than there are now: begin anew with --overwrite")
    yield from done
    left = clips[len(done) :]
    with manifest.open("a", encoding="utf-8") as out:
        for line in _in_processes(miner, left, workers) if workers > 1 else (miner(*one) for one in left):
            out.write(json.dumps(line) + "\n")
            out.flush()
            yield line


def write_pairs(output: Path) -> Path:
    """`pairs.json` of `clips.jsonl`, a clip at a time; returns its path."""
    path, number, first = output / PAIRS_FILE, 0, True
    with (output / CLIPS_FILE).open(encoding="utf-8") as lines, partial(path).open("w", encoding="utf-8") as out:
        out.write("[")
        for number, line in enumerate(map(json.loads, lines)):
            for a, b, motion in line["pairs"]:
                names = {"input": picture_name(number, a), "output": picture_name(number, b)}
                entry = json.dumps(
                    {**names, "class": line["class"], "source": Path(line["file"]).name, "motion": motion}, indent=1
                )
                out.write(("\n" if first else ",\n") + "\n".join(f" {part}" for part in entry.split("\n")))
                first = False
        out.write("\n]\n")
    partial(path).replace(path)
    return path


def classes_of(files: Sequence[Path], table: Path | None) -> tuple[list[str], int]:
    """The class of each video, and how many of them the table lacks; those take the name of their folder.

    Args:
        files: the videos.
        table: a JSON object {file: class} or a CSV table with the columns `file` and `class`; files go by path from
            the table's folder, by name, or by name without suffix. None: all take the name of their folder.

    Raises:
        RewindError: the table cannot be read, or names none of the files.
    """
    if table is None:
        return [file.parent.name for file in files], 0
    table = expanded(table)
    named = _read_classes(table)
    folder = table.resolve().parent
    found = []
    for file in files:
        whole = file.resolve()
        inside = whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else file.name
        found.append(next((named[key] for key in (inside, file.name, file.stem) if key in named), None))
    lacking = found.count(None)
    if lacking == len(files):
        told = f"names none of the {len(files)} videos, such as {files[0].name}"
        raise RewindError(f"{table} {told}: a video goes by its name, or by its path from {folder}")
    return [file.parent.name if one is None else one for file, one in zip(files, found, strict=True)], lacking


def _read_classes(table: Path) -> Mapping[str, str]:
    try:
        text = table.read_text(encoding="utf-8-sig")
        if table.suffix.lower() == ".csv":
            rows = csv.DictReader(text.splitlines())
            if not {"file", "class"} <= {*(rows.fieldnames or ())}:
                raise RewindError(
                    f"{table} needs columns 'file' and 'class', and has {', '.join(rows.fieldnames or ())}"
                )
            return {row["file"]: row["class"] for row in rows}
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise RewindError(f"the classes in {table} cannot be read ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise RewindError(f'{table} must be a JSON object {{"file": "class"}}, or a CSV table')
    return found


def _in_processes(miner: Miner, clips: Sequence[tuple[int, Path, str]], workers: int) -> Iterator[dict[str, Any]]:
    """What `miner` makes of each clip, in their order, whichever is through first.

    Workers end with this process, however it ends, since the pipe to them closes then.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_live_with, initargs=(theirs,))
    waiting: deque[Future[dict[str, Any]]] = deque()
    left = iter(clips)
    try:
        while True:
            while len(waiting) < AHEAD * workers and (one := next(left, None)) is not None:
                waiting.append(pool.submit(miner, *one))
            if not waiting:
                break
            yield waiting.popleft().result()
        pool.shutdown()
    except BrokenProcessPool as error:
        raise RewindError(
            "a worker process died, as for lack of memory: go on with --resume, perhaps with fewer --workers"
        ) from error
    finally:
        ours.close()  # unless all is done, workers are to stop at once
        pool.shutdown(cancel_futures=True)


def _live_with(parent: Connection) -> None:
    """Prepare a worker: it ends when the pipe from its parent closes, and leaves Ctrl-C to it."""
    import cv2

    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        try:
            parent.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
