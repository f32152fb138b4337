"""A VQ image tokenizer with both halves: transformers' Chameleon encoder and the decoder that it lacks.

`VQDecoder` has the structure and the module names of the decoder in taming-transformers (VQGAN, arXiv 2012.09841), from
which Chameleon's and Anole's image tokenizers come, so that their weights load under the same names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from rl.errors import RewindError


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(hidden, scale_factor=2.0, mode="nearest"))


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a `VQDecoder`; `mirror` takes them from the encoder, as in all published weights.

    `norm_groups` is 32 in all published weights. A small decoder wants fewer: with 32 channels in 32 groups every
    channel is normalised over the picture, just before the output, and the brightness of the picture is lost.
    """

    base_channels: int
    channel_multiplier: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...] = ()
    mid_attention: bool = True
    norm_groups: int = 32

    @classmethod
    def mirror(cls, config: ChameleonVQVAEConfig) -> DecoderConfig:
        """The decoder that belongs to an encoder in taming-transformers."""
        return cls(
            config.base_channels,
            tuple(config.channel_multiplier),
            config.num_res_blocks,
            tuple(config.attn_resolutions or ()),
            config.attn_type == "vanilla",
        )


class VQDecoder(nn.Module):
    """Quantised latents [B, latent_channels, h, w] -> pictures [B, 3, H, W] in about -1..1.

    Mirror of `ChameleonVQVAEEncoder`, with one residual block more at each resolution, as in taming-transformers.
    """

    def __init__(self, vq_config: ChameleonVQVAEConfig, config: DecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DecoderConfig.mirror(vq_config)
        levels = len(config.channel_multiplier)
        if levels != len(vq_config.channel_multiplier):
            raise RewindError(
                f"the VQ decoder has {levels} resolutions and the encoder {len(vq_config.channel_multiplier)}: "
                "both need the same number"
            )
        channels = config.base_channels * config.channel_multiplier[-1]
        resolution = vq_config.resolution // 2 ** (levels - 1)
        self.conv_in = nn.Conv2d(vq_config.latent_channels, channels, kernel_size=3, padding=1)
        self.mid: Any = nn.Module()
        self.mid.block_1 = ChameleonVQVAEEncoderResnetBlock(vq_config, channels, channels)
        self.mid.attn_1 = ChameleonVQVAEEncoderAttnBlock(channels) if config.mid_attention else nn.Identity()
        self.mid.block_2 = ChameleonVQVAEEncoderResnetBlock(vq_config, channels, channels)
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            out_channels = config.base_channels * config.channel_multiplier[level]
            up: Any = nn.Module()
            up.block, up.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                up.block.append(ChameleonVQVAEEncoderResnetBlock(vq_config, channels, out_channels))
                channels = out_channels
                if resolution in config.attn_resolutions:
                    up.attn.append(ChameleonVQVAEEncoderAttnBlock(channels))
            if level != 0:
                up.upsample = Upsample(channels)
                resolution *= 2
            self.up.insert(0, up)  # up.0 is the highest resolution, as in taming-transformers
        self.norm_out = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, vq_config.in_channels, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = config.norm_groups

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.conv_in(latents)
        hidden = self.mid.block_2(self.mid.attn_1(self.mid.block_1(hidden)))
        up: Any
        for up in reversed(self.up):
            for i, block in enumerate(up.block):
                hidden = block(hidden)
                if len(up.attn) > 0:
                    hidden = up.attn[i](hidden)
            if hasattr(up, "upsample"):
                hidden = up.upsample(hidden)
        hidden = nn.functional.silu(self.norm_out(hidden))
        pixels: Tensor = self.conv_out(hidden)
        return pixels


def latents_before_quantisation(vqmodel: ChameleonVQVAE, pixels_BCHW: Tensor) -> Tensor:
    """What the quantiser sees: float [B, embed_dim, h, w] from pixels in -1..1."""
    latents: Tensor = vqmodel.quant_conv(vqmodel.encoder(pixels_BCHW))
    return latents


def nearest_codes(features_BKD: Tensor, codebook_VD: Tensor) -> Tensor:
    """Indices [B, K] of the nearest codes."""
    features_BKD, codebook_VD = features_BKD.float(), codebook_VD.float()  # half precision changes some codes
    squares = codebook_VD.pow(2).sum(-1)
    return (squares - 2 * features_BKD @ codebook_VD.T).argmin(-1)


def codes_of(ids: Tensor, image_ids_V: Tensor) -> Tensor:
    """Vocabulary ids of image tokens -> their codes, int64 of the same shape."""
    ranked, code = image_ids_V.to(ids.device).sort()
    return code[torch.searchsorted(ranked, ids.contiguous())]


def decode_codes(vqmodel: ChameleonVQVAE, decoder: VQDecoder, codes_BK: Tensor, rows: int) -> Tensor:
    """Codes [B, K] of a grid with so many rows -> pixels [B, 3, H, W] in about -1..1."""
    quantised = vqmodel.quantize.embedding(codes_BK).transpose(1, 2).unflatten(2, (rows, -1))
    pixels: Tensor = decoder(vqmodel.post_quant_conv(quantised))
    return pixels


def to_pixels(images_BHWC: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in -1..1, Chameleon's normalisation."""
    return images_BHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def to_uint8(pixels_BCHW: Tensor) -> Tensor:
    """float [B, 3, H, W] in about -1..1 -> uint8 [B, H, W, 3]."""
    return pixels_BCHW.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
