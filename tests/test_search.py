"""Search at inference: best of N, early stop, rollouts, refinement; by hand with fakes and on real bases."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from rewards import Reward, load_rewards
from rewards.totals import normalised
from rl import rerank, rollout
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.search.best_of_n import Reranked, expected_best, order
from rl.search.best_of_n import rerank as rerank_candidates
from rl.search.rollout import rollout as roll_out
from rl.triplets import Candidate, Scored, Triplet
from trainers.common.candidates import scored_groups

ACTION = "move the red circle left"


def candidate(number: int, logprob: float = 0.0) -> Candidate:
    return Candidate(np.array([number]), np.array([logprob], np.float32), None)  # type: ignore[arg-type]


def scored(c: Candidate, total: float | None) -> Scored:
    return Scored(c, {"r": total}, total)


def test_order_lead_and_ties() -> None:
    drawn = [candidate(0, -3.0), candidate(1, -1.0), candidate(2, -2.0), candidate(1, -1.0), candidate(3, 0.0)]
    totals = {0: 1.0, 1: 5.0, 2: 5.0, 3: None}
    seen: list[int] = []

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        seen.extend(int(c.ids[0]) for c in candidates)
        assert list(numbers) == [0] * len(candidates)
        return [scored(c, totals[int(c.ids[0])]) for c in candidates]

    def best(some: list[Candidate], **rules: Any) -> Reranked:
        return rerank_candidates(lambda numbers, first, count: [some], judge, 1, len(some), **rules)[0]

    found = best(drawn)
    assert seen == [0, 1, 2, 3]  # equal pictures are scored once
    assert [int(s.candidate.ids[0]) for s in found.candidates] == [1, 1, 2, 0, 3]  # ties by likelihood, None last
    assert found.best.score == 5.0
    assert (found.lead, found.abstained, found.sampled_tokens) == (0.0, False, 5)
    assert best(drawn, min_lead=0.1).abstained
    assert best(drawn[:1], min_score=2.0).abstained
    assert not best(drawn[:1], min_score=1.0).abstained
    assert best(drawn[4:]).abstained  # nothing could be scored
    assert best(drawn[:2]).lead == 4.0
    with pytest.raises(RewindError, match="no candidate"):
        order([])


def test_an_early_stop_draws_no_more_than_twice_what_it_needs() -> None:
    """Candidate n of source s scores n + 10 s; both stop at the first power of two that holds a good one."""
    drawn: list[tuple[list[int], int, int]] = []

    def draw(numbers: Sequence[int], first: int, count: int) -> list[list[Candidate]]:
        drawn.append((list(numbers), first, count))
        return [[candidate(n, 0.0) for n in range(first, first + count)] for _ in numbers]

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        return [scored(c, float(c.ids[0]) + 10 * n) for n, c in zip(numbers, candidates, strict=True)]

    found = rerank_candidates(draw, judge, 3, 12, good_enough=3.0)
    assert drawn == [([0, 1, 2], 0, 1), ([0], 1, 1), ([0], 2, 2)]  # source 0 has a 3 among its first 4
    assert [len(one.candidates) for one in found] == [4, 1, 1]
    assert [one.saved for one in found] == [8, 11, 11]
    assert [one.best.total for one in found] == [3.0, 10.0, 20.0]
    (never,) = rerank_candidates(draw, judge, 1, 12, good_enough=99.0)
    assert (len(never.candidates), never.saved) == (12, 0)
    (led,) = rerank_candidates(draw, judge, 1, 12, good_enough=0.0, min_lead=1.0)
    assert len(led.candidates) == 2  # one candidate alone leads nobody


def test_a_beam_finds_a_better_sum_than_the_best_of_each_step() -> None:
    """From 0, picture 1 scores 1.0 and 2 scores 0.9; from 1 only 0.0 can be reached, from 2 also 0.5."""
    graph = {0: {1: 1.0, 2: 0.9, 3: 0.1}, 1: {4: 0.0, 5: -1.0}, 2: {4: -0.3, 6: 0.5}, 3: {6: 0.2}}
    cost: list[int] = []

    def number_of(source: Any) -> int:
        return int(source.ids[0]) if isinstance(source, Candidate) else 0

    def draw(step: int, sources: Sequence[Any]) -> list[list[Candidate]]:
        cost.append(len(sources))
        return [[candidate(n) for n in graph[number_of(source)]] for source in sources]

    def judge(step: int, sources: Sequence[Any], candidates: Sequence[Candidate]) -> list[Scored]:
        return [scored(c, graph[number_of(s)][int(c.ids[0])]) for s, c in zip(sources, candidates, strict=True)]

    start = np.zeros((2, 2, 3), np.uint8)
    path = lambda steps: [(int(step.best.candidate.ids[0]), step.score) for step in steps]  # noqa: E731
    assert path(roll_out(draw, judge, start, ["a", "b"])) == [(1, 1.0), (4, 0.0)]
    steps = roll_out(draw, judge, start, ["a", "b"], beam=2)
    assert path(steps) == [(2, 0.9), (6, 0.5)]
    assert cost == [1, 1, 1, 2]
    assert [int(s.candidate.ids[0]) for s in steps[0].candidates] == [1, 2, 3]  # the best of the step was another
    assert steps[0].lead == pytest.approx(0.1)
    assert [step.abstained for step in roll_out(draw, judge, start, ["a", "b"], min_score=0.5)] == [False, True]
    assert not roll_out(draw, None, start, ["a"])[0].abstained  # nobody was asked
    for wrong in ({"actions": []}, {"actions": ["a"], "beam": 0}):
        with pytest.raises(RewindError):
            roll_out(draw, judge, start, **wrong)  # type: ignore[arg-type]


def test_of_trajectories_that_meet_only_the_best_goes_on() -> None:
    seen: list[list[int]] = []

    def draw(step: int, sources: Sequence[Any]) -> list[list[Candidate]]:
        seen.append([int(s.ids[0]) if isinstance(s, Candidate) else 0 for s in sources])
        return [[candidate(7), candidate(7), candidate(8)] for _ in sources]

    def judge(step: int, sources: Sequence[Any], candidates: Sequence[Candidate]) -> list[Scored]:
        return [scored(c, -float(c.ids[0])) for c in candidates]

    roll_out(draw, judge, np.zeros((2, 2, 3), np.uint8), ["a", "b", "c"], beam=2)
    assert seen == [[0], [7, 8], [7, 8]]


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
    for wrong in (lambda: rerank(idm, fdm, picture, ACTION), lambda: rollout(idm, picture, [ACTION], fdm)):  # type: ignore[arg-type]
        with pytest.raises(RewindError, match="the inverse one judges: swap the two"):
            wrong()
    with pytest.raises(RewindError, match="good_enough must be a number, not nan"):
        rerank(fdm, idm, picture, ACTION, good_enough=float("nan"))


def test_terms_are_normalised_among_a_sources_candidates() -> None:
    """Pictures 0, 0, 1, 2 of terms 0, 0, 3, 6 and 0, 0, 0, -0.1; the picture drawn twice counts twice, as in GRPO."""
    first, second = Reward.of(lambda prompts: [], "first"), Reward.of(lambda prompts: [], "second", 2.0)
    terms = {0: (0.0, 0.0), 1: (3.0, 0.0), 2: (6.0, -0.1)}

    def judge(numbers: Sequence[int], candidates: Sequence[Candidate]) -> list[Scored]:
        pairs = [terms[int(c.ids[0])] for c in candidates]
        return [
            Scored(c, dict(zip(("first", "second"), p, strict=True)), p[0] + 2 * p[1])
            for c, p in zip(candidates, pairs, strict=True)
        ]

    drawn = [candidate(n) for n in (0, 0, 1, 2)]
    plain, normal = (
        rerank_candidates(lambda numbers, first, count: [drawn], judge, 1, 4, totals=totals)[0]
        for totals in (None, lambda group: normalised([first, second], group))
    )
    assert [int(s.candidate.ids[0]) for s in plain.candidates] == [2, 1, 0, 0]
    assert [int(s.candidate.ids[0]) for s in normal.candidates] == [1, 0, 0, 2]
    # means 2.25 and -0.025, standard deviations (of 4 - 1) 2.8723 and 0.05; 1e-4 is added to each
    assert [s.total for s in normal.candidates] == pytest.approx([1.2590, 0.2150, 0.2150, -1.6890], abs=1e-3)
    assert normal.lead == pytest.approx(1.2590 - 0.2150, abs=1e-3)
    assert normal.best.scores == {"first": 3.0, "second": 0.0}  # by name they stay as they are


def test_a_beam_compares_normalised_totals_of_all_its_pictures() -> None:
    """Of step 2's candidates 4 and 5 (from 1) and 6 (from 2), 6 is far the best, though alone in its group."""
    graph = {0: {1: 1.0, 2: 0.9}, 1: {4: 0.0, 5: -1.0}, 2: {6: 5.0}}
    reward = Reward.of(lambda prompts: [], "r")
    number_of = lambda source: int(source.ids[0]) if isinstance(source, Candidate) else 0  # noqa: E731

    def draw(step: int, sources: Sequence[Any]) -> list[list[Candidate]]:
        return [[candidate(n) for n in graph[number_of(source)]] for source in sources]

    def judge(step: int, sources: Sequence[Any], candidates: Sequence[Candidate]) -> list[Scored]:
        return [scored(c, graph[number_of(s)][int(c.ids[0])]) for s, c in zip(sources, candidates, strict=True)]

    start = np.zeros((2, 2, 3), np.uint8)
    steps = roll_out(draw, judge, start, ["a", "b"], beam=2, totals=lambda group: normalised([reward], group))
    assert [int(step.best.candidate.ids[0]) for step in steps] == [2, 6]
    assert steps[1].score == pytest.approx((5 - 4 / 3) / np.std([0.0, -1.0, 5.0], ddof=1), abs=1e-3)


def test_normalised_totals_are_those_of_the_training_recipes(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    names = ["idm_likelihood=1.0", "keep_unchanged=0.25"]
    rewards = load_rewards(names, idm)
    ((_, group),) = scored_groups(fdm, rewards, [Triplet(picture, ACTION)], 6, normalise=True)
    found = rerank(fdm, idm, picture, ACTION, 6, names, normalise=True)
    assert found.best.total == pytest.approx(max(s.total or 0 for s in group), abs=1e-4)
    assert sorted(s.total or 0 for s in found.candidates) == pytest.approx(
        sorted(s.total or 0 for s in group), abs=1e-4
    )
    assert sum(s.total or 0 for s in found.candidates) == pytest.approx(0.0, abs=1e-5)
    (step,) = rollout(fdm, picture, [ACTION], idm, 6, names, normalise=True)
    assert step.score == pytest.approx(found.best.total, abs=1e-4)
    for rules in ({"min_score": 0.0}, {"good_enough": 1.0}, {"refine": 1}):
        with pytest.raises(RewindError, match=f"leave out {next(iter(rules))}, or the normalisation"):
            rerank(fdm, idm, picture, ACTION, 6, names, normalise=True, **rules)
    with pytest.raises(RewindError, match="leave out min_score"):
        rollout(fdm, picture, [ACTION], idm, 6, names, normalise=True, min_score=0.0)
