"""The Chameleon adapter: transformers' own Chameleon classes and what they lack.

transformers has the backbone, the VQ encoder and the vocabulary map, but no VQ decoder, and its forward sets every
image logit to the type's minimum. So: decoder from `rl.models.vq`, logits from the head's rows of the image ids, and
all ids from the checkpoint's own vocabulary map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from rl.codes import Grid
from rl.errors import RewindError
from rl.models.families.chameleon_files import open_folder, open_tokenizer
from rl.models.families.vqgan import VQGANBackbone, cell_of
from rl.models.families.vqgan_files import quiet_transformers
from rl.models.grammar import PictureGrammar, Template
from rl.models.layout import TokenLayout
from rl.models.settings import Settings
from rl.models.sizes import PictureSize
from rl.models.text_tokenizer import BEGIN_IMAGE, END_IMAGE, IMAGE
from rl.models.vq import (
    DecoderConfig,
    VQDecoder,
)

RESERVED = re.compile(r"<reserved\d+>")
"""Ids that published vocabularies keep free, or use as markers: no words."""


def image_token_name(code: int) -> str:
    """Chameleon's name of an image code in the vocabulary map: digits as letters, 12 -> 'IMGIMGBCZ'."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


class ChameleonVLM(VQGANBackbone):
    """Chameleon, Anole and models pretrained by `scripts/pretrain_base.py`."""

    family, model_type = "chameleon", "chameleon"
    left_out: ClassVar[tuple[str, ...]] = ()
    """Prefixes of tensors that published checkpoints of the family hold besides, and that no role needs."""
    template = Template(fdm_freer=(("<bos>", "{header}"),))  # without the source too: guidance by words and by picture

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        decoder: VQDecoder | None,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        known_words: Sequence[str] | None = None,
        picture_size: PictureSize | None = None,
    ) -> None:
        self.model = self._chameleon = model  # `_chameleon` stays the transformers model when peft wraps `self.model`
        vqmodel = model.model.vqmodel
        del model.model.vqmodel
        size = picture_size or PictureSize.of(model.config.vq_config.resolution)
        layout = self.layout_of(model.config, tokenizer, name, size)
        self._set_up(tokenizer, name, layout, (vqmodel, decoder), size, known_words)

    def transformer(self) -> nn.Module:
        return self._chameleon.model  # type: ignore[no-any-return]

    def _head(self) -> Tensor:
        return self._chameleon.lm_head.weight  # type: ignore[no-any-return]

    def save(self, folder: Path, max_shard_size: int | str = "50GB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        inner = self._chameleon.model
        inner.vqmodel = self.vqmodel
        try:
            with quiet_transformers():
                self._chameleon.save_pretrained(folder, max_shard_size=max_shard_size)
        finally:
            del inner.vqmodel
        self._save_decoder(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(
        cls,
        folder: Path,
        name: str,
        known_words: Sequence[str] | None,
        settings: Settings | None = None,
        vq_folder: Path | None = None,
    ) -> ChameleonVLM:
        """Open a checkpoint folder (`chameleon_files.open_folder`); without a decoder all but drawing works.

        Raises:
            RewindError: another family's checkpoint, weights that do not fit, no VQ tokenizer.
        """
        settings = settings or Settings()

        def size_for(config: ChameleonConfig) -> PictureSize:
            return cls.size_of(settings.picture_size, config.vq_config.resolution, name)

        model, decoder = open_folder(folder, settings, vq_folder, cls.left_out, size_for)
        size = size_for(model.config)
        tokenizer = open_tokenizer(folder, vq_folder)
        for config in (model.config, model.generation_config):  # published ones say 1, 2 and nothing
            config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
        return cls(model, decoder, tokenizer, name, known_words, size)

    @classmethod
    def recognises(cls, config: dict[str, Any]) -> bool:
        """Whether a checkpoint's `config.json` is this family's."""
        return config.get("model_type") == "chameleon"

    @staticmethod
    def size_of(asked: PictureSize | None, usual: int, name: str) -> PictureSize:
        """The size of pictures.

        Raises:
            RewindError: another size than the family knows.
        """
        if asked not in (None, PictureSize.of(usual)):
            raise RewindError(f"{name} knows pictures of {usual} x {usual} alone: leave out image_size {asked.written}")
        return PictureSize.of(usual)

    @staticmethod
    def layout_of(
        config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, name: str, size: PictureSize
    ) -> TokenLayout:
        """Where things are in a checkpoint's vocabulary, for pictures of a size.

        Raises:
            RewindError: markers or codes are missing in it.
        """
        vocabulary, image_ids = vocabulary_of(config, name)
        cell = cell_of(config.vq_config)
        begin, end = vocabulary[BEGIN_IMAGE], vocabulary[END_IMAGE]
        return TokenLayout(
            image_ids_V=image_ids,
            text_ids_V=words_of_vocabulary(config, tokenizer, vocabulary, image_ids),
            grammar=PictureGrammar(Grid(size.height // cell, size.width // cell), (begin,), (end,)),
            begin_text=tokenizer.bos_token_id,
            end_text=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
        )


def vocabulary_of(config: ChameleonConfig, name: str) -> tuple[dict[str, int], Tensor]:
    """The vocabulary map of a checkpoint, and the ids of image codes 0, 1, ... in it, int64 [V].

    Raises:
        RewindError: no Chameleon vocabulary, or one that names other codes than the VQ tokenizer has.
    """
    vocabulary = config.vocabulary_map or {}
    missing = [token for token in (BEGIN_IMAGE, END_IMAGE) if token not in vocabulary]
    if missing:
        raise RewindError(f"the vocabulary map of {name} lacks {', '.join(missing)}: this is no Chameleon checkpoint")
    # transformers' own reading of the names: any order, digits padded (Anole) or not.
    ids_by_code = ChameleonImageVocabularyMapping(vocabulary).img2bpe
    if sorted(ids_by_code) != list(range(config.vq_config.num_embeddings)):
        raise RewindError(
            f"the vocabulary map of {name} names {len(ids_by_code)} image codes, and the VQ tokenizer has "
            f"{config.vq_config.num_embeddings}"
        )
    return vocabulary, torch.tensor([ids_by_code[code] for code in range(len(ids_by_code))])


def words_of_vocabulary(
    config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, vocabulary: dict[str, int], image_ids_V: Tensor
) -> Tensor:
    """The ids that a text may consist of, its end included: no codes, markers or ids that are kept free."""
    no_text = {*image_ids_V.tolist(), vocabulary[BEGIN_IMAGE], vocabulary[END_IMAGE], vocabulary.get(IMAGE)}
    no_text |= {number for word, number in vocabulary.items() if RESERVED.fullmatch(word)}
    no_text |= {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    return torch.tensor([i for i in range(config.vocab_size) if i not in no_text])


def tiny_vq_config(image_size: int, num_codes: int) -> ChameleonVQVAEConfig:
    """A VQ encoder of about 1.3 M parameters with one token for each 16x16 pixels.

    No residual blocks before the lowest resolution: transformers normalises in 32 groups, which in narrow blocks at
    high resolution means every channel by itself and hides brightness and colour from what follows.
    """
    return ChameleonVQVAEConfig(
        resolution=image_size,
        num_embeddings=num_codes,
        embed_dim=16,
        latent_channels=64,
        base_channels=128,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=0,
        attn_type="none",  # attention would let a cell's token depend on far cells
    )


TINY_DECODER = DecoderConfig(32, (1, 1, 2, 2, 3), num_res_blocks=0, mid_attention=False, norm_groups=8)


def new_chameleon(
    tokenizer: PreTrainedTokenizerFast,
    vq_config: ChameleonVQVAEConfig,
    decoder_config: DecoderConfig | None = None,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    name: str,
    known_words: Sequence[str] | None = None,
    max_positions: int | None = None,
) -> ChameleonVLM:
    """A Chameleon with random weights over a text tokenizer; image tokens follow the text in the vocabulary."""
    vocabulary = dict(tokenizer.get_vocab())
    tokens_per_image = (vq_config.resolution // 2 ** (len(vq_config.channel_multiplier) - 1)) ** 2
    first = max(vocabulary.values()) + 1
    vocabulary |= {image_token_name(code): first + code for code in range(vq_config.num_embeddings)}
    config = ChameleonConfig(
        vocab_size=first + vq_config.num_embeddings,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 11 // 4 // 16 * 16,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_positions or 256 + 4 * tokens_per_image,
        tie_word_embeddings=True,
        vocabulary_map=vocabulary,
        vq_config=vq_config.to_dict(),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = ChameleonForConditionalGeneration(config).eval()
    return ChameleonVLM(model, VQDecoder(config.vq_config, decoder_config), tokenizer, name, known_words)
