"""`scripts/bench.py --preset gpu-7b`: one GPU, a random Chameleon of 7B in bfloat16, 1,024 tokens a picture.

All in one process, for loading takes longer than measuring. A section that fails is named with its reason; the others
are measured all the same. `gpu-smoke` is the same at a tiny size on any machine, and only shows that it runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rl.errors import RewindError
from rl.models.compiling import compiled_step
from rl.models.distribution import TokenDistribution
from rl.models.families.chameleon import ChameleonVLM
from rl.models.memory import GIB, kv_bytes
from rl.running.files import write_whole
from trainers.bench import logprobs, sampler, scorer
from trainers.bench.adapter import measure_adapter, put_adapter
from trainers.bench.big import SEVEN, big_base, shape_of
from trainers.bench.drafted import measure_drafted
from trainers.bench.figures import machine, versions
from trainers.bench.gpu_generate import WARM_TOKENS, Found, measure_generate, prompts_of
from trainers.bench.kept import copied_bytes, margin_rows, rollout_bytes
from trainers.bench.measure import Size, in_turns, peak_bytes, seconds, state_bytes
from trainers.bench.mid import ACTIONS, random_pictures
from trainers.common.log_probs import token_scores
from trainers.plan.arithmetic import Job, memory

LOAD = {"prompts": 8, "candidates": 8, "targets": 16, "pictures": 32, "rows": 2, "r": 16, "repeats": 2}
SIZES: dict[str, Size] = {
    "gpu-7b": SEVEN | LOAD,
    "gpu-smoke": SEVEN
    | {"hidden": 64, "intermediate": 176, "layers": 2, "heads": 2, "vocabulary": 1024, "codes": 64, "image_tokens": 144}
    | {"vq_channels": 32, "vq_blocks": 1}
    | {"prompts": 2, "candidates": 2, "targets": 2, "pictures": 2, "rows": 1, "r": 4, "repeats": 1},
}


def bandwidth(mebibytes: int = 1024) -> float:
    """Bytes a second that a copy reads and writes, the most that anything bound by memory can reach."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.zeros(mebibytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(seconds(lambda: target.copy_(source), 5))


def floor_bytes(vlm: ChameleonVLM, prompt: int, size: Size) -> int:
    """Bytes that drawing has to read: each step the layers and the codes' rows of the head, the prompts' keys and
    values once a prompt, and a row's own so far.
    """
    steps, rows = vlm.layout.tokens_per_image, size["prompts"] * size["candidates"]
    layers: Any = vlm.transformer()
    head = len(vlm.layout.image_ids_V) * size["hidden"] * vlm.head_weight().element_size()
    read = steps * (state_bytes([layers.layers, layers.norm]) + head + size["prompts"] * kv_bytes(vlm, prompt))
    return read + rows * kv_bytes(vlm, steps * (steps - 1) // 2)


def measure_sampler(vlm: ChameleonVLM, size: Size) -> Found:
    """Ours, and how near it comes to the floor."""
    raw = _drawn(vlm, prompts_of(vlm, size), size)
    return {**_rates(raw, size, "sampler"), "raw": raw}


def measure_compiled(vlm: ChameleonVLM, size: Size) -> Found:
    """Ours with `--compile`, and how long the first picture waits for that."""
    prompts = prompts_of(vlm, size)
    vlm.step = compiled_step(vlm.transformer(), vlm.device, vlm.name)
    start = time.perf_counter()
    try:
        sampler.draw(vlm, prompts, size)  # in full, for the room of a row is part of the shapes
        first = time.perf_counter() - start
        raw = _drawn(vlm, prompts, size)
    finally:
        vlm.step = None
    return {"sampler_compiled_first_seconds": first, **_rates(raw, size, "sampler_compiled"), "raw": raw}


def _drawn(vlm: ChameleonVLM, prompts: list[list[int]], size: Size) -> Found:
    """Seconds of our sampler, after a few tokens, and those of the floor."""
    if vlm.step is None:
        sampler.draw(vlm, prompts, size, WARM_TOKENS)
    (ours,) = seconds(lambda: sampler.draw(vlm, prompts, size), 1, warm=0)
    floor = floor_bytes(vlm, max(map(len, prompts)), size) / bandwidth(1024 if torch.cuda.is_available() else 64)
    return {"ours_seconds": ours, "floor_seconds": floor}


def _rates(raw: Found, size: Size, name: str) -> dict[str, float]:
    drawn = size["prompts"] * size["candidates"] * size["image_tokens"]
    return {
        f"{name}_of_bandwidth_floor": raw["floor_seconds"] / raw["ours_seconds"],
        f"{name}_tokens_a_second": drawn / raw["ours_seconds"],
    }


def measure_scorer(vlm: ChameleonVLM, size: Size) -> Found:
    """Targets of one source, read behind it, against a row for each; 1 would be as fast as counting tokens allows."""
    source, *targets = random_pictures(vlm, 1 + size["targets"])
    prompts, spans = [vlm.fdm_prompt(source, ACTIONS[0])] * len(targets), [vlm.target_span(ids) for ids in targets]
    ours = min(seconds(lambda: scorer.shared(vlm, prompts, spans), size["repeats"]))
    theirs = min(seconds(lambda: scorer.one_row_each(vlm, prompts, spans), size["repeats"]))
    limit = scorer.rows_tokens(prompts, spans) / (len(prompts[0]) + scorer.rows_tokens([], spans))
    raw = {"ours_seconds": ours, "baseline_seconds": theirs, "limit": limit}
    return {"scorer_of_token_limit": theirs / ours / limit, "raw": raw}


def measure_logprobs(vlm: ChameleonVLM, size: Size) -> Found:
    """A picture's log-probabilities and their gradient against TRL's tiled head, in turns."""
    how = {name: size[name] for name in ("hidden", "vocabulary", "codes")} | {"tokens": size["image_tokens"], "half": 1}
    both = logprobs.steps(how)
    spent = in_turns(both, 20 * size["repeats"], warm=3)
    ours, theirs = ({"seconds": each, "bytes": peak_bytes(step)} for each, step in zip(spent, both, strict=True))
    figures = {
        "logprob_memory_ratio": ours["bytes"] / theirs["bytes"],  # type: ignore[operator]
        "logprob_time_ratio": median(spent[0]) / median(spent[1]),
    }
    return {**figures, "raw": {"ours": ours, "baseline": theirs}}


def measure_vq(vlm: ChameleonVLM, size: Size) -> Found:
    """Pictures a second that become ids, and ids that become pictures."""
    vlm.remembered_pictures = 0
    pictures = np.random.default_rng(0).integers(
        0, 256, (size["pictures"], vlm.picture_size.height, vlm.picture_size.width, 3), dtype=np.uint8
    )
    ids = np.array(random_pictures(vlm, size["pictures"]))
    encoding = min(seconds(lambda: vlm.encode(list(pictures)), size["repeats"]))
    decoding = min(seconds(lambda: vlm.decode(ids), size["repeats"]))
    return {
        "vq_encoded_a_second": len(pictures) / encoding,
        "vq_decoded_a_second": len(ids) / decoding,
        "raw": {"encode_seconds": encoding, "decode_seconds": decoding},
    }


def measure_margin(vlm: ChameleonVLM, size: Size) -> Found:
    """What `idm_margin` of a group holds, in rows: keys and values of a pair of pictures and an action."""
    return {"margin_rows": margin_rows(vlm, size["candidates"]), "raw": {"candidates": size["candidates"]}}


def measure_memory(vlm: ChameleonVLM, size: Size) -> Found:
    """Peaks of a rollout and of a training step with an adapter, against what `plan.py` computes; the rollout's beyond
    the weights also against keys and values of a row for each candidate that holds a copy of its prompt.
    """
    sources = random_pictures(vlm, size["prompts"])
    prompts = [vlm.fdm_prompt(ids, ACTIONS[0]) for ids in sources]
    held = state_bytes([vlm.model])
    drawing, copied = rollout_bytes(vlm, prompts, size), copied_bytes(vlm, len(prompts[0]), size)
    rollout = held + drawing
    put_adapter(vlm, size)
    step = _training_step(vlm, size)
    training = held + peak_bytes(step)
    spent = min(seconds(step, size["repeats"], warm=0))
    job = Job(
        lora_r=size["r"],
        frozen_adapters=0,
        rows=size["rows"],
        rollout_rows=size["prompts"] * size["candidates"],
        candidates=size["candidates"],
        action_tokens=len(vlm.text_ids(ACTIONS[0])),
    )
    planned = memory(shape_of(size), job, "ddp", 1)
    raw = {"rollout": rollout, "training": training, "planned": planned, "drawing": drawing, "copied": copied}
    figures = {f"peak_{name}_of_plan": raw[name] / planned[name] for name in ("rollout", "training")}  # type: ignore[operator]
    sizes = {"peak_rollout_gib": rollout / GIB, "peak_training_gib": training / GIB}
    figures["rollout_cache_ratio"] = drawing / copied
    return {**figures, **sizes, "trained_tokens_a_second": size["rows"] * size["image_tokens"] / spent, "raw": raw}


def measure_under_adapter(vlm: ChameleonVLM, size: Size) -> Found:
    """What an adapter adds to a step of drawing, and how much less than peft's own forward takes."""
    put_adapter(vlm, size)
    return measure_adapter(vlm, size, _training_step(vlm, size))


def _training_step(vlm: ChameleonVLM, size: Size) -> Callable[[], None]:
    """A step of AdamW on the adapter with checkpointed activations, as GRPO takes one; the optimizer is new in it."""
    model: Any = vlm.model
    model.train()
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    weights = [p for p in model.parameters() if p.requires_grad]
    distribution, steps = TokenDistribution(vlm.layout.image_ids_V), size["image_tokens"]
    pictures = random_pictures(vlm, 2 * size["rows"])
    pairs = zip(pictures[::2], pictures[1::2], strict=True)
    rows = torch.tensor([[*vlm.fdm_prompt(a, ACTIONS[0]), *b] for a, b in pairs], device=vlm.device)

    def step() -> None:
        optimizer = torch.optim.AdamW(weights, lr=1e-5)
        hidden = vlm.hidden_states(rows, use_cache=False).last_hidden_state
        scores: Any = token_scores(distribution, hidden[:, -steps - 1 : -1], vlm.head_weight(), rows[:, -steps:])
        (-scores.log_probs.mean()).backward()
        optimizer.step()

    return step


SECTIONS: dict[str, Callable[[ChameleonVLM, Size], Found]] = {
    "sampler": measure_sampler,
    "static": partial(measure_generate, cache="static"),
    "compiled": measure_compiled,
    "dynamic": partial(measure_generate, cache="dynamic"),
    "scorer": measure_scorer,
    "logprobs": measure_logprobs,
    "vq": measure_vq,
    "margin": measure_margin,
    "drafted": measure_drafted,
    "memory": measure_memory,  # the last two, for they put an adapter on the model
    "adapter": measure_under_adapter,
}


def bench_gpu(preset: str, output: Path, parts: Sequence[str] = ()) -> Found:
    """Measure sections (all if none is named); writes `output/bench.json` and `output/gpu.md`, returns the former.

    Raises:
        RewindError: an unknown section, `gpu-7b` without a GPU, no section that could be measured.
    """
    unknown = sorted(set(parts) - set(SECTIONS))
    if unknown:
        raise RewindError(f"the preset {preset} has no part '{unknown[0]}': choose of {', '.join(SECTIONS)}")
    if preset == "gpu-7b" and not torch.cuda.is_available():
        raise RewindError("the preset gpu-7b needs a GPU of 80 GB: gpu-smoke shows on any machine that it runs")
    size, words = SIZES[preset], ["--parts", *parts] if parts else []
    command = " ".join(["python scripts/bench.py --preset", preset, *words, "--output", str(output)])
    start, vlm = time.perf_counter(), big_base(size)
    found: Found = {"preset": preset, "command": command, "machine": _machine(), "versions": versions()}
    found |= {"raw": {"size": size, "made_seconds": time.perf_counter() - start}, "failed": {}}
    output.mkdir(parents=True, exist_ok=True)
    for name in [section for section in SECTIONS if section in (parts or SECTIONS)]:
        try:
            measured = SECTIONS[name](vlm, size)
            found["raw"][name] = measured.pop("raw")
            found |= measured | _speedups(found["raw"])
        except (RuntimeError, RewindError) as error:  # a GPU is dear: what can be measured is
            found["failed"][name] = _reason(error)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        write_whole(output / "bench.json", json.dumps(found, indent=1) + "\n")
        write_whole(output / "gpu.md", table(found))
    if len(found["failed"]) == len(parts or SECTIONS):
        raise RewindError(f"nothing could be measured: {found['failed']}")
    return found


def _speedups(raw: Found) -> Found:
    """Of our sampler, against the faster cache of `generate` of those that were measured."""
    theirs = [raw[cache]["seconds"] for cache in ("static", "dynamic") if cache in raw]
    names = {"sampler": "sampler_1024_speedup", "compiled": "sampler_1024_compiled_speedup"}
    ours = {figure: raw[part]["ours_seconds"] for part, figure in names.items() if part in raw}
    return {figure: min(theirs) / seconds for figure, seconds in ours.items()} if theirs else {}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _machine() -> Found:
    memory_of = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 0
    return {**machine(), "device_gib": round(memory_of / GIB, 1)}


def table(found: Found) -> str:
    """The figures as Markdown, with card and command."""
    card, size = found["machine"], found["raw"]["size"]
    told = f"{card['device']}, {card['device_gib']} GiB" if card["device_gib"] else card["device"]
    lines = [
        f"`{found['command']}` on {told}; torch {found['versions']['torch']}, transformers "
        f"{found['versions']['transformers']}. Hidden {size['hidden']}, {size['layers']} layers, "
        f"{size['image_tokens']} tokens a picture, {size['prompts']} prompts x {size['candidates']} candidates.",
        "",
        "| figure | measured |",
        "|---|---|",
        *(f"| `{name}` | {value:.3g} |" for name, value in found.items() if isinstance(value, float)),
        *(f"| {name} | not measured: {reason} |" for name, reason in found["failed"].items()),
    ]
    return "\n".join(lines) + "\n"
