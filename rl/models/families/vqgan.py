"""What families share whose pictures are tokens of a VQGAN (arXiv 2012.09841): Chameleon, Anole, Lumina, Liquid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonVQVAE

from rl.codes import Grid
from rl.models.families.vqgan_files import write_decoder
from rl.models.layout import TokenLayout
from rl.models.sizes import PictureSize
from rl.models.unified import UnifiedVLM
from rl.models.vq import (
    VQDecoder,
    codes_of,
    decode_codes,
    latents_before_quantisation,
    nearest_codes,
    to_pixels,
    to_uint8,
)


def cell_of(config: Any) -> int:
    """Pixels along the side of a square that one code of a VQ tokenizer stands for."""
    return int(2 ** (len(config.channel_multiplier) - 1))


class VQGANBackbone(UnifiedVLM):
    """A backbone with a VQGAN beside it, which stays in float32.

    Pictures are encoded outside of the decoder stack's forward, so what wraps the model must not shard that part.
    """

    vqmodel: ChameleonVQVAE
    decoder: VQDecoder | None

    def _set_up(
        self,
        tokenizer: Any,
        name: str,
        layout: TokenLayout,
        vq: tuple[ChameleonVQVAE, VQDecoder | None],
        picture_size: PictureSize,
        known_words: Sequence[str] | None,
    ) -> None:
        """What a family's constructor has found out."""
        self.tokenizer, self.name, self.layout, self.picture_size = tokenizer, name, layout, picture_size
        self.vqmodel, decoder = vq[0].requires_grad_(False), vq[1]
        self.cell = self.unit = cell_of(self.vqmodel.config)
        self.decoder = None if decoder is None else decoder.eval().requires_grad_(False)
        self.can_draw = decoder is not None
        self.known_words = frozenset(known_words) if known_words is not None else None

    def quantise(self, features_BKD: Tensor) -> Tensor:
        codes = nearest_codes(features_BKD, self._codebook)
        return self.layout.image_ids_V.to(codes.device)[codes]

    def decode_ids(self, ids_BK: Tensor, grid: Grid) -> Tensor:
        self.check_can_draw()
        assert self.decoder is not None
        self.vqmodel.to(self.device)
        self.decoder.to(self._codebook.device, self._codebook.dtype)  # follows the backbone wherever that was moved
        codes = codes_of(ids_BK, self.layout.image_ids_V)
        return to_uint8(decode_codes(self.vqmodel, self.decoder, codes, grid.rows))

    def features_pixels(self, images_BHWC: Tensor) -> Tensor:
        self.vqmodel.to(self.device)  # follows the decoder stack wherever a trainer moves that
        latents = latents_before_quantisation(self.vqmodel, to_pixels(images_BHWC).to(self._codebook))
        return latents.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        return self._codebook.float()

    @property
    def _codebook(self) -> Tensor:
        return self.vqmodel.quantize.embedding.weight  # type: ignore[no-any-return]

    def _save_decoder(self, folder: Path) -> None:
        """The decoder and its sizes, if there is one."""
        if self.decoder is not None:
            write_decoder(self.decoder, folder)

    def load_vq(self, vqmodel: dict[str, Tensor], decoder: dict[str, Tensor]) -> None:
        """Replace the weights of the VQ tokenizer (state dicts of `ChameleonVQVAE` and `VQDecoder`)."""
        self.vqmodel.load_state_dict(vqmodel)
        self._seen = self.cache = None  # what was remembered belongs to the old weights
        assert self.decoder is not None
        self.decoder.load_state_dict(decoder)
