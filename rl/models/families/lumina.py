"""Lumina-mGPT (and what keeps its form): Chameleon's classes and VQGAN, pictures that tell their size and their rows.

A picture is begin, height, width, then each row and its end (arXiv 2408.02657); a size token counts cells of 32 pixels,
two codes. The checkpoints hold no VQ weights: name Meta's `vqgan.ckpt`, or a folder that has them, as `vq`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from rl.actions import NUM_BINS
from rl.errors import RewindError
from rl.models.actions import BinTokens
from rl.models.families.chameleon import ChameleonVLM, vocabulary_of, words_of_vocabulary
from rl.models.grammar import Grid, PictureGrammar, Template
from rl.models.layout import TokenLayout
from rl.models.text_tokenizer import BEGIN_IMAGE, END_IMAGE
from rl.models.vq import VQDecoder

ROW_END, SEPARATOR, FIRST_SIZE = 8799, 8706, 8800
"""Numbers of the reserved tokens: the end of a row, the end of a turn, the size of 0 cells."""
BEGIN_ACTION, END_ACTION = 10000, 15000
CELL = 32
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
        image_size: int | None = None,
    ) -> None:
        super().__init__(model, decoder, tokenizer, name, known_words, image_size)
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
    def side_of(asked: int | None, own: int, name: str) -> int:
        side = own if asked is None else asked
        if side % CELL or not CELL <= side <= 1024:
            raise RewindError(f"{name} takes pictures whose sides are multiples of {CELL} up to 1024, not {side}")
        return side

    @staticmethod
    def layout_of(config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, name: str, size: int) -> TokenLayout:
        vocabulary, image_ids = vocabulary_of(config, name)
        side = size // 2 ** (len(config.vq_config.channel_multiplier) - 1)
        try:
            row_end, separator, cells = (
                vocabulary[f"<reserved{number:05d}>"] for number in (ROW_END, SEPARATOR, FIRST_SIZE + size // CELL)
            )
        except KeyError as error:
            raise RewindError(f"the vocabulary map of {name} lacks {error}: this is no checkpoint of Lumina") from error
        words = words_of_vocabulary(config, tokenizer, vocabulary, image_ids)
        words = words[words != tokenizer.eos_token_id]
        return TokenLayout(
            image_ids_V=image_ids,
            text_ids_V=torch.cat([words, torch.tensor([separator])]).sort().values,
            grammar=PictureGrammar(
                Grid(side, side), (vocabulary[BEGIN_IMAGE], cells, cells), (vocabulary[END_IMAGE],), row_end
            ),
            begin_text=tokenizer.bos_token_id,
            end_text=separator,  # these models end an answer so, and never with </s>
            pad=tokenizer.pad_token_id,
        )
