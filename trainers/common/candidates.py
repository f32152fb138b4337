"""Groups of scored candidates to learn from: drawn and scored now, or read from a store of what was."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from rewards import Batch, Reward, score, scorers
from rl.data.candidates.part_folder import PartFolder
from rl.data.candidates.store import CandidateStore, Group, Known, candidate_key, picture_key, scorer_key, store_of
from rl.data.columns import columns_text
from rl.errors import RewindError
from rl.models.partial_attention import chunks
from rl.models.roles import ForwardDynamics
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate, Scored, Triplet, columns_of
from trainers.common.arguments import DrawArguments

logger = logging.getLogger("rl")
Drawn = tuple[Triplet, Sequence[Candidate]]
MANY = 64
"""Parts of a store beyond which a run makes few big ones of them at its end."""


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
) -> Iterator[Group]:
    """Candidates of each triplet's source and action with their scores, drawn a chunk of triplets at a time.

    At most `max_rows` candidates are decoded at once. Several processes share the triplets; each gets all groups, and
    the same ones as a single process would. With `store`, each chunk is written to it, what it holds under `seed` and
    `step` is neither drawn nor scored again, and the groups are read from there, one at a time: processes, which must
    see the same folder, tell one another no more than which draws are whose. `normalise` is `rewards.score`'s.
    """
    rewards = [reward.on(columns_of(triplets)) for reward in rewards]
    state = PartialState()
    numbers = range(state.process_index, len(triplets), state.num_processes)
    known = store.known_scores() if store is not None else {}

    def draw(mine: Sequence[int]) -> Iterator[list[Scored]]:
        for part in chunks(len(mine), chunk_size):
            here = [triplets[number] for number in mine[part]]
            sources, actions = [triplet.source for triplet in here], [triplet.action for triplet in here]
            how: Any = {"temperature": temperature, "seed": seed, "step": step, "max_rows": max_rows}
            drawn = fdm.sample(sources, actions, num_candidates, **how)
            scored = score_unknown(rewards, list(zip(here, drawn, strict=True)), known, normalise)
            if store is not None:
                store.append(list(zip(here, scored, strict=True)), seed=seed, step=step)
            yield from scored

    if store is not None:
        yield from _through(store, fdm.backbone, triplets, numbers, draw, (seed, step, num_candidates))
        return
    if state.num_processes == 1:
        yield from zip(triplets, draw(numbers), strict=True)
        return
    plain = [
        (number, [(s.candidate.ids, s.candidate.logprobs, s.candidate.grid, s.scores, s.total) for s in group])
        for number, group in zip(numbers, draw(numbers), strict=True)
    ]
    for number, group in sorted(gather_object(plain), key=lambda pair: pair[0]):
        yield triplets[number], [Scored(Candidate(a, b, fdm.backbone, g), c, d) for a, b, g, c, d in group]


def _through(
    store: CandidateStore,
    vlm: UnifiedVLM,
    triplets: Sequence[Triplet],
    mine: Sequence[int],
    draw: Callable[[Sequence[int]], Iterator[list[Scored]]],
    under: tuple[int, int, int],
) -> Iterator[Group]:
    """Draw what a store lacks of this process's triplets, and read the groups of all from it, in their order."""
    seed, step, count = under
    there = store.drawn(seed, step)
    prompts = {number: store.prompt_of(triplets[number]) for number in mine}
    left = [number for number in mine if there.get(prompts[number]) != count]
    if len(left) < len(mine):
        logger.warning("%d of %d draws are in %s and not drawn again", len(mine) - len(left), len(mine), store.folder)
    for _ in draw(left):
        pass
    whose = dict(gather_object(list(prompts.items())))  # waits for the others
    groups = store.groups(vlm)
    place = {draw[2]: number for number, draw in enumerate(groups.draws) if draw[:2] == (seed, step)}
    if not place.keys() >= {*whose.values()}:
        raise RewindError(
            f"{store.folder} lacks what other processes have drawn: on several machines the output folder must be one "
            "that all of them share, under the same path"
        )
    for number, triplet in enumerate(triplets):
        yield triplet, groups[place[whose[number]]][1]


def stored_groups(
    folders: Sequence[str],
    vlm: UnifiedVLM,
    rewards: Sequence[Reward],
    idm: str | None,
    normalise: bool = False,
    chunk_size: int = 32,
) -> Iterator[Group]:
    """The groups of stores (or of run folders that hold one), with totals under the given rewards and weights.

    A group is a draw; some of them are read and, where the rewards have not scored them, scored at a time.

    Raises:
        RewindError: a folder without candidates, or with those of another base.
    """
    for folder in folders:
        store = store_of(folder)
        groups = store.groups(vlm)
        known = CandidateStore(store.folder, idm, scorers(rewards)).known_scores()
        here = [reward.on(groups.columns()) for reward in rewards]
        if not len(groups):
            raise RewindError(f"no candidate could be read from {folder}")
        for part in chunks(len(groups), chunk_size):
            drawn = [(triplet, [s.candidate for s in group]) for triplet, group in groups[part]]
            scored = score_unknown(here, drawn, known, normalise)
            yield from ((triplet, group) for (triplet, _), group in zip(drawn, scored, strict=True))


def stored_triplets(arguments: DrawArguments) -> Sequence[Triplet]:
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
    stores = [store_of(folder).triplets() for folder in arguments.candidates]
    return stores[0] if len(stores) == 1 else [triplet for store in stores for triplet in store]


def groups_of_round(
    arguments: DrawArguments,
    fdm: ForwardDynamics,
    rewards: Sequence[Reward],
    triplets: Sequence[Triplet],
    seed: int,
    number: int,
    output: Path,
) -> Iterator[Group]:
    """The scored groups that a round learns from: the stored ones, or fresh ones, which go to `output/candidates`."""
    asked = scorer_key(arguments.idm, arguments.reward_arguments)
    if arguments.candidates:
        normalise = arguments.normalise_rewards
        return stored_groups(arguments.candidates, fdm.backbone, rewards, asked, normalise)
    store = CandidateStore(output / "candidates", asked, scorers(rewards))
    count, temperature = arguments.num_candidates, arguments.temperature
    return scored_groups(
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


def make_few(store: PartFolder) -> None:
    """At a run's end, join the parts of its store if there are many; if they cannot be joined, say so and leave them.

    All processes call it, when each has written and read all that it will.
    """
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process and len(store.parts()) > MANY:
        try:
            store.compact()
        except RewindError as error:
            logger.warning("%s", error)


def _answering(reward: Reward, values: list[float | None]) -> Reward:
    """A reward that gives the scores that are known by now."""
    return Reward(reward.name, reward.weight, lambda: values, ())
