"""Tokens optimised against a reward by greedy search: what a policy could find that only wants to score.

Few queries suffice to see whether a reward can be climbed away from the truth; many more would fool almost any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tqdm.auto import tqdm

from rl.errors import RewindError

PROPOSALS = 16
"""Scores a round."""
ScoreGroups = Callable[[Sequence[np.ndarray]], Sequence[Sequence[float | None]]]
"""Groups of pictures, int64 [candidates, K] each -> a score a candidate, None where it cannot be scored."""


def greedy(
    starts_BK: np.ndarray,
    image_ids_V: np.ndarray,
    score: ScoreGroups,
    queries: int = 256,
    proposals: int = PROPOSALS,
    seed: int = 0,
) -> np.ndarray:
    """Change one token after another, each time to what scores best of a few random proposals.

    A round asks for `proposals` scores a picture, the present one among them, in one group, so that a reward that
    compares within a group can be attacked too. A round without a better proposal changes nothing.

    Args:
        starts_BK: token ids to start from, int64 [B, K], e.g. the sources'.
        image_ids_V: ids that a token may have.
        score: as `ScoreGroups`; one group a picture.
        queries: scores asked for a picture, at most.
        proposals: scores a round, the present picture's included.
        seed: equal seeds, equal proposals.

    Returns:
        The ids found, int64 [B, K].

    Raises:
        RewindError: fewer than two proposals, or queries for less than one round.
    """
    if not 2 <= proposals <= queries:
        raise RewindError(f"an attack needs at least 2 proposals a round and one round, not {proposals} of {queries}")
    rng = np.random.default_rng(seed)
    current_BK = np.array(starts_BK)
    count, length = current_BK.shape
    for _ in tqdm(range(queries // proposals), desc="optimise tokens", unit="round"):
        tried_BPK = np.repeat(current_BK[:, None], proposals, 1)
        places = rng.integers(length, size=(count, proposals - 1))
        tokens = rng.choice(image_ids_V, size=(count, proposals - 1))
        np.put_along_axis(tried_BPK[:, 1:], places[:, :, None], tokens[:, :, None], 2)
        scores = score(list(tried_BPK))
        values_BP = np.array([[-np.inf if x is None else x for x in row] for row in scores])
        current_BK = tried_BPK[np.arange(count), values_BP.argmax(1)]  # the first of equal ones: the present picture
    return current_BK
