"""Best of N: draw candidates for a source and an action, let rewards choose, keep the best.

python scripts/rerank.py --fdm runs/fdm --idm runs/idm --source photo.png --action "lift the cup" --output runs/best
python scripts/rerank.py --fdm runs/fdm --idm runs/idm --triplets runs/world/triplets.json --output runs/best
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import mapping, parse_with_config, plain, run
from rl.running.data_flags import add_cache_flag, add_data_flags, check_data_flags, reading
from rl.running.model_flags import add_model_flags, check_max_rows, opening

AT_ONCE = 256
"""Candidates that are drawn and scored as one block, unless --max_rows says fewer."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fdm", required=True, help="a base by name or folder, or a run folder")
    p.add_argument("--idm", help="the same for the inverse model; rewards that need none can do without")
    p.add_argument("--source", type=Path, help="an image file, with --action")
    p.add_argument("--action", help="what happens, in words")
    p.add_argument("--triplets", type=Path, help="a data set (docs/guide/data.md) instead of --source and --action")
    p.add_argument("--limit", type=int, help="only the first triplets")
    p.add_argument("--num_candidates", type=int, default=8)
    p.add_argument(
        "--rewards",
        nargs="+",
        help="built-in names, file.py:function or package.module:function, each with =WEIGHT if it is not 1; if not "
        "given, the mix that fit_reward.py found for --fdm, or idm_likelihood where there is none",
    )
    p.add_argument("--reward_arguments", type=mapping, help='JSON by reward: \'{"keep_unchanged": {"default": 3}}\'')
    p.add_argument("--normalise_rewards", action="store_true", help="sum standard deviations within a group's scores")
    p.add_argument(
        "--use_targets",
        action="store_true",
        help="hand the true targets of --triplets to rewards that ask for them: an oracle's choice, to compare with",
    )
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--min_score", type=float, help="abstain below this total")
    p.add_argument("--min_lead", type=float, help="abstain below this lead over the runner-up")
    p.add_argument("--good_enough", type=float, help="draw 1, 2, 4, ... and stop at a best total of this or more")
    p.add_argument("--refine", type=int, default=0, help="rounds that draw the best one's doubtful tokens anew")
    p.add_argument("--shard", help="I/N (from 0/N): every N-th triplet, into OUTPUT/shard-I-of-N")
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_cache_flag(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--resume", action="store_true", help="go on behind the last complete triplet in --output")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from collections.abc import Sequence

    from rewards import load_rewards, scorers
    from rewards.mix import default_rewards, resolve
    from rl import RewindError, Triplet, load_fdm, rerank
    from rl.checks import check_normalise
    from rl.data.candidates.store import CandidateStore, scorer_key
    from rl.data.left_out import LeftOut, for_resume, list_left_out
    from rl.data.tokens.encoding import read_from
    from rl.data.triplet_files import read_triplets
    from rl.models.digests import weights_for_resume
    from rl.models.fingerprint import for_resume as base_for_resume
    from rl.models.inputs import check_actions
    from rl.models.opening import load_idm_beside
    from rl.pictures import load_image
    from rl.running.run_folder import claim
    from rl.running.shards import shard_of
    from rl.search.best_of_n import Reranked
    from rl.triplets import columns_of
    from trainers.rerank.recipe import rerank_all, summary, take_own_gpu

    a = arguments
    one = a.source is not None and a.action is not None
    if one == (a.triplets is not None) or (a.source is None) != (a.action is None):
        raise RewindError("give either --source and --action, or --triplets")
    check_max_rows(a.max_rows)
    check_data_flags(a, a.triplets)
    shard = shard_of(a.shard)
    left_out: list[LeftOut] = []
    if one:
        check_actions([a.action])
        triplets: Sequence[Triplet] = [Triplet(load_image(a.source), a.action)]
    else:
        triplets = read_triplets(a.triplets, a.limit, **reading(a), left_out=left_out)
    numbers = range(len(triplets))[shard[0] :: shard[1]] if shard else range(len(triplets))
    if not len(numbers):
        raise RewindError(f"there are only {len(triplets)} triplets for {shard[1] if shard else 1} shards")
    check_normalise(a.normalise_rewards, min_score=a.min_score, good_enough=a.good_enough, refine=a.refine)
    if a.use_targets and not any(triplet.target is not None for triplet in triplets):
        raise RewindError("--use_targets needs --triplets with true targets ('output'), and there are none")
    a.rewards = a.rewards or default_rewards(a.fdm, a.temperature)
    resolve(a)
    take_own_gpu()
    fdm = load_fdm(a.fdm, **opening(a))
    fdm.backbone.check_can_draw()
    fdm.check(a.num_candidates, a.temperature, seed=a.seed)
    idm = None
    if a.idm is not None:
        idm = load_idm_beside(a.idm, fdm.backbone, **opening(a))
    actions = [triplet.action for triplet in triplets]
    fdm.backbone.check_actions(actions)
    if idm is not None:
        idm.backbone.check_named(actions)
    columns = columns_of(triplets)
    rewards = load_rewards(a.rewards, idm, actions, columns=columns, arguments=a.reward_arguments)
    blind = [reward.name for reward in rewards if "target_image" in reward.asks_for] if not a.use_targets else []
    if blind:
        logging.getLogger("rl").warning(
            "the reward '%s' asks for the true target, which is not handed on: --use_targets does, as an oracle",
            blind[0],
        )
    if a.refine < 0 or (a.refine and a.num_candidates < 2):
        raise RewindError("--refine takes 0 or more rounds, and needs at least 2 candidates to share out")
    weights = weights_for_resume(fdm=a.fdm, idm=a.idm)
    output = claim(
        a.output / f"shard-{shard[0]}-of-{shard[1]}" if shard else a.output,
        "rerank.py",
        plain(vars(a)) | for_resume(left_out, [a.triplets]) | base_for_resume(fdm.backbone.fingerprint) | weights,
        inputs=[a.fdm, a.idm, a.source, a.triplets],
        resume=a.resume,
        overwrite=a.overwrite,
        each_process=True,
    )
    list_left_out(output, left_out)
    backbones = [fdm.backbone, *([] if idm is None else [idm.backbone])]
    read_from(a.token_cache, backbones, [triplets[number] for number in numbers])

    # Scores that were given without the target are not those that training would give with it.
    told = {**(a.reward_arguments or {}), "without targets": blind} if blind else a.reward_arguments
    store = CandidateStore(output / "candidates", scorer_key(a.idm, told), scorers(rewards))

    def best_of(part: Sequence[Triplet]) -> list[Reranked]:
        found = rerank(
            fdm,
            idm,
            [triplet.source for triplet in part],
            [triplet.action for triplet in part],
            a.num_candidates,
            rewards,
            temperature=a.temperature,
            seed=a.seed,
            task=[triplet.task for triplet in part],
            target_image=[triplet.target if a.use_targets else None for triplet in part],
            more=[triplet.more for triplet in part],
            normalise=a.normalise_rewards,
            min_score=a.min_score,
            min_lead=a.min_lead,
            good_enough=a.good_enough,
            refine=a.refine,
        )
        groups = [(triplet, one.candidates) for triplet, one in zip(part, found, strict=True)]
        store.append(groups, seed=a.seed, step=0)
        return found

    rerank_all(output, triplets, numbers, best_of, block=max(1, (a.max_rows or AT_ONCE) // a.num_candidates))
    print(f"best of {a.num_candidates}: {summary(output, triplets, fdm.backbone)}")
    counts = fdm.counts
    guessed = f", {counts.accepted} of {counts.drafted} guesses from the sources came true" if counts.drafted else ""
    print(f"{counts.passes} passes behind the prompts{guessed}")


if __name__ == "__main__":
    run(main)
