"""Labels for pairs of pictures by an inverse dynamics model (arXiv 2506.06006): words and how sure it is of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl.errors import RewindError
from rl.triplets import Triplet


def label_pairs(idm: Any, pairs: Sequence[Triplet], *, temperature: float = 0.0, seed: int = 0) -> list[Triplet]:
    """Pairs as triplets named by an `InverseDynamics`, scored by the log-likelihood of its words, end included.

    The whole sentence's, not the mean a token: on the tabletop it tells right labels from wrong ones better, since a
    sentence is wrong as soon as one of its words is, and the end and the filling words, which are always sure, do not
    hide that.

    A pair for which it says nothing is left out. Temperature 0 takes the likeliest words; above 0 they are sampled, as
    in the paper.

    Raises:
        RewindError: a pair without a second picture.
    """
    sources, targets = [], []
    for number, pair in enumerate(pairs):
        if pair.target is None:
            raise RewindError(f"pair {number} has no second picture ('output')")
        sources.append(pair.source)
        targets.append(pair.target)
    words = idm.describe(sources, targets, temperature=temperature, seed=seed)
    said = [number for number, text in enumerate(words) if text]
    found = idm.log_probs([sources[n] for n in said], [targets[n] for n in said], [words[n] for n in said])
    return [
        replace(pairs[n], action=words[n], score=float(log_probs.sum()), provenance="idm")
        for n, log_probs in zip(said, found, strict=True)
    ]
