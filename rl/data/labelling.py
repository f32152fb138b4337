"""Labels for pairs of pictures by an inverse dynamics model (arXiv 2506.06006): words and how sure it is of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rl.errors import RewindError
from rl.triplets import Triplet


def label_pairs(idm: Any, pairs: Sequence[Triplet], *, temperature: float = 0.0, seed: int = 0) -> list[Triplet]:
    """Pairs as triplets named by an `InverseDynamics`, scored by the log-likelihood of its words, end included.

    The whole sentence's, not the mean a token: a sentence is wrong as soon as one of its words is, and the end and the
    filling words, which are always sure, must not hide that.

    A pair for which it says nothing is left out. Temperature 0 takes the likeliest words; above 0 they are sampled, as
    in the paper.

    Raises:
        RewindError: a pair without a second picture.
    """
    words = name_pairs(idm, pairs, temperature=temperature, seed=seed)
    return labelled(pairs, words)


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
    sources, targets = [], []
    for number, pair in enumerate(pairs):
        if pair.target is None:
            raise RewindError(f"pair {number} has no second picture ('output')")
        sources.append(pair.source)
        targets.append(pair.target)
    return [tuple(said) for (said,) in idm.name(sources, targets, temperature=temperature, seed=seed)]
