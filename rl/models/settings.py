"""How a checkpoint is opened: precision, attention, quantisation, device, under the names of transformers and TRL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rl.errors import RewindError
from rl.models.sizes import PictureSize, SizeLike

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("4bit", "8bit")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclass(frozen=True)
class Settings:
    """What transformers' `from_pretrained` is asked for; the image tokenizer stays in float32 whatever this says.

    Args:
        dtype: of the language model's weights, one of `DTYPES` or a torch dtype; None is 'auto', the checkpoint's own.
        attn_implementation: 'sdpa', 'eager', 'flash_attention_2', ...; None is transformers' choice.
        quantization: '4bit' or '8bit' through bitsandbytes, which has to be installed; None for none.
        device: where the weights go; None is the GPU if there is one.
        device_map: how they are divided among devices instead, one of `DEVICE_MAPS`, a device, or by the names of
            modules ({"model.layers.0": 0, ..., "lm_head": 1}). What is put on 'disk', or on 'cpu' beside a GPU, is read
            anew at every step, and takes no adapter; the head cannot lie there.
        compile: let `torch.compile` make one program of a pass of one token (`compiling`); not for divided or quantised
            weights. Slow to begin: it pays in long runs on a GPU.
        image_size: of pictures, as `sizes.PictureSize.of` reads it, for families that know several; None is the usual.

    Raises:
        RewindError: a name that is none of these, or bitsandbytes is missing.
    """

    dtype: str | torch.dtype | None = None
    attn_implementation: str | None = None
    quantization: str | None = None
    device: str | torch.device | None = None
    device_map: str | dict[str, Any] | None = None
    image_size: SizeLike | None = None
    compile: bool | None = None

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
        _check_device(self.device or "cpu")
        if self.device is not None and self.device_map is not None:
            raise RewindError(
                "device puts all weights on one device and device_map divides them: leave one of them out"
            )
        for name in ("quantization", "device_map"):
            if self.compile and getattr(self, name) is not None:
                raise RewindError(f"compile is for whole weights in one place: leave out compile or {name}")
        if isinstance(self.device_map, dict):
            for place in self.device_map.values():
                if place != "disk":
                    _check_device(place)
        elif self.device_map not in (None, *DEVICE_MAPS):
            _check_device(self.device_map, f"neither a device nor one of {', '.join(DEVICE_MAPS)}")

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
        if self.device_map is not None:
            found["device_map"] = self.device_map
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
        """Move a model to the device; a quantised or divided one lies where it was put as it was read."""
        if isinstance(self.device_map, dict):
            names = {"", *(name for name, _ in model.named_modules()), *(name for name, _ in model.named_parameters())}
            unknown = [name for name in self.device_map if name not in names and "vqmodel" not in name.split(".")]
            if unknown:  # transformers passes over it
                raise RewindError(f"device_map names '{unknown[0]}', which is no part of the model: leave it out")
        device = self.device or ("cuda" if torch.cuda.is_available() else None)
        if device is not None and self.quantization is None and self.device_map is None:
            model.to(device)


def _check_device(device: Any, wrong: str = "no device: write cpu, cuda or cuda:0") -> None:
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RewindError(f"'{device}' is {wrong}") from error
