"""`UnifiedVLM`: one backbone, one VQ image tokenizer and one vocabulary that holds text and image tokens.

An adapter a family (`rl/models/families/`) fills in the abstract methods; nothing else knows a family's ids,
names or modules. Axis letters: _B sample, _T token, _K image token, _D feature, _V allowed token.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rl.errors import RewindError
from rl.models import adapters
from rl.pictures import Picture, to_array
from rl.words import words_of


@dataclass(frozen=True)
class TokenLayout:
    """Where things are in the vocabulary, as read from the checkpoint.

    `image_ids_V[c]` is the vocabulary id of image code c; `text_ids_V` are the ids that a text may consist of, the end
    of the text included. `tokens_per_image` (K) codes, row by row, make one picture.
    """

    image_ids_V: Tensor
    text_ids_V: Tensor
    begin_image: int
    end_image: int
    begin_text: int
    end_text: int
    pad: int
    tokens_per_image: int


class UnifiedVLM(ABC):
    """A backbone that reads and writes text and pictures as one sequence of tokens.

    Attributes:
        family: name of the adapter, e.g. 'chameleon'.
        name: the base's name or folder, for run folders and messages.
        model: the transformers model; wrapped by peft as soon as an adapter is attached.
        tokenizer: a `PreTrainedTokenizerFast` for the text.
        image_size: side of the square pictures in pixels.
        layout: ids of image tokens and markers.
        known_words: words of the base's training text, if it says which.
        can_draw: whether ids can be decoded; some checkpoints lack a VQ decoder.
        remembered_pictures: how many pictures' ids are kept, so that no picture is encoded twice.
        remembered_features: the most floats that a picture's features may have for being kept too.
    """

    family: str
    name: str
    model: nn.Module
    tokenizer: Any
    image_size: int
    layout: TokenLayout
    known_words: frozenset[str] | None = None
    can_draw: bool = True
    remembered_pictures: int = 50_000
    remembered_features: int = 1024
    _kept_head: Tensor | None = None
    _warned_of_new_words = False
    _seen: dict[bytes, tuple[Tensor, Tensor | None]] | None = None

    # ---- what a family must provide

    @abstractmethod
    def decode_ids(self, ids_BK: Tensor) -> Tensor:
        """Vocabulary ids [B, K] -> uint8 [B, H, W, 3]."""

    @abstractmethod
    def features_pixels(self, images_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float [B, K, D] of the image encoder before quantisation."""

    @abstractmethod
    def quantise(self, features_BKD: Tensor) -> Tensor:
        """Features before quantisation -> vocabulary ids [B, K]."""

    @abstractmethod
    def transformer(self) -> nn.Module:
        """The decoder stack without the head: `transformer()(input_ids=..., ...)` gives `last_hidden_state`."""

    @abstractmethod
    def _head(self) -> Tensor:
        """The model's own weights of the output head, float [vocabulary, D]."""

    @abstractmethod
    def save(self, folder: Path, max_shard_size: int | str = "50GB") -> None:
        """Write a base folder that `load_base` opens: safetensors in files of at most `max_shard_size` (bytes, or as
        transformers reads it), configs and the text tokenizer.
        """

    # ---- pictures

    def encode(self, images: Sequence[Picture], batch_size: int = 64) -> Tensor:
        """Pictures (uint8 RGB [H, W, 3] or PIL, any size) -> vocabulary ids, int64 [B, K].

        The image encoder is frozen, so ids are remembered by the picture's pixels: training, labelling and rewards ask
        for the same pictures again and again, and encoding one costs more than reading its action.
        """
        return torch.stack([ids for ids, _ in self._encoded(images, batch_size, False)]).to(self.device)

    def features(self, images: Sequence[Picture], batch_size: int = 64) -> Tensor:
        """Pictures -> features before quantisation, float [B, K, D]; small ones are remembered like ids."""
        found = [features for _, features in self._encoded(images, batch_size, True) if features is not None]
        return torch.stack(found).to(self.device)

    def _encoded(
        self, images: Sequence[Picture], batch_size: int, with_features: bool
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Ids int64 [K] and features float [K, D] (None where they were neither asked for nor kept) of each picture."""
        if not len(images):
            raise RewindError("there is no picture to encode")
        seen = self._seen = {} if self._seen is None else self._seen
        arrays = [to_array(image, self.image_size) for image in images]
        keys = [hashlib.blake2b(array.tobytes(), digest_size=16).digest() for array in arrays]
        found = {key: seen[key] for key in keys if key in seen and not (with_features and seen[key][1] is None)}
        fresh = {key: array for key, array in zip(keys, arrays, strict=True) if key not in found}
        for start in range(0, len(fresh), batch_size):
            part = list(fresh)[start : start + batch_size]
            with torch.no_grad():
                pixels = torch.from_numpy(np.stack([fresh[key] for key in part]))
                features = self.features_pixels(pixels.to(self.device))
                ids = self.quantise(features).cpu()
            small = features[0].numel() <= self.remembered_features
            kept = features.cpu() if small or with_features else [None] * len(part)
            found |= {key: (i, f) for key, i, f in zip(part, ids, kept, strict=True)}
            seen |= {key: (i, f if small else None) for key, i, f in zip(part, ids, kept, strict=True)}
        for key in list(seen)[: max(0, len(seen) - self.remembered_pictures)]:
            del seen[key]
        return [found[key] for key in keys]

    def decode(self, ids_BK: Tensor | np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Vocabulary ids [B, K] -> uint8 RGB [B, H, W, 3]; `batch_size` at once, or what is quick on the device."""
        if batch_size is None:
            batch_size = 16 if self.device.type == "cpu" else 64  # 64 no longer fit a CPU's cache: a quarter slower
        ids_BK = torch.as_tensor(ids_BK).to(self.device)
        allowed = torch.isin(ids_BK, self.layout.image_ids_V.to(self.device))
        if not bool(allowed.all()):
            raise RewindError(
                f"token {int(ids_BK[~allowed][0])} is no image token of {self.name}: were these ids made by another?"
            )
        with torch.no_grad():
            return torch.cat([self.decode_ids(chunk).cpu() for chunk in ids_BK.split(batch_size)]).numpy()

    # ---- words

    def text_ids(self, text: str) -> list[int]:
        """A text as ids without markers. Markers spelled out in the text stay plain text."""
        self._warn_of_new_words(text)
        return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def text(self, ids: Sequence[int]) -> str:
        """Ids back into words; markers are left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _warn_of_new_words(self, text: str) -> None:
        if self.known_words is None or self._warned_of_new_words:
            return
        new = sorted(set(words_of(text)) - self.known_words)
        if new:
            warnings.warn(
                f"{self.name} has never read {', '.join(repr(word) for word in new[:5])} in its training text, so it "
                "cannot know what that means (this is said once)",
                stacklevel=3,
            )
            self._warned_of_new_words = True

    # ---- prompts: the one place that knows how a sequence is laid out

    def image_span(self, ids_K: Sequence[int]) -> list[int]:
        """A picture's ids between their markers."""
        return [self.layout.begin_image, *ids_K, self.layout.end_image]

    def fdm_prompt(self, source_ids_K: Sequence[int], action: str) -> list[int]:
        """Everything before the first token of the target: action, source, begin of image.

        The action stands first, so that the two pictures stand next to each other: what stays is copied from a fixed
        distance, as in pretraining, however long the words are, and the source is read in the light of the action. An
        empty action gives the action-free prompt that guidance compares with.
        """
        words = self.text_ids(action) if action else []
        return [self.layout.begin_text, *words, *self.image_span(source_ids_K), self.layout.begin_image]

    def without_words(self, mask_BT: Tensor) -> Tensor:
        """The mask of FDM sequences without their action, int64 [B, T]: 0 at its words too.

        What is left reads as the action-free prompt and the target, so that a loss can compare with it as the sampler's
        guidance does. The sequences are `fdm_prompt` and a whole target, padded on the left; positions must be counted
        anew along the mask.
        """
        count = self.layout.tokens_per_image
        behind = len(self.fdm_prompt(range(count), "")) - 1 + count  # all but the words and the begin of the text
        kept = torch.zeros_like(mask_BT)
        kept[:, -behind:] = 1
        return mask_BT * kept.scatter(1, mask_BT.argmax(-1, keepdim=True), 1)

    def idm_prompt(self, source_ids_K: Sequence[int], target_ids_K: Sequence[int]) -> list[int]:
        """Everything before the first token of the action: source and target."""
        return [self.layout.begin_text, *self.image_span(source_ids_K), *self.image_span(target_ids_K)]

    def action_ids(self, action: str) -> list[int]:
        """The tokens of an action that an IDM predicts, the end of the text included."""
        return [*self.text_ids(action), self.layout.end_text]

    # ---- the backbone and its adapters

    def head_weight(self) -> Tensor:
        """Weights of the output head, float [vocabulary, D]."""
        return self._head() if self._kept_head is None else self._kept_head

    def keep_head(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Read the head from a copy from now on, for trainers that divide the model's weights among processes."""
        self._kept_head = self._head().detach().clone().to(device, dtype)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head_weight().device

    def hidden_states(self, input_ids_BT: Tensor, **kwargs: Any) -> Any:
        """The transformer's output (`last_hidden_state` float [B, T, D], `past_key_values`), active adapter in."""
        return self.transformer()(input_ids=input_ids_BT, **kwargs)

    def attach_adapter(self, folder: Path, name: str) -> None:
        """Load a LoRA adapter from a folder under a name; what is trainable stays as it was.

        Raises:
            RewindError: no safetensors weights, tensors that are missing or do not fit, an adapter that retrains the
                head or other whole modules (two roles could not share them), a name that is taken.
        """
        self.model = adapters.attach(self.model, folder, name, self.name)

    @contextmanager
    def using(self, adapter: str | None, merged: bool = False) -> Iterator[None]:
        """Run with one adapter (None: with none) in evaluation mode; adapter, mode and gradients are restored after.

        Args:
            adapter: its name.
            merged: for reading alone: let the layers hold W + BA meanwhile instead of adding BAx to Wx at every token,
                which halves the time of a small model. Only float32 weights that lie here whole are merged (in half
                precision the sum would be rounded, so that the sampler's distribution would not be the trainer's);
                afterwards the very same W is put back.
        """
        with adapters.using(self.model, adapter, merged, self.name):
            yield
