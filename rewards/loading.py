"""Rewards by name or import path: `NAME_OR_PATH[=WEIGHT]`, a function, or an object that can be called."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.contract import COLUMNS, Reward, RewardFunction, described
from rewards.rivals import SameOutcome
from rewards.table import BUILT_IN
from rl.errors import RewindError
from rl.running.command_line import mapping


def load_rewards(
    specifications: Sequence[str | RewardFunction | Reward],
    idm: Any = None,
    actions: Sequence[str] = (),
    *,
    same_outcome: SameOutcome | None = None,
    arguments: Mapping[str, Mapping[str, Any]] | str | None = None,
) -> list[Reward]:
    """Rewards in the order given, with unique names.

    A class, built in or of one's own, is made here: where its constructor names `idm`, `actions` or `same_outcome`, it
    is given what stands here.

    Args:
        specifications: 'idm_margin=1.0', 'my_rewards.py:straight=0.5', 'package.module:attr', or a callable.
        idm: the inverse model.
        actions: sentences of the data set, from which rivals are taken.
        same_outcome: `(source_picture, a, b) -> bool`, whether two sentences name one outcome.
        arguments: by the reward's name, e.g. {"keep_unchanged": {"default": 3}}, or that as JSON.

    Raises:
        RewindError: an unknown name, a file that does not import, a missing attribute, a name twice, arguments that do
            not fit or belong to no reward.
    """
    given = mapping(arguments) if isinstance(arguments, str) else dict(arguments or {})
    for name, values in given.items():
        if not isinstance(values, Mapping):
            raise RewindError(f"the arguments of the reward '{name}' must be a mapping of names to values")
    offered = {"idm": idm, "actions": actions, "same_outcome": same_outcome}
    loaded = [_one(item, offered, given) for item in specifications]
    if not loaded:
        raise RewindError("give at least one reward")
    names = [reward.name for reward in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RewindError(f"the reward '{twice[0]}' is given twice")
    unused = sorted(set(given) - set(names))
    if unused:
        raise RewindError(f"there are arguments for the reward '{unused[0]}' and no such reward among {names}")
    return loaded


def _one(
    item: str | RewardFunction | Reward, offered: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]
) -> Reward:
    if isinstance(item, Reward):
        if item.name in given:
            raise RewindError(f"the reward '{item.name}' is ready and takes no arguments: set them where it is made")
        return item
    if not isinstance(item, str):
        name = str(getattr(item, "name", None) or getattr(item, "__name__", type(item).__name__))
        return Reward.of(_made(item, name, offered, given), name)
    path, _, number = item.partition("=")
    try:
        weight = float(number) if number else 1.0
    except ValueError as error:
        raise RewindError(f"the weight in '{item}' is no number: write NAME=0.5") from error
    if path.endswith((".py", ":")):
        raise RewindError(f"'{item}' names no function: write {path.removesuffix(':')}:FUNCTION")
    if path not in BUILT_IN and ":" not in path:
        near = difflib.get_close_matches(path, BUILT_IN, n=1)
        raise RewindError(
            f"there is no reward '{path}'{f', did you mean {near[0]!r}' if near else ''}: the built-in ones are "
            f"{', '.join(sorted(BUILT_IN))}; one of your own is 'file.py:function' or 'package.module:function'"
        )
    if path in BUILT_IN:
        return Reward.of(_made(_attribute(BUILT_IN[path]), path, offered, given), path, weight)
    found, name = _attribute(path), path.rpartition(":")[2]
    return Reward.of(_made(found, name, offered, given), name, weight, _written(found, path))


def _made(found: Any, name: str, offered: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]) -> RewardFunction:
    """A class as an object, a function with its arguments filled in; anything else as it is."""
    arguments = dict(given.get(name, {}))
    if not isinstance(found, type) and not arguments:
        return found  # type: ignore[no-any-return]
    if not (isinstance(found, type) or inspect.isfunction(found)):
        raise RewindError(f"the reward '{name}' is ready and takes no arguments: set them where it is made")
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {key: p for key, p in inspect.signature(found).parameters.items() if p.kind not in rest}
    taken = {key for key in parameters if isinstance(found, type) or key not in COLUMNS}
    unknown = sorted(set(arguments) - taken)
    if unknown:
        raise RewindError(f"the reward '{name}' has no argument '{unknown[0]}': it has {sorted(taken) or 'none'}")
    if not isinstance(found, type):
        return functools.partial(found, **arguments)
    told, arguments = arguments, {key: offered[key] for key in parameters if offered.get(key)} | arguments
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            example = f'give --reward_arguments \'{{"{name}": {{"{key}": ...}}}}\''
            what = "an inverse model: give --idm" if key == "idm" else f"the argument '{key}': {example}"
            raise RewindError(f"the reward '{name}' needs {what}")
    make: Callable[..., RewardFunction] = found
    try:
        return make(**arguments)
    except RewindError as error:
        if name in str(error):
            raise
        raise RewindError(f"the reward '{name}' cannot be made: {error}") from error
    except Exception as error:  # a constructor may raise anything at values that do not fit
        with_what = f" with {told}" if told else ""
        raise RewindError(f"the reward '{name}' cannot be made{with_what}: {described(error)}") from error


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
        raise RewindError(f"{where} with the reward '{name}' does not import: {described(error)}") from error
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RewindError(f"{where} has no '{name}'; it has {', '.join(there[:20]) or 'nothing that can be called'}")
    return getattr(module, name)


def _written(found: Any, path: str) -> str:
    """Where a reward of one's own stands and a digest of its source: another file, or another text, scores otherwise.

    The file that was named counts, and the one that the attribute was imported from; what those import does not.
    """
    where, _, name = path.rpartition(":")
    modules = [None if where.endswith(".py") else where, getattr(found, "__module__", None)]
    files = [Path(where).resolve()] if where.endswith(".py") else []
    files += [Path(file) for module in modules if (file := getattr(sys.modules.get(module or ""), "__file__", None))]
    digest = hashlib.blake2b(digest_size=8)
    for file in dict.fromkeys(file for file in files if file.is_file()):
        digest.update(file.read_bytes())
    return f"{files[0] if where.endswith('.py') else where}:{name} {digest.hexdigest()}"
