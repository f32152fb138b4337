"""Runs our trainers in this process group, one scenario after the other, and writes what it saw to OUTPUT/RANK.json.

`test_sharding.py` starts it with `accelerate launch` on two processes, and once without a launcher to compare with.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from conftest import make_tiny  # sets what must be set before the libraries are imported
from opened_families import copied, opened, pictures, trainable
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from rewards import Reward, load_rewards
from rl.data.importance import Importance
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import JUDGE_ADAPTER, ForwardDynamics, InverseDynamics
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter, only_policy_trains, save_adapter, save_whole
from trainers.common.candidates import scored_groups
from trainers.common.sharding import release
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import Pairing, WorldModelDPOTrainer, preference_rows
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.monitors import RULES, Monitors
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.watches_sentences import SENTENCE_RULES, WatchesSentences
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ACTIONS = ["move the red circle left", "remove all rings", "paint the blue star green"]
COMMON: dict[str, Any] = {
    "learning_rate": 1e-3,
    "max_grad_norm": 1.0,
    "report_to": "none",
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "bf16": False,
}
WORLD = int(os.environ.get("WORLD_SIZE", "1"))


def triplets(count: int) -> list[Triplet]:
    pictures = np.random.default_rng(0).integers(0, 256, (2 * count, 32, 32, 3), dtype=np.uint8)
    return [Triplet(pictures[2 * i], ACTIONS[i % 3], pictures[2 * i + 1]) for i in range(count)]


def even(predicted_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(np.mean([token % 2 == 0 for token in ids])) for ids in predicted_ids]


def backbone() -> Any:
    set_seed(0)
    vlm = make_tiny()
    for name in ("default", "idm", JUDGE_ADAPTER):
        add_adapter(vlm, LoraConfig(r=4, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
    only_policy_trains(vlm)
    return vlm


class Bytes(TrainerCallback):
    """What a process holds in the middle and at the end of a step."""

    def __init__(self, trainer: Any, found: dict[str, Any]) -> None:
        self.trainer, self.found = trainer, found

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        engine = self.trainer.model_wrapped
        if type(engine).__name__ != "DeepSpeedEngine" or "held_gradients" in self.found:
            return
        optimizer = engine.optimizer
        if engine.zero_optimization_stage() == 3:
            held = [g for gradients in optimizer.averaged_gradients.values() for g in gradients]
        elif engine.zero_optimization_stage() == 2:
            held = [g for group in optimizer.all_grad_tensors.values() if group for g in group]
        else:
            held = [p.grad for p in engine.module.parameters() if p.grad is not None]
        self.found["held_gradients"] = sum(g.numel() * g.element_size() for g in held if g is not None)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        engine = self.trainer.model_wrapped
        parameters = list(self.trainer.model.parameters())
        self.found["resident"] = sum(p.numel() * p.element_size() for p in parameters)
        self.found["trainable"] = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in parameters if p.requires_grad)
        self.found["whole"] = sum(getattr(p, "ds_numel", p.numel()) * 4 for p in parameters)
        self.found["shard"] = sum(p.ds_tensor.numel() * 4 for p in parameters if hasattr(p, "ds_tensor"))
        inner = engine.optimizer.optimizer if type(engine).__name__ == "DeepSpeedEngine" else None
        if inner is not None:
            state = [v for s in inner.state.values() for v in s.values() if torch.is_tensor(v) and v.numel() > 1]
            self.found["optimizer"] = sum(v.numel() * v.element_size() for v in state)


def finish(trainer: Any, vlm: Any, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    trainer.add_callback(Bytes(trainer, found))
    trainer.train()
    engine = trainer.model_wrapped
    deep = type(engine).__name__ == "DeepSpeedEngine"
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    if hasattr(vlm.model, "peft_config"):
        save_adapter(vlm, folder)
    else:
        save_whole(vlm, folder, role="fdm")
    found |= {
        "engine": type(engine).__name__,
        "stage": int(engine.zero_optimization_stage()) if deep else None,
        "processes": trainer.accelerator.num_processes,
        "loss": [row["loss"] for row in logs],
        "grad_norm": [float(row["grad_norm"]) for row in logs],
        "reward": [row.get("reward") for row in logs],
        "evaluated": [
            (row["eval_loss"], row["eval_mean_token_accuracy"])
            for row in trainer.state.log_history
            if "eval_loss" in row
        ],
        "reward_std": [row.get("reward_std") for row in logs],
    }
    if deep:
        engine.destroy()
    del trainer, engine
    gc.collect()
    return found


def sft(folder: Path, half_batch: bool = False) -> dict[str, Any]:
    vlm = backbone()
    batch = 4 // WORLD // (2 if half_batch else 1)
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 2, "z_loss": 0.01}
    settings |= {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 2}
    config = RoleConfig(output_dir=str(folder), max_steps=3, **settings, **COMMON)
    rows = role_rows(vlm, "fdm", triplets(24), Importance())
    held_out = role_rows(vlm, "fdm", triplets(29)[24:], Importance())  # 5, which no batches of two processes fit
    trainer = RoleSFTTrainer(vlm, "fdm", config, rows, eval_dataset=held_out, use_weights=True)
    return finish(trainer, vlm, folder)


def rounds(folder: Path) -> dict[str, Any]:
    """A second round of training on one model: the first one's engine must be gone, or both reduce its gradients.

    Buckets are smaller than the adapter, so that DeepSpeed sends them within the backward pass as it does at 7B.
    """
    shipped = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if shipped:
        settings = json.loads(Path(shipped).read_text())
        settings["zero_optimization"]["reduce_bucket_size"] = 2000
        small = Path(shipped).parent / f"small-{os.environ.get('RANK', '0')}.json"
        small.write_text(json.dumps(settings))
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(small)
    vlm = backbone()
    rows = role_rows(vlm, "fdm", triplets(24))
    settings = {"max_steps": 2, "per_device_train_batch_size": 4 // WORLD, "gradient_accumulation_steps": 2}
    for number in range(2):
        trainer = RoleSFTTrainer(vlm, "fdm", RoleConfig(output_dir=str(folder), **settings, **COMMON), rows)
        if number == 0:
            trainer.train()
            engine = weakref.ref(trainer.model_wrapped)
            release(trainer)
    found = finish(trainer, vlm, folder)
    gone = engine() is None or engine() is vlm.model  # without DeepSpeed nothing wraps the model
    return found | {"gone": gone}


def whole(folder: Path) -> dict[str, Any]:
    """All weights, the head among them, which is read as a matrix."""
    set_seed(0)
    vlm = make_tiny()
    config = RoleConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4 // WORLD,
        **{**COMMON, "gradient_checkpointing": True},
    )
    return finish(RoleSFTTrainer(vlm, "fdm", config, role_rows(vlm, "fdm", triplets(12))), vlm, folder)


def grpo(folder: Path, spanning: bool = False) -> dict[str, Any]:
    vlm = backbone()
    settings = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": (4 if spanning else 8) // WORLD}
    config = RewindGRPOConfig(output_dir=str(folder), beta=0.1, seed=3, **{**COMMON, **settings})
    idm = InverseDynamics(vlm, "idm")
    rewards = [Reward.of(even, weight=2.0), *load_rewards(["idm_likelihood=0.1"], idm)]
    gathers = []
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        enter = deepspeed.zero.GatheredParameters.__enter__

        def counted(context: Any) -> Any:
            gathers.append(len(list(context.params)) if context.params else 0)
            return enter(context)

        deepspeed.zero.GatheredParameters.__enter__ = counted
    monitors = Monitors({"judge_idm": RULES["judge_idm"]}, judge=InverseDynamics(vlm, JUDGE_ADAPTER))
    guidance = 1.5 if spanning else 1.0
    trainer = WorldModelGRPOTrainer(vlm, triplets(12), rewards, config, guidance=guidance, monitors=monitors)
    with mock.patch("trainers.grpo.monitors.ENOUGH", 0):
        found = finish(trainer, vlm, folder)
    found["judged"] = [row["monitors/judge_idm"] for row in trainer.state.log_history if "monitors/judge_idm" in row]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        deepspeed.zero.GatheredParameters.__enter__ = enter
    return found | {"gap": trainer.sampler_trainer_gap, "large_gathers": sum(count > 50 for count in gathers)}


def trajectories(folder: Path) -> dict[str, Any]:
    """Two steps, groups of four trajectories, which span both processes."""
    vlm, rows = backbone(), triplets(8)
    rows = [row for n in range(8) for row in (rows[n], Triplet(rows[n].target, ACTIONS[0], rows[n].source))]  # type: ignore[arg-type]
    settings = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8 // WORLD}
    config = RewindGRPOConfig(output_dir=str(folder), beta=0.1, seed=3, **{**COMMON, **settings})
    rewards = [Reward.of(even, weight=2.0), *load_rewards(["idm_likelihood=0.1"], InverseDynamics(vlm, "idm"))]
    trainer = WorldModelGRPOTrainer(vlm, rows, rewards, config, rollout_steps=2)
    return finish(trainer, vlm, folder) | {"gap": trainer.sampler_trainer_gap}


def sentences(folder: Path) -> dict[str, Any]:
    """The inverse role: of sentences of several lengths, the divisor is that of all processes together."""
    vlm = backbone()
    few = sorted({*vlm.text_ids(ACTIONS[0])[:7], vlm.layout.end_text})  # so that some sentences end
    vlm.layout = replace(vlm.layout, text_ids_V=torch.tensor(few))
    settings = {"max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8 // WORLD, "loss_type": "dapo"}
    config = RewindGRPOConfig(output_dir=str(folder), beta=0.1, seed=3, **{**COMMON, **settings})
    fdm = ForwardDynamics(vlm, "idm")
    rewards = load_rewards(["fdm_margin", "fdm_likelihood=0.1"], actions=ACTIONS, fdm=fdm, role="idm")
    watches = WatchesSentences(triplets(12))
    monitors = Monitors({"as_start": SENTENCE_RULES["as_start"]}, watches=watches)
    how: dict[str, Any] = {"role": "idm", "max_sentence_tokens": 6, "dead_group_retries": 1, "monitors": monitors}
    trainer = WorldModelGRPOTrainer(vlm, triplets(12), rewards, config, **how)
    with mock.patch("trainers.grpo.monitors.ENOUGH", 0):
        found = finish(trainer, vlm, folder)
    found["judged"] = [row["monitors/as_start"] for row in trainer.state.log_history if "monitors/as_start" in row]
    return found | {"gap": trainer.sampler_trainer_gap}


def half_precision(folder: Path) -> dict[str, Any]:
    """GRPO in bfloat16."""
    vlm = backbone()
    settings = {"max_steps": 3, "num_generations": 4, "per_device_train_batch_size": 8 // WORLD, "bf16": True}
    config = RewindGRPOConfig(output_dir=str(folder), seed=3, **{**COMMON, **settings})
    trainer = WorldModelGRPOTrainer(vlm, triplets(12), [Reward.of(even)], config)
    found = finish(trainer, vlm, folder)
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    names = ("sampling/sampling_logp_difference/mean", "sampling/kl", "sampling/importance_sampling_ratio/mean")
    return found | {"gaps": [[row.get(name) for name in names] for row in logs], "cap": trainer.correction_cap}


def dpo(folder: Path) -> dict[str, Any]:
    vlm = backbone()
    groups = list(scored_groups(ForwardDynamics(vlm, "default"), [Reward.of(even)], triplets(16), 4))
    pairs = [pair for triplet, group in groups if (pair := Pairing(4, 0.1).pair(triplet, group)) is not None]
    only_policy_trains(vlm)
    settings = {"max_steps": 2, "per_device_train_batch_size": 4 // WORLD}
    config = RewindDPOConfig(output_dir=str(folder), **{**COMMON, **settings})
    found = finish(WorldModelDPOTrainer(vlm, config, preference_rows(vlm, pairs)), vlm, folder)
    return found | {"totals": [scored.total for _, group in groups for scored in group]}


def family(name: str, kind: str, folder: Path) -> dict[str, Any]:
    """A family's tiny checkpoint: two steps of SFT (of Lumina all weights, whose head is its own), or one of GRPO."""
    vlm = copied(opened(name)) if (name, kind) == ("lumina", "sft") else trainable(opened(name))
    if name == "emu3":  # of 32,768 codes with little between them, a rounding in the last digit draws another
        with torch.no_grad():
            vlm.head_weight().mul_(3)
    images = pictures(vlm, 8)
    rows = [Triplet(a, ACTIONS[0], b) for a, b in zip(images[:4], images[4:], strict=True)]
    common: dict[str, Any] = {"output_dir": str(folder), **COMMON, "per_device_train_batch_size": 4 // WORLD}
    if kind == "sft":
        trainer: Any = RoleSFTTrainer(vlm, "fdm", RoleConfig(max_steps=2, **common), role_rows(vlm, "fdm", rows))
        return finish(trainer, vlm, folder)
    common["gradient_checkpointing"] = True  # by the one way or the other: PEFT under ZeRO-3 takes the reentrant one
    config = RewindGRPOConfig(max_steps=1, num_generations=2, beta=0.1, seed=3, **common)
    trainer = WorldModelGRPOTrainer(vlm, rows, [Reward.of(even)], config)
    return finish(trainer, vlm, folder) | {"gap": trainer.sampler_trainer_gap}


NAMES = ("lumina", "liquid", "emu3")
FAMILIES = {f"{name}-{kind}": partial(family, name, kind) for name in NAMES for kind in ("sft", "grpo")}
SCENARIOS = {
    **FAMILIES,
    "sft": sft,
    "whole": whole,
    "rounds": rounds,
    "half": lambda folder: sft(folder, half_batch=True),
    "grpo": grpo,
    "spanning": lambda folder: grpo(folder, spanning=True),
    "trajectories": trajectories,
    "sentences": sentences,
    "dpo": dpo,
    "half_precision": half_precision,
}
ALONE = ("spanning", "half_precision")  # each row is read for itself; elsewhere prompts once, as if they were long


def main() -> None:
    output, names = Path(sys.argv[1]), sys.argv[2:]
    found: dict[str, Any] = {}
    for spec in names:
        name, _, stage = spec.partition(":")
        if stage:
            os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(output / f"{stage}.json")
            unset_hf_deepspeed_config()
        with mock.patch("rl.models.packing.SHARED_FROM", 10_000 if name in ALONE else 1):
            found[spec] = SCENARIOS[name](output / spec.replace(":", "-"))
        AcceleratorState._reset_state(reset_partial_state=False)
    rank = PartialState().process_index
    (output / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
