"""The two stages that make a base from scratch: the VQ tokenizer, then the language model over text and image tokens.

Both run on transformers' `Trainer`, which brings the progress bar with time left, TensorBoard, checkpoints and exact
resumption; each stage finishes in one safetensors file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from trainers.common.checkpoints import WholeCheckpoints, fit
from trainers.common.metrics import ImageGrid, MetricsFile
from trainers.pretraining.settings import training_arguments


class Images(Dataset):  # type: ignore[type-arg]
    """uint8 pictures [N, H, W, 3] as items for `Trainer`."""

    def __init__(self, images_NHWC: np.ndarray) -> None:
        self.images = torch.from_numpy(images_NHWC)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images_BHWC": self.images[index]}


class TokenizerTrainer(WholeCheckpoints, Trainer):
    """transformers' `Trainer` with checkpoints that are whole or not there."""


def train_tokenizer(
    model: nn.Module,
    images_NHWC: np.ndarray,
    output: Path,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    resume: bool,
) -> None:
    """Train a `VQTrainingModel` on pictures; the model is changed in place, checkpoints and logs go to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    arguments = training_arguments(
        output, steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup=100, seed=seed, weight_decay=0.0
    )
    shown = torch.from_numpy(images_NHWC[:: max(1, len(images_NHWC) // 8)][:8])

    @torch.no_grad()
    def draw(module: nn.Module) -> np.ndarray:
        module.eval()
        decoded = module.reconstruct(shown.to(next(module.parameters()).device)).cpu()  # type: ignore[operator]
        module.train()
        return torch.cat([torch.cat(list(shown), 1), torch.cat(list(decoded), 1)]).numpy()

    callbacks = [
        MetricsFile(output / "metrics.jsonl"),
        ImageGrid("reconstruction", draw, max(1, steps // 10), output / "tensorboard"),
    ]
    trainer = TokenizerTrainer(model=model, args=arguments, train_dataset=Images(images_NHWC), callbacks=callbacks)
    fit(trainer, output, resume, "--tokenizer_batch_size")
