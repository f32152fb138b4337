"""How a checkpoint is opened: precision, attention, quantisation, device, under the names of transformers and TRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rl.errors import RewindError
from rl.models.sizes import PictureSize, SizeLike

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("4bit", "8bit")


@dataclass(frozen=True)
class Settings:
    """What transformers' `from_pretrained` is asked for; the image tokenizer stays in float32 whatever this says.

    Args:
        dtype: of the language model's weights, one of `DTYPES` or a torch dtype; None is 'auto', the checkpoint's own.
        attn_implementation: 'sdpa', 'eager', 'flash_attention_2', ...; None is transformers' choice.
        quantization: '4bit' or '8bit' through bitsandbytes, which has to be installed; None for none.
        device: where the weights go; None is the GPU if there is one.
        image_size: of pictures, as `sizes.PictureSize.of` reads it, for families that know several; None is the usual.

    Raises:
        RewindError: a name that is none of these, or bitsandbytes is missing.
    """

    dtype: str | torch.dtype | None = None
    attn_implementation: str | None = None
    quantization: str | None = None
    device: str | torch.device | None = None
    image_size: SizeLike | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str) and self.dtype not in DTYPES:
            raise RewindError(f"dtype must be one of {', '.join(DTYPES)}, not '{self.dtype}'")
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise RewindError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, not '{self.quantization}'")
        if self.quantization is not None:
            from transformers.utils import is_bitsandbytes_available

            if not is_bitsandbytes_available():
                raise RewindError(f"quantization '{self.quantization}' needs bitsandbytes: pip install bitsandbytes")
        if self.image_size is not None:
            PictureSize.of(self.image_size)
        try:
            torch.device(self.device or "cpu")
        except (RuntimeError, TypeError) as error:
            raise RewindError(f"'{self.device}' is no device: write cpu, cuda or cuda:0") from error

    @property
    def picture_size(self) -> PictureSize | None:
        """`image_size` as it was read."""
        return None if self.image_size is None else PictureSize.of(self.image_size)

    @property
    def changes_weights(self) -> bool:
        """Whether a model that is loaded already could not answer to it."""
        return any(x is not None for x in vars(self).values())

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        found: dict[str, Any] = {"dtype": "auto" if self.dtype is None else self.dtype}
        if self.attn_implementation is not None:
            found["attn_implementation"] = self.attn_implementation
        if self.quantization is not None:
            from transformers import BitsAndBytesConfig

            four = self.quantization == "4bit"
            compute = (
                self.dtype if isinstance(self.dtype, torch.dtype) else getattr(torch, str(self.dtype), torch.bfloat16)
            )
            found["quantization_config"] = (
                BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute, bnb_4bit_quant_type="nf4")
                if four
                else BitsAndBytesConfig(load_in_8bit=True)
            )
        return found

    def place(self, model: torch.nn.Module) -> None:
        """Move a model to the device; a quantised one lies where bitsandbytes put it."""
        device = self.device or ("cuda" if torch.cuda.is_available() else None)
        if device is not None and self.quantization is None:
            model.to(device)
