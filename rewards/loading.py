"""Rewards by name or import path: `NAME_OR_PATH[=WEIGHT]`, a function, or an object that can be called."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.contract import Reward, RewardFunction
from rl.errors import RewindError


def load_rewards(
    specifications: Sequence[str | RewardFunction | Reward],
    idm: Any = None,
    actions: Sequence[str] = (),
) -> list[Reward]:
    """Rewards in the order given, with unique names.

    Args:
        specifications: 'idm_margin=1.0', 'my_rewards.py:straight=0.5', 'package.module:attr', or a callable.
        idm: the inverse model that the built-ins which need one are given.
        actions: sentences of the data set, from which `idm_margin` takes rivals.

    Raises:
        RewindError: an unknown name, a file that does not import, a missing attribute, a name twice.
    """
    loaded = [item if isinstance(item, Reward) else _one(item, idm, actions) for item in specifications]
    if not loaded:
        raise RewindError("give at least one reward")
    names = [reward.name for reward in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RewindError(f"the reward '{twice[0]}' is given twice")
    return loaded


def _one(item: str | RewardFunction, idm: Any, actions: Sequence[str]) -> Reward:
    from rewards import BUILT_IN

    if not isinstance(item, str):
        return Reward.of(item)
    path, _, number = item.partition("=")
    try:
        weight = float(number) if number else 1.0
    except ValueError as error:
        raise RewindError(f"the weight in '{item}' is no number: write NAME=0.5") from error
    if path in BUILT_IN:
        return Reward.of(_built_in(path, idm, actions), path, weight)
    if ":" not in path:
        raise RewindError(
            f"there is no reward '{path}': the built-in ones are {', '.join(sorted(BUILT_IN))}; one of your own is "
            "'file.py:function' or 'package.module:function'"
        )
    found = _attribute(path)
    return Reward.of(found() if isinstance(found, type) else found, path.rpartition(":")[2], weight)


def _built_in(name: str, idm: Any, actions: Sequence[str]) -> RewardFunction:
    from rewards import BUILT_IN, NEEDS_IDM

    made: type[Any] = BUILT_IN[name]
    if name in NEEDS_IDM:
        if idm is None:
            raise RewindError(f"the reward '{name}' needs an inverse model: give --idm")
        if name == "idm_margin":
            return made(idm, actions)  # type: ignore[no-any-return]
        return made(idm)  # type: ignore[no-any-return]
    return made()  # type: ignore[no-any-return]


def _attribute(path: str) -> Any:
    where, _, name = path.rpartition(":")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise RewindError(f"there is no file {where} with the reward '{name}'")
            spec = importlib.util.spec_from_file_location(f"user_reward_{Path(where).stem}", where)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except RewindError:
        raise
    except Exception as error:  # the user's file may raise anything while it is imported
        why = f"{type(error).__name__}: {error}"
        raise RewindError(f"{where} with the reward '{name}' does not import: {why}") from error
    if not hasattr(module, name):
        raise RewindError(f"{where} has no '{name}'")
    return getattr(module, name)
