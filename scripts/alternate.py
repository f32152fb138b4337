"""Both roles improve each other on pairs without words: name -> GRPO of the FDM -> GRPO of the IDM -> the next round.

python scripts/alternate.py --fdm runs/bootstrapped --idm runs/idm --judge_idm runs/judge_idm \
    --pairs runs/pairs/pairs.json --validation runs/held-out/triplets.json --fdm_config configs/grpo_tabletop.yaml \
    --idm_config configs/grpo_idm_tabletop.yaml --output runs/alternate
"""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_cache_flag, add_data_flags, reading
from rl.running.model_flags import add_model_flags, opening


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--fdm", required=True, help="run folder of the forward model to improve")
    p.add_argument("--idm", required=True, help="run folder of the inverse model that names and rewards")
    p.add_argument("--pairs", type=Path, required=True, help="a JSON list of mine_videos.py; words are not needed")
    p.add_argument("--rounds", type=int, default=3, help="each on a shard of its own of the pairs")
    p.add_argument("--fdm_steps", type=int, default=96, help="of GRPO of the forward model, a round")
    p.add_argument("--idm_steps", type=int, default=32, help="of GRPO of the inverse model, a round")
    p.add_argument("--fdm_config", type=Path, help="YAML of train_grpo.py for the forward model")
    p.add_argument("--idm_config", type=Path, help="YAML of train_grpo.py for the inverse model")
    p.add_argument(
        "--reward",
        choices=["elbo", "margin", "swirl", "config"],
        default="elbo",
        help="elbo: the forward model against rivals, with keep_unchanged, the inverse one by fdm_likelihood with beta "
        "1; margin: both against rivals; swirl: mean log-probabilities divided by their group's spread, nothing else; "
        "config: what the two configs say",
    )
    p.add_argument(
        "--relabel_only",
        action="store_true",
        help="control: every shard is named by the unchanged inverse model, and only the forward model trains",
    )
    p.add_argument(
        "--fdm_only",
        action="store_true",
        help="control: all pairs are named once, and only the forward model trains on them",
    )
    p.add_argument("--temperature", type=float, default=0.0, help="of the names: 0 the likeliest words, 1 sampled")
    p.add_argument("--judge_idm", help="an inverse model that never trains, names or rewards; needs --validation")
    p.add_argument("--validation", type=Path, help="labelled triplets on which every round is measured by the judge")
    p.add_argument("--validation_limit", type=int, default=200, help="only the first so many of them")
    p.add_argument(
        "--judge_fall",
        type=float,
        default=0.0,
        help="stop after a round whose pictures the judge scores so much below the best round so far, in nats a "
        "token; inf never stops",
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--launch",
        default="",
        help="words before the script of each stage, e.g. 'accelerate launch --config_file "
        "configs/accelerate/zero2.yaml --num_processes 8'",
    )
    add_data_flags(p)
    add_cache_flag(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--resume", action="store_true", help="go on where an interrupted run of the same command stopped")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    a = parse_with_config(parser())
    from rl import RewindError
    from rl.running.run_folder import claim
    from trainers.alternate.rounds import alternate
    from trainers.alternate.settings import Settings
    from trainers.common.runs import HARMLESS

    if a.relabel_only and a.fdm_only:
        raise RewindError("--relabel_only and --fdm_only are two controls: give one of them")
    control = "relabel_only" if a.relabel_only else "fdm_only" if a.fdm_only else "alternate"
    given = vars(a).keys() & Settings.__dataclass_fields__.keys() - {"launch"}
    settings = Settings(
        **{name: getattr(a, name) for name in given},
        control=control,
        launch=tuple(shlex.split(a.launch)),
        opening=opening(a),
        reading=reading(a),
    )
    settings.check()
    inputs = [a.fdm, a.idm, a.judge_idm, a.pairs, a.validation]
    harmless = dict.fromkeys(("launch", "max_rows"), "time and memory change, not what is learned")
    harmless |= {f"{role}_config.{name}": why for role in ("fdm", "idm") for name, why in HARMLESS.items()}
    how = {"resume": a.resume, "overwrite": a.overwrite, "harmless": harmless}
    told = {f"{role}_config.{name}": value for role in ("fdm", "idm") for name, value in settings.told(role).items()}
    claim(a.output, "alternate.py", {**plain(vars(a)), **told}, inputs=inputs, **how)
    for sentence in settings.overruled():
        logging.getLogger("rl").warning("%s", sentence)
    report = alternate(settings)
    print((a.output / "report.md").read_text(encoding="utf-8"))
    print(f"{len(report['rounds']) - 1} rounds; figures in {a.output / 'report.json'}")


if __name__ == "__main__":
    run(main)
