"""The report of a reward's audit: a table for the terminal, a page with the probes drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl.pictures import Picture
from rl.report.grids import sheet
from rl.report.html import curves, page, paragraph, picture, table

HEAD = ("probe", "n", "mean score", "truth wins", "AUC", "passes the threshold", "verdict")
CELLS_A_ROW = 7

Drawn = Sequence[tuple[Picture, str]]
"""Pictures of one triplet with their captions: source, true target, probes with their scores."""


def lines(found: Mapping[str, Any]) -> str:
    """The audit as plain text, a line a probe, for a terminal."""
    levels = {kind: probe["level"] for kind, probe in found["probes"].items()}
    told = [[*HEAD[:5], "passes", ""], *([*row[:6], levels.get(row[0], "")] for row in _rows(found))]
    widths = [max(len(row[column]) for row in told) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in told
    )


def audit_page(title: str, found: Mapping[str, Any], worst: Sequence[str], drawn: Sequence[Drawn]) -> str:
    """The whole report as HTML."""
    first = [paragraph(sentence) for sentence in worst] or [
        paragraph("No probe scores as well as the truth too often.")
    ]
    note = f"Scores above {_figure(found['threshold'])} are reached by nine in ten true targets: that is the threshold."
    sections = [
        ("What to do", first),
        ("Probes", [table(HEAD, _rows(found)), paragraph(note, note=True), table(*_by_task(found))]),
    ]
    if "selection" in found:
        sections.append(("Selection", _selection(found["selection"])))
    if "premise" in found:
        sections.append(("Premise", premise_parts(found["premise"])))
    grids = [[part for cells in drawn for part in _split(list(cells))]] if drawn else []
    sections.append(("Pictures", [picture(sheet(rows, 96), "probes and their scores") for rows in grids]))
    return page(title, sections)


def _split(cells: list[tuple[Picture, str]]) -> list[list[tuple[Picture, str]]]:
    return [cells[start : start + CELLS_A_ROW] for start in range(0, len(cells), CELLS_A_ROW)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _rows(found: Mapping[str, Any]) -> list[list[str]]:
    truth = found["truth"]
    rows = [["truth", str(truth["n"]), _figure(truth["mean"]), "", "", "", ""]]
    for kind, probe in found["probes"].items():
        figures = [_figure(probe.get("mean"))]
        figures += [f"{probe['truth_wins']:.0%}", f"{probe['auc']:.2f}", f"{probe['passes']:.0%}"] if probe["n"] else []
        rows.append([kind, str(probe["n"]), *figures, *[""] * (4 - len(figures)), probe["verdict"]])
    return rows


def _by_task(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Share in which a probe scores as well as the truth, a column a task."""
    tasks = sorted({task for probe in found["probes"].values() for task in probe.get("by_task", {})})
    rows = [
        [kind, *(f"{probe['by_task'][t]['as_good']:.0%}" if t in probe["by_task"] else "" for t in tasks)]
        for kind, probe in found["probes"].items()
        if probe["n"]
    ]
    return ["as good as the truth", *tasks], rows


def _selection(found: Mapping[str, Any]) -> list[str]:
    series = {
        name: [(float(n), 100 * value) for n, value in found[key].items()]
        for name, key in (("chosen by the reward", "by_score"), ("chosen by the oracle", "by_oracle"))
    }
    parts = [paragraph(found["verdict"]), curves(series, "best of N", "success, %")]
    if "within_group_auc" in found:
        share = f"{found['within_group_auc']:.0%}"
        parts.append(
            paragraph(f"Within a group the reward ranks a right candidate above a wrong one in {share} of cases.")
        )
    return parts


def premise_parts(found: Mapping[str, Any]) -> list[str]:
    """Whether to go on, how sure labels are right, and what the inverse model takes for what; the sentences alone where
    nothing else is known.

    Args:
        found: what `rl.evaluation.premise.premise` returns, or its `verdicts` alone.
    """
    parts = [paragraph(sentence) for sentence in found["verdicts"]]
    rows = [[f"{p['share']:.0%}", f"{p['accuracy']:.0%}", _figure(p["min_score"])] for p in found.get("labels", [])]
    if rows:
        parts.append(table(("surest part of labels", "right", "least score"), rows))
    if confused := found.get("idm", {}).get("confused"):
        told = [[truth, said or "(nothing)", str(count)] for truth, said, count in confused]
        parts.append(table(("action", "what the inverse model says", "times"), told))
    return parts
