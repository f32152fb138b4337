"""What `scripts/fit_reward.py` does: candidates of labelled triplets, their scores, weights, the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rewards import Reward
from rewards.fitting import Fit, fit, numbers_of
from rewards.mix import MIX_FILE
from rl.data.candidates.store import Group
from rl.errors import RewindError
from rl.evaluation.premise import likeness
from rl.models.inputs import token_ids
from rl.models.unified import UnifiedVLM
from rl.report.markdown import table
from rl.running.files import write_whole
from trainers.rerank.usual_change import UsualChange

AT_ONCE = 256
"""Groups of candidates that are held at once."""
KEEP = "keep_unchanged"


def check_terms(rewards: Sequence[Reward]) -> None:
    """Raise a `RewindError` for a reward that needs what nobody knows where the mix is to choose."""
    for reward in rewards:
        if "target_image" in reward.asks_for:
            raise RewindError(
                f"the reward '{reward.name}' asks for the true target, which is not known where a mix "
                "chooses: leave it out"
            )


def measured(
    vlm: UnifiedVLM, groups: Iterable[Group], names: Sequence[str], usual: UsualChange | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """What each term says of each candidate, float [S, N, R], how like the true target each is, float [S, N], and how
    many groups are left out, for a term gave some candidate no score. `AT_ONCE` groups are held at once.

    With `usual`, which knows these very triplets in this order, `keep_unchanged` goes by the other ones alone.
    """
    terms: list[list[list[float | None]]] = []
    alike: list[np.ndarray] = []
    left, seen, coming = 0, 0, iter(groups)
    while part := list(islice(coming, AT_ONCE)):
        told = [[[one.scores[name] for name in names] for one in group] for _, group in part]
        if usual is not None and KEEP in names:
            _by_the_others(vlm, part, told, names.index(KEEP), usual, seen)
        seen += len(part)
        whole = [all(score is not None for row in rows for score in row) for rows in told]
        terms += [rows for rows, is_whole in zip(told, whole, strict=True) if is_whole]
        alike += [*likeness_of(vlm, [group for group, is_whole in zip(part, whole, strict=True) if is_whole])]
        left += whole.count(False)
    if not terms:
        raise RewindError(f"no candidate has a score by all of {', '.join(names)}: leave out what cannot score them")
    return np.array(terms, dtype=float), np.array(alike), left


def _by_the_others(
    vlm: UnifiedVLM,
    groups: Sequence[Group],
    told: list[list[list[float | None]]],
    term: int,
    usual: UsualChange,
    first: int,
) -> None:
    """Put into `told`, [S][N][R], as the term `keep_unchanged` what the other triplets let free; `first` is the number
    of the first group.
    """
    sources = map(np.array, token_ids(vlm, [triplet.source for triplet, _ in groups]))
    for number, (source, (_, group), rows) in enumerate(zip(sources, groups, told, strict=True), first):
        changed = [int(vlm.changed(one.candidate.ids, source).sum()) for one in group]
        for row, value in zip(rows, usual.charges(number, changed), strict=True):
            row[term] = value


def likeness_of(vlm: UnifiedVLM, groups: Sequence[Group]) -> np.ndarray:
    """How like its true target each candidate is (`rl.evaluation.premise.likeness`), float [S, N]."""
    sources = token_ids(vlm, [triplet.source for triplet, _ in groups])
    targets = token_ids(vlm, [triplet.target for triplet, _ in groups if triplet.target is not None])
    alike = []
    for source, target, (_, group) in zip(map(np.array, sources), map(np.array, targets), groups, strict=True):
        should, ids = vlm.changed(target, source), [one.candidate.ids for one in group]
        alike.append([likeness(vlm.changed(x, source), should, vlm.changed(x, target)) for x in ids])
    return np.array(alike)


def fitted(
    groups: Iterable[Group], rewards: Sequence[Reward], vlm: UnifiedVLM, usual: UsualChange | None = None
) -> tuple[Fit, dict[str, Any]]:
    """Weights for rewards, and what is to be said of them; `usual` where `keep_unchanged` has learned from these very
    triplets.
    """
    names = [reward.name for reward in rewards]
    terms_SNR, likeness_SN, left = measured(vlm, groups, names, usual)
    found = fit(terms_SNR, likeness_SN)
    about = {
        "triplets": len(likeness_SN),
        "left_out": left,
        "num_candidates": likeness_SN.shape[1],
        "likeness": {
            "mix": found.by_n,
            "held_out": found.held_out,
            **dict(zip(names, found.alone, strict=True)),
            "most_like": found.best,
        },
    }
    return found, about


def mix_of_fit(
    found: Fit, paths: Sequence[str], names: Sequence[str], arguments: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, Any]:
    """What `reward.json` holds: terms with a weight, in units of the first of them, their arguments, and those of the
    terms without a weight (`unused_arguments`), for who names one of them beside the mix.

    Where one term alone clearly chooses better than the mix on triplets that it was not fitted on, that term alone.
    """
    best, weights = better_alone(found), found.weights
    if best is not None:
        weights = [float(number == best) for number in range(len(names))]
    unit = next(weight for weight in weights if weight > 0)
    kept = [(path, name, weight / unit) for path, name, weight in zip(paths, names, weights, strict=True)]
    return {
        "rewards": [f"{path}={weight:.4g}" for path, _, weight in kept if weight > 0],
        "reward_arguments": {name: arguments[name] for _, name, weight in kept if weight > 0 and name in arguments},
        "unused_arguments": {name: arguments[name] for _, name, weight in kept if weight <= 0 and name in arguments},
        **about,
    }


def better_alone(found: Fit) -> int | None:
    """The number of the term that alone chooses better than the mix on triplets that the mix was not fitted on, by more
    than two standard errors; None if none does.

    Where the two are alike the mix is the better bet: it goes on rising with more candidates.
    """
    leads = [lead - 2 * error for lead, error in found.leads]
    best = int(np.argmax(leads))
    return best if leads[best] > 0 else None


def write_mix(mix: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """`reward.json` into each folder."""
    for folder in folders:
        write_whole(folder / MIX_FILE, json.dumps(mix, indent=1) + "\n")


def in_words(mix: Mapping[str, Any], names: Sequence[str]) -> str:
    """A table of how like the truth the chosen of n is, by the mix and by each term alone, and what was found."""
    told, numbers = mix["likeness"], numbers_of(mix["num_candidates"])
    rows = {"the mix, on triplets it was not fitted on": "held_out", **{f"{name} alone": name for name in names}}
    rows["the most like of them"] = "most_like"
    lines = [[row, *(f"{told[key][n]:.3f}" for n in numbers)] for row, key in rows.items()]
    alone = len(mix["rewards"]) == 1
    verdict = f"{'no mix chooses better than one term alone' if alone else 'fitted'}: {' '.join(mix['rewards'])}"
    return "\n".join([table(["likeness of the best of", *map(str, numbers)], lines), verdict])
