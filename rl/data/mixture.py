"""Mixtures of data sets: a YAML file that names them, how often each of their triplets comes, and how many at most."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rl.data.formats.function import is_function
from rl.data.formats.names import parse_columns
from rl.data.formats.table import Options
from rl.data.triplet_table import Triplets, joined, with_column
from rl.errors import RewindError
from rl.paths import as_written, expanded
from rl.words import did_you_mean

COLUMN = "dataset"
"""The further column that says of which data set of a mixture a triplet is."""
_KEYS = ("triplets", "name", "weight", "at_most", "format", "columns", "split", "image_root")
_FORM = "write 'mixture:' and below it one '- triplets: PATH' a data set, with 'weight:' and 'at_most:' where wanted"


@dataclass(frozen=True)
class Ingredient:
    """A data set of a mixture: of its triplets `at_most` are drawn, and each of these comes `weight` times."""

    given: str
    name: str
    options: Options
    weight: float = 1.0
    at_most: int | None = None


def is_mixture(path: str | Path) -> bool:
    """Whether a path is that of a mixture: a YAML file."""
    return Path(path).suffix.lower() in (".yaml", ".yml")


def read_mixture(path: str | Path, options: Options, read: Callable[[str, Options], Triplets]) -> Triplets:
    """The triplets of a mixture, mixed; what is drawn follows from the file's `seed` and the data set's name alone.

    Args:
        path: the YAML file.
        options: `image_root` is for data sets that have none of their own; the others are given beside a data set.
        read: the triplets of one data set.

    Raises:
        RewindError: it cannot be read, names nothing, or says something that cannot be done.
    """
    seed, ingredients = ingredients_of(path)
    given = {"format": options.format, "columns": options.columns, "data_split": options.split}
    for flag in (flag for flag, value in given.items() if value):
        key = flag.removeprefix("data_")
        raise RewindError(f"--{flag} is of one data set, and {path} is a mixture: write '{key}:' beside its name")
    found = []
    for one in ingredients:
        own = one.options if one.options.image_root else replace(one.options, image_root=options.image_root)
        triplets = read(one.given, own)
        drawn = _drawn(len(triplets), one, np.random.default_rng([seed, zlib.crc32(one.name.encode())]))
        if not len(drawn):
            told = f"its weight {one.weight:g} takes none of {len(triplets)} triplets: raise it, or leave it out"
            raise RewindError(f"the mixture {path}: {one.name}: {told}")
        found.append(with_column(triplets.take(drawn), COLUMN, one.name))
    mixed = joined(found)
    return mixed.take(np.random.default_rng([seed, len(mixed)]).permutation(len(mixed)))


def _drawn(count: int, one: Ingredient, rng: np.random.Generator) -> np.ndarray:
    """Numbers of the triplets to take, int64: at most so many, each `weight` times (of a fraction, a random share)."""
    kept = np.arange(count) if one.at_most is None or one.at_most >= count else rng.permutation(count)[: one.at_most]
    whole, rest = divmod(one.weight, 1.0)
    part = rng.permutation(kept)[: round(rest * len(kept))]
    return np.sort(np.concatenate([*[kept] * int(whole), part]).astype(np.int64))


def ingredients_of(path: str | Path) -> tuple[int, list[Ingredient]]:
    """The seed of a mixture and its data sets; their paths start from the file's folder.

    Raises:
        RewindError: as for `read_mixture`.
    """
    file = expanded(path)
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RewindError(f"cannot read the mixture {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RewindError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    listed = given.get("mixture") if isinstance(given, dict) else given
    if not isinstance(listed, list) or not listed:
        raise RewindError(f"the mixture {path} names no data set: {_FORM}")
    if isinstance(given, dict):
        _known(path, given, ("mixture", "seed"))
    seed = given.get("seed", 0) if isinstance(given, dict) else 0
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise RewindError(f"the mixture {path}: 'seed' must be a whole number from 0 on, not {seed!r}")
    found = [_ingredient(path, as_written(file).parent, one) for one in listed]
    names = [one.name for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RewindError(f"the mixture {path} has '{twice}' twice: give each a 'name:' of its own, or a 'weight:'")
    return seed, found


def _ingredient(path: str | Path, folder: Path, given: Any) -> Ingredient:
    if not isinstance(given, dict) or not isinstance(given.get("triplets"), str):
        raise RewindError(f"the mixture {path}: {given!r} names no data set: {_FORM}")
    _known(path, given, _KEYS)
    what, weight, at_most = given["triplets"], given.get("weight", 1.0), given.get("at_most")
    if is_mixture(what):
        raise RewindError(f"the mixture {path} holds the mixture {what}: write what that holds")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise RewindError(f"the mixture {path}: the weight of {what} must be a number above 0, not {weight!r}")
    if at_most is not None and (isinstance(at_most, bool) or not isinstance(at_most, int) or at_most < 1):
        raise RewindError(f"the mixture {path}: 'at_most' of {what} must be a whole number from 1 on, not {at_most!r}")
    root, columns = given.get("image_root"), given.get("columns")
    for key, value in (("image_root", root), ("split", given.get("split")), ("format", given.get("format"))):
        if not isinstance(value, str | None):
            raise RewindError(f"the mixture {path}: '{key}' of {what} must be text, not {value!r}")
    pairs = columns.values() if isinstance(columns, dict) else columns or []
    if isinstance(pairs, str | int | float) or not all(isinstance(one, str) for one in pairs):
        told = "must be 'OURS: THEIRS', e.g. {input: before, output: after}"
        raise RewindError(f"the mixture {path}: 'columns' of {what} {told}, not {columns!r}")
    options = Options(
        given.get("format"), parse_columns(columns), given.get("split"), folder / expanded(root) if root else None
    )
    file, colon, function = what.rpartition(":") if is_function(what) else (what, "", "")
    beside = folder / expanded(file)
    here = f"{beside}{colon}{function}" if beside.exists() else what
    return Ingredient(here, str(given.get("name") or what), options, float(weight), at_most)


def _known(path: str | Path, given: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    unknown = next((str(key) for key in given if key not in keys), None)
    if unknown is not None:
        near = did_you_mean(unknown, keys)
        raise RewindError(f"the mixture {path}: there is no '{unknown}'{near}: it is one of {', '.join(keys)}")
