"""Words of a text, as rewards and measures compare them; and the word that was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from rl.actions import vector_of


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; a vector of numbers is one word."""
    if vector_of(text) is not None:
        return [text]
    return re.findall(r"[^\W_]+", text.lower())


def did_you_mean(word: str, known: Iterable[str], mark: str = ",") -> str:
    """How a sentence about an unknown word goes on: `, did you mean 'x'`, or nothing if none of the known is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"{mark} did you mean '{near[0]}'" if near else ""
