"""Groups of scored candidates to learn from: drawn and scored now, or read from a store of what was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from rewards import Batch, Reward, score, scorers
from rl.data.columns import columns_text
from rl.data.store import CandidateStore, Group, Known, candidate_key, picture_key, scorer_key, store_of
from rl.errors import RewindError
from rl.models.roles import ForwardDynamics
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate, Scored, Triplet, columns_of
from trainers.common.arguments import DrawArguments

Drawn = tuple[Triplet, Sequence[Candidate]]


def batch_of(groups: Sequence[Drawn]) -> Batch:
    """Groups of candidates as rewards take them, one entry a candidate."""
    rows = [(triplet, candidate) for triplet, group in groups for candidate in group]
    return Batch(
        [triplet.action for triplet, _ in rows],
        [candidate for _, candidate in rows],
        [triplet.source for triplet, _ in rows],
        [triplet.target for triplet, _ in rows],
        [triplet.task for triplet, _ in rows],
        more=[triplet.more for triplet, _ in rows],
    )


def score_unknown(
    rewards: Sequence[Reward], groups: Sequence[Drawn], known: Known, normalise: bool = False
) -> list[list[Scored]]:
    """Scores by every reward and their sum (`rewards.score`); what is known already is not asked again.

    A reward may compare the candidates of a group, so it sees a group whole or, if it has scored all of it, not at all.
    """
    keys = [(picture_key(triplet.source), columns_text(triplet.more)) if known else ("", None) for triplet, _ in groups]
    found = [
        [known.get(candidate_key(key, triplet.action, candidate.ids, more), {}) for candidate in group]
        for (key, more), (triplet, group) in zip(keys, groups, strict=True)
    ]
    answers = []
    for reward in rewards:
        new = [not all(reward.name in scores for scores in group) for group in found]
        asked = [group for group, is_new in zip(groups, new, strict=True) if is_new]
        fresh = iter(reward(batch_of(asked)) if asked else [])
        values: list[float | None] = []
        for group, is_new in zip(found, new, strict=True):
            values += [next(fresh) if is_new else scores[reward.name] for scores in group]
        answers.append(_answering(reward, values))
    scored = iter(score(answers, batch_of(groups), normalise))
    return [[next(scored) for _ in group] for _, group in groups]


def scored_groups(
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    num_candidates: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    chunk_size: int = 32,
    max_rows: int | None = None,
    normalise: bool = False,
    store: CandidateStore | None = None,
) -> Iterator[tuple[Triplet, list[Scored]]]:
    """Candidates of each triplet's source and action with their scores, drawn a chunk of triplets at a time.

    At most `max_rows` candidates are decoded at once. Several processes share the triplets; each gets all groups, and
    the same ones as a single process would. With `store`, each chunk is written to it, and what it has scores for is
    not scored again. `normalise` is `rewards.score`'s.
    """
    rewards = [reward.on(columns_of(triplets)) for reward in rewards]
    state = PartialState()
    mine = [triplets[number] for number in range(state.process_index, len(triplets), state.num_processes)]
    known = store.known_scores() if store is not None else {}

    def share() -> Iterator[list[Scored]]:
        for start in range(0, len(mine), chunk_size):
            part = mine[start : start + chunk_size]
            sources, actions = [triplet.source for triplet in part], [triplet.action for triplet in part]
            how: Any = {"temperature": temperature, "seed": seed, "step": step, "max_rows": max_rows}
            drawn = fdm.sample(sources, actions, num_candidates, **how)
            scored = score_unknown(rewards, list(zip(part, drawn, strict=True)), known, normalise)
            if store is not None:
                store.append(list(zip(part, scored, strict=True)), seed=seed, step=step)
            yield from scored

    if state.num_processes == 1:
        yield from zip(triplets, share(), strict=True)
        return
    numbers = range(state.process_index, len(triplets), state.num_processes)
    plain = [
        (number, [(s.candidate.ids, s.candidate.logprobs, s.candidate.grid, s.scores, s.total) for s in group])
        for number, group in zip(numbers, share(), strict=True)
    ]
    for number, group in sorted(gather_object(plain), key=lambda pair: pair[0]):
        yield triplets[number], [Scored(Candidate(a, b, fdm.backbone, g), c, d) for a, b, g, c, d in group]


def stored_groups(
    folders: Sequence[str], vlm: UnifiedVLM, rewards: Sequence[Reward], idm: str | None, normalise: bool = False
) -> list[Group]:
    """The groups of stores (or of run folders that hold one), with totals under the given rewards and weights.

    Raises:
        RewindError: a folder without candidates, or with those of another base.
    """
    found: list[Group] = []
    for folder in folders:
        store = store_of(folder)
        groups = [(triplet, [s.candidate for s in group]) for triplet, group in store.groups(vlm)]
        known = CandidateStore(store.folder, idm, scorers(rewards)).known_scores()
        here = [reward.on(columns_of(triplet for triplet, _ in groups)) for reward in rewards]
        scored = score_unknown(here, groups, known, normalise)
        found += [(triplet, group) for (triplet, _), group in zip(groups, scored, strict=True)]
    if not found:
        raise RewindError(f"no candidate could be read from {', '.join(folders)}")
    return found


def stored_triplets(arguments: DrawArguments) -> list[Triplet]:
    """What the candidates of `--candidates` were drawn for; empty without them.

    Raises:
        RewindError: candidates together with what only fresh ones can give.
    """
    if not arguments.candidates:
        return []
    if arguments.triplets:
        raise RewindError("give either --triplets to draw candidates for, or --candidates that are drawn already")
    if arguments.rounds != 1:
        raise RewindError("stored candidates serve one round, and the next needs fresh ones: use --rounds 1")
    return [triplet for folder in arguments.candidates for triplet in store_of(folder).triplets()]


def groups_of_round(
    arguments: DrawArguments,
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    seed: int,
    number: int,
    output: Path,
) -> list[Group]:
    """The scored groups that a round learns from: the stored ones, or fresh ones, which go to `output/candidates`."""
    asked = scorer_key(arguments.idm, arguments.reward_arguments)
    if arguments.candidates:
        normalise = arguments.normalise_rewards
        return stored_groups(arguments.candidates, fdm.backbone, rewards, asked, normalise)
    store = CandidateStore(output / "candidates", asked, scorers(rewards))
    count, temperature = arguments.num_candidates, arguments.temperature
    groups = scored_groups(
        fdm,
        rewards,
        triplets,
        count,
        temperature=temperature,
        seed=seed,
        step=number,
        max_rows=arguments.max_rows,
        normalise=arguments.normalise_rewards,
        store=store,
    )
    return list(groups)


def _answering(reward: Reward, values: list[float | None]) -> Reward:
    """A reward that gives the scores that are known by now."""
    return Reward(reward.name, reward.weight, lambda: values, ())
