"""Rewards by name or import path: `NAME_OR_PATH[=WEIGHT]`, a function, or an object that can be called."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.contract import Reward, RewardFunction, described
from rewards.mix import with_mixes
from rewards.rivals import SameOutcome
from rewards.signature import ALIASES, COLUMNS, PICTURES, name_of
from rewards.signature import SENTENCES as SENTENCE_COLUMNS
from rewards.table import BUILT_IN, SENTENCES, weight_of
from rl.errors import RewindError
from rl.models.roles import Role
from rl.running.mapping import mapping
from rl.user_code import load_file, load_module
from rl.words import did_you_mean

TABLES = {"fdm": PICTURES, "idm": SENTENCE_COLUMNS}


def load_rewards(
    specifications: str | RewardFunction | Reward | Sequence[str | RewardFunction | Reward],
    idm: Any = None,
    actions: Sequence[str] = (),
    *,
    columns: Iterable[str] | None = None,
    same_outcome: SameOutcome | None = None,
    arguments: Mapping[str, Mapping[str, Any]] | str | None = None,
    run: str | Path | None = None,
    fdm: Any = None,
    role: Role = "fdm",
) -> list[Reward]:
    """Rewards in the order given, with unique names.

    A class, built in or of one's own, is made here: where its constructor names `idm`, `actions`, `same_outcome` or (of
    the inverse role) `fdm`, it is given what stands here.

    Args:
        specifications: 'idm_margin=1.0', 'my_rewards.py:straight=0.5', 'package.module:attr', 'fitted' (`rewards.mix`),
            or a callable; one of them, or several.
        idm: the inverse model.
        actions: sentences of the data set, from which rivals are taken.
        columns: names of the further columns of the data (`rl.triplets.columns_of`), if they are known by now.
        same_outcome: `(source_picture, a, b) -> bool`, whether two sentences name one outcome.
        arguments: by the reward's name, e.g. {"keep_unchanged": {"default": 3}}, or that as JSON.
        run: the forward model's run folder, which may hold a fitted mix.
        fdm: the forward model that scores sentences, frozen.
        role: what is scored: pictures that a forward model (`fdm`) draws, or sentences that an inverse model (`idm`)
            says, which get the columns of `rewards.sentences`.

    Raises:
        RewindError: an unknown name, a file that does not import, a missing attribute, a name twice, arguments that do
            not fit or belong to no reward, a parameter that no column fills.
    """
    given = mapping(arguments) if isinstance(arguments, str) else dict(arguments or {})
    for name, values in given.items():
        if not isinstance(values, Mapping):
            raise RewindError(f"the arguments of the reward '{name}' must be a mapping of names to values")
    specifications, given = with_mixes(specifications, given, run)
    offered = {"idm": idm, "actions": actions, "same_outcome": same_outcome}
    offered |= {"fdm": fdm} if role == "idm" else {}
    one = isinstance(specifications, str) or callable(specifications)
    items: list[Any] = [specifications] if one else list(specifications)  # type: ignore[arg-type]
    check_role_of_rewards(items, role)
    opened: dict[Path, ModuleType] = {}  # a file is run once for all that is taken from it
    loaded = _with_own_names(items, [_one(item, offered, given, opened) for item in items])
    if not loaded:
        raise RewindError("give at least one reward")
    names = [reward.name for reward in loaded]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RewindError(f"the reward '{twice[0]}' is given twice")
    unused = sorted(set(given) - set(names))
    if unused:
        near = did_you_mean(unused[0], names)
        raise RewindError(f"there are arguments for the reward '{unused[0]}' and no such reward among {names}{near}")
    return loaded if columns is None else [reward.on(columns, TABLES[role]) for reward in loaded]


def check_role_of_rewards(specifications: Sequence[Any], role: Role) -> None:
    """Raise a `RewindError` for a built-in reward that scores what the other role makes; nothing is loaded for it."""
    for item in specifications:
        name = weight_of(item)[0] if isinstance(item, str) else None
        if name in BUILT_IN and (name in SENTENCES) != (role == "idm"):
            there = sorted(SENTENCES if role == "idm" else BUILT_IN.keys() - SENTENCES)
            scored, here = ("predicted pictures", "sentences") if role == "idm" else ("sentences", "predicted pictures")
            hint = "" if role == "idm" else ", for train_grpo.py --role idm,"
            raise RewindError(
                f"the reward '{name}' scores {scored}{hint} and here {here} are scored: the built-in ones for them are "
                f"{', '.join(there)}"
            )


def _with_own_names(items: Sequence[Any], loaded: Sequence[Reward]) -> list[Reward]:
    """Functions without a name of their own, such as lambdas, are numbered where names are alike."""
    found: list[Reward] = []
    for number, (item, reward) in enumerate(zip(items, loaded, strict=True)):
        alike = [k for k in range(number) if loaded[k].name == reward.name]
        named = isinstance(item, str | Reward) or getattr(item, "name", None)
        if alike and not named and all(items[k] is not item for k in alike):
            reward = replace(reward, name=f"{reward.name}_{len(alike) + 1}")
        found.append(reward)
    return found


def _one(
    item: str | RewardFunction | Reward,
    offered: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    opened: dict[Path, ModuleType],
) -> Reward:
    if isinstance(item, Reward):
        if item.name in given:
            raise RewindError(f"the reward '{item.name}' is ready and takes no arguments: set them where it is made")
        return item
    if not isinstance(item, str):
        name = name_of(item)
        return Reward.of(_made(item, name, offered, given), name)
    path, weight = weight_of(item)
    weight = 1.0 if weight is None else weight
    if path.endswith((".py", ":")):
        raise RewindError(f"'{item}' names no function: write {path.removesuffix(':')}:FUNCTION")
    if path not in BUILT_IN and ":" not in path:
        raise RewindError(
            f"there is no reward '{path}'{did_you_mean(path, BUILT_IN)}: the built-in ones are "
            f"{', '.join(sorted(BUILT_IN))}; one of your own is 'file.py:function' or 'package.module:function'"
        )
    if path in BUILT_IN:
        module, _, attribute = BUILT_IN[path].rpartition(":")
        made = _made(getattr(import_module(module), attribute), path, offered, given)
        return Reward.of(made, path, weight)
    found, name = _attribute(path, opened), path.rpartition(":")[2]
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
    taken = {key for key in parameters if isinstance(found, type) or key not in (*COLUMNS, *ALIASES)}
    unknown = sorted(set(arguments) - taken)
    if unknown:
        near = did_you_mean(unknown[0], taken)
        raise RewindError(f"the reward '{name}' has no argument '{unknown[0]}'{near}: it has {sorted(taken) or 'none'}")
    if not isinstance(found, type):
        return functools.partial(found, **arguments)
    told, arguments = arguments, {key: offered[key] for key in parameters if offered.get(key)} | arguments
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            example = f'give --reward_arguments \'{{"{name}": {{"{key}": ...}}}}\''
            models = {"idm": "an inverse model: give --idm", "fdm": "a forward model that judges: give --fdm"}
            what = models[key] if key in models and key in offered else f"the argument '{key}': {example}"
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


def _attribute(path: str, opened: dict[Path, ModuleType]) -> Any:
    where, _, name = path.rpartition(":")
    try:
        if where.endswith(".py"):
            file = Path(where).expanduser().resolve()
            if not file.is_file():
                raise RewindError(f"there is no file {where} with the reward '{name}'")
            module = opened[file] = opened.get(file) or load_file(file)
        else:
            module = load_module(where)
    except RewindError:
        raise
    except Exception as error:  # the user's file may raise anything while it is imported
        raise RewindError(
            f"{where} with the reward '{name}' does not import: {described(error)}{_hidden(where, name)}"
        ) from error
    if not hasattr(module, name):
        there = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = did_you_mean(name, there)
        raise RewindError(
            f"{where} has no '{name}'{near}; it has {', '.join(there[:20]) or 'nothing that can be called'}"
        )
    return getattr(module, name)


def _hidden(where: str, name: str) -> str:
    """Where a package of the user's has the name of one of ours, which Python finds instead."""
    file = Path(*where.split(".")).with_suffix(".py")
    if where.split(".")[0] in ("rl", "rewards", "trainers") and file.is_file():
        return f"; '{where.split('.')[0]}' is a package of Rewind's: give the file, {file}:{name}"
    return ""


def _written(found: Any, path: str) -> str:
    """Where a reward of one's own stands and a digest of its source: another file, or another text, scores otherwise.

    The file that was named counts, and the one that the attribute was imported from; what those import does not.
    """
    where, _, name = path.rpartition(":")
    modules = [None if where.endswith(".py") else where, getattr(found, "__module__", None)]
    files = [Path(where).expanduser().resolve()] if where.endswith(".py") else []
    found_in = [getattr(sys.modules.get(module or ""), "__file__", None) for module in modules]
    files += [Path(file) for file in found_in if file]
    digest = hashlib.blake2b(digest_size=8)
    for file in dict.fromkeys(file for file in files if file.is_file()):
        digest.update(file.read_bytes())
    return f"{files[0] if where.endswith('.py') else where}:{name} {digest.hexdigest()}"
