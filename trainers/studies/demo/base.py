"""The base that the main job stands on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.models.known import BASE_OF_WORLD, CARD_FILE
from rl.models.opening import load_base
from rl.models.unified import UnifiedVLM
from rl.world import World
from trainers.pretraining.arguments import base_parser
from trainers.pretraining.recipe import make_base

logger = logging.getLogger("rl")


def open_base(base: str | None, world_name: str, world: World, output: Path, steps: int) -> UnifiedVLM:
    """The base to stand on: the one given, the one that ships for the world, or one pretrained in `output/base`.

    Raises:
        RewindError: a base for pictures of another size.
    """
    name = base or BASE_OF_WORLD.get(world_name)
    if name is None:
        name = str(output / "base")
        if not (output / "base" / CARD_FILE).is_file():
            logger.warning(
                "the world '%s' has no shipped base: one is pretrained first, into %s (about an hour on 2 cores; give "
                "it as --base the next time)",
                *(world_name, name),
            )
            flags: dict[str, Any] = {"world": world_name, "output": name, "steps": steps, "merge_codes": 0.5}
            flags |= {"tokenizer_steps": max(2, steps // 2), "num_pairs": 8 * steps, "num_videos": max(1, steps // 8)}
            argv = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
            make_base(base_parser().parse_args([*argv, "--resume"]))
    vlm = load_base(name)
    if vlm.image_size != world.image_size:
        raise RewindError(
            f"{name} sees {vlm.image_size} pixels and the world {world_name} draws {world.image_size}: pretrain a base "
            "on the world (pretrain_base.py) and give it as --base"
        )
    return vlm
