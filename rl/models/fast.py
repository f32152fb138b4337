"""FAST (arXiv 2501.09747): several steps of a vector as the cosine transform of each number over them, in byte pairs.

The published codec (physical-intelligence/fast, and those fitted like it) is a tokenizer file and two numbers; its code
is not run. It takes numbers in -1..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rl.errors import RewindError
from rl.running.files import read_json

CONFIG_FILE, TOKENIZER_FILE = "processor_config.json", "tokenizer.json"


@dataclass(frozen=True)
class FastCodec:
    """A codec: how finely coefficients are rounded, the least of them, and the text of its `tokenizer.json`.

    Raises:
        RewindError: no numbers, or no tokenizer.
    """

    scale: float
    min_token: int
    tokenizer: str

    def __post_init__(self) -> None:
        numbers = all(isinstance(x, int | float) for x in (self.scale, self.min_token))
        if not numbers or not self.scale > 0:
            raise RewindError("a FAST codec states a 'scale' above 0 and a 'min_token', as numbers")
        try:
            self._pairs.get_vocab_size()
        except Exception as error:  # the kind that tokenizers raises
            raise RewindError(f"a FAST codec has a tokenizer: {' '.join(str(error).split())[:200]}") from error

    @classmethod
    def open(cls, folder: Path) -> FastCodec:
        """The codec in a folder.

        Raises:
            RewindError: a file is missing or is not what it should be.
        """
        if missing := [name for name in (CONFIG_FILE, TOKENIZER_FILE) if not (folder / name).is_file()]:
            raise RewindError(f"{folder} holds no FAST codec: {' and '.join(missing)} are missing")
        try:
            return cls.of(
                {**read_json(folder / CONFIG_FILE), "tokenizer": (folder / TOKENIZER_FILE).read_text(encoding="utf-8")}
            )
        except RewindError as error:
            raise RewindError(f"{folder}: {error}") from error

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> FastCodec:
        """From what `card` gives, or a codec's config with its tokenizer."""
        found = [values.get(name) for name in ("scale", "min_token", "tokenizer")]
        return cls(*found)  # type: ignore[arg-type]  # looked at when it is made

    def card(self) -> dict[str, Any]:
        """For `rewind.json`: with it a run needs no other file."""
        return asdict(self)

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return int(self._pairs.get_vocab_size())

    def encode(self, values_TD: np.ndarray) -> list[int]:
        """Numbers in -1..1, float [steps, D] -> tokens, of any number."""
        rounded = np.around(_cosines(len(values_TD)) @ values_TD * self.scale) - self.min_token
        return list(self._pairs.encode("".join(map(chr, np.maximum(rounded, 0).astype(int).flatten()))).ids)

    def decode(self, tokens: Sequence[int], steps: int, dimensions: int) -> np.ndarray:
        """Tokens -> numbers in -1..1, float [steps, D]; coefficients that are missing are 0, those too many dropped."""
        text = self._pairs.decode(list(tokens), skip_special_tokens=False)
        found = np.array([ord(letter) + self.min_token for letter in text[: steps * dimensions]], dtype=float)
        rounded = np.pad(found, (0, steps * dimensions - len(found))).reshape(steps, dimensions)
        return (_cosines(steps).T @ (rounded / self.scale)).clip(-1.0, 1.0)

    @cached_property
    def _pairs(self) -> Tokenizer:
        return Tokenizer.from_str(self.tokenizer)


def _cosines(steps: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II), float [steps, steps]: coefficients are it times values."""
    k, t = np.arange(steps)[:, None], np.arange(steps)[None]
    found = np.cos(np.pi * (2 * t + 1) * k / (2 * steps)) * np.sqrt(2 / steps)
    found[0] /= np.sqrt(2)
    return found
