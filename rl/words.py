"""Words of a text, as rewards and measures compare them."""

from __future__ import annotations

import re


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", text.lower())
