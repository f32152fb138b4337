"""Does the premise hold, that the inverse model knows more than the forward model? Before video is labelled and before
reinforcement learning, on labelled triplets that neither was trained on.

The method moves what an inverse model knows into a forward model (arXiv 2506.06006). Where the forward model draws the
truth about as often as labels name it, wrong labels cost more than more data gives: on the tabletop labels that were
right 1.2 times as often as the forward model took 6 points of success, twice as often gave 5, and 21 at the best
temperature (docs/findings/labelled-video.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rl.data.labels.calibration import as_likely_as_true, rival_words
from rl.data.labels.labelling import Proposal
from rl.evaluation.intervals import wilson
from rl.evaluation.oracle import token_f1
from rl.triplets import Triplet
from rl.words import words_of

if TYPE_CHECKING:
    from rl.models.roles import ForwardDynamics

NEEDED_RATIO = 1.5
"""How many times as often as the forward model labels must be right to teach it."""
NEEDED_LABELS = 0.4
"""And how often at least."""
NEEDED_ORDER = 0.65
"""Share of pairs of candidates that a reward must put in the right order; by chance it is one half."""
SHARES = (1.0, 0.75, 0.5, 0.25)
"""Parts of the triplets, the surest first, for which the accuracy of labels is told."""
RIGHT = 0.999
CONFUSED = 5


def likeness(changed_K: np.ndarray, should_K: np.ndarray, differs_K: np.ndarray) -> float:
    """How like its true target a candidate is: of the tokens that changed or should have, the share that is right.

    What neither touches says nothing, or a copy would be nearly right wherever little happens.

    Args:
        changed_K: which tokens of the candidate show something else than the source, bool [K].
        should_K: which of the true target do.
        differs_K: which tokens of the two show different things.
    """
    either = changed_K | should_K
    return float((either & ~differs_K).sum() / either.sum()) if either.any() else 1.0


def ordered(totals_SN: np.ndarray, likeness_SN: np.ndarray) -> float:
    """Chance that of two candidates of a source the one more like the truth has the higher total; ties count half.

    The within-group AUC for graded truth. NaN where no two differ; totals are NaN where there is none.
    """
    right, pairs = 0.0, 0
    for totals_N, alike_N in zip(totals_SN, likeness_SN, strict=True):
        known = np.isfinite(totals_N)
        score, truth = totals_N[known], alike_N[known]
        more = truth[:, None] > truth[None]
        right += float((more & (score[:, None] > score[None])).sum() + 0.5 * (more & (score[:, None] == score)).sum())
        pairs += int(more.sum())
    return right / pairs if pairs else float("nan")


def as_good_as_true(fdm: ForwardDynamics, triplets: Sequence[Triplet], said: Sequence[str]) -> np.ndarray:
    """Whether what was said of each pair names what its true words name (`as_likely_as_true`), bool [S].

    Args:
        fdm: the forward model that tells.
        triplets: with targets and their true words.
        said: a sentence each; none counts as wrong.
    """
    asked = [number for number, text in enumerate(said) if text]
    named = np.zeros(len(said), bool)
    if asked:
        rows = [triplets[number] for number in asked]
        sources, targets = [t.source for t in rows], [t.target for t in rows if t.target is not None]
        words, truths = [said[number] for number in asked], [t.action for t in rows]

        def told(actions: Sequence[str]) -> list[float]:
            return [float(found_K.sum(dtype=np.float64)) for found_K in fdm.log_probs(sources, targets, actions)]

        proposals = [[Proposal(text, 0.0, 1, nats)] for text, nats in zip(words, told(words), strict=True)]
        right = as_likely_as_true(truths, told(truths), told(rival_words(truths)), proposals)
        named[asked] = [names(text) for names, text in zip(right, words, strict=True)]
    return named


def premise(
    actions: Sequence[str],
    said: Sequence[str],
    confidence_S: Sequence[float],
    totals_SN: np.ndarray,
    likeness_SN: np.ndarray,
    named_S: np.ndarray | None = None,
) -> dict[str, Any]:
    """What is known of both models and the reward, and whether to go on.

    Args:
        actions: true sentences of the triplets.
        said: what the inverse model says of each.
        confidence_S: its log-likelihood of that, as `label.py` gives as score.
        named_S: whether that names the action, bool [S] (`as_good_as_true`); without, the same words do.
        totals_SN: the reward's totals of candidates that the forward model drew, float [S, N], NaN where there is none.
        likeness_SN: how like the true target each is (`likeness`).

    Returns:
        `idm`: `exact` (share of the same words), `named` (share that names the action) with `ci95`, `token_f1`,
        `confused` (true, said, how often); `fdm`:
        `right` (share of candidates that are the truth), `likeness`; `reward`: `ordered`, None where no two differ;
        `labels`: for parts of the data, the surest first, `share`, `accuracy` and `min_score`, None without any words;
        `video` and `rl`, 'go', 'above' or 'no', each with its sentence in `verdicts`; `min_score`: the least score of a
        label to train on where `video` is 'above', else None.
    """
    same = np.array([words_of(a) == words_of(b) for a, b in zip(actions, said, strict=True)])
    named = same if named_S is None else named_S
    # Who says nothing is sure of nothing, and has a likelihood of 1; it names no pair, so it tells no least score.
    sure_S = np.where([bool(words_of(text)) for text in said], confidence_S, -np.inf)
    order = np.argsort(-sure_S, kind="stable")
    labels = []
    for share in SHARES:
        part = order[: max(1, round(share * len(order)))]
        scores = sure_S[part][np.isfinite(sure_S[part])]
        least = round(float(scores.min()), 3) if len(scores) else None
        labels.append({"share": share, "accuracy": float(named[part].mean()), "min_score": least})
    wrong = Counter((a, b) for a, b, same in zip(actions, said, named, strict=True) if not same)
    share = ordered(totals_SN, likeness_SN)
    found: dict[str, Any] = {
        "idm": {
            "exact": float(same.mean()),
            "named": float(named.mean()),
            "ci95": list(wilson(int(named.sum()), len(named))),
            "token_f1": float(np.mean([token_f1(b, a) for a, b in zip(actions, said, strict=True)])),
            "confused": [[a, b, count] for (a, b), count in wrong.most_common(CONFUSED)],
            "n": len(named),
        },
        "fdm": {"right": float((likeness_SN >= RIGHT).mean()), "likeness": float(likeness_SN.mean())},
        "reward": {"ordered": share if np.isfinite(share) else None},
        "labels": labels,
    }
    video, about_video, least = _video(labels, found["fdm"]["right"])
    rl, about_rl = _rl(share)
    return found | {"video": video, "rl": rl, "verdicts": [about_video, about_rl], "min_score": least}


def _video(labels: Sequence[dict[str, Any]], right: float) -> tuple[str, str, float | None]:
    needed = max(NEEDED_LABELS, NEEDED_RATIO * right)
    told = f"labels are right for {labels[0]['accuracy']:.0%} and the forward model draws {right:.0%} right"
    good = [part for part in labels if part["accuracy"] >= needed]
    if not good:
        best = max(part["accuracy"] for part in labels)
        sentence = (
            f"do not train on labelled video: {told}; at most {best:.0%} of a surest part are right, and {needed:.0%} "
            "are needed to teach more than wrong labels cost. More labelled triplets help both models"
        )
        return "no", sentence, None
    if good[0]["share"] == 1.0:
        return "go", f"label video: {told}", None
    part, least = f"{good[0]['share']:.0%}", good[0]["min_score"]
    sentence = (
        f"label video, and train on the surest {part} alone (score at least {least}), of which "
        f"{good[0]['accuracy']:.0%} are right: {told}"
    )
    return "above", sentence, least


def _rl(share: float) -> tuple[str, str]:
    if not np.isfinite(share):
        return "no", "nothing to learn from by reward: all candidates of each source are equally like the truth"
    told = f"the reward puts {share:.0%} of pairs of the forward model's candidates in the right order"
    if share >= NEEDED_ORDER:
        return "go", f"train by this reward: {told}"
    return "no", f"do not train by this reward: {told} (50 % is chance, {NEEDED_ORDER:.0%} needed); try a fitted mix"
