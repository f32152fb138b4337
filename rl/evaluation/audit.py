"""Is a reward fit to train on? What it says of the truth and of pictures that must not score as well, in numbers and
words.

The trouble is known beforehand: pixel rewards were hacked by darkening every picture (arXiv 2509.23958), likelihood
rewards by copies and still videos (arXiv 2603.17808).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from rl.evaluation.ranking import auc
from rl.evaluation.reward_probes import KINDS, TRUTH, Case

ScoreCases = Callable[[Sequence[Sequence[Case]]], Sequence[Sequence[float | None]]]
"""Groups of cases -> a score a case; what shares a source is scored in one group, as in training."""

KEPT_TRUTHS = 0.9
"""The threshold is where so many of the true targets still pass."""
WEAK, FAILS = 0.1, 0.3
"""Share of fakes scoring as well as the truth from which a reward is called weak, and from which it fails."""
FEWEST = 8
"""Cases of a task from which a verdict names the task."""
NOTABLE = 0.05
"""How much worse than all actions together a task must be to be named."""
BEST_OF, ATTACKED = "best_of", "attacked"
ADVERSARIES = {
    BEST_OF: "the reward's favourite among the model's samples",
    ATTACKED: "a picture optimised for the reward",
}
READS_ACTION = (
    ("idm_margin", "use idm_margin, which compares with other actions"),
    (None, "train the inverse model longer or on more labels"),
)
READS_PICTURE = (
    ("idm_margin", "add a reward that reads the picture as a whole, such as idm_margin"),
    (None, "train the inverse model longer or on more labels"),
)
ADVICE: dict[str, tuple[tuple[str | None, str], ...]] = {
    "copy": (
        ("copy_penalty", "add copy_penalty"),
        ("idm_margin", "use idm_margin"),
        (None, "let a monitor watch copies"),
    ),
    "swapped": READS_ACTION,
    "other_target": READS_ACTION,
    "wrong_action": READS_ACTION,
    "counterfactual_action": READS_ACTION,
    "shuffled": READS_PICTURE,
    "darkened": (("keep_unchanged", "add keep_unchanged"), (None, "let a monitor stop on brightness")),
    "blurred": (("keep_unchanged", "add keep_unchanged"), (None, "let a monitor stop on sharpness")),
    "noise": READS_PICTURE,
    "damaged": ((None, "add keep_unchanged, or weigh it more and let less change be free"),),
    BEST_OF: ((None, "add a second opinion (ensemble or judge), and let a monitor with a judge IDM stop the run"),),
    ATTACKED: ((None, "keep a KL term (--beta) or fdm_confidence, and let a monitor with a judge IDM stop the run"),),
}
"""What helps against each kind of fake: the name of the reward that is advised, if it is one, and the words."""


def _advice(kind: str, used: Collection[str]) -> str:
    """Two things at most, the first ones that are not done already."""
    return ", or ".join([words for name, words in ADVICE[kind] if name is None or name not in used][:2])


def score_probes(cases: Sequence[Mapping[str, Case]], score: ScoreCases) -> dict[str, np.ndarray]:
    """Scores by kind of probe, float [triplets]; NaN where there is no such probe or it cannot be scored."""
    kinds = (TRUTH, *KINDS)
    rows = score([list(row.values()) for row in cases])
    told = [dict(zip(row, values, strict=True)) for row, values in zip(cases, rows, strict=True)]
    return {kind: np.array([_number(row.get(kind)) for row in told]) for kind in kinds}


def _number(score: float | None) -> float:
    return float("nan") if score is None else float(score)


def audit(
    scores: Mapping[str, np.ndarray],
    tasks: Sequence[str | None],
    right: Mapping[str, np.ndarray] | None = None,
    threshold: float | None = None,
    used: Collection[str] = (),
) -> dict[str, Any]:
    """Figures and a verdict for each probe.

    Args:
        scores: by kind, float [B], NaN where there is none; `TRUTH` among them.
        tasks: of each case.
        right: for adversaries, whether an oracle takes the picture for right, bool [B]: a right picture that scores
            above the recorded truth is no fault of the reward.
        threshold: of another audit of the same reward; None for the one of these truths.
        used: names of the rewards that are audited, which no verdict advises.

    Returns:
        `threshold`, which `KEPT_TRUTHS` of the truths reach (a `min_score` for reranking); `truth`, their mean and
        number; `probes` by kind: `n`, `mean`, `truth_wins` (share in which the truth scores higher), `as_good` (the
        share in which it does not), `auc` over all cases, `passes` (share that reaches the threshold), `by_task`
        (`as_good` and `n` of each), `level` ('good', 'weak', 'fails', or 'unscored') and `verdict`; with `right` also
        `right` and `fooled` (as good as the truth and wrong), which then decides the level.
    """
    truth = scores[TRUTH]
    known = truth[np.isfinite(truth)]
    if threshold is None and len(known):
        threshold = float(np.quantile(known, 1 - KEPT_TRUTHS))
    probes = {
        kind: _probe(kind, truth, values, tasks, threshold, None if right is None else right.get(kind), used)
        for kind, values in scores.items()
        if kind != TRUTH
    }
    told = {"n": len(known), "mean": float(known.mean()) if len(known) else None}
    return {"threshold": threshold, "truth": told, "probes": probes}


def _probe(
    kind: str,
    truth: np.ndarray,
    fake: np.ndarray,
    tasks: Sequence[str | None],
    threshold: float | None,
    right: np.ndarray | None,
    used: Collection[str],
) -> dict[str, Any]:
    both = np.isfinite(truth) & np.isfinite(fake)
    if not both.any() or threshold is None:
        told = f"{(KINDS | ADVERSARIES)[kind]} could not be scored, so nothing is known of it"
        return {"n": 0, "level": "unscored", "verdict": told}
    as_good = fake[both] >= truth[both]
    pooled = np.concatenate([truth[both], fake[both]])
    names = np.array([task or "unnamed" for task in tasks])[both]
    found: dict[str, Any] = {
        "n": int(both.sum()),
        "mean": float(fake[both].mean()),
        "truth_wins": float(1 - as_good.mean()),
        "as_good": float(as_good.mean()),
        "auc": auc(pooled, np.arange(len(pooled)) < both.sum()),
        "passes": float((fake[both] >= threshold).mean()),
        "by_task": {
            name: {"n": int((names == name).sum()), "as_good": float(as_good[names == name].mean())}
            for name in sorted(set(names))
        },
    }
    if right is not None:
        found |= {"right": float(right[both].mean()), "fooled": float((as_good & ~right[both]).mean())}
    share = found.get("fooled", found["as_good"])
    found["level"] = "good" if share < WEAK else "weak" if share < FAILS else "fails"
    found["verdict"] = _verdict(kind, found, _advice(kind, used))
    return found


def _verdict(kind: str, found: Mapping[str, Any], advice: str) -> str:
    name = (KINDS | ADVERSARIES)[kind]
    if "fooled" in found:
        told = f"{name} scores as well as the truth and is wrong on {found['fooled']:.0%} of actions"
        return told if found["level"] == "good" else f"{told}: {advice}"
    where = {task: entry for task, entry in found["by_task"].items() if entry["n"] >= FEWEST}
    worst = max(where, key=lambda task: where[task]["as_good"], default=None)
    told = f"{name} scores as well as the truth on {found['as_good']:.0%} of actions"
    if worst is not None and where[worst]["as_good"] >= max(WEAK, found["as_good"] + NOTABLE):
        told += f", {where[worst]['as_good']:.0%} of {worst} actions"
    if found["level"] == "good":
        return told
    may = " (some may be right: --world would tell)" if kind in ADVERSARIES else ""
    return f"{told}{may}: {advice}"


def worst_first(found: Mapping[str, Any]) -> list[str]:
    """The verdicts of the probes that are not good, the worst first; empty if there is nothing to say."""
    bad = [entry for entry in found["probes"].values() if entry["level"] != "good"]
    bad.sort(key=lambda entry: -entry.get("fooled", entry.get("as_good", 0.0)))
    return [entry["verdict"] for entry in bad]
