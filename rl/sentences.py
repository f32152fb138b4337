"""What an inverse dynamics model says of two pictures, with what it was drawn as."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sampled action in words.

    `ids` int64 [T] are its tokens as they were drawn, the end of the text among them unless it was cut off (`ended`);
    `logprobs` float32 [T] their log-probabilities under the distribution that they were drawn from (natural logarithm).
    `text` is what they say; it may be empty.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    text: str
    ended: bool = True

    @property
    def logprob(self) -> float:
        """Log-probability of the whole sentence, its end included."""
        return float(self.logprobs.sum(dtype=np.float64))
