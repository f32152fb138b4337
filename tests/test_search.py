"""Best of N: order, lead, abstention, duplicates; and the unbiased estimate against all subsets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from rl import rerank
from rl.errors import RewindError
from rl.models.chameleon import ChameleonVLM
from rl.models.dynamics import ForwardDynamics, InverseDynamics
from rl.search.best_of_n import expected_best
from rl.search.best_of_n import rerank as rerank_candidates
from rl.triplets import Candidate, Scored

ACTION = "move the red circle left"


def candidate(number: int, logprob: float) -> Candidate:
    return Candidate(np.array([number]), np.array([logprob], np.float32), None)  # type: ignore[arg-type]


def test_order_lead_and_ties() -> None:
    drawn = [candidate(0, -3.0), candidate(1, -1.0), candidate(2, -2.0), candidate(1, -1.0), candidate(3, 0.0)]
    totals = {0: 1.0, 1: 5.0, 2: 5.0, 3: None}
    seen: list[int] = []

    def judge(candidates):  # type: ignore[no-untyped-def]
        seen.extend(int(c.ids[0]) for c in candidates)
        return [Scored(c, {"r": totals[int(c.ids[0])]}, totals[int(c.ids[0])]) for c in candidates]

    found = rerank_candidates(lambda: drawn, judge)
    assert seen == [0, 1, 2, 3]  # equal pictures are scored once
    assert [int(s.candidate.ids[0]) for s in found.candidates] == [1, 1, 2, 0, 3]  # ties by likelihood, None last
    assert found.best.score == 5.0
    assert (found.lead, found.abstained) == (0.0, False)
    assert rerank_candidates(lambda: drawn, judge, min_lead=0.1).abstained
    assert rerank_candidates(lambda: drawn[:1], judge, min_score=2.0).abstained
    assert not rerank_candidates(lambda: drawn[:1], judge, min_score=1.0).abstained
    assert rerank_candidates(lambda: drawn[4:], judge).abstained  # nothing could be scored
    assert rerank_candidates(lambda: drawn[:2], judge).lead == 4.0
    with pytest.raises(RewindError, match="no candidate"):
        rerank_candidates(list, judge)


def test_the_estimate_is_the_mean_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    for scores in (rng.permutation(7).astype(float).tolist(), [1.0, 1.0, 0.0, None, 2.0, 2.0, None]):
        values = rng.random(7).tolist()
        lowest = [-np.inf if s is None else s for s in scores]
        for n in range(1, 8):
            brute = []
            for subset in combinations(range(7), n):
                top = max(lowest[i] for i in subset)
                brute.append(np.mean([values[i] for i in subset if lowest[i] == top]))
            assert expected_best(scores, values, n) == pytest.approx(np.mean(brute), abs=1e-12)
        assert expected_best(scores, values, 1) == pytest.approx(np.mean(values))
    with pytest.raises(RewindError, match="best of 8"):
        expected_best([1.0] * 7, [1.0] * 7, 8)


def test_rerank_from_python(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    found = rerank(fdm, idm, source=picture, action=ACTION, num_candidates=6)
    drawn = fdm.sample(picture, ACTION, 6)
    scores = idm.score(picture, drawn, ACTION)
    assert found.best.score == pytest.approx(max(scores), abs=1e-6)
    assert found.best.image.size == (32, 32)
    assert len(found.candidates) == 6
    again = rerank(fdm, idm, source=picture, action=ACTION, num_candidates=6)
    assert [s.total for s in again.candidates] == [s.total for s in found.candidates]

    def bright(completions, **_):  # type: ignore[no-untyped-def]
        return [float(np.asarray(image).mean()) for image in completions]

    mixed = rerank(fdm, idm, picture, ACTION, 4, rewards=["idm_likelihood=0.0", bright])
    assert mixed.best.score == max(bright([s.image for s in mixed.candidates]))
    assert set(mixed.best.scores) == {"idm_likelihood", "bright"}
    alone = rerank(fdm, None, picture, ACTION, 4, rewards=[bright])
    assert alone.best.score == mixed.best.score
