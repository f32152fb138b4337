"""Rounds over shards of pairs without words: name them -> GRPO of the forward role -> GRPO of the inverse role.

A stage is a command of an existing script and leaves a run folder. One that is finished is never repeated, and one that
was cut off goes on by its own `--resume`, so that a run can be stopped anywhere and ends with the same weights.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rl.actions import vector_of
from rl.data.columns import plain_columns
from rl.data.left_out import LeftOut, list_left_out
from rl.data.triplet_files import read_triplets, write_triplets
from rl.errors import RewindError
from rl.models.memory import free_memory
from rl.pictures import PictureFile
from rl.running.files import read_json, write_whole
from rl.running.run_folder import CONFIG_FILE
from rl.triplets import Triplet
from trainers.alternate.measures import measure
from trainers.alternate.report import round_figures, write_report
from trainers.alternate.settings import Settings

logger = logging.getLogger("rl")
SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
SECONDS_FILE = "seconds.json"
Run = Callable[[Sequence[str], Sequence[str]], None]
"""Runs a script's command; the second list are words before it, such as a launcher's."""


@dataclass(frozen=True)
class Models:
    """The two roles as they stand, run folders or names."""

    fdm: str
    idm: str


def run_command(command: Sequence[str], launch: Sequence[str] = ()) -> None:
    """Run a script in a process of its own, with what it prints shown here.

    Raises:
        RewindError: it ended otherwise than well; its own sentence stands above.
    """
    process = subprocess.Popen([*(launch or [sys.executable]), str(SCRIPTS / command[0]), *command[1:]])
    with _ends_at_sigterm():
        try:
            code = process.wait()
        except BaseException:  # whoever stops the rounds stops their stage, which else would go on and hold its folder
            process.terminate()
            process.wait()
            raise
    if code:
        raise RewindError(
            f"{command[0]} ended with {code}, what it said stands above: mend that and go on with --resume"
        )


@contextmanager
def _ends_at_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def alternate(settings: Settings, run: Run = run_command) -> dict[str, Any]:
    """All rounds, or those up to one that the judge finds worse; the folder is the caller's.

    Returns:
        What `report.json` holds: `rounds`, the start's figures first; `stopped`, in words, or None; `kept`, the models
        of the best round by the judge, of the last one without a judge.
    """
    cases = _cases(settings)
    shards = _shards(settings)
    models = [Models(settings.fdm, settings.idm)]
    rounds = [_measured(settings, settings.output / "start", models[0], cases)]
    stopped = None
    for number, pairs in enumerate(shards, 1):
        folder = settings.output / f"round-{number}"
        models.append(_round(settings, number, folder, pairs, models[-1], run))
        found = _measured(settings, folder, models[-1], cases)
        rounds.append(round_figures(folder) | found)
        stopped = _worse(settings, rounds)
        report = _report(models, rounds, stopped)
        write_report(settings.output, report)
        if stopped is not None:
            logger.warning("%s", stopped)
            break
    return report


def _round(settings: Settings, number: int, folder: Path, pairs: Path, start: Models, run: Run) -> Models:
    """One round's stages; returns the models that it leaves."""
    fdm, idm = folder / "fdm", folder / "idm"
    first = settings.output / "round-1" / "label" if settings.control == "fdm_only" else folder / "label"
    named = first / "triplets.json"
    if not named.is_file():
        if not settings.launch and first.is_dir() and not (first / CONFIG_FILE).is_file():
            shutil.rmtree(first)  # several processes had begun it, and one goes on
        _stage(folder, "label", lambda: run(settings.label(number, start.idm, pairs, first), settings.launch))
    if not _trained(fdm):
        command = settings.train("fdm", number, start.fdm, start.idm, named, fdm)
        _stage(folder, "fdm", lambda: run(command, settings.launch))
    if settings.control != "alternate":
        return Models(str(fdm), start.idm)
    if not _trained(idm):
        command = settings.train("idm", number, str(fdm), start.idm, pairs, idm)
        _stage(folder, "idm", lambda: run(command, settings.launch))
    return Models(str(fdm), str(idm))


def _trained(run: Path) -> bool:
    """Whether a training is finished: an adapter's config is what is moved into place last."""
    return (run / "adapter" / "adapter_config.json").is_file()


def _stage(folder: Path, name: str, work: Callable[[], None]) -> None:
    """Do a stage and note how long it took; of one that was cut off, the last attempt alone."""
    logger.warning("--- %s: %s", folder.name, name)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    work()
    file = folder / SECONDS_FILE
    seconds = read_json(file) if file.is_file() else {}
    write_whole(file, json.dumps({**seconds, name: round(time.monotonic() - began, 1)}) + "\n")


def _cases(settings: Settings) -> Sequence[Triplet]:
    if settings.validation is None:
        return []
    return read_triplets(settings.validation, settings.validation_limit, with_targets=True, **settings.reading)


def _shards(settings: Settings) -> list[Path]:
    """The files of pairs of each round, made once: all pairs in an order by the seed, divided evenly.

    Raises:
        RewindError: fewer pairs than rounds.
    """
    folder = settings.output / "shards"
    count = 1 if settings.control == "fdm_only" else settings.rounds
    files = [folder / f"shard-{number}" / "pairs.json" for number in range(1, count + 1)]
    each = files * (settings.rounds // count)
    if all(file.is_file() for file in files):
        return each
    left_out: list[LeftOut] = []
    pairs = read_triplets(settings.pairs, named=False, with_targets=True, **settings.reading, left_out=left_out)
    list_left_out(settings.output, left_out)
    if len(pairs) < settings.rounds:
        raise RewindError(f"{settings.pairs} has {len(pairs)} pairs for {settings.rounds} rounds: give more, or fewer")
    order = np.random.default_rng(settings.seed).permutation(len(pairs))
    for file, numbers in zip(files, np.array_split(order, count), strict=True):
        _write_pairs(file, [pairs[n] for n in np.sort(numbers)])
    return each


def _write_pairs(file: Path, pairs: Sequence[Triplet]) -> None:
    """Pairs that lie in files by their paths, others as pictures beside the list."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures = [picture for pair in pairs for picture in (pair.source, pair.target)]
    if not all(isinstance(picture, PictureFile) for picture in pictures):
        write_triplets(pairs, file.parent, file.name)
        return
    write_whole(file, json.dumps([_entry(pair) for pair in pairs], indent=1) + "\n")


def _entry(pair: Triplet) -> dict[str, Any]:
    """A pair of files as an entry of a list, with all that is known of it."""
    vector = vector_of(pair.action)
    words = {"action": list(vector)} if vector is not None else {"instruction": pair.action} if pair.action else {}
    known = {"task": pair.task, "class": pair.label, "source": pair.provenance}
    paths = {"input": str(pair.source.path.resolve()), "output": str(pair.target.path.resolve())}  # type: ignore[union-attr]
    return {
        **plain_columns(pair.more),
        **words,
        **paths,
        **{name: value for name, value in known.items() if value is not None},
    }


def _measured(settings: Settings, folder: Path, models: Models, cases: Sequence[Triplet]) -> dict[str, Any]:
    """What the models are like, measured once; nothing without a judge."""
    if settings.judge_idm is None:
        return {}
    file = folder / "measured.json"
    if not file.is_file():
        asked = (models.fdm, models.idm, settings.judge_idm, cases, settings.seed, settings.opening)
        found = measure(*asked, settings.token_cache)
        free_memory()  # else this process keeps it, beside stages that have their own
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found) + "\n")
    found = read_json(file)
    return {name: value for name, value in found.items() if name != "judge_by_case"}


def _worse(settings: Settings, rounds: Sequence[dict[str, Any]]) -> str | None:
    """Why rounds end here, in words."""
    if settings.judge_idm is None:
        return None
    scores = [one["judge"] for one in rounds]
    best = int(np.argmax(scores[:-1]))
    fell = scores[best] - scores[-1]
    if fell <= settings.judge_fall:
        return None
    before = "the start" if best == 0 else f"round {best}"
    return (
        f"round {len(scores) - 1} ends the run: the judge gives its pictures {scores[-1]:.3f} nats a token, {fell:.3f} "
        f"less than those of {before} (--judge_fall {settings.judge_fall:g})"
    )


def _report(models: Sequence[Models], rounds: Sequence[dict[str, Any]], stopped: str | None) -> dict[str, Any]:
    kept = int(np.argmax([one["judge"] for one in rounds])) if "judge" in rounds[0] else len(rounds) - 1
    told = [{"fdm": one.fdm, "idm": one.idm, **figures} for one, figures in zip(models, rounds, strict=True)]
    return {"rounds": told, "stopped": stopped, "kept": {"round": kept, **vars(models[kept])}}
