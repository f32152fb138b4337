"""UniVLA (arXiv 2506.19850): Emu3 as a model of robots, whose frames have a time in their size and no ends of rows.

A frame is begin, "1*rows*columns" a digit a token, the image token, the codes, the end of a frame, end. The published
world models read words, a frame, the next frame; actions were never part of that training, so a role learns them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rl.codes import Grid
from rl.models.families import emu3_original as original
from rl.models.families.emu3 import BEGIN_IMAGE, END_IMAGE, FRAME_END, IMAGE_TOKEN, Emu3VLM
from rl.models.grammar import PictureGrammar, Template


class UniVLM(Emu3VLM):
    """UniVLA of BAAI and CASIA (not the OpenVLA of the same name), with Emu3's VQ tokenizer beside."""

    family = "univla"
    # Words, source, target: the order of its world models' training; a frame, its action: that of its policies'.
    template = Template(fdm_vector=("<bos>", "{source}", "{action}", "{header}"))
    usual_sizes = (200,)

    @classmethod
    def recognises(cls, config: dict[str, Any]) -> bool:
        ours = config.get("model_type") == original.MODEL_TYPE and config.get("vocab_size") == original.VOCABULARY
        return ours and original.for_robots(config)

    @staticmethod
    def picture_grammar(vocabulary: Mapping[str, int], grid: Grid) -> PictureGrammar:
        header = (BEGIN_IMAGE, *f"1*{grid.rows}*{grid.columns}", IMAGE_TOKEN)
        trailer = (vocabulary[FRAME_END], vocabulary[END_IMAGE])
        return PictureGrammar(grid, tuple(vocabulary[token] for token in header), trailer)
