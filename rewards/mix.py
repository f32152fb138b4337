"""A fitted mix of rewards as a file: names, weights and arguments that `fit_reward.py` found, used by name.

`fitted` among rewards stands for the mix that is kept with the forward model's run, `RUN/reward.json`; a path that ends
in `.json` for that file. Either may have a weight, which multiplies all of its terms. A term that is named beside it
has the weight that it is named with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.table import weight_of
from rl.errors import RewindError
from rl.paths import expanded
from rl.running.files import read_json
from rl.running.mapping import mapping

MIX_FILE = "reward.json"
FITTED = "fitted"
CONFIDENCE = "fdm_confidence"
PAPER = ("idm_likelihood",)
"""What chooses where no mix has been fitted (arXiv 2506.06006)."""


def mix_of(run: str | Path | None) -> Path | None:
    """The fitted mix of a forward model's run folder; None if it has none, or is no folder."""
    file = None if run is None else expanded(run) / MIX_FILE
    return file if file is not None and file.is_file() else None


def default_rewards(run: str | Path | None, temperature: float = 1.0) -> list[str]:
    """What chooses among candidates of a model where nobody says: its fitted mix if it has one, else the paper's.

    At temperature 0 all candidates are alike and have no likelihood, which a mix may ask for: there it is the paper's.
    """
    return [FITTED] if temperature > 0 and mix_of(run) is not None else [*PAPER]


def with_mixes(
    specifications: Any, arguments: Mapping[str, Mapping[str, Any]], run: str | Path | None
) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """Rewards and their arguments with every mix replaced by its terms; what is given by hand goes before the mix's.

    Args:
        specifications: as for `load_rewards`.
        arguments: by the reward's name.
        run: the forward model's run folder, whose mix `fitted` is.

    Raises:
        RewindError: a run without a mix, or a file that holds none.
    """
    given: dict[str, Mapping[str, Any]] = dict(arguments)
    if isinstance(specifications, str):
        specifications = [specifications]
    if callable(specifications) or not any(is_mix(item) for item in specifications):
        return specifications, given
    beside = {weight_of(item)[0] for item in specifications if isinstance(item, str) and not is_mix(item)}
    found: list[Any] = []
    for item in specifications:
        if not is_mix(item):
            found.append(item)
            continue
        name, weight = weight_of(item)
        mix = _read(name, run)
        terms = [(path, value * (1.0 if weight is None else weight)) for path, value in _terms(mix, name)]
        found += [f"{path}={value:.6g}" for path, value in terms if path not in beside]
        named = {key: value for key, value in mix.get("unused_arguments", {}).items() if key in beside}
        given = {**named, **mix.get("reward_arguments", {}), **given}
    return found, given


def resolve(arguments: Any, to_train: bool = False) -> None:
    """Replace mixes in a script's `rewards` and `reward_arguments` by their terms, in place, before its run is written
    down: a mix that is fitted again later changes nothing about it.

    Args:
        arguments: has `rewards`, `reward_arguments` (a mapping, JSON, or None) and `fdm`.
        to_train: the forward model is trained on it, so that its likelihood in the mix has to stay that of the start.
    """
    mixed = [item for item in arguments.rewards if is_mix(item)]
    check_scale(mixed, getattr(arguments, "normalise_rewards", False), "--normalise_rewards")
    told = arguments.reward_arguments
    told = mapping(told) if isinstance(told, str) else told
    arguments.rewards, given = with_mixes(arguments.rewards, told or {}, arguments.fdm)
    if to_train and mixed and any(weight_of(item)[0] == CONFIDENCE for item in arguments.rewards):
        given[CONFIDENCE] = {"fdm": arguments.fdm, **given.get(CONFIDENCE, {})}
    if given != (told or {}):
        arguments.reward_arguments = given


def check_scale(specifications: Sequence[Any], normalise: bool, by: str) -> None:
    """Raise a `RewindError` for a mix whose terms would be measured in other units than those that it was fitted in."""
    mixed = [item for item in specifications if is_mix(item)]
    if normalise and mixed:
        raise RewindError(
            f"the weights of '{mixed[0]}' were fitted to scores as they are: leave out {by}, or name rewards"
        )


def is_mix(item: Any) -> bool:
    """Whether a reward as it is given stands for a fitted mix."""
    if not isinstance(item, str):
        return False
    name = weight_of(item)[0]
    return name == FITTED or name.endswith(".json")


def _read(name: str, run: str | Path | None) -> dict[str, Any]:
    file = mix_of(run) if name == FITTED else expanded(name)
    if file is None:
        where = "no forward model's run is given" if run is None else f"{run} has no {MIX_FILE}"
        raise RewindError(
            f"there is no fitted mix of rewards ({where}): fit one with scripts/fit_reward.py, or name the rewards"
        )
    if not file.is_file():
        raise RewindError(f"there is no file {file} with a fitted mix of rewards")
    return read_json(file)


def _terms(mix: Mapping[str, Any], name: str) -> Sequence[tuple[str, float]]:
    rewards, told = mix.get("rewards"), mix.get("reward_arguments", {})
    if not isinstance(rewards, list) or not all(isinstance(item, str) for item in rewards) or not rewards:
        raise RewindError(f"{name} holds no mix of rewards ('rewards', a list of NAME=WEIGHT): fit one again")
    if not isinstance(told, dict) or not all(isinstance(values, dict) for values in told.values()):
        raise RewindError(f"{name} holds a mix whose 'reward_arguments' are no mapping by reward: fit one again")
    if any(is_mix(item) for item in rewards):
        raise RewindError(f"{name} holds a mix of mixes, and a mix holds rewards: fit one again")
    pairs = [weight_of(item) for item in rewards]
    return [(path, 1.0 if weight is None else weight) for path, weight in pairs]
