"""Pictures to try a reward on: the true target, and what must not score as well.

Everything is a list of image tokens, since that is all a policy can draw: a darkened or blurred picture is what the
tokenizer makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from rl.codes import Grid
from rl.errors import RewindError
from rl.pictures import Picture
from rl.triplets import Triplet
from rl.words import words_of

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

TRUTH = "truth"
KINDS = {
    "copy": "the copied source",
    "swapped": "the source, told to come from the target",
    "other_target": "another sample's target",
    "wrong_action": "the true target under another sample's action",
    "counterfactual_action": "the true target under the action with one word exchanged",
    "shuffled": "the true target with its tokens shuffled",
    "darkened": "the darkened true target",
    "blurred": "the blurred true target",
    "noise": "static noise",
    "damaged": "the true target with unrelated damage",
}
"""Probes in the order of a report, in words that a sentence can begin with."""
TRIES = 100
DARKER = 0.5
"""Brightness of a darkened picture, of the true target's."""

EditAction = Callable[[str], Sequence[str]]
Tells = Callable[[int, str], bool]
"""`(number of the triplet, action) -> whether it leads to the true target`, where a world can tell."""


@dataclass(frozen=True, eq=False)
class Case:
    """One question to a reward: `ids_K` int64 [K] predicted from `source` for `action`.

    `target` is the true target, and None where source or action are not the triplet's own. `more` are the triplet's
    further columns.
    """

    source: Picture
    action: str
    ids_K: np.ndarray
    target: Picture | None = None
    task: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


def build(
    triplets: Sequence[Triplet], vlm: UnifiedVLM, edit: EditAction, leads_there: Tells | None = None, seed: int = 0
) -> list[dict[str, Case]]:
    """For each triplet its probes by kind, the truth (`TRUTH`) among them; a kind that it has none of is left out.

    Args:
        triplets: with targets.
        vlm: whose image tokens the reward reads.
        edit: an action with one word exchanged, in all the ways there are (`rewards.rivals.word_edits`).
        leads_there: keeps actions that name the true outcome in other words out of the wrong ones.
        seed: equal seeds, equal probes.

    Raises:
        RewindError: fewer than two triplets, or one without a target.
    """
    if len(triplets) < 2 or any(t.target is None for t in triplets):
        raise RewindError("an audit needs at least two triplets, and a true target ('output') in each")
    rng = np.random.default_rng(seed)
    targets = [vlm.to_array(t.target) for t in triplets]  # type: ignore[arg-type]
    source_BK = vlm.encode([t.source for t in triplets]).cpu().numpy()
    target_BK = vlm.encode(targets).cpu().numpy()
    other_B = rng.permutation(len(triplets))
    other_B = np.where(other_B == np.arange(len(triplets)), (other_B + 1) % len(triplets), other_B)
    changed = {
        "darkened": [(image * DARKER).astype(np.uint8) for image in targets],
        "blurred": [_blurred(image) for image in targets],
        "noise": [rng.integers(0, 256, image.shape, dtype=np.uint8) for image in targets],
    }
    pictures = {kind: vlm.encode(images).cpu().numpy() for kind, images in changed.items()}
    found = []
    for number, (t, source, target) in enumerate(zip(triplets, source_BK, target_BK, strict=True)):
        other = int(other_B[number])
        predicted = {
            TRUTH: target,
            "copy": source,
            "other_target": target_BK[other],
            "shuffled": rng.permutation(target),
            "damaged": _damaged(source, target, target_BK[other], vlm.layout.grammar.grid),
            **{kind: ids_BK[number] for kind, ids_BK in pictures.items()},
        }
        cases = {kind: Case(t.source, t.action, ids, t.target, t.task, t.more) for kind, ids in predicted.items()}
        cases["swapped"] = Case(targets[number], t.action, source, None, t.task, t.more)
        draws = (triplets[int(rng.integers(len(triplets)))].action for _ in range(TRIES))
        for kind, actions in (("wrong_action", draws), ("counterfactual_action", iter(edit(t.action)))):
            wrong = next((a for a in actions if _differs(number, t.action, a, leads_there)), None)
            if wrong is not None:
                cases[kind] = Case(t.source, wrong, target, None, t.task, t.more)
        found.append(cases)
    return found


def _differs(number: int, action: str, other: str, leads_there: Tells | None) -> bool:
    same_words = words_of(action) == words_of(other)
    return not same_words and not (leads_there is not None and leads_there(number, other))


def _blurred(image: np.ndarray) -> np.ndarray:
    """Blurred so that an object of an eighth of the picture is only a spot."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(image.shape[0] / 16)))


def _damaged(source_K: np.ndarray, target_K: np.ndarray, other_K: np.ndarray, grid: Grid) -> np.ndarray:
    """The target with a part of another picture's tokens, a quarter of its height and width, where the action changed
    least.
    """
    shape = (grid.rows, grid.columns)
    before, after, other = (ids.reshape(shape) for ids in (source_K, target_K, other_K))
    high, wide = (max(1, side // 4) for side in shape)
    best: tuple[float, int, int] | None = None
    for top in range(0, grid.rows - high + 1, high):
        for left in range(0, grid.columns - wide + 1, wide):
            part = np.s_[top : top + high, left : left + wide]
            # The action must stay done, and the damage must be seen.
            cost = float((before[part] != after[part]).mean() * 2 - (other[part] != after[part]).mean())
            if best is None or cost < best[0]:
                best = (cost, top, left)
    assert best is not None
    _, top, left = best
    damaged = after.copy()
    damaged[top : top + high, left : left + wide] = other[top : top + high, left : left + wide]
    return damaged.reshape(-1)
