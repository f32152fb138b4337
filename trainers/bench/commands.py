"""The scripts on a random base of 7B on one GPU, at their defaults and the configs of its family:

python -m trainers.bench.commands --preset gpu-7b --output runs/commands
python -m trainers.bench.commands --preset gpu-smoke --output runs/commands-smoke

Each is a process of its own, as a user starts it; training takes a few steps. One that fails is named with what it
said, and the others are run all the same. The base takes 14 GB of disk. `gpu-smoke` is the same at a tiny size on any
machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rl.errors import RewindError
from rl.running.command_line import run
from rl.running.files import json_lines, read_json, write_whole
from trainers.bench.gpu_memory import Watched

ROOT = Path(__file__).parents[2]
FILE = "commands.json"
STEPS = "--max_steps 2 --logging_steps 1 --warmup_steps 1 --save_strategy no"
RL = "--fdm {out}/train_fdm --idm {out}/train_idm --triplets {world} --limit 8"
BOTH = "--fdm {out}/train_fdm --idm {out}/train_idm --triplets {world}"
CONFIGS = "configs/chameleon-7b"
COMMANDS: dict[str, str] = {
    "train_idm": f"scripts/train_idm.py --config {CONFIGS}/idm.yaml --base {{base}} --triplets {{world}} {STEPS} "
    "--output_dir {out}/train_idm",
    "train_fdm": f"scripts/train_fdm.py --config {CONFIGS}/fdm.yaml --base {{base}} --triplets {{world}} {STEPS} "
    "--output_dir {out}/train_fdm",
    "train_grpo": f"scripts/train_grpo.py --config {CONFIGS}/grpo.yaml {RL} {STEPS} --profile "
    "--output_dir {out}/train_grpo",
    "rerank": f"scripts/rerank.py {BOTH} --limit 4 --output {{out}}/rerank",
    "label": "scripts/label.py --idm {out}/train_idm --verify {out}/train_fdm --pairs {world} --output {out}/label",
    "train_grpo_idm": f"scripts/train_grpo.py --role idm --config {CONFIGS}/grpo.yaml {RL} {STEPS} --profile "
    "--output_dir {out}/train_grpo_idm",
    "train_dpo": f"scripts/train_dpo.py --config {CONFIGS}/dpo.yaml {RL} {STEPS} --min_gap 0 "
    "--output_dir {out}/train_dpo",
    "train_best_of_n": f"scripts/train_best_of_n.py --config {CONFIGS}/best_of_n.yaml {RL} {STEPS} "
    "--output_dir {out}/train_best_of_n",
    "audit_reward": f"scripts/audit_reward.py {BOTH} --limit 4 --rewards idm_margin keep_unchanged=0.25 "
    "--best_of 8 --queries 32 --output {out}/audit_reward",
    "fit_reward": f"scripts/fit_reward.py {BOTH} --limit 16 --num_candidates 4 --output {{out}}/fit_reward",
    "evaluate": f"scripts/evaluate.py {BOTH} --limit 4 --output {{out}}/evaluate",
    "sample": "scripts/sample.py --fdm {out}/train_fdm --triplets {world} --limit 4 --output {out}/sample",
}
"""Script -> its command; `{world}` are triplets of the tabletop, enlarged to the base's pictures."""


def run_all(preset: str, output: Path, names: Sequence[str] = (), limit_s: float = 600.0) -> dict[str, Any]:
    """Run the commands (all if none is named) and write `output/commands.json`, beside what earlier calls measured.

    Base and triplets are made if they are not there; all but the first two commands need the runs of those.

    Returns:
        By name its `command`, `seconds`, `peak_gib` that the card held (None without one), `failed` (None, or the
        last line that it said), and for training the `step_seconds` and the last logged values.

    Raises:
        RewindError: a folder with something else in it, or base or triplets could not be made.
    """
    file, measured = output / FILE, {}
    if file.is_file():
        measured = read_json(file)
    elif output.is_dir() and any(output.iterdir()):
        raise RewindError(f"{output} holds something else than commands that were measured: give an empty --output")
    output.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(measured) + "\n")
    base, world = output / f"base-{preset}", output / "world" / "triplets.json"
    if not world.is_file():
        make = ["scripts/make_world.py", "--split", "train", "--num_triplets", "32", "--num_videos", "0", "--overwrite"]
        _needed([*make, "--output", str(world.parent)], output / "world.log", limit_s)
    if not base.is_dir():
        make = ["-m", "trainers.bench.random_base", "--preset", preset, "--output", str(base)]
        _needed(make, output / "base.log", limit_s)
    places = {"base": str(base), "out": str(output), "world": str(world)}
    found: dict[str, Any] = {}
    for name in [one for one in COMMANDS if one in (names or COMMANDS)]:
        shutil.rmtree(output / name, ignore_errors=True)
        words = [word.format(**places) for word in COMMANDS[name].split()]
        found[name] = {"command": f"python {shlex.join(words)}", **_run(words, output / f"{name}.log", limit_s)}
        found[name] |= _logged(output / name)
        measured = {one: (measured | found)[one] for one in COMMANDS if one in measured | found}
        write_whole(file, json.dumps(measured, indent=1) + "\n")
        write_whole(file.with_suffix(".md"), table(measured))
        print(table({name: found[name]}).splitlines()[-1], flush=True)
    return found


def _run(command: Sequence[str], log: Path, limit_s: float) -> dict[str, Any]:
    """A command of Python in the project's folder, what it says in a file."""
    start, code = time.perf_counter(), None
    with log.open("w") as file, Watched() as card:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:  # whatever it has started would hold the card; Ctrl-C does not reach it by itself
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    spent = time.perf_counter() - start
    return {"seconds": spent, "peak_gib": card.peak_gib, "failed": _failed(code, limit_s, log)}


def _failed(code: int | None, limit_s: float, log: Path) -> str | None:
    """Why a command failed, None if it did not; `code` is that of its exit, None where the time was over."""
    if code is None:
        return f"it had not ended after {limit_s:.0f} s"
    if code < 0:
        return f"ended by signal {-code}"
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (said[-1] if said else f"it ended with {code}") if code else None


def _needed(command: Sequence[str], log: Path, limit_s: float) -> None:
    if failed := _run(command, log, limit_s)["failed"]:
        raise RewindError(f"python {shlex.join(command)} failed: {failed} ({log})")


def _logged(run: Path) -> dict[str, Any]:
    """Of a training run: seconds a step, and what it logged last of itself."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return {}
    rows = list(json_lines(file))
    last = {key: value for row in rows for key, value in row.items()}
    spent = last.get("train_runtime")
    return {"step_seconds": spent / last["step"] if spent and last.get("step") else None, "logged": last}


def table(found: dict[str, Any]) -> str:
    """A row a command, as Markdown."""
    lines = [
        "| command | seconds, start and loading included | a step, s | GiB that the card held |",
        "|---|---|---|---|",
    ]
    for name, one in found.items():
        step, peak = one.get("step_seconds"), one["peak_gib"]
        cells = [f"`{name}`", f"{one['seconds']:.0f}", f"{step:.1f}" if step else "", f"{peak:.1f}" if peak else ""]
        if one["failed"]:
            cells[1] += f", failed: {one['failed']}".replace("|", "/")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=["gpu-7b", "gpu-smoke"], default="gpu-7b")
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=[], help="only these, in their order")
    parser.add_argument("--limit_s", type=float, default=600.0, help="seconds after which one is ended")
    parser.add_argument("--output", type=Path, required=True, help="gets base, world, a folder and a log a command")
    arguments = parser.parse_args()
    if arguments.preset == "gpu-7b" and not torch.cuda.is_available():
        raise RewindError("the preset gpu-7b needs a GPU of 80 GB: gpu-smoke shows on any machine that it runs")
    output = arguments.output.absolute()
    found = run_all(arguments.preset, output, arguments.commands, arguments.limit_s)
    if failed := [name for name, one in found.items() if one["failed"]]:
        raise RewindError(f"{len(failed)} of {len(found)} failed: {', '.join(failed)}; their logs are in {output}")


if __name__ == "__main__":
    run(main)
