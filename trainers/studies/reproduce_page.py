"""`docs/results.md`: the tables of the main job's seeds, every number from their files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rl.report.markdown import table
from trainers.studies.demo.report import COMPARISONS, MEANINGS, how_sure

ELSEWHERE = """What these rows do not answer: whether both roles improve each other in turns,
`docs/findings/both-roles.md`; whether it is better to imitate the inverse model's labels or to be rewarded by it, and
what happens with labels in plenty, `docs/findings/labelled-video.md`; what was tried on the way to this recipe,
`docs/findings/few-labels.md`.
"""


def page_of(
    families: dict[str, dict[str, Any]],
    files: dict[str, list[dict[str, Any]]],
    command: str,
) -> str:
    """`docs/results.md`: every number from the seed files."""
    parts = ["# Results\n", f"Written by `{command}` from the JSON files in `docs/results`; not by hand.\n", ELSEWHERE]
    for family, found in families.items():
        parts += [f"## {family}\n", *_family(found, files[family])]
    return "\n".join(parts)


def _family(found: dict[str, Any], files: Sequence[dict[str, Any]]) -> list[str]:
    mean, each = found["mean"], found["seeds"]
    seeds = [one["seed"] for one in each]
    versions, budget = files[0]["versions"], files[0]["config"]["budget"]
    cases = sum(one["data"]["test"] for one in each)
    named = "seed" if len(seeds) == 1 else "seeds"
    intro = (
        f"World `{mean['world']}`, {named} {', '.join(map(str, seeds))}, {cases // len(each)} test cases each; budget: "
        + ", ".join(f"{name} {value}" for name, value in budget.items())
        + ". Versions: "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". {mean['seconds']['total'] / 60:.0f} minutes a seed on the machine that made them.\n"
    )
    systems = table(
        [
            "system",
            "success",
            "95 %",
            *(f"seed {s}" for s in seeds),
            "best T",
            "judge",
            "minimality",
            "copies",
            "seconds",
            "",
        ],
        [
            [
                f"`{name}`",
                f"{100 * m['success']:.1f} %",
                f"{100 * m['ci95'][0]:.1f} - {100 * m['ci95'][1]:.1f}",
                *(f"{100 * one['fdm'][name]['success']:.1f} %" for one in each),
                f"{100 * m['success_at_best_temperature']:.1f} %",
                f"{m['judge']:.2f}",
                f"{m['minimality']:.2f}",
                f"{100 * m['copy_rate']:.1f} %",
                f"{mean['seconds'][name]:.0f}" if name in mean["seconds"] else "",
                MEANINGS[name],
            ]
            for name, m in mean["fdm"].items()
        ],
    )
    named = ", ".join(f"{100 * one['idm']['exact_match']:.1f} %" for one in each)
    note = (
        "Success, judge, minimality and copies are of one sample at temperature 1; 'best T' is success at the "
        "temperature that was best on validation cases, of what is reranked at temperature 1, as it is drawn; "
        "seconds are those of the system's own training. "
        f"The IDM names {100 * mean['idm']['exact_match']:.1f} % of the test actions ({named}); of the labels that it "
        f"gave to video {100 * mean['data']['label_accuracy']:.0f} % of the selected ones were right; the tokenizer's "
        f"ceiling is {100 * mean['ceiling']['tokenizer']['success']:.1f} %.\n"
    )
    if budget.get("proposer_steps"):
        count = budget["grpo_steps"] * budget["grpo_prompts"]
        note = note.rstrip("\n") + (
            " GRPO and best-of-N training try actions that a proposer has for frames of the labelled data and of the "
            f"video and that were not done there (`proposed`, {count:,} of them); "
            f"the proposer's own training ({mean['seconds'].get('proposer', 0.0):.0f} seconds) is in no row.\n"
        )
    units = {"judge": ("of 10", 1.0), "minimality": ("of 10", 1.0)}
    comparisons = table(
        ["comparison", "what it asks", "measure", "paired on the same cases and noise, mean of the seeds"],
        [
            [
                f"`{name}`",
                COMPARISONS[name],
                key.replace("_", " "),
                how_sure(entry, *units.get(key, ("points", 100.0)), less_is_better=key == "copy_rate"),
            ]
            for name, measures in mean["paired"].items()
            for key, entry in measures.items()
        ],
    )
    curves = table(
        ["success of the best of N", *mean["best_of_n"]["sft"]],
        [
            [f"`{name}`, {how}", *(f"{100 * share:.1f} %" for share in mean[key][name].values())]
            for name in mean["best_of_n"]
            for how, key in (
                ("chosen by `idm_likelihood`", "best_of_n"),
                ("by the fitted mix", "best_of_n_mix"),
                ("by the oracle", "best_of_n_oracle"),
            )
            if key in mean  # of seeds of an earlier recipe there is no mix
        ],
    )
    rl = table(
        ["GRPO on test cases", "mean", *(f"seed {s}" for s in seeds)],
        [
            [name.replace("_", " "), f"{value:.3g}", *(f"{one['grpo'].get(name, float('nan')):.3g}" for one in each)]
            for name, value in mean["grpo"].items()
        ],
    )
    mixes = table(
        ["fitted mix of rewards", *(f"seed {s}" for s in seeds)],
        [[f"`{name}`", *(one["data"]["mixes"][name] for one in each)] for name in each[0]["data"].get("mixes", {})],
    )
    return [intro, systems, note, comparisons, curves, mixes, rl]
