"""Measure a base or a run on a world: tokenizer ceiling, captions, likelihood probes, oracle success of the FDM.

python scripts/evaluate.py --fdm tabletop-chameleon --idm tabletop-chameleon --world tabletop --output runs/evaluation

or, where no world knows what is right, against the true targets of triplets, by task, a copy of the source beside it,
with the mean of --rewards if there are any:

python scripts/evaluate.py --fdm runs/fdm --idm runs/idm --triplets data/test.json --output runs/evaluation
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.errors import RewindError
from rl.running.command_line import mapping, parse_with_config, plain, run
from rl.running.data_flags import add_cache_flag, add_data_flags, check_data_flags, reading
from rl.running.files import write_whole
from rl.running.model_flags import add_model_flags, opening

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rewards import Reward
    from rl.evaluation.benchmark import Rate
    from rl.evaluation.oracle import Task
    from rl.models.roles import ForwardDynamics, InverseDynamics
    from rl.models.unified import UnifiedVLM
    from rl.triplets import Candidate, Triplet
    from rl.world import World

AT_ONCE = 32
"""Triplets whose predictions are scored in one call."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fdm", required=True, help="a base by name or folder, or a run folder")
    p.add_argument("--idm", help="the same for the inverse model; without it, its probes are left out")
    p.add_argument("--world", help="a world's name, or file.py:Class (default: tabletop)")
    p.add_argument("--triplets", type=Path, help="a data set (docs/guide/data.md) instead of a world: true targets")
    p.add_argument("--limit", type=int, help="only the first triplets")
    p.add_argument("--split", help="a split of the world, if it has any (default: test)")
    p.add_argument("--num_scenes", type=int, help="test cases of a world for FDM, captions and probes (default: 400)")
    p.add_argument("--num_ceiling", type=int, help="scenes of a world for the tokenizer's ceiling (default: 2000)")
    p.add_argument("--best_of", type=int, default=1, help="also best of 1, 2, 4, ... N by --rewards")
    p.add_argument(
        "--rewards",
        nargs="+",
        help="as in rerank.py: what best of N goes by; with --triplets, what is measured too",
    )
    p.add_argument("--reward_arguments", type=mapping, help='JSON by reward: \'{"keep_unchanged": {"default": 3}}\'')
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_cache_flag(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from rewards.mix import default_rewards, resolve
    from rl import load_fdm
    from rl.evaluation import oracle
    from rl.evaluation.probes import prefers_truth
    from rl.models.captions import continue_captions
    from rl.models.opening import load_idm_beside
    from rl.report.grids import sheet
    from rl.running.run_folder import claim
    from rl.spilled import SpilledArrays
    from rl.worlds import load_split

    _of_world(arguments)
    if arguments.num_scenes < 2 or arguments.num_ceiling < 1:
        raise RewindError("--num_scenes must be at least 2 and --num_ceiling at least 1")
    if arguments.best_of < 1:
        raise RewindError(f"--best_of must be at least 1, not {arguments.best_of}")
    check_data_flags(arguments, arguments.triplets)
    if arguments.rewards:
        resolve(arguments)
    if arguments.triplets is not None:
        return _on_triplets(arguments)
    arguments.rewards = arguments.rewards or default_rewards(arguments.fdm, arguments.temperature)
    resolve(arguments)
    world = load_split(arguments.world, arguments.split)
    fdm = load_fdm(arguments.fdm, **opening(arguments))
    _check_size(arguments.fdm, fdm.backbone, world)
    idm = None
    if arguments.idm is not None:
        idm = load_idm_beside(arguments.idm, fdm.backbone, **opening(arguments))
        _check_size(arguments.idm, idm.backbone, world)
    fdm.check(temperature=arguments.temperature)
    count = max(arguments.num_scenes, arguments.num_ceiling)
    tasks = oracle.sample_tasks(world, count, arguments.seed, SpilledArrays())
    rewards = _rewards(idm, world, tasks, arguments) if arguments.best_of > 1 else []
    inputs = [arguments.fdm, arguments.idm]
    output = claim(
        arguments.output, "evaluate.py", plain(vars(arguments)), inputs=inputs, overwrite=arguments.overwrite
    )

    def keep() -> None:  # after every part, so that an interruption loses one part at most
        write_whole(output / "results.json", json.dumps(results, indent=1) + "\n")

    results: dict[str, object] = {
        "ceiling": oracle.tokenizer_ceiling(fdm.backbone, world, tasks[: arguments.num_ceiling])
    }
    keep()
    tasks = tasks[: arguments.num_scenes]
    if hasattr(world, "caption"):
        say = lambda pictures, begins: continue_captions(fdm.backbone, pictures, begins)  # noqa: E731
        results["captions"] = oracle.caption_accuracy(say, world, tasks, arguments.seed)
        keep()
    results["fdm"], images = oracle.fdm_outcomes(fdm, world, tasks, arguments.temperature, arguments.seed)
    keep()
    results["fdm_prefers_truth"] = prefers_truth(fdm.score, world, tasks, arguments.seed)
    if idm is not None:
        keep()
        results["idm"] = oracle.idm_descriptions(idm, world, tasks)
        keep()
        results["idm_prefers_truth"] = prefers_truth(idm.score, world, tasks, arguments.seed)
    if rewards:
        keep()
        results["best_of_n"] = _best_of_n(fdm, rewards, world, tasks, arguments)
    keep()
    rows = [
        [(task.source, "source"), (task.target, task.action), (image, "predicted")]
        for task, image in zip(tasks[:12], images[:12], strict=False)
    ]
    sheet([[*a, *b] for a, b in zip(rows[::2], rows[1::2], strict=False)]).save(output / "sheet.png")
    print(json.dumps(results, indent=1))
    print(f"results and sheet.png in {output}")


def _on_triplets(arguments: argparse.Namespace) -> None:
    from rl import load_fdm
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.tokens.encoding import read_from
    from rl.data.triplet_files import read_triplets
    from rl.evaluation.benchmark import compare
    from rl.models.opening import load_idm_beside
    from rl.report.grids import sheet
    from rl.running.run_folder import claim

    if arguments.best_of > 1:
        raise RewindError("--best_of needs a world that can tell what is right: use rerank.py on triplets")
    fdm, idm = load_fdm(arguments.fdm, **opening(arguments)), None
    if arguments.idm is not None:
        idm = load_idm_beside(arguments.idm, fdm.backbone, **opening(arguments))
    fdm.check(temperature=arguments.temperature)
    left_out: list[LeftOut] = []
    triplets = read_triplets(
        arguments.triplets, arguments.limit, with_targets=True, **reading(arguments), left_out=left_out
    )
    fdm.backbone.check_actions(triplet.action for triplet in triplets)
    if idm is not None:
        idm.backbone.check_named(triplet.action for triplet in triplets)
    rewards = _rewards_on(triplets, idm, arguments)
    inputs = [arguments.fdm, arguments.idm, arguments.triplets]
    output = claim(
        arguments.output, "evaluate.py", plain(vars(arguments)), inputs=inputs, overwrite=arguments.overwrite
    )
    list_left_out(output, left_out)
    read_from(arguments.token_cache, [fdm.backbone, *([] if idm is None else [idm.backbone])], triplets)
    rate = _rating(rewards) if rewards else None
    results, drawn = compare(fdm, idm, triplets, arguments.temperature, arguments.seed, rate)
    write_whole(output / "results.json", json.dumps(results, indent=1) + "\n")
    rows = [
        [(t.source, t.action), (t.target, "true target"), (candidate.image, "predicted")]
        for t, candidate in zip(triplets, drawn, strict=False)
        if t.target is not None
    ]
    sheet([[*a, *b] for a, b in zip(rows[::2], rows[1::2], strict=False)] or [rows[0]]).save(output / "sheet.png")
    print(json.dumps(results, indent=1))
    print(f"results and sheet.png in {output}")


def _of_world(arguments: argparse.Namespace) -> None:
    """Fill in what is not given of a world's flags; raises a `RewindError` for flags that would be ignored."""
    usual = {"world": "tabletop", "split": "test", "num_scenes": 400, "num_ceiling": 2000}
    given = [name for name in usual if getattr(arguments, name) is not None]
    if arguments.triplets is not None and given:
        instead = ", or --limit for the first of them" if given[0] == "num_scenes" else ""
        raise RewindError(f"--{given[0]} is about a world, and --triplets are measured: leave it out{instead}")
    if arguments.triplets is None and arguments.limit is not None:
        raise RewindError("--limit is about --triplets, and a world is measured: give --num_scenes")
    if arguments.triplets is None and arguments.best_of == 1 and (arguments.rewards or arguments.reward_arguments):
        raise RewindError("on a world --rewards choose the best of several candidates: give --best_of 8, say")
    for name in usual.keys() - {*given}:
        setattr(arguments, name, usual[name])


def _rewards_on(
    triplets: Sequence[Triplet], idm: InverseDynamics | None, arguments: argparse.Namespace
) -> list[Reward]:
    """What is measured on triplets beside the distances; nothing unless it was asked for."""
    from rewards import load_rewards
    from rl.triplets import columns_of

    if arguments.rewards is None:
        if arguments.reward_arguments:
            raise RewindError("--reward_arguments without --rewards: name the rewards that are to be measured")
        return []
    actions = [triplet.action for triplet in triplets]
    columns = columns_of(triplets)
    return load_rewards(arguments.rewards, idm, actions, columns=columns, arguments=arguments.reward_arguments)


def _rating(rewards: list[Reward]) -> Rate:
    """Scores of whole groups by name, some groups at a time."""
    from rewards import score
    from trainers.common.candidates import batch_of

    def rate(groups: Sequence[tuple[Triplet, Sequence[Candidate]]]) -> list[list[dict[str, float | None]]]:
        found = []
        for start in range(0, len(groups), AT_ONCE):
            part = groups[start : start + AT_ONCE]
            scored = iter(score(rewards, batch_of(part)))
            found += [[next(scored).scores for _ in group] for _, group in part]
        return found

    return rate


def _rewards(
    idm: InverseDynamics | None, world: World, tasks: list[Task], arguments: argparse.Namespace
) -> list[Reward]:
    """What best of N goes by; which sentences name one outcome is the world's to say."""
    from rewards import load_rewards

    scenes = {id(task.source): task.scene for task in tasks}
    same = getattr(world, "same_outcome", None)
    return load_rewards(
        arguments.rewards,
        idm,
        [task.action for task in tasks],
        same_outcome=None if same is None else lambda source, a, b: bool(same(scenes[id(source)], a, b)),
        arguments=arguments.reward_arguments,
    )


def _best_of_n(
    fdm: ForwardDynamics, rewards: list[Reward], world: World, tasks: list[Task], arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    from rewards import Batch, score
    from rl.evaluation import oracle
    from rl.search.best_of_n import expected_best

    # Twice as many as the largest N: with fewer, the estimate for that N would rest on one subset.
    drawn = 2 * arguments.best_of
    settings = {"temperature": arguments.temperature, "seed": arguments.seed}
    family = getattr(world, "family", lambda action: None)
    scores, right = list[list[float | None]](), list[list[float]]()
    at_once = max(1, oracle.AT_ONCE // drawn)
    for start in range(0, len(tasks), at_once):
        part = tasks[start : start + at_once]
        groups = fdm.sample([t.source for t in part], [t.action for t in part], drawn, **settings)
        rows = [(task, candidate) for task, group in zip(part, groups, strict=True) for candidate in group]
        actions, names = [task.action for task, _ in rows], [family(task.action) for task, _ in rows]
        sources, targets = [task.source for task, _ in rows], [task.target for task, _ in rows]
        flat = score(rewards, Batch(actions, [one for _, one in rows], sources, targets, names))
        scores += [[s.total for s in flat[n : n + drawn]] for n in range(0, len(flat), drawn)]
        right += oracle.are_right(groups, world, part)
    numbers = sorted({*(2**k for k in range(arguments.best_of.bit_length())), arguments.best_of})
    return oracle.best_of_n(scores, right, expected_best, numbers)


def _check_size(name: str, backbone: UnifiedVLM, world: World) -> None:

    if backbone.image_size != world.image_size:
        raise RewindError(
            f"{name} sees {backbone.image_size} pixels and the world {world.name} draws {world.image_size}: they "
            "do not fit together"
        )


if __name__ == "__main__":
    run(main)
