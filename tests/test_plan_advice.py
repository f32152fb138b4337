"""What a plan says that is over memory, and the rules of thumb of docs/guide/scaling.md."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from rl.errors import RewindError
from rl.running.command_line import parse_with_config
from trainers.plan.advice import what_fits
from trainers.plan.arithmetic import memory, plan
from trainers.plan.shapes import shape_of


@cache
def script() -> Any:
    """`scripts/plan.py` as a module."""
    spec = importlib.util.spec_from_file_location("plan", ROOT / "scripts" / "plan.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RULES = {  # docs/guide/scaling.md: (base, algorithm, GiB, GPUs, strategy): the largest batch
    **{("chameleon-7b", a, 80, 1, "ddp"): n for a, n in (("sft", 49), ("grpo", 100), ("dpo", 37))},
    **{("liquid-7b", a, 80, 1, "ddp"): n for a, n in (("sft", 42), ("grpo", 88), ("dpo", 33))},
    **{("emu3-8b", a, 80, 1, "ddp"): n for a, n in (("sft", 11), ("grpo", 24), ("dpo", 9))},
    **{("emu3-8b", a, 80, 4, "zero2"): n for a, n in (("sft", 11), ("grpo", 24), ("dpo", 9))},
    **{("chameleon-30b", a, 80, 1, "ddp"): n for a, n in (("sft", 2), ("grpo", 4), ("dpo", 1))},
    **{("chameleon-30b", "sft", 80, 4, "zero3"): 19, ("chameleon-30b", "grpo", 80, 4, "zero2"): 5},
    **{("chameleon-7b", a, 24, 4, "zero2"): n for a, n in (("sft", 7), ("grpo", 13), ("dpo", 5))},
    **{("liquid-7b", a, 24, 4, "zero2"): n for a, n in (("sft", 4), ("grpo", 8), ("dpo", 3))},
    **{("emu3-8b", a, 24, 4, "zero2"): n for a, n in (("sft", 1), ("grpo", 1), ("dpo", 0))},
    **{("chameleon-30b", a, 24, 8, "zero3"): 0 for a in ("sft", "grpo")},
}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_rules_of_thumb_of_the_guide(rule: tuple[str, str, int, int, str]) -> None:
    base, algorithm, gib, gpus, strategy = rule
    for rows, fits in ((RULES[rule], True), (RULES[rule] + 1, False)):
        if rows:
            words = ["--base", base, "--algorithm", algorithm, "--rows", str(rows)]
            _, shape, job = script().job_of(script().parser().parse_args(words))
            peak = memory(shape, job, strategy, gpus, gib * 2**30)["peak"]
            assert (peak <= 0.9 * gib * 2**30) == fits, (rows, peak / 2**30)


def test_what_fits_where_the_batch_is_too_large() -> None:
    """Emu3's DPO at a batch of 10 pairs, and what fits nowhere."""
    words = ["--base", "emu3-8b", "--algorithm", "dpo", "--rows", "10"]
    _, shape, job = script().job_of(script().parser().parse_args(words))
    found = plan(shape, job, [1, 4])
    one, four = what_fits(shape, job, found, 80 * 2**30, pairs=True)
    assert one == "1 GPU: a --per_device_train_batch_size that fits: single 9"
    assert four == "4 GPUs: a --per_device_train_batch_size that fits: ddp 9, zero1 9, zero2 9"
    assert what_fits(shape, replace(job, rows=12), plan(shape, replace(job, rows=12), [1, 4]), 80 * 2**30) == []
    words = ["--base", "chameleon-30b", "--algorithm", "sft", "--rows", "1"]
    _, shape, job = script().job_of(script().parser().parse_args(words))
    told = what_fits(shape, job, plan(shape, job, [8], 0, 24 * 2**30), 24 * 2**30)
    assert told[0].startswith("8 GPUs: no batch fits: ddp (training), zero1 (training), zero2 (training), zero3 (pict")
    job = replace(job, checkpointing=False)
    told = what_fits(shape, job, plan(shape, job, [8], 0, 24 * 2**30), 24 * 2**30)
    assert told[-1].startswith("--activation_checkpointing needs less")


def test_a_fitted_mix_is_planned_as_its_terms(tmp_path: Path) -> None:
    """One that asks an inverse model needs what that reward needs by name."""
    mix = tmp_path / "reward.json"
    jobs = []
    for given, asked in (
        ("idm_margin=1", ["idm_margin=2"]),
        ("idm_margin=1", [f"{mix}=2"]),
        ("copy_penalty=1", [str(mix)]),
    ):
        mix.write_text(json.dumps({"rewards": [given]}))
        words = ["--base", "chameleon-7b", "--algorithm", "grpo", "--rewards", *asked]
        jobs.append(script().job_of(script().parser().parse_args(words))[2])
    assert jobs[0] == jobs[1] != jobs[2]


@pytest.mark.parametrize("base", ["chameleon-7b", "liquid-7b", "emu3-8b"])
def test_defaults_and_configs_fit_on_one_gpu(base: str) -> None:
    """Each method as its script has it, and each config of the base, on 80 GiB."""
    given = [["--algorithm", name] for name in ("sft", "grpo", "dpo", "best_of_n")]
    given += [["--config", str(file)] for file in sorted((ROOT / "configs" / base).glob("*.yaml"))]
    assert len(given) == 9
    over = []
    for words in given:
        arguments = parse_with_config(script().parser(), ["--base", base, *words], others=[])
        _, shape, job = script().job_of(arguments)
        if memory(shape, job, "ddp", 1)["peak"] > 0.9 * 80 * 2**30:
            over.append(words[-1])
    assert over == []


def test_what_the_arithmetic_does_not_know_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("dtype: float32\nattn_implementation: flash_attention_2\nlogging_steps: 3\n")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["plan.py", "--config", str(tmp_path / "c.yaml"), "--base", "chameleon-7b"])
        script().main()
    said = capsys.readouterr().out
    assert "not counted, and they do change memory: attn_implementation, dtype" in said
    assert "that change no memory: logging_steps" in said
    arguments = script().parser().parse_args(["--base", "chameleon-7b", "--role", "idm"])
    with pytest.raises(RewindError, match="the arithmetic is that of the forward model"):
        script().job_of(arguments)


def test_a_published_checkpoint_has_its_own_usual_size() -> None:
    assert shape_of("BAAI/Emu3-Stage1").tokens_per_image == 48 * 49
    assert shape_of("BAAI/Emu3-Stage1@main", 512).tokens_per_image == shape_of("BAAI/Emu3-Gen").tokens_per_image


def test_a_small_liquid_base_has_codes_of_its_own(tmp_path: Path) -> None:
    config = {"model_type": "gemma", "vocab_size": 1010, "num_attention_heads": 2, "hidden_size": 8}
    config |= {"intermediate_size": 16, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    vq = {"num_embeddings": 512, "resolution": 64, "channel_multiplier": [1, 1, 2, 2, 4]}
    (tmp_path / "vq_config.json").write_text(json.dumps(vq))
    shape = shape_of(str(tmp_path))
    assert (shape.image_codes, shape.tokens_per_image, shape.pixels) == (512, 16, 64 * 64)
