"""Further columns of the data (`Triplet.more`) in files: what JSON can hold."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

logger = logging.getLogger("rl")
_told: set[str] = set()


def plain_columns(more: Mapping[str, Any]) -> dict[str, Any]:
    """The columns as JSON values, arrays as lists; one that is none, such as a picture, is left out with a warning."""
    found = {}
    for name, value in more.items():
        try:
            found[name] = json.loads(json.dumps(value, default=_as_list))
        except TypeError as error:
            if name not in _told:
                logger.warning("the column '%s' is not written, as JSON cannot hold it: %s", name, error)
            _told.add(name)
    return found


def columns_text(more: Mapping[str, Any]) -> str | None:
    """The columns as one line of JSON, the same for equal ones; None if there are none."""
    plain = plain_columns(more)
    return json.dumps(plain, sort_keys=True) if plain else None


def _as_list(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"it is a {type(value).__name__}")
