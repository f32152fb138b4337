"""Worlds: the embedded tabletop and the user's own, opened by name or from a file."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.errors import RewindError
from rl.world import REQUIRED_ATTRIBUTES, REQUIRED_METHODS, World
from rl.worlds.divided import SHARES, DividedWorld


def load_world(name_or_path: str, **arguments: Any) -> World:
    """A world by name ('tabletop') or from a file ('my_world.py:MyWorld', a class or a ready object).

    Args:
        name_or_path: the name, or FILE.py:ATTRIBUTE.
        arguments: passed to the class, e.g. `split='test'`.

    Raises:
        RewindError: no such world or file, the file does not import, or the world lacks a required method.
    """
    if name_or_path == "tabletop":
        from rl.worlds.tabletop import Tabletop

        return Tabletop(**arguments)
    path, colon, attribute = name_or_path.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise RewindError(f"there is no world '{name_or_path}': give 'tabletop' or FILE.py:CLASS")
    found = _attribute(Path(path), attribute)
    try:
        world = found(**arguments) if isinstance(found, type) else found
    except TypeError as error:
        raise RewindError(f"{name_or_path} cannot be made with {arguments or 'no arguments'}: {error}") from error
    lacking = [f"{name}()" for name in REQUIRED_METHODS if not callable(getattr(world, name, None))]
    lacking += [name for name in REQUIRED_ATTRIBUTES if not hasattr(world, name)]
    if lacking:
        raise RewindError(f"the world {name_or_path} lacks {', '.join(lacking)}: see the World protocol in rl/world.py")
    return world  # type: ignore[no-any-return]


def load_split(name_or_path: str, split: str) -> World:
    """A world restricted to a split; one without splits is divided into train, validation and test, with a warning.

    Raises:
        RewindError: no such world or split, or too few distinct cases to divide (`DividedWorld`).
    """
    return load_splits(name_or_path, [split])[split]


def load_splits(name_or_path: str, splits: Sequence[str]) -> dict[str, World]:
    """`load_split` for several splits of one world, by name."""
    world: Any = load_world(name_or_path)
    if getattr(world, "split", None) is not None:
        # Opened once a split: what a world of the user's restricts may be itself.
        return {name: load_world(name_or_path).split(name) for name in splits}  # type: ignore[attr-defined]
    divided = {name: DividedWorld(world, name) for name in splits}
    shares = ", ".join(f"{share:.0%} are {name}" for name, share in SHARES.items())
    warnings.warn(
        f"the world {name_or_path} has no splits: its cases (scene and action) are divided, {shares}, none is in two; "
        f"this is {' and '.join(splits)}",
        stacklevel=2,
    )
    next(iter(divided.values())).check()
    return dict(divided)


def _attribute(path: Path, attribute: str) -> Any:
    if not path.is_file():
        raise RewindError(f"there is no file {path}: give the path of the world's file")
    spec = importlib.util.spec_from_file_location(f"rewind_world_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise RewindError(f"{path} does not import: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise RewindError(f"{path} has no '{attribute}'")
    return getattr(module, attribute)
