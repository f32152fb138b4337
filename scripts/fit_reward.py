"""Weights of a mix of rewards for choosing among candidates, from labelled triplets alone; kept with the run, by name.

python scripts/fit_reward.py --fdm runs/fdm --idm runs/idm --triplets data/validation.json --output runs/fit
python scripts/rerank.py --fdm runs/fdm --idm runs/idm --triplets data/test.json --output runs/best
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import mapping, parse_with_config, plain, run
from rl.running.data_flags import add_data_flags, reading
from rl.running.files import write_whole
from rl.running.model_flags import add_model_flags, check_max_rows, opening

TERMS = ("idm_likelihood", "keep_unchanged", "fdm_confidence")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fdm", required=True, help="the forward model that draws: a run folder, or a base")
    p.add_argument("--idm", help="the inverse model that the rewards ask")
    p.add_argument("--triplets", type=Path, required=True, help="labelled triplets that neither model was trained on")
    p.add_argument("--limit", type=int, help="only the first triplets")
    p.add_argument(
        "--num_candidates", type=int, default=16, help="candidates a triplet; up to what reranking will draw"
    )
    p.add_argument("--rewards", nargs="+", default=list(TERMS), help="the terms, as in rerank.py, without weights")
    p.add_argument(
        "--reward_arguments", type=mapping, help="as in rerank.py; keep_unchanged takes its own from the data"
    )
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--resume", action="store_true", help="go on with the candidates in --output")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rewards import load_rewards, scorers
    from rewards.mix import is_mix
    from rewards.table import weight_of
    from rl import RewindError, load_fdm
    from rl.data.candidates.store import CandidateStore, scorer_key
    from rl.data.left_out import LeftOut, for_resume, list_left_out
    from rl.data.triplet_files import read_triplets
    from rl.models.bases import adapter_folder
    from rl.models.digests import weights_for_resume
    from rl.models.known import whole_model
    from rl.models.opening import load_idm_beside
    from rl.paths import expanded
    from rl.running.run_folder import claim
    from rl.triplets import columns_of
    from trainers.common.candidates import scored_groups
    from trainers.rerank.fitting import check_terms, fitted, in_words, mix_of_fit, write_mix
    from trainers.rerank.usual_change import UsualChange

    check_max_rows(a.max_rows)
    weighted = [item for item in a.rewards if weight_of(item)[1] is not None]
    if weighted or len(a.rewards) < 2:
        what = f"'{weighted[0]}' has a weight" if weighted else "one reward alone needs no weight"
        raise RewindError(f"weights are what is fitted, and {what}: name two or more rewards without '='")
    mixes = [item for item in a.rewards if is_mix(item)]
    if mixes:
        raise RewindError(f"'{mixes[0]}' is a mix that was fitted, with its weights: name the rewards of a new one")
    if a.num_candidates < 2 or a.temperature <= 0:
        raise RewindError("--num_candidates must be at least 2 and --temperature above 0: else nothing differs")
    left_out: list[LeftOut] = []
    triplets = read_triplets(a.triplets, a.limit, with_targets=True, **reading(a), left_out=left_out)
    fdm = load_fdm(a.fdm, **opening(a))
    vlm = fdm.backbone
    fdm.check(a.num_candidates, a.temperature, seed=a.seed)
    idm = None if a.idm is None else load_idm_beside(a.idm, vlm, **opening(a))
    actions = [triplet.action for triplet in triplets]
    for backbone in (vlm, vlm if idm is None else idm.backbone):
        backbone.check_actions(actions)
    arguments, usual = dict(a.reward_arguments or {}), None
    if "keep_unchanged" in a.rewards and "keep_unchanged" not in arguments:
        usual = UsualChange(vlm, triplets)
        arguments["keep_unchanged"] = usual.arguments
    rewards = load_rewards(a.rewards, idm, actions, columns=columns_of(triplets), arguments=arguments)
    check_terms(rewards)
    output = claim(
        a.output,
        "fit_reward.py",
        plain(vars(a)) | for_resume(left_out, [a.triplets]) | weights_for_resume(fdm=a.fdm, idm=a.idm),
        inputs=[a.fdm, a.idm, a.triplets],
        resume=a.resume,
        overwrite=a.overwrite,
    )
    list_left_out(output, left_out)
    store = CandidateStore(output / "candidates", scorer_key(a.idm, arguments), scorers(rewards))
    settings = {"temperature": a.temperature, "seed": a.seed, "max_rows": a.max_rows}
    groups = scored_groups(fdm, rewards, triplets, a.num_candidates, **settings, store=store)
    found, about = fitted(groups, rewards, vlm, usual)
    names = [reward.name for reward in rewards]
    about |= {"idm": a.idm, "temperature": a.temperature}
    mix = mix_of_fit(found, a.rewards, names, arguments, about)
    named = expanded(a.fdm)
    is_run = named.is_dir() and (adapter_folder(named) is not None or whole_model(named) != named)
    kept_in = [output, *([named] if is_run else [])]
    write_mix(mix, kept_in)
    write_whole(output / "results.json", json.dumps(about, indent=1) + "\n")
    print(in_words(mix, names))
    print(f"reward.json in {' and '.join(map(str, kept_in))}: use it as --rewards fitted, or by its path")


if __name__ == "__main__":
    run(main)
