"""Emu3's video tokenizer for stills, without computing one frame four times.

To it a still is as many equal frames as make one step in time. All layers that cost anything look at a frame by itself:
so one frame goes through them on the way in, and is repeated for the small layers that look across time; and on the way
out the others are dropped behind those. The numbers are those of transformers' class.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Emu3VQVAE


def latents_of_stills(vq: Emu3VQVAE, pixels_BCHW: Tensor) -> Tensor:
    """Pixels in -1..1, float [B, 3, H, W] -> features before quantisation, float [B, D, rows, columns]."""
    encoder = vq.encoder
    hidden = encoder.norm_out(encoder.middle_block(encoder.down_block(encoder.conv_in(pixels_BCHW))))
    latents = encoder.conv_out(_gated(hidden))
    video_BDTHW = latents[:, :, None].repeat(1, 1, vq.config.temporal_downsample_factor, 1, 1)
    for layer in encoder.time_conv:
        video_BDTHW = _gated(layer(video_BDTHW))
    for layer in encoder.time_res_stack:
        video_BDTHW = layer(video_BDTHW)
    found: Tensor = vq.quant_conv(video_BDTHW)[:, :, 0]
    return found


def pixels_of_stills(vq: Emu3VQVAE, codes_BHW: Tensor) -> Tensor:
    """Codes int64 [B, rows, columns] -> pixels in -1..1, float [B, 3, H, W]."""
    decoder = vq.decoder
    quantised_BDTHW = vq.quantize.embedding(codes_BHW).permute(0, 3, 1, 2)[:, :, None]
    both = torch.cat([vq.post_quant_conv(quantised_BDTHW), quantised_BDTHW])
    for layer in decoder.time_res_stack:
        both = layer(both)
    for layer in decoder.time_conv:
        both = _gated(layer(both))
    hidden, quantised = both[:, :, 0].chunk(2)
    hidden = decoder.up_block(decoder.middle_block(decoder.conv_in(hidden), quantised), quantised)
    found: Tensor = decoder.conv_out(_gated(decoder.norm_out(hidden, quantised)))
    return found


def _gated(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(hidden)
