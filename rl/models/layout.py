"""Where a checkpoint's vocabulary has its words, its image codes and its markers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rl.models.grammar import PictureGrammar


@dataclass(frozen=True)
class TokenLayout:
    """Where things are in the vocabulary, as read from the checkpoint.

    `image_ids_V[c]` is the vocabulary id of image code c; `text_ids_V` are the ids that a text may consist of, the end
    of the text included. `grammar` says what stands around and between the codes of a picture.
    """

    image_ids_V: Tensor
    text_ids_V: Tensor
    grammar: PictureGrammar
    begin_text: int
    end_text: int
    pad: int

    @property
    def tokens_per_image(self) -> int:
        """K, the codes that make one picture."""
        return self.grammar.grid.codes

    @property
    def begin_image(self) -> int:
        """The id that a picture begins with."""
        return self.grammar.header[0]

    @property
    def end_image(self) -> int:
        """The id that a picture ends with."""
        return self.grammar.trailer[-1]
