"""Lumina-mGPT (and what keeps its form): Chameleon's classes and VQGAN, pictures that tell their size and their rows.

A picture is begin, height, width, then each row and its end (arXiv 2408.02657); a size token counts cells of 32 pixels,
two codes. The checkpoints hold no VQ weights: name Meta's `vqgan.ckpt`, or a folder that has them, as `vq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from rl.actions import NUM_BINS
from rl.codes import Grid
from rl.errors import RewindError
from rl.models.actions import BinTokens
from rl.models.families.chameleon import ChameleonVLM, vocabulary_of, words_of_vocabulary
from rl.models.families.vqgan import cell_of
from rl.models.grammar import PictureGrammar, Template
from rl.models.layout import TokenLayout
from rl.models.sizes import PictureSize
from rl.models.text_tokenizer import BEGIN_IMAGE, END_IMAGE
from rl.models.vq import VQDecoder

ROW_END, SEPARATOR, FIRST_SIZE = 8799, 8706, 8800
"""Numbers of the reserved tokens: the end of a row, the end of a turn, the size of 0 cells."""
BEGIN_ACTION, END_ACTION = 10000, 15000
CELL, MOST = 32, 1024
FDM_QUESTION = "Generate the next image based on the provided sequence of historical images and corresponding actions."
IDM_QUESTION = "Name the action that leads from the first image to the second."


class LuminaVLM(ChameleonVLM):
    """Lumina-mGPT, and the robot models that stand on it (WorldVLA, RynnVLA-002): their heads for actions that are no
    tokens are left out.
    """

    family = "lumina"
    left_out = ("action_head.",)

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        decoder: VQDecoder | None,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        known_words: Sequence[str] | None = None,
        picture_size: PictureSize | None = None,
    ) -> None:
        super().__init__(model, decoder, tokenizer, name, known_words, picture_size)
        self.unit = CELL
        self.template = Template(
            fdm=("<bos>", FDM_QUESTION, "{source}", "{action}", "<sep>", "{header}"),
            fdm_free=("{header}",),  # as these models are guided: from the begin of the picture on
            idm=("<bos>", IDM_QUESTION, "{source}", "{target}", "<sep>"),
            markers={"<sep>": self.layout.end_text},
        )

    def bin_tokens(self) -> BinTokens:
        """The ids of WorldVLA and RynnVLA-002: a begin, 256 bins, an end."""
        vocabulary = self._chameleon.config.vocabulary_map
        numbers = (BEGIN_ACTION, END_ACTION, *range(BEGIN_ACTION + 2, BEGIN_ACTION + 2 + NUM_BINS))
        try:
            begin, end, *bins = (vocabulary[f"<reserved{number}>"] for number in numbers)
        except KeyError as error:
            raise RewindError(f"the vocabulary map of {self.name} lacks {error}, which an action takes") from error
        return BinTokens(tuple(bins), (begin,), (end,))

    @classmethod
    def recognises(cls, config: dict[str, Any]) -> bool:
        kinds = config.get("architectures") or []
        return config.get("model_type") == "chameleon" and (
            "mask_image_logits" in config or any("XLLMX" in kind for kind in kinds)
        )

    @staticmethod
    def size_of(asked: PictureSize | None, usual: int, name: str) -> PictureSize:
        size = PictureSize.of(usual) if asked is None else asked
        size.check(name, CELL, MOST)
        return size

    @staticmethod
    def layout_of(
        config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, name: str, size: PictureSize
    ) -> TokenLayout:
        vocabulary, image_ids = vocabulary_of(config, name)
        cell = cell_of(config.vq_config)
        longest = size.longest // CELL
        try:
            row_end, separator, *cells = (
                vocabulary[f"<reserved{number:05d}>"]
                for number in (ROW_END, SEPARATOR, *range(FIRST_SIZE, FIRST_SIZE + longest + 1))
            )
        except KeyError as error:
            raise RewindError(f"the vocabulary map of {name} lacks {error}: this is no checkpoint of Lumina") from error
        words = words_of_vocabulary(config, tokenizer, vocabulary, image_ids)
        words = words[words != tokenizer.eos_token_id]
        header_of = partial(_header, vocabulary[BEGIN_IMAGE], cells, CELL // cell)
        grid = Grid(size.height // cell, size.width // cell)
        return TokenLayout(
            image_ids_V=image_ids,
            text_ids_V=torch.cat([words, torch.tensor([separator])]).sort().values,
            grammar=PictureGrammar(grid, header_of(grid), (vocabulary[END_IMAGE],), row_end, header_of=header_of),
            begin_text=tokenizer.bos_token_id,
            end_text=separator,  # these models end an answer so, and never with </s>
            pad=tokenizer.pad_token_id,
        )


def _header(begin: int, sizes: Sequence[int], codes_a_cell: int, grid: Grid) -> tuple[int, ...]:
    """The begin of a picture, and the tokens of its height and width."""
    return begin, sizes[grid.rows // codes_a_cell], sizes[grid.columns // codes_a_cell]
