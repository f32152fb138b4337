"""`scripts/bench.py --preset gpu-7b`: its shape on no device at all, and all of it at a tiny size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.errors import RewindError
from rl.models.memory import kv_bytes
from trainers.bench import gpu, gpu_generate
from trainers.bench.big import SEVEN, big_base, shape_of
from trainers.bench.measure import state_bytes
from trainers.plan.shapes import KNOWN

TINY = gpu.SIZES["gpu-smoke"] | {"image_tokens": 16}


def test_it_is_the_published_shape() -> None:
    known = KNOWN["chameleon-7b"]
    assert shape_of(SEVEN) == replace(known, name="random", source="this benchmark")
    vlm = big_base(SEVEN, "meta")  # shapes without weights
    assert sum(p.numel() for p in vlm.model.parameters()) == known.parameters()
    assert {p.dtype for p in vlm.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in vlm.vqmodel.parameters()} == {torch.float32}
    assert (vlm.layout.tokens_per_image, vlm.image_size, len(vlm.layout.image_ids_V)) == (1024, 512, 8192)


def test_the_floor_counts_a_prompt_once() -> None:
    vlm = big_base(TINY)
    more = TINY | {"candidates": TINY["candidates"] + 1}
    rows = [gpu.floor_bytes(vlm, 100, size) for size in (TINY, more)]
    assert rows[1] - rows[0] == TINY["prompts"] * kv_bytes(vlm, sum(range(16)))  # the candidates' own alone
    assert gpu.floor_bytes(vlm, 101, TINY) - rows[0] == 16 * TINY["prompts"] * kv_bytes(vlm, 1)


def test_all_of_it_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bench.json and a Markdown table with the command; what fails is named, and the others are measured."""
    monkeypatch.setitem(gpu.SIZES, "gpu-smoke", TINY)

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("on purpose")

    monkeypatch.setitem(gpu.SECTIONS, "scorer", out_of_memory)
    monkeypatch.setattr(gpu, "compiled_step", lambda transformer, *_: transformer)  # half a minute; see test_compiling
    found = gpu.bench_gpu("gpu-smoke", tmp_path)
    assert found == json.loads((tmp_path / "bench.json").read_text())
    assert found["failed"] == {"scorer": "on purpose"}
    figures = {name: value for name, value in found.items() if isinstance(value, float)}
    assert set(figures) == {
        *("sampler_1024_speedup", "sampler_of_bandwidth_floor", "sampler_tokens_a_second"),
        "sampler_compiled_first_seconds",
        *(
            f"sampler_{name}"
            for name in ("1024_compiled_speedup", "compiled_of_bandwidth_floor", "compiled_tokens_a_second")
        ),
        "trained_tokens_a_second",
        *("logprob_memory_ratio", "logprob_time_ratio", "vq_encoded_a_second", "vq_decoded_a_second"),
        *("rollout_cache_ratio", "margin_rows", "drafted_pass_of_step", "redraw_speedup"),
        *(f"adapter_{name}" for name in ("step_speedup", "step_of_none", "scorer_speedup", "training_speedup")),
        *("peak_rollout_of_plan", "peak_training_of_plan", "peak_rollout_gib", "peak_training_gib"),
    }
    assert min(value for name, value in figures.items() if "_step" not in name) > 0  # those are differences
    assert set(found["raw"]["adapter"]["step_seconds"]) == {"none", "peft", "fused"}
    best = min(found["raw"][cache]["seconds"] for cache in ("static", "dynamic"))
    assert found["sampler_1024_speedup"] == best / found["raw"]["sampler"]["ours_seconds"]
    memory, vlm = found["raw"]["memory"], big_base(TINY)
    rows, prompt = TINY["prompts"] * TINY["candidates"], len(gpu_generate.prompts_of(vlm, TINY)[0])
    assert memory["copied"] == rows * kv_bytes(vlm, prompt + TINY["image_tokens"])
    assert found["rollout_cache_ratio"] == memory["drawing"] / memory["copied"]
    assert memory["rollout"] - memory["drawing"] == state_bytes([vlm.model])
    page = (tmp_path / "gpu.md").read_text()
    assert f"`python scripts/bench.py --preset gpu-smoke --output {tmp_path}` on cpu" in page
    assert all(f"| `{name}` |" in page for name in figures)
    assert "| scorer | not measured: on purpose |" in page


def test_generate_takes_fewer_prompts_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def generate(vlm: object, prompts: list[list[int]], *_: object, **__: object) -> None:
        asked.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("too many")

    monkeypatch.setattr(gpu_generate.sampler, "generate", generate)
    vlm = big_base(TINY, "meta")
    found = gpu_generate.generate(vlm, [[1, 2]] * 8, TINY, "dynamic")
    assert found["prompts_at_once"] == 2
    assert asked == [8, 4, 2, 2, 2, 2, 2]  # two that fail, a warm one, and all of them


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="the preset gpu-smoke has no part 'speed': choose of sampler, static"):
        gpu.bench_gpu("gpu-smoke", tmp_path, ["speed"])
    if not torch.cuda.is_available():
        with pytest.raises(RewindError, match="gpu-7b needs a GPU of 80 GB: gpu-smoke shows"):
            gpu.bench_gpu("gpu-7b", tmp_path / "none")
        assert not (tmp_path / "none").exists()
