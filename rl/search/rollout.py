"""Several actions one after the other: each prediction is the next source (arXiv 2506.06006, section on several steps).

At every step the best of N goes on, or a beam over trajectories does, which are compared by the sum of their totals:
a picture that is second best now may be the one from which the next action can be carried out.

A prediction goes on as the *token ids* that were drawn, not as its picture encoded anew. The ids are what the model
predicted and what the rewards scored; encoding a decoded picture gives other ids in places, so that what should stay
would drift a little at every step, and rewards that count changed tokens would blame the next prediction for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from rl.checks import check_whole
from rl.errors import RewindError
from rl.pictures import Picture
from rl.search.best_of_n import Totals, order, score_once
from rl.triplets import Candidate, Scored

Source: TypeAlias = "Picture | Candidate"
Draw = Callable[[int, Sequence[Source]], Sequence[Sequence[Candidate]]]
"""`draw(step, sources)`: the candidates of each source for the action of a step."""
Judge = Callable[[int, Sequence[Source], Sequence[Candidate]], Sequence[Scored]]
"""`judge(step, sources, candidates)`: one `Scored` a candidate, in order; candidate i is of `sources[i]`."""


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a rollout.

    `best` is what the rollout went on with; with a beam not always the first of `candidates`, which are those drawn
    from the same source, from best to worst. `lead` and `abstained` are as in `Reranked`, for these candidates.
    `passes` of the model behind the prompts were read for all candidates of the step, a beam's other pictures
    included, and `accepted` guesses from the sources came true in them.
    """

    action: str
    best: Scored
    candidates: list[Scored]
    lead: float
    abstained: bool
    passes: int = 0
    accepted: int = 0

    @property
    def image(self) -> Image.Image:
        """The picture after the step."""
        return self.best.image

    @property
    def score(self) -> float | None:
        """Its total; None if nothing scored it."""
        return self.best.total


@dataclass(frozen=True, eq=False)
class _Trajectory:
    """Steps so far, the summed total (None as soon as one is), the summed log-probability, and where it stands."""

    steps: tuple[Step, ...]
    total: float | None
    logprob: float
    end: Source

    def then(self, step: Step) -> _Trajectory:
        total = None if self.total is None or step.score is None else self.total + step.score
        candidate = step.best.candidate
        return _Trajectory((*self.steps, step), total, self.logprob + candidate.logprob, candidate)

    @property
    def rank(self) -> tuple[bool, float, float]:
        """What trajectories are ordered by: unscorable ones last, ties by likelihood."""
        return self.total is not None, self.total or 0.0, self.logprob


def rollout(
    draw: Draw,
    judge: Judge | None,
    source: Picture,
    actions: Sequence[str],
    *,
    beam: int = 1,
    min_score: float | None = None,
    min_lead: float | None = None,
    totals: Totals | None = None,
) -> list[Step]:
    """The steps of the best trajectory.

    Args:
        draw: gives N candidates of each source that it is handed: the given picture, later candidates.
        judge: scores candidates; with None the likelihood chooses, and no step abstains.
        source: where it starts.
        actions: a sentence a step.
        beam: trajectories kept after each step; 1 goes on with the best of N. Of trajectories that have arrived at one
            picture, only the best is kept. Draws N candidates at the first step and up to `beam` times N at others.
        min_score, min_lead: a step has abstained below these; the rollout goes on all the same.
        totals: gives all candidates of a step, of all trajectories, other totals than the judge did.

    Raises:
        RewindError: no action, a beam below 1.
    """
    if not actions:
        raise RewindError("a rollout needs at least one action")
    check_whole("the beam", beam, least=1)
    kept = [_Trajectory((), 0.0, 0.0, source)]
    for number, action in enumerate(actions):
        ends = [trajectory.end for trajectory in kept]
        grown = []
        judged = _scored(judge, number, ends, draw(number, ends))
        if totals is not None:
            each = iter(totals([one for group in judged for one in group]))
            judged = [[next(each) for _ in group] for group in judged]
        for trajectory, scored in zip(kept, judged, strict=True):
            found = order(scored, min_score=min_score, min_lead=min_lead)
            abstained = judge is not None and found.abstained
            grown += [
                trajectory.then(Step(action, one, found.candidates, found.lead, abstained)) for one in found.candidates
            ]
        grown.sort(key=lambda trajectory: trajectory.rank, reverse=True)
        distinct: dict[bytes, _Trajectory] = {}
        for trajectory in grown:
            distinct.setdefault(trajectory.steps[-1].best.candidate.ids.tobytes(), trajectory)
        kept = list(distinct.values())[:beam]
    return list(kept[0].steps)


def _scored(
    judge: Judge | None, step: int, ends: Sequence[Source], groups: Sequence[Sequence[Candidate]]
) -> list[list[Scored]]:
    if judge is None:
        return [[Scored(candidate, {}, None) for candidate in group] for group in groups]
    return score_once(
        lambda numbers, candidates: judge(step, [ends[n] for n in numbers], candidates), range(len(ends)), groups
    )
