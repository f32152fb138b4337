"""Where a checkpoint's vocabulary has its words, its image codes and its markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rl.codes import Codes
from rl.models.grammar import PictureGrammar


@dataclass(frozen=True)
class TokenLayout:
    """Where things are in the vocabulary, as read from the checkpoint.

    `image_ids_V[c]` is the vocabulary id of image code c; `text_ids_V` are the ids that a text may consist of, the end
    of the text included. `grammar` says what stands around and between the codes of a picture of the usual grid, and
    `grammar.of(grid)` of another one.
    """

    image_ids_V: Tensor
    text_ids_V: Tensor
    grammar: PictureGrammar
    begin_text: int
    end_text: int
    pad: int

    @property
    def tokens_per_image(self) -> int:
        """K, the codes that make one picture of the usual grid."""
        return self.grammar.grid.codes

    def grammar_of(self, ids_K: Sequence[int]) -> PictureGrammar:
        """The grammar of a picture: of the grid that its ids carry (`Codes`), or of the usual one."""
        return self.grammar.of(ids_K.grid) if isinstance(ids_K, Codes) else self.grammar

    @property
    def begin_image(self) -> int:
        """The id that a picture begins with."""
        return self.grammar.header[0]

    @property
    def end_image(self) -> int:
        """The id that a picture ends with."""
        return self.grammar.trailer[-1]
