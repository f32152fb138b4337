"""Training of a VQ tokenizer from scratch: reconstruction, commitment, and a codebook that follows its data.

The codebook is a moving average of the vectors assigned to each code (arXiv 1711.00937, appendix A.1). It starts from
k-means after a phase without quantisation, and codes that nobody uses move to badly coded vectors: both keep a small
codebook from collapsing. A shallow second decoder (`shortcut`), thrown away afterwards, gives the encoder a short way
to its gradient; with it latents tell objects apart after hundreds of steps instead of thousands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

from rl.models.vq import DecoderConfig, VQDecoder, latents_before_quantisation, nearest_codes, to_pixels, to_uint8


def kmeans(vectors_ND: Tensor, count: int, rounds: int, generator: torch.Generator) -> Tensor:
    """`count` centres of vectors [N, D] after a few rounds of Lloyd's algorithm from random starts."""
    order = torch.randperm(len(vectors_ND), generator=generator).to(vectors_ND.device)
    centres = vectors_ND[order[torch.arange(count, device=order.device) % len(order)]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(vectors_ND, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors_ND)
        counts = torch.bincount(nearest, minlength=count).unsqueeze(1)
        spare = vectors_ND[torch.randint(len(vectors_ND), (count,), generator=generator).to(vectors_ND.device)]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), spare)
    return centres


class VQTrainingModel(nn.Module):
    """Encoder, codebook and decoder as one module whose forward returns a loss, for transformers' `Trainer`.

    Args:
        config: sizes of encoder and decoder.
        decoder_config: sizes of the decoder; None mirrors the encoder.
        warmup: training steps without quantisation before the codebook starts from k-means.
        decay: of the codebook's moving average.
        commitment: weight of ||z - code||^2, pulling the encoder to its code.
    """

    step: Tensor
    usage_V: Tensor
    sums_VD: Tensor
    seen: Tensor
    recent_ND: Tensor
    REVIVE_EVERY = 50
    DEAD_BELOW = 0.02
    RECENT = 32_768

    def __init__(
        self,
        config: ChameleonVQVAEConfig,
        decoder_config: DecoderConfig | None = None,
        warmup: int = 600,
        decay: float = 0.98,
        commitment: float = 0.25,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.vqmodel = ChameleonVQVAE(config).requires_grad_(True)
        self.decoder = VQDecoder(config, decoder_config)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # transformers draws all weights from N(0, 0.02), under which a deep stack of convolutions passes
                # next to nothing on.
                module.reset_parameters()
        patch = 2 ** (len(config.channel_multiplier) - 1)
        self.shortcut = nn.Sequential(
            nn.Conv2d(config.embed_dim, 256, 1), nn.SiLU(), nn.ConvTranspose2d(256, config.in_channels, patch, patch)
        )
        self.vqmodel.quantize.embedding.requires_grad_(False)  # the moving average moves it, not the optimiser
        self.warmup, self.decay, self.commitment = warmup, decay, commitment
        self.seed = seed
        size = config.num_embeddings
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.register_buffer("usage_V", torch.ones(size))
        self.register_buffer("sums_VD", torch.zeros(size, config.embed_dim))
        # What k-means starts from is state too: a run that is cut off during the warm-up goes on as if it was not.
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("recent_ND", torch.zeros(self.RECENT, config.embed_dim))

    def forward(self, images_BHWC: Tensor) -> dict[str, Any]:
        # Channels last: a tenth faster on CPU, and cuDNN likes it too.
        pixels = to_pixels(images_BHWC).contiguous(memory_format=torch.channels_last)
        latents = latents_before_quantisation(self.vqmodel, pixels).float()
        if self.training:
            quantised, commitment = self._quantise_and_learn(latents)
        else:
            quantised, commitment = self._quantise(latents)
        decoded = self.decoder(self.vqmodel.post_quant_conv(quantised)).float()
        error = decoded - pixels
        # Squares, so that small objects outweigh the noise of a large background; a little L1 for sharp edges.
        loss = error.pow(2).mean() + 0.1 * error.abs().mean() + self.commitment * commitment
        return {"loss": loss + (self.shortcut(quantised) - pixels).pow(2).mean()}

    @torch.no_grad()
    def reconstruct(self, images_BHWC: Tensor) -> Tensor:
        """uint8 pictures [B, H, W, 3] encoded and decoded again."""
        latents = latents_before_quantisation(self.vqmodel, to_pixels(images_BHWC))
        quantised = self._quantise(latents)[0] if self.step >= self.warmup else latents
        return to_uint8(self.decoder(self.vqmodel.post_quant_conv(quantised)))

    def _quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        codes = nearest_codes(latents.flatten(2).transpose(1, 2), self.vqmodel.quantize.embedding.weight)
        chosen = self.vqmodel.quantize.embedding(codes).transpose(1, 2).view_as(latents)
        return latents + (chosen - latents).detach(), (latents - chosen.detach()).pow(2).mean()

    def _quantise_and_learn(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        vectors = latents.detach().flatten(2).transpose(1, 2).flatten(0, 1)
        self.step += 1
        if self.step <= self.warmup:
            self.recent_ND = torch.cat([self.recent_ND, vectors])[-self.RECENT :]
            self.seen += len(vectors)
            if self.step == self.warmup:
                self._start_codebook()
            # A light pull to zero keeps the scale of the latents where commitment has meaning later.
            return latents, 0.01 * latents.pow(2).mean()
        result = self._quantise(latents)
        with torch.no_grad():
            self._move_codebook(vectors)
        return result

    @torch.no_grad()
    def _start_codebook(self) -> None:
        weight = self.vqmodel.quantize.embedding.weight
        recent = self.recent_ND[-min(int(self.seen), self.RECENT) :]
        weight.copy_(kmeans(recent, len(weight), 10, self._generator()))
        self.sums_VD.copy_(weight)
        self.usage_V.fill_(1.0)

    def _generator(self) -> torch.Generator:
        """Randomness of this step: a function of seed and step, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step))

    @torch.no_grad()
    def merge_codes(self, distance: float) -> None:
        """Join codes that lie closer than `distance` in the latent space, the most used one staying; the rest goes.

        A codebook that is larger than what there is to say describes the same background in many ways: the tokens of
        what did not change then differ between two pictures, which a world model would have to predict.
        """
        weight = self.vqmodel.quantize.embedding.weight
        kept: list[int] = []
        for code in self.usage_V.argsort(descending=True).tolist():
            if not kept or float((weight[kept] - weight[code]).norm(dim=1).min()) >= distance:
                kept.append(code)
        self.usage_V, self.sums_VD = self.usage_V[kept], self.sums_VD[kept]
        embedding = nn.Embedding.from_pretrained(weight[kept].clone(), freeze=True)
        self.vqmodel.quantize.embedding = embedding
        self.vqmodel.quantize.num_embeddings = len(kept)

    def _move_codebook(self, vectors_ND: Tensor) -> None:
        weight = self.vqmodel.quantize.embedding.weight
        codes = nearest_codes(vectors_ND[None], weight)[0]
        counts = torch.bincount(codes, minlength=len(weight)).float()
        sums = torch.zeros_like(self.sums_VD).index_add_(0, codes, vectors_ND)
        self.usage_V.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.sums_VD.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.step % self.REVIVE_EVERY == 0:
            dead = self.usage_V < self.DEAD_BELOW
            # Where codes are missing the error is large; most vectors are background, which has codes enough.
            error = (vectors_ND - weight[codes]).pow(2).sum(1)
            drawn = torch.multinomial(error.cpu() + 1e-9, len(weight), True, generator=self._generator())
            spare = vectors_ND[drawn.to(vectors_ND.device)]
            self.sums_VD[dead] = spare[dead]
            self.usage_V[dead] = 1.0
        weight.copy_(self.sums_VD / self.usage_V.clamp(min=1e-5).unsqueeze(1))
