"""What a run of rounds leaves to be read: `report.json`, and the same as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl.report.markdown import table
from rl.running.files import json_lines, read_json, write_whole

FEW = 4
"""At most so many logged steps at the begin and at the end of a training, whose means are shown."""
WATCHED = ("monitors/distinct", "monitors/words", "monitors/as_start")
COLUMNS = {
    "pairs": ("pairs named", 0),
    "fdm_reward": ("FDM's reward", 3),
    "judge": ("judge of its pictures, nats a token", 3),
    "copies": ("copies", 3),
    "idm_reward": ("IDM's reward", 3),
    "exact_match": ("IDM in the true words", 3),
    "judge_of_words": ("judge of its words, nats a token", 3),
    "words": ("words", 1),
    "seconds": ("seconds", 0),
}


def round_figures(folder: Path) -> dict[str, Any]:
    """What the stages of a finished round logged: rewards at their begin and end, monitors of sentences, seconds."""
    seconds = read_json(folder / "seconds.json") if (folder / "seconds.json").is_file() else {}
    found: dict[str, Any] = {"seconds": sum(seconds.values()), "seconds_by_stage": seconds}
    if (folder / "label" / "triplets.json").is_file():
        found["pairs"] = len(json.loads((folder / "label" / "triplets.json").read_text(encoding="utf-8")))
    for role in ("fdm", "idm"):
        logs = json_lines(folder / role / "metrics.jsonl") if (folder / role).is_dir() else []
        rewards = [row["reward"] for row in logs if "reward" in row]
        if rewards:
            few = max(1, min(FEW, len(rewards) // 2))
            found[f"{role}_reward"] = [float(np.mean(rewards[:few])), float(np.mean(rewards[-few:]))]
        for name in WATCHED if role == "idm" else ():
            if values := [row[name] for row in logs if name in row]:
                found[name.removeprefix("monitors/") + "_while_training"] = values[-1]
    return found


def write_report(output: Path, report: dict[str, Any]) -> None:
    """`report.json` and `report.md`."""
    write_whole(output / "report.json", json.dumps(report, indent=1) + "\n")
    write_whole(output / "report.md", page_of(report))


def page_of(report: dict[str, Any]) -> str:
    """A row a round, and what is kept, in Markdown."""
    rounds: Sequence[dict[str, Any]] = report["rounds"]
    shown = [name for name in COLUMNS if any(one.get(name) is not None for one in rounds)]
    rows = [
        ["start" if number == 0 else number, *(_cell(one.get(name), COLUMNS[name][1]) for name in shown)]
        for number, one in enumerate(rounds)
    ]
    kept = report["kept"]
    which = "the start" if kept["round"] == 0 else f"round {kept['round']}"
    said = f"Best by the judge, or the last without one: {which}, `{kept['fdm']}` and `{kept['idm']}`.\n"
    ended = "" if report["stopped"] is None else f"\n{report['stopped'][0].upper()}{report['stopped'][1:]}.\n"
    return f"{table(['round', *(COLUMNS[name][0] for name in shown)], rows)}\n{said}{ended}"


def _cell(value: Any, places: int) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " -> ".join(f"{one:.{places}f}" for one in value)
    return f"{value:.{places}f}"
