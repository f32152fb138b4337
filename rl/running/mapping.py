"""Mappings as command lines and YAML files hold them."""

from __future__ import annotations

import json
from typing import Any

from rl.errors import RewindError


def mapping(text: str) -> dict[str, Any]:
    """A mapping that is written as JSON on the command line; in a YAML file it is one already.

    Raises:
        RewindError: not JSON, or something else than a mapping.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise RewindError(f'{text!r} is not JSON ({error}): write \'{{"name": {{"argument": 1}}}}\'') from error
    if not isinstance(found, dict):
        raise RewindError(f'{text!r} is no mapping: write \'{{"name": {{"argument": 1}}}}\'')
    return found
