"""Which parts there are, at which sizes, and how an arm is run: `python -m trainers.bench.arms PART ARM --preset P`."""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any

SAMPLER = {"prompts": 32, "candidates": 8, "repeats": 5}
SCORER = {"pairs": 32, "actions": 9, "repeats": 5}
LOGPROBS = {"tokens": 1024, "hidden": 512, "vocabulary": 65536, "codes": 8192, "repeats": 5}
STATE = {"hidden": 1024, "layers": 8, "r": 16, "rows": 2}
VIDEO = {"frames": 240, "pixels": 256, "repeats": 5}

EIGHT = {"prompts": 8, "candidates": 8}
TINY = {"hidden": 64, "layers": 2, "codes": 64, "image_tokens": 144, "prompts": 2, "candidates": 2}

# part: (module, its arms, size of the preset full, what the preset smoke changes)
PARTS: dict[str, tuple[str, tuple[str, ...], dict[str, int], dict[str, int]]] = {
    "sampler": ("sampler", ("ours", "baseline"), SAMPLER, {"prompts": 2, "candidates": 2, "repeats": 1}),
    "sampler_256": ("sampler", ("ours", "baseline", "static"), {**EIGHT, "image_tokens": 256, "repeats": 2}, TINY),
    "sampler_1024": (
        *("sampler", ("ours", "baseline", "static")),
        *({**EIGHT, "image_tokens": 1024, "repeats": 1, "warm": 0}, TINY),
    ),
    "rollout_cache": ("kept", ("ours", "baseline"), {**EIGHT, "image_tokens": 1024}, TINY),
    "margin": ("kept", ("margin",), {"candidates": 8, "image_tokens": 1024}, TINY),
    "scorer_256": ("scorer", ("ours", "baseline"), {"targets": 16, "image_tokens": 256, "repeats": 5}, TINY),
    "scorer": ("scorer", ("ours", "baseline"), SCORER, {"pairs": 2, "actions": 3, "repeats": 1}),
    "labels_256": (
        *("labels", ("ours", "baseline", "static")),
        *({"pairs": 32, "words": 8, "image_tokens": 256, "repeats": 3}, {**TINY, "pairs": 2, "words": 3}),
    ),
    "logprobs": ("logprobs", ("ours", "baseline"), LOGPROBS, {"tokens": 64, "hidden": 32, "repeats": 1}),
    "grpo_step": (
        *("grpo_step", ("ours", "baseline")),
        *({"prompts": 2, "candidates": 8, "image_tokens": 256, "r": 16, "repeats": 1}, TINY),
    ),
    "state": ("state", ("ours", "baseline"), STATE, {"hidden": 128, "layers": 2}),
    "state_of_shipped_base": ("state", ("ours", "baseline"), {**STATE, "hidden": 0}, {}),
    **{
        f"{method}_data_{triplets}": (
            *("tokens", (arm,), {"triplets": triplets, "image_tokens": 1024, "read": 1000}),
            {"triplets": triplets // 100, "image_tokens": 144, "hidden": 64, "layers": 2, "read": 16},
        )
        for method, arm in (("sft", "ours"), ("grpo", "grpo"))
        for triplets in (1_000, 10_000, 100_000)
    },
    **{
        f"sft_aurora_{triplets}": (
            *("aurora", ("ours",), {"triplets": triplets, "image_tokens": 4, "read": 1000}),
            {"triplets": triplets // 100, "hidden": 64, "layers": 2, "read": 8},
        )
        for triplets in (1_000, 100_000)
    },
    "epoch": (
        *("tokens", ("epoch", "epoch_of_pictures"), {"triplets": 32, "image_tokens": 1024, "repeats": 2}),
        {"triplets": 4, "image_tokens": 16, "hidden": 64, "layers": 2, "repeats": 1},
    ),
    "store": (
        *("stored", ("ours", "dpo"), {"prompts": 32, "steps": 240, "candidates": 8, "image_tokens": 1024}),
        {"prompts": 2, "steps": 3, "candidates": 4, "image_tokens": 144, "hidden": 64, "layers": 2},
    ),
    "encoding": (
        *("tokens", ("encoding",), {"triplets": 64, "image_tokens": 256, "repeats": 3}),
        {"triplets": 4, "image_tokens": 16, "hidden": 64, "layers": 2, "repeats": 1},
    ),
    "mining": ("data", ("ours", "dis", "baseline"), VIDEO, {"frames": 40, "pixels": 64, "repeats": 1}),
    **{
        f"selection_{labels}": ("data", ("select",), {"labels": labels, "repeats": 3}, {"repeats": 1})
        for labels in (100_000, 1_000_000, 10_000_000)
    },
}

NOT_IN_SMOKE = ("selection_1000000", "selection_10000000", "sft_data_100000", "grpo_data_100000", "sft_aurora_100000")


def measure(part: str, arm: str, preset: str) -> dict[str, Any]:
    """Run one arm of a part here."""
    module, _, full, smoke = PARTS[part]
    size = {**full, **(smoke if preset == "smoke" else {})}
    found: dict[str, Any] = getattr(importlib.import_module(f"trainers.bench.{module}"), arm)(size)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("arm")
    parser.add_argument("--preset", choices=["smoke", "full"], default="full")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.part, arguments.arm, arguments.preset)))
