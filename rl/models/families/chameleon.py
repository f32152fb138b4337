"""The Chameleon adapter: transformers' own Chameleon classes and what they lack.

transformers has the backbone, the VQ encoder and the vocabulary map, but no VQ decoder, and its forward sets every
image logit to the type's minimum. So: decoder from `rl.models.vq`, logits from the head's rows of the image ids, and
all ids from the checkpoint's own vocabulary map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from rl.errors import RewindError
from rl.models.families.chameleon_files import open_folder, open_tokenizer, quiet_transformers, write_decoder
from rl.models.settings import Settings
from rl.models.text_tokenizer import BEGIN_IMAGE, END_IMAGE, IMAGE
from rl.models.unified import TokenLayout, UnifiedVLM
from rl.models.vq import (
    DecoderConfig,
    VQDecoder,
    decode_codes,
    latents_before_quantisation,
    nearest_codes,
    to_pixels,
    to_uint8,
)

RESERVED = re.compile(r"<reserved\d+>")
"""Ids that published vocabularies keep free, or use as markers: no words."""


def image_token_name(code: int) -> str:
    """Chameleon's name of an image code in the vocabulary map: digits as letters, 12 -> 'IMGIMGBCZ'."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


class ChameleonVLM(UnifiedVLM):
    """Chameleon, Anole and models pretrained by `scripts/pretrain_base.py`."""

    family = "chameleon"

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        decoder: VQDecoder | None,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        known_words: Sequence[str] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.decoder = None if decoder is None else decoder.eval().requires_grad_(False)
        self.can_draw = decoder is not None
        self.known_words = frozenset(known_words) if known_words is not None else None
        self._chameleon = model  # stays the transformers model when peft wraps `self.model`
        # Pictures are encoded outside of the decoder stack's forward, so what wraps the model must not shard this part.
        self.vqmodel = model.model.vqmodel.requires_grad_(False)
        del model.model.vqmodel
        self.layout = layout_of(model.config, tokenizer, name)
        self.image_size = model.config.vq_config.resolution

    def transformer(self) -> nn.Module:
        return self._chameleon.model  # type: ignore[no-any-return]

    def _head(self) -> Tensor:
        return self._chameleon.lm_head.weight  # type: ignore[no-any-return]

    def quantise(self, features_BKD: Tensor) -> Tensor:
        codes = nearest_codes(features_BKD, self._codebook)
        return self.layout.image_ids_V.to(codes.device)[codes]

    def decode_ids(self, ids_BK: Tensor) -> Tensor:
        if self.decoder is None:
            raise RewindError(
                f"{self.name} has no VQ decoder, so its pictures cannot be drawn: name a folder or Hub id "
                "that has one, --vq FOLDER (Meta's vqgan.ckpt, or an Anole checkpoint)"
            )
        self.vqmodel.to(self.device)
        order = self.layout.image_ids_V.to(ids_BK.device)
        ranked, rank = order.sort()
        codes = rank[torch.searchsorted(ranked, ids_BK.contiguous())]
        self.decoder.to(self._codebook.device, self._codebook.dtype)  # follows the backbone wherever that was moved
        return to_uint8(decode_codes(self.vqmodel, self.decoder, codes))

    def features_pixels(self, images_BHWC: Tensor) -> Tensor:
        self.vqmodel.to(self.device)  # follows the decoder stack wherever a trainer moves that
        latents = latents_before_quantisation(self.vqmodel, to_pixels(images_BHWC).to(self._codebook))
        return latents.flatten(2).transpose(1, 2)

    @property
    def _codebook(self) -> Tensor:
        return self.vqmodel.quantize.embedding.weight  # type: ignore[no-any-return]

    def save(self, folder: Path, max_shard_size: int | str = "50GB") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        inner = self._chameleon.model
        inner.vqmodel = self.vqmodel
        try:
            with quiet_transformers():
                self._chameleon.save_pretrained(folder, max_shard_size=max_shard_size)
        finally:
            del inner.vqmodel
        if self.decoder is not None:
            write_decoder(self.decoder, folder)
        self.tokenizer.save_pretrained(folder)

    def load_vq(self, vqmodel: dict[str, Tensor], decoder: dict[str, Tensor]) -> None:
        """Replace the weights of the VQ tokenizer (state dicts of `ChameleonVQVAE` and `VQDecoder`)."""
        self.vqmodel.load_state_dict(vqmodel)
        self._seen = None  # what was remembered belongs to the old weights
        assert self.decoder is not None
        self.decoder.load_state_dict(decoder)

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
        model, decoder = open_folder(folder, settings or Settings(), vq_folder)
        tokenizer = open_tokenizer(folder, vq_folder)
        for config in (model.config, model.generation_config):  # published ones say 1, 2 and nothing
            config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
        return cls(model, decoder, tokenizer, name, known_words)


def layout_of(config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, name: str) -> TokenLayout:
    """Where things are in a checkpoint's vocabulary, by its vocabulary map.

    Raises:
        RewindError: markers or codes are missing in it.
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
    image_ids = torch.tensor([ids_by_code[code] for code in range(len(ids_by_code))])
    levels = len(config.vq_config.channel_multiplier)
    no_text = {*image_ids.tolist(), vocabulary[BEGIN_IMAGE], vocabulary[END_IMAGE], vocabulary.get(IMAGE)}
    no_text |= {number for word, number in vocabulary.items() if RESERVED.fullmatch(word)}
    no_text |= {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} - {tokenizer.eos_token_id}
    return TokenLayout(
        image_ids_V=image_ids,
        text_ids_V=torch.tensor([i for i in range(config.vocab_size) if i not in no_text]),
        begin_image=vocabulary[BEGIN_IMAGE],
        end_image=vocabulary[END_IMAGE],
        begin_text=tokenizer.bos_token_id,
        end_text=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        tokens_per_image=(config.vq_config.resolution // 2 ** (levels - 1)) ** 2,
    )


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
