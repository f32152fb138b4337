"""How far an inverse model's labels can be trusted, learned on pairs whose true words are known.

Two fits, both concave and by Newton's method: the weight of a forward model's say in the choice of a sentence, so that
the right one of those drawn for a pair comes first; and the probability that the chosen sentence is right, a logistic
function of its likelihoods, its lead and its share of the samples. That is the expected accuracy of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl.data.labels.labelling import Choice, Proposal, choose
from rl.errors import RewindError
from rl.words import words_of

LEAST = 20
"""Labelled pairs with fewer say nothing."""
MOST_WEIGHT, MOST_MARGIN = 100.0, 20.0
"""Of a forward model's say, and nats of a lead: of a sentence without rivals, too."""
SAME_NATS = 1.0
"""By how much the likelihoods of the true target after two sentences that name the same action may differ."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Calibration:
    """What was learned of so many labelled pairs.

    `weight` is that of `Proposal.verified` in the sum that chooses; `slopes` are of what `evidence` gives after
    `centres` and `scales`.
    `report` holds figures as JSON values: `right_at`, for thresholds of the confidence, gives the share of pairs above
    and the share of right labels among them, each half of the pairs judged by a fit on the other.
    """

    weight: float
    centres: np.ndarray
    scales: np.ndarray
    slopes: np.ndarray
    offset: float
    report: dict[str, Any]

    def confidence(self, choice: Choice) -> float:
        """The probability that a label is right, 0..1."""
        found = evidence(choice)
        if len(found) != len(self.slopes):  # one sentence was drawn, or several
            raise RewindError("labels are calibrated as they were drawn: with as many samples, verified or not")
        return float(_sigmoid((found - self.centres) / self.scales @ self.slopes + self.offset))

    @property
    def card(self) -> dict[str, Any]:
        """All of it as JSON values."""
        fitted = {"centres": self.centres, "scales": self.scales, "slopes": self.slopes}
        numbers = {name: values.tolist() for name, values in fitted.items()}
        return {"weight": self.weight, **self.report, "fit": {**numbers, "offset": self.offset}}


def calibrate(
    sentences: Sequence[Sequence[Proposal]],
    right: Sequence[Callable[[str], bool]],
    num_samples: int,
    weight: float | None = None,
) -> Calibration:
    """Fit both to what was drawn for labelled pairs.

    Args:
        sentences: of each pair, as `propose` draws them.
        right: of each pair, whether a sentence names what happened.
        num_samples: sentences that were drawn a pair.
        weight: of the forward model's say; None to fit it (1 without one).

    Raises:
        RewindError: too few pairs.
    """
    told = [(group, one) for group, one in zip(sentences, right, strict=True) if group]
    if len(told) < LEAST:
        raise RewindError(
            f"{len(told)} labelled pairs with words are too few to calibrate labels: give at least {LEAST}"
        )
    verified = told[0][0][0].verified is not None
    found = 1.0 if weight is None else weight
    if weight is None and verified:
        found = fit_weight(told)
    choices = [_chosen(group, num_samples, found) for group, _ in told]
    hits = np.array([one(choice.text) for choice, (_, one) in zip(choices, told, strict=True)], float)
    rows = np.stack([evidence(choice) for choice in choices])
    report: dict[str, Any] = {"pairs": len(told), "right": float(hits.mean())}
    report["right_among_drawn"] = float(np.mean([any(one(said.text) for said in group) for group, one in told]))
    if verified:
        for name, say in (("right_by_idm", 0.0), ("right_by_fdm", MOST_WEIGHT**3)):
            report[name] = float(np.mean([one(_chosen(group, num_samples, say).text) for group, one in told]))
    report["right_at"] = _right_at(rows, hits)
    return Calibration(found, *_logistic(rows, hits), report)


def evidence(choice: Choice) -> np.ndarray:
    """What speaks for a label, float64: its log-likelihood, its target's if verified, and of several samples how many
    said it and by how much it leads.
    """
    columns = choice.columns
    found = [columns.get("idm_logprob", choice.score)]
    found += [columns["fdm_logprob"]] if "fdm_logprob" in columns else []
    if "share" in columns:
        found += [columns["share"], float(np.clip(columns.get("margin", MOST_MARGIN), -MOST_MARGIN, MOST_MARGIN))]
    return np.array(found)


def same_words(truth: str) -> Callable[[str], bool]:
    """Whether a sentence has the words of another, punctuation and capitals aside."""
    words = words_of(truth)
    return lambda text: words_of(text) == words


def rival_words(truths: Sequence[str]) -> list[str]:
    """For the words of each pair those of the next pair, in a circle, that has other ones; its own if there is none."""
    known, found = [words_of(text) for text in truths], []
    for number, own in enumerate(known):
        others = (other % len(truths) for other in range(number + 1, number + len(truths)))
        found.append(truths[next((other for other in others if known[other] != own), number)])
    return found


def as_likely_as_true(
    truths: Sequence[str],
    true_logprobs: Sequence[float],
    rival_logprobs: Sequence[float],
    sentences: Sequence[Sequence[Proposal]],
) -> list[Callable[[str], bool]]:
    """Whether a verified sentence of a pair names what its true words name, as far as the forward model can tell.

    One action has many phrasings, so that the same words are too much to ask: on the tabletop 16 of 100 sentences of a
    weak inverse model are the true ones, and 47 name the outcome. After a paraphrase the true target is as likely as
    after the true words; after another action it is less likely or, where the forward model errs, more so: both differ
    by more than `SAME_NATS` (docs/findings/few-labels.md). Of a pair where the forward model prefers the true words by
    less than that to another pair's, it cannot tell: there only the same words count.

    Args:
        truths: the true words of each pair.
        true_logprobs: log-likelihood of each pair's target after them, in nats.
        rival_logprobs: the same after another pair's words (`rival_words`).
        sentences: of each pair, verified by the same forward model.
    """

    def of_pair(truth: str, nats: float, rival: float, group: Sequence[Proposal]) -> Callable[[str], bool]:
        tells = nats - rival > SAME_NATS
        near = {one.text for one in group if one.verified is not None and abs(one.verified - nats) <= SAME_NATS}
        same = same_words(truth)
        return lambda text: (tells and text in near) or same(text)

    return [of_pair(*each) for each in zip(truths, true_logprobs, rival_logprobs, sentences, strict=True)]


def fit_weight(told: Sequence[tuple[Sequence[Proposal], Callable[[str], bool]]]) -> float:
    """The weight of `verified` beside `logprob` under which the right sentences of a pair are likeliest among those
    drawn (a conditional logit; of several right ones all count alike); 1 where no pair tells.
    """
    groups, rights = [], []
    for sentences, right in told:
        hits = [number for number, one in enumerate(sentences) if right(one.text)]
        if hits and len(hits) < len(sentences):
            rows = np.array([[one.logprob, one.verified] for one in sentences], float)
            groups.append(rows - rows.mean(0))
            rights.append(hits)
    if not groups:
        return 1.0
    scales = np.sqrt(np.mean([np.mean(rows**2, 0) for rows in groups], 0)) + 1e-9
    slopes = np.zeros(2)
    for _ in range(50):
        gradient, curvature = -0.01 * slopes, 0.01 * np.eye(2)
        for rows, hits in zip(groups, rights, strict=True):
            scaled = rows / scales
            logits = scaled @ slopes
            shares = np.exp(logits - logits.max())
            shares /= shares.sum()
            mean = shares @ scaled
            gradient += scaled[hits].mean(0) - mean
            curvature += (scaled * shares[:, None]).T @ scaled - np.outer(mean, mean)
        slopes += _bounded(np.linalg.solve(curvature, gradient))
    own, other = slopes / scales
    if other <= 0:
        return 0.0 if own > 0 else 1.0
    return float(min(MOST_WEIGHT, other / max(own, 1e-9)))


def _chosen(sentences: Sequence[Proposal], num_samples: int, weight: float) -> Choice:
    choice = choose(sentences, num_samples, weight)
    assert choice is not None
    return choice


def _logistic(rows: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Centres, scales, slopes and offset of the probability of a hit.

    Slopes have a prior of width 1 and are not negative: all evidence speaks for a label; what seems to speak against it
    is chance, or how hard its pictures are.
    """
    centres, spread = rows.mean(0), rows.std(0)
    scales = np.where(spread > 1e-9, spread, 1.0)
    every = np.c_[(rows - centres) / scales, np.ones(len(rows))]
    slopes, used = np.full(every.shape[1], -1.0), np.ones(every.shape[1], bool)
    while (slopes[:-1] < 0).any():
        scaled, slopes = every[:, used], np.zeros(every.shape[1])
        prior = np.r_[np.ones(used.sum() - 1), 1e-3]
        for _ in range(50):
            expected = _sigmoid(scaled @ slopes[used])
            gradient = scaled.T @ (hits - expected) - prior * slopes[used]
            curvature = (scaled * (expected * (1 - expected))[:, None]).T @ scaled + np.diag(prior)
            slopes[used] += _bounded(np.linalg.solve(curvature, gradient))
        used[:-1] &= slopes[:-1] >= 0
    return centres, scales, slopes[:-1], float(slopes[-1])


def _right_at(rows: np.ndarray, hits: np.ndarray) -> dict[str, dict[str, float]]:
    expected = np.zeros(len(hits))
    for half in (0, 1):
        mine = np.arange(len(hits)) % 2 == half
        centres, scales, slopes, offset = _logistic(rows[~mine], hits[~mine])
        expected[mine] = _sigmoid((rows[mine] - centres) / scales @ slopes + offset)
    found = {}
    for threshold in THRESHOLDS:
        above = expected >= threshold
        if above.any():
            found[str(threshold)] = {"share": float(above.mean()), "right": float(hits[above].mean())}
    return found


def _bounded(step: np.ndarray) -> np.ndarray:
    """A step of Newton's method, at most 2 long: far out the curvature says nothing."""
    length = float(np.linalg.norm(step))
    bounded: np.ndarray = step * min(1.0, 2.0 / length) if length else step
    return bounded


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -50, 50)))
