"""Labels for pairs of pictures by an inverse dynamics model (arXiv 2506.06006): words and how sure it is of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from rl.errors import RewindError
from rl.triplets import Candidate, Triplet


class Proposal(NamedTuple):
    """A sentence that was drawn for a pair of pictures.

    `logprob` is its log-likelihood under the inverse model (nats, end included), `times` how often it was drawn,
    `verified` the log-likelihood of the second picture after the first and this sentence under a forward model.
    """

    text: str
    logprob: float
    times: int = 1
    verified: float | None = None


class Choice(NamedTuple):
    """The sentence chosen for a pair, its score, and what else is known of it, by the name of its column."""

    text: str
    score: float
    columns: dict[str, float]


COLUMNS = ("share", "margin", "both_logprob", "idm_logprob", "fdm_logprob", "confidence")
"""Columns that say something of a pair's words."""


@dataclass(frozen=True)
class Naming:
    """How pairs are named.

    Args:
        temperature: 0: the likeliest words; 1: sampled, as in the paper.
        num_samples: sentences a pair.
        seed: same seed, same sentences, in any batch.
        changed_only: a forward model's say counts only the tokens that change between the pictures.
    """

    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0
    changed_only: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 1 or not self.temperature >= 0:
            raise RewindError("a pair takes at least 1 sentence, drawn at a temperature of 0 or more")
        if self.num_samples > 1 and self.temperature == 0:
            raise RewindError(f"at temperature 0 all {self.num_samples} sentences are the same: draw 1, or at 1.0")


def label_pairs(
    idm: Any,
    pairs: Sequence[Triplet],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    num_samples: int = 1,
    fdm: Any = None,
    weight: float = 1.0,
) -> list[Triplet]:
    """Pairs as triplets named by an `InverseDynamics`, scored by the log-likelihood of its words, end included.

    The whole sentence's, not the mean a token: a sentence is wrong as soon as one of its words is, and the end and the
    filling words, which are always sure, must not hide that.

    A pair for which it says nothing is left out. Temperature 0 takes the likeliest words; above 0 they are sampled, as
    in the paper. Of `num_samples` sentences one is chosen, with a `ForwardDynamics` by what that says of it, too, at
    `weight`: see `choose`, whose columns are then in `Triplet.more`.

    Raises:
        RewindError: a pair without a second picture, several sentences at temperature 0.
    """
    groups = propose(idm, pairs, Naming(temperature, num_samples, seed), fdm)
    choices = [choose(group, num_samples, weight) for group in groups]
    return [named(pair, choice) for pair, choice in zip(pairs, choices, strict=True) if choice is not None]


def named(pair: Triplet, choice: Choice) -> Triplet:
    """A pair with the sentence that was chosen for it; what earlier words of its had in columns of labels is gone."""
    more = {name: value for name, value in pair.more.items() if name not in COLUMNS} | choice.columns
    return replace(pair, action=choice.text, score=choice.score, provenance="idm", more=more)


def labelled(pairs: Sequence[Triplet], words: Sequence[tuple[str, float]]) -> list[Triplet]:
    """Pairs with what `name_pairs` said of each, as triplets; those without words are left out."""
    return [
        replace(pair, action=text, score=score, provenance="idm")
        for pair, (text, score) in zip(pairs, words, strict=True)
        if text
    ]


def name_pairs(
    idm: Any, pairs: Sequence[Triplet], *, temperature: float = 0.0, seed: int = 0
) -> list[tuple[str, float]]:
    """What an `InverseDynamics` says of each pair, and the log-likelihood of that (nats; 0 for no words at all)."""
    sources, targets = _pictures(pairs)
    return [tuple(said) for (said,) in idm.name(sources, targets, temperature=temperature, seed=seed)]


def propose(idm: Any, pairs: Sequence[Triplet], how: Naming, fdm: Any = None) -> list[list[Proposal]]:
    """The distinct sentences that an `InverseDynamics` has for each pair, in the order in which they were drawn.

    A pair for which it said nothing has none, and what it did not say counts for no sentence. With a `ForwardDynamics`
    each is verified: how likely the second picture is after it.

    Raises:
        RewindError: a pair without a second picture.
    """
    sources, targets = _pictures(pairs)
    before: list[Candidate] = []
    after: list[Candidate] = []
    if fdm is not None:
        before, after = _encoded(fdm.backbone, sources, targets)
        if idm.backbone is fdm.backbone:  # then it need not encode them again
            sources, targets = before, after
    said = idm.name(sources, targets, how.num_samples, temperature=how.temperature, seed=how.seed)
    found = []
    for group in said:
        times: dict[str, int] = {}
        for text, _ in group:
            times[text] = times.get(text, 0) + 1
        logprobs = dict(reversed(group))  # the first one's: a text has one score, however it was spelt in tokens
        found.append([Proposal(text, logprobs[text], count) for text, count in times.items() if text])
    return found if fdm is None else _verified(fdm, before, after, found, how.changed_only)


def choose(sentences: Sequence[Proposal], num_samples: int = 1, weight: float = 1.0) -> Choice | None:
    """The sentence of a pair that is taken; None if there is none.

    Verified sentences are chosen by log-likelihood + `weight` x `verified`. Others: the most frequent one, of equally
    frequent ones the likeliest. The score is the chosen one's log-likelihood under the inverse model, verified or not:
    how likely a picture is says how easy it is for the forward model, and pairs that are selected by that teach it what
    it knows (docs/findings/few-labels.md). Columns: `share` of the samples that said it and `margin`, its lead
    over the best other one in what it was chosen by (absent if there is none), for several samples; of a verified one
    `both_logprob`, that sum, and its parts `idm_logprob` and `fdm_logprob`.
    """
    if not sentences:
        return None
    judged = sentences[0].verified is not None
    values = [one.logprob + weight * (one.verified or 0.0) if judged else one.logprob for one in sentences]
    orders = [(0 if judged else one.times, value) for one, value in zip(sentences, values, strict=True)]
    best = orders.index(max(orders))
    chosen, columns = sentences[best], {}
    if num_samples > 1:
        columns["share"] = chosen.times / num_samples
    if len(sentences) > 1:
        columns["margin"] = values[best] - max(value for n, value in enumerate(values) if n != best)
    if chosen.verified is not None:
        columns |= {"both_logprob": values[best], "idm_logprob": chosen.logprob, "fdm_logprob": chosen.verified}
    return Choice(chosen.text, chosen.logprob, columns)


def target_logprobs(
    fdm: Any, pairs: Sequence[Triplet], words: Sequence[str], changed_only: bool = False
) -> list[float]:
    """Log-likelihood of each pair's second picture after words about it, in nats, as `propose` verifies with it."""
    before, after = _encoded(fdm.backbone, *_pictures(pairs))
    groups = _verified(fdm, before, after, [[Proposal(text, 0.0)] for text in words], changed_only)
    return [one.verified or 0.0 for (one,) in groups]


def _pictures(pairs: Sequence[Triplet]) -> tuple[list[Any], list[Any]]:
    sources, targets = [], []
    for number, pair in enumerate(pairs):
        if pair.target is None:
            raise RewindError(f"pair {number} has no second picture ('output')")
        sources.append(pair.source)
        targets.append(pair.target)
    return sources, targets


def _encoded(vlm: Any, sources: Sequence[Any], targets: Sequence[Any]) -> tuple[list[Candidate], list[Candidate]]:
    """Pictures as candidates, whose ids are known."""
    source_codes = vlm.codes(sources)
    target_codes = vlm.codes(targets, source_codes)
    before, after = (
        [Candidate(np.array(ids), np.zeros(len(ids), np.float32), vlm, ids.grid) for ids in codes]
        for codes in (source_codes, target_codes)
    )
    return before, after


def _verified(
    fdm: Any,
    sources: Sequence[Candidate],
    targets: Sequence[Candidate],
    groups: Sequence[Sequence[Proposal]],
    changed_only: bool,
) -> list[list[Proposal]]:
    """The sentences with the log-likelihood of the target's tokens, all or those that change."""
    rows = [(pair, one.text) for pair, group in enumerate(groups) for one in group]
    log_probs = fdm.log_probs(
        [sources[pair] for pair, _ in rows], [targets[pair] for pair, _ in rows], [text for _, text in rows]
    )
    counted = {}
    for (pair, text), found_K in zip(rows, log_probs, strict=True):
        here = fdm.backbone.changed(sources[pair].ids, targets[pair].ids) if changed_only else slice(None)
        counted[pair, text] = float(found_K[here].sum(dtype=np.float64))
    return [[one._replace(verified=counted[pair, one.text]) for one in group] for pair, group in enumerate(groups)]
