"""What a run needs in memory and tokens, for 1, 4, 8 and 64 GPUs, before anything is loaded.

python scripts/plan.py --config configs/grpo_tabletop.yaml --base chameleon-7b
python scripts/plan.py --base chameleon-30b --algorithm grpo --rows 4 --rollout_rows 8
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS, MAX_ROWS
from rl.running.command_line import parse_with_config, run
from rl.running.files import write_whole
from rl.running.model_flags import SIZE_HELP
from trainers.plan.advice import what_fits
from trainers.plan.arithmetic import PHASES, Job, plan
from trainers.plan.shapes import Shape, adapter_of, base_told_by, shape_of, stands_on

ALGORITHMS = ("sft", "grpo", "best_of_n", "dpo")
CHUNK = 32  # sources for which best-of-N training and DPO draw at once
GIB = 2**30
ACTIONS_ASKED = {"idm_margin": 9, "idm_choice": 4, "ensemble": 9} | dict.fromkeys(
    ("idm_likelihood", "idm_match", "idm_token_f1", "idm_yes_no"), 1
)
"""Actions that a reward holds against one pair of pictures, at its defaults."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    switch: Any = {"action": argparse.BooleanOptionalAction, "default": True}
    p.add_argument("--base", help="chameleon-7b, -30b, emu3-8b, liquid-7b, lumina-7b, or a base by name or folder")
    p.add_argument("--fdm", help="run folder of the model to improve: its base, rank and target modules")
    p.add_argument("--image_size", help=SIZE_HELP)
    p.add_argument("--algorithm", choices=ALGORITHMS, help="told from the config's keys if not given")
    p.add_argument("--lora_r", type=int, help="rank of the adapters (16); 0 is full fine-tuning")
    p.add_argument("--use_peft", type=_truth, default=True, help="false: full fine-tuning, as --lora_r 0 (SFT)")
    p.add_argument("--lora_target_modules", nargs="+", help="the layers with adapters (all linear ones)")
    p.add_argument("--per_device_train_batch_size", "--rows", type=int, default=8, help="sequences a GPU and pass")
    p.add_argument("--gradient_accumulation_steps", type=int, default=1)
    p.add_argument("--steps_per_generation", type=int, help="GRPO: passes for which one rollout draws")
    p.add_argument("--num_iterations", type=int, default=1, help="GRPO: how often it learns from one rollout")
    p.add_argument("--num_generations", type=int, help="GRPO: candidates a group")
    p.add_argument("--num_candidates", type=int, help="best-of-N training, DPO: candidates a group")
    p.add_argument("--max_rows", type=int, help=f"candidates drawn at once (those that fit, to {MAX_ROWS})")
    p.add_argument("--guidance", type=float, default=1.0, help="GRPO: other than 1, every sequence is read twice")
    p.add_argument("--with_idm", action=argparse.BooleanOptionalAction, default=False, help="SFT of both roles at once")
    p.add_argument("--idm", help="the inverse model: only tells whether it stands on another base")
    p.add_argument("--judge_idm", help="GRPO: a judge beside it; on another base it is a model of its own")
    p.add_argument("--rewards", nargs="+", default=["idm_margin"], help="as the run names them: which ask the IDM")
    p.add_argument("--min_gap", type=float, help="DPO: only tells that it is DPO")
    p.add_argument("--rollout_rows", type=int, help="sequences that a GPU draws at once, if other than the run's")
    recomputed = ("--activation_checkpointing", "--gradient_checkpointing")
    p.add_argument(*recomputed, **switch, help="compute activations again (as in TRL: on)")
    p.add_argument("--ds3_gather_for_generation", **switch, help="ZeRO-3: gather all weights for a rollout")
    p.add_argument("--action_tokens", type=int, default=24, help="tokens of an action")
    p.add_argument("--max_steps", type=int, default=0)
    p.add_argument("--role", default="fdm", help="of train_grpo.py; only the forward one is counted")
    p.add_argument("--gpus", nargs="+", type=int, default=[1, 4, 8, 64], help="world sizes")
    p.add_argument("--gpu_gib", type=float, default=80, help="memory of a GPU, of which nine tenths are counted on")
    p.add_argument("--output", type=Path, help="the figures in bytes, as JSON")
    return p


def _truth(text: str) -> bool:
    """As a training script reads it."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"true or false, not '{text}'")
    return text.lower() == "true"


def job_of(arguments: argparse.Namespace) -> tuple[str, Shape, Job]:
    """The algorithm, the shape and the settings that memory depends on."""
    found = adapter_of(arguments.fdm) if arguments.fdm else None
    base = arguments.base or (found[0] if found else arguments.fdm)
    if base is None:
        raise RewindError("say which model: --base chameleon-7b, a base's name or folder, or --fdm runs/my-run")
    if arguments.role == "idm":
        raise RewindError(
            "the arithmetic is that of the forward model, whose pictures are drawn: of --role idm only sentences are, "
            "so it needs less than the same config without it; leave role out to plan that"
        )
    algorithm = arguments.algorithm or (
        "grpo" if arguments.num_generations else "dpo" if arguments.min_gap is not None else None
    )
    algorithm = algorithm or ("best_of_n" if arguments.num_candidates else "sft")
    rank = arguments.lora_r if arguments.lora_r is not None else found[1] if found else 16
    rank = rank if arguments.use_peft else 0
    targets = arguments.lora_target_modules or (found[2] if found else LINEAR_LAYERS)
    rows, total, most = arguments.per_device_train_batch_size, 0, arguments.max_rows or MAX_ROWS
    passes = arguments.gradient_accumulation_steps
    for_passes = arguments.steps_per_generation or passes  # a rollout for several steps is shuffled among them
    if algorithm == "grpo":
        total = rows * for_passes
    elif algorithm in ("best_of_n", "dpo"):
        total = CHUNK * (arguments.num_candidates or 8)
    together = algorithm == "grpo" and not passes % (for_passes * arguments.num_iterations)
    drawn = min(most, total) if arguments.rollout_rows is None else arguments.rollout_rows
    each = (arguments.num_generations if algorithm == "grpo" else arguments.num_candidates) or 8
    judge = arguments.judge_idm if algorithm == "grpo" else None
    beside = [name for name in (arguments.idm if drawn else None, judge) if name is not None]
    apart = [name for name in beside if not stands_on(name, arguments.fdm, str(base))]
    rewards = arguments.rewards
    if any("fitted" in item or ".json" in item for item in rewards):  # else nothing of torch is needed
        from rewards.mix import with_mixes

        rewards, _ = with_mixes(rewards, {}, arguments.fdm)
    asked = [n for n in ACTIONS_ASKED if any(r.partition("=")[0] == n for r in rewards)]
    job = Job(
        lora_r=rank,
        targets=LINEAR_LAYERS if list(targets) == ["all-linear"] else targets,
        dropout=algorithm in ("sft", "best_of_n"),
        trained_adapters=2 if arguments.with_idm and algorithm == "sft" else 1,
        frozen_adapters={"sft": 0, "best_of_n": 1}.get(algorithm, 2) + (judge is not None) - len(apart),
        beside=sum(shape_of(base_told_by(name)).parameters() for name in apart),
        rows=2 * rows if algorithm == "dpo" else rows,  # chosen and rejected
        grouped=2 if algorithm == "dpo" else min(rows, each) if together else 1,
        rollout_rows=drawn,
        candidates=max(1, min(each, drawn)),
        scored=max(total, drawn) if asked and drawn else 0,
        actions=max((ACTIONS_ASKED[name] for name in asked), default=1),
        judged=64 if judge is not None else 0,
        max_rows=arguments.max_rows,
        branches=2 if arguments.guidance != 1 and algorithm == "grpo" else 1,
        accumulation=arguments.gradient_accumulation_steps,
        checkpointing=arguments.activation_checkpointing,
        action_tokens=arguments.action_tokens,
        gather=arguments.ds3_gather_for_generation,
    )
    return algorithm, shape_of(base, arguments.image_size), job


NOT_COUNTED = {"dtype", "quantization", "load_in_4bit", "load_in_8bit", "attn_implementation", "max_sentence_tokens"}
"""Arguments of the training scripts on which memory depends, and which the arithmetic does not know."""
COLUMNS = ("weights", "gradients", "optimizer", "activations", "cache", *PHASES, "peak", "host", "sent")


def text(found: dict[str, Any], algorithm: str, job: Job, gpu_gib: float) -> str:
    """The figures as a table."""
    shape, tokens, adapter = found["shape"], found["tokens"], found["adapter_parameters"]
    largest = max(figures["peak"] for by_strategy in found["gpus"].values() for figures in by_strategy.values())
    unit, name_of_unit = (GIB, "GiB") if largest >= GIB else (2**20, "MiB")
    trained = f"LoRA r {job.lora_r}: {adapter / 1e6:,.1f} M trained" if job.lora_r else "full fine-tuning"
    lines = [
        f"{shape['name']}: {shape['parameters'] / 1e6:,.1f} M parameters ({shape['source']})",
        f"{algorithm}, {trained}; a GPU reads {job.rows} sequences at once and draws {job.rollout_rows}",
        f"a sequence: {tokens['sequence']:,} tokens, {tokens['image']:,} of them the picture; "
        f"its cache {tokens['cache_bytes_a_row'] / unit:.2f} {name_of_unit}",
    ]
    if job.lora_r and job.frozen_adapters == 2:
        ratio = found["model_state_ratio"]
        lines.append(f"policy, reference and IDM on one backbone: {ratio:.2f} of the state of three models")
    if not job.lora_r:
        whole = shape["parameters"] * shape["weight_bytes"] / unit
        beside = "counted below" if job.frozen_adapters else f"{whole:.2f} {name_of_unit} of weights more each"
        lines.append(f"an inverse model or a reference beside it is a model of its own: {beside}")
    lines += ["", f"{name_of_unit} a GPU     " + "".join(f"{name:>12}" for name in COLUMNS)]
    for gpus, by_strategy in found["gpus"].items():
        of = found["steps"][gpus]
        drawn = f", {of['drawn']:,} image tokens drawn for it" if of["drawn"] else ""
        drawn += f" ({of['run']:,} in the run)" if of["run"] else ""
        lines.append(f"{gpus} GPU{'s' if gpus > 1 else ''}; an optimizer step: {of['sequences']:,} sequences{drawn}")
        for strategy, figures in by_strategy.items():
            over = "" if figures["peak"] <= 0.9 * gpu_gib * GIB else f"  over {gpu_gib:g} GiB"
            name = "single" if strategy == "ddp" and gpus == 1 else strategy
            lines.append(f"  {name:13s}" + "".join(f"{figures[c] / unit:12.2f}" for c in COLUMNS) + over)
    return "\n".join(lines)


def main() -> None:
    others: list[str] = []
    arguments = parse_with_config(parser(), others=others)
    if any(n < 1 for n in arguments.gpus):
        raise RewindError("--gpus must be 1 or more")
    algorithm, shape, job = job_of(arguments)
    found = plan(shape, job, arguments.gpus, arguments.max_steps, arguments.gpu_gib * GIB)
    print(text(found, algorithm, job, arguments.gpu_gib))
    if said := what_fits(shape, job, found, arguments.gpu_gib * GIB, pairs=algorithm == "dpo"):
        print("\n" + "\n".join(said))
    if others:
        not_counted = sorted(NOT_COUNTED & {*others})
        rest = sorted({*others} - NOT_COUNTED)
        print()
        if not_counted:
            print(
                f"not counted, and they do change memory: {', '.join(not_counted)} (weights are counted as they are "
                "stored, attention as sdpa)"
            )
        if rest:
            print(f"keys of {arguments.config} that change no memory: {', '.join(rest)}")
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
