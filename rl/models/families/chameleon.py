"""The Chameleon adapter: transformers' own Chameleon classes and what they lack.

transformers has the backbone, the VQ encoder and the vocabulary map, but no VQ decoder, and its forward sets every
image logit to the type's minimum. So: decoder from `rl.models.vq`, logits from the head's rows of the image ids, and
all ids from the checkpoint's own vocabulary map.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping
from transformers.utils import logging as transformers_logging

from rl.errors import RewindError
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

DECODER_FILE, DECODER_CONFIG_FILE = "decoder.safetensors", "decoder_config.json"


def image_token_name(code: int) -> str:
    """Chameleon's name of an image code in the vocabulary map: digits as letters, 12 -> 'IMGIMGBCZ'."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


class ChameleonVLM(UnifiedVLM):
    """Chameleon, Anole and models pretrained by `scripts/pretrain_base.py`."""

    family = "chameleon"

    def __init__(
        self,
        model: ChameleonForConditionalGeneration,
        decoder: VQDecoder,
        tokenizer: PreTrainedTokenizerFast,
        name: str,
        known_words: Sequence[str] | None = None,
    ) -> None:
        self.model, self.decoder, self.tokenizer, self.name = (
            model,
            decoder.eval().requires_grad_(False),
            tokenizer,
            name,
        )
        self.known_words = frozenset(known_words) if known_words is not None else None
        self._chameleon = model  # stays the transformers model when peft wraps `self.model`
        # Pictures are encoded outside of the decoder stack's forward, so what wraps the model must not shard this part.
        self.vqmodel = model.model.vqmodel.requires_grad_(False)
        del model.model.vqmodel
        self.layout = _layout(model.config, tokenizer, name)
        self.image_size = model.config.vq_config.resolution

    def transformer(self) -> nn.Module:
        return self._chameleon.model  # type: ignore[no-any-return]

    def _head(self) -> Tensor:
        return self._chameleon.lm_head.weight  # type: ignore[no-any-return]

    def quantise(self, features_BKD: Tensor) -> Tensor:
        codes = nearest_codes(features_BKD, self._codebook)
        return self.layout.image_ids_V.to(codes.device)[codes]

    def decode_ids(self, ids_BK: Tensor) -> Tensor:
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

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        inner = self._chameleon.model
        inner.vqmodel = self.vqmodel
        try:
            with quiet_transformers():
                self._chameleon.save_pretrained(folder)
        finally:
            del inner.vqmodel
        save_file(self.decoder.state_dict(), folder / DECODER_FILE)
        settings = json.dumps(asdict(self.decoder.config), indent=1)
        (folder / DECODER_CONFIG_FILE).write_text(settings + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(folder)

    def load_vq(self, vqmodel: dict[str, Tensor], decoder: dict[str, Tensor]) -> None:
        """Replace the weights of the VQ tokenizer (state dicts of `ChameleonVQVAE` and `VQDecoder`)."""
        self.vqmodel.load_state_dict(vqmodel)
        self._seen = None  # what was remembered belongs to the old weights
        self.decoder.load_state_dict(decoder)

    @classmethod
    def load(cls, folder: Path, name: str, known_words: Sequence[str] | None) -> ChameleonVLM:
        """Open a base folder (safetensors only).

        Raises:
            RewindError: another family's checkpoint, or one without decoder weights or with the wrong ones.
        """
        ChameleonConfig.from_pretrained(folder, local_files_only=True)
        if not (folder / DECODER_FILE).is_file():
            raise RewindError(
                f"{folder} has no {DECODER_FILE}: transformers' Chameleon can read pictures but not draw them; add the "
                "VQ decoder's weights (names as in taming-transformers) in safetensors"
            )
        with quiet_transformers():
            model, report = ChameleonForConditionalGeneration.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        # transformers only warns of these and leaves the weights random.
        wrong = sorted(map(str, {*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]}))
        if wrong:
            raise RewindError(
                f"the weights in {folder} do not fit its config.json: {len(wrong)} tensors are missing, left over or "
                f"of another shape, e.g. '{wrong[0]}'"
            )
        decoder = VQDecoder(model.config.vq_config, _decoder_config(folder))
        weights = load_file(folder / DECODER_FILE)
        misfits = set(decoder.state_dict()) ^ set(weights) or {
            key for key, value in decoder.state_dict().items() if value.shape != weights[key].shape
        }
        if misfits:
            raise RewindError(
                f"{folder / DECODER_FILE} does not fit the vq_config in config.json: {len(misfits)} tensors are "
                f"missing, left over or of another shape, e.g. '{min(misfits)}'"
            )
        decoder.load_state_dict(weights)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        model.eval()
        return cls(model, decoder, tokenizer, name, known_words)


def _decoder_config(folder: Path) -> DecoderConfig | None:
    """The decoder's own sizes if the folder states them; published checkpoints mirror the encoder."""
    file = folder / DECODER_CONFIG_FILE
    if not file.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return DecoderConfig(**settings)
    except (ValueError, TypeError, AttributeError) as error:
        raise RewindError(f"{file} does not describe a VQ decoder: {error}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own progress bars, which take a line each for files of a few megabytes."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _layout(config: ChameleonConfig, tokenizer: PreTrainedTokenizerFast, name: str) -> TokenLayout:
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
    no_text |= {tokenizer.bos_token_id, tokenizer.pad_token_id} - {tokenizer.eos_token_id}
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
