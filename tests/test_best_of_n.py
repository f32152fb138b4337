"""Best-of-N training: which candidates are kept, by hand; their own tokens are what is learned."""

from __future__ import annotations

import numpy as np
import pytest

from rewards import Reward
from rl.errors import RewindError
from rl.models.chameleon import ChameleonVLM
from rl.models.dynamics import ForwardDynamics
from rl.triplets import Candidate, Scored, Triplet
from trainers.best_of_n import Keep, best_candidates
from trainers.sft import role_rows

SOURCE = [1, 1, 1, 1]


def scored(ids: list[int], total: float | None) -> Scored:
    return Scored(Candidate(np.array(ids), np.zeros(4, np.float32), None), {}, total)  # type: ignore[arg-type]


def test_what_is_kept() -> None:
    group = [scored([1, 1, 1, 2], 1.0), scored([1, 1, 2, 2], 4.0), scored([2, 2, 2, 2], None)]
    assert Keep(3).best(group, SOURCE) is group[1]
    assert Keep(3, min_lead=1.5).best(group, SOURCE) is group[1]  # 4 leads the mean of 2.5
    assert Keep(3, min_lead=1.6).best(group, SOURCE) is None
    assert Keep(3, min_changed=2).best(group, SOURCE) is group[1]
    assert Keep(3, min_changed=3).best(group, SOURCE) is None
    assert Keep(3).best(group[2:], SOURCE) is None
    assert Keep(2).best([scored(SOURCE, 9.0), group[0]], SOURCE) is None  # the best is a copy
    for wrong in ({"num_candidates": 1}, {"min_lead": -1.0}, {"min_changed": -1}):
        with pytest.raises(RewindError):
            Keep(**wrong)  # type: ignore[arg-type]


def test_the_best_candidates_own_tokens_are_learned(tiny: ChameleonVLM) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    triplets = [Triplet(picture, "remove all rings", task="count") for picture in pictures]
    first = Reward.of(lambda predicted_ids: [float(ids[0]) for ids in predicted_ids], "first")
    kept, totals = best_candidates(ForwardDynamics(tiny), [first], triplets, Keep(6), seed=3, chunk_size=2)
    assert len(totals) == 30
    assert kept
    for triplet, best in kept:
        group = ForwardDynamics(tiny).sample(triplet.source, triplet.action, 6, seed=3)
        assert best.total == max(c.ids[0] for c in group)
    rows = role_rows(tiny, "fdm", [t for t, _ in kept], candidates=[best.candidate for _, best in kept])
    assert [row["labels"][-4:] for row in rows] == [best.candidate.ids.tolist() for _, best in kept]
