"""A reward that must not be used: reward-hacking.md shows how the audit predicts what it does, and how a monitor stops
it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def bright(completions: Sequence[Any], **_: Any) -> list[float]:
    """Pays for bright pictures, whatever the action."""
    return [float(np.asarray(image).mean()) / 255 for image in completions]
