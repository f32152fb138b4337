"""`UnifiedVLM`: one backbone, one VQ image tokenizer and one vocabulary that holds text and image tokens.

An adapter a family (`rl/models/families/`) fills in the abstract methods; nothing else knows a family's ids,
names or modules. Axis letters: _B sample, _T token, _K image token, _D feature, _V allowed token.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from rl.errors import RewindError
from rl.models import adapters
from rl.models.bases import lasting_name
from rl.models.grammar import Template
from rl.models.layout import TokenLayout
from rl.models.memory import Cost, in_parts, picture_bytes, rows_that_fit
from rl.pictures import PictureLike, to_array
from rl.words import words_of


class UnifiedVLM(ABC):
    """A backbone that reads and writes text and pictures as one sequence of tokens.

    Threads may share it: encoding, decoding and whatever runs `using` an adapter wait for one another, since an adapter
    in use changes the weights for all. A thread that trains does not wait, so nothing else may use its backbone.

    Attributes:
        family: name of the adapter, e.g. 'chameleon'.
        name: the base's name or folder, for run folders and messages.
        model: the transformers model; wrapped by peft as soon as an adapter is attached.
        tokenizer: a `PreTrainedTokenizerFast` for the text.
        image_size: side of the square pictures in pixels.
        layout: ids of image tokens and markers, and the grammar of a picture.
        template: the order of a prompt's segments. The default puts the words first: then the two pictures stand next
            to each other, so what stays is copied from a fixed distance, as in pretraining, however long the words are.
        known_words: words of the base's training text, if it says which.
        can_draw: whether ids can be decoded; some checkpoints lack a VQ decoder.
        remembered_pictures: how many pictures' ids are kept, so that no picture is encoded twice.
        remembered_features: the most floats that a picture's features may have for being kept too.
        max_rows: the most rows or pictures at once, unless a call says otherwise; None for as many as fit in memory.
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
    max_rows: int | None = None
    template: Template = Template()
    _kept_head: Tensor | None = None
    _warned_of_new_words = False
    _seen: dict[bytes, tuple[Tensor, Tensor | None]] | None = None
    _lock: threading.RLock

    def __new__(cls, *_: Any, **__: Any) -> Self:
        vlm = super().__new__(cls)
        vlm._lock = threading.RLock()  # re-entrant, since one role may be used inside another
        return vlm

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_lock"}  # a copy has a lock of its own

    @property
    def lasting_name(self) -> str:
        """The base's name for files: a shipped name, or an absolute path."""
        return lasting_name(self.name)

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

    def encode(self, images: Sequence[PictureLike], batch_size: int | None = None) -> Tensor:
        """Pictures (uint8 RGB [H, W, 3], PIL or files, any size) -> vocabulary ids, int64 [B, K].

        The image encoder is frozen, so ids are remembered by the picture's pixels: training, labelling and rewards ask
        for the same pictures again and again, and encoding one costs more than reading its action.
        """
        return torch.stack([ids for ids, _ in self._encoded(images, batch_size, False)]).to(self.device)

    def features(self, images: Sequence[PictureLike], batch_size: int | None = None) -> Tensor:
        """Pictures -> features before quantisation, float [B, K, D]; small ones are remembered like ids."""
        found = [features for _, features in self._encoded(images, batch_size, True) if features is not None]
        return torch.stack(found).to(self.device)

    def _encoded(
        self, images: Sequence[PictureLike], batch_size: int | None, with_features: bool
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Ids int64 [K] and features float [K, D] (None where they were neither asked for nor kept) of each picture."""
        if not len(images):
            raise RewindError("there is no picture to encode")
        arrays = [to_array(image, self.image_size) for image in images]
        with self._lock:
            return self._remembered(arrays, batch_size, with_features)

    def _remembered(
        self, arrays: Sequence[np.ndarray], batch_size: int | None, with_features: bool
    ) -> list[tuple[Tensor, Tensor | None]]:
        seen = self._seen = {} if self._seen is None else self._seen
        keys = [hashlib.blake2b(array.tobytes(), digest_size=16).digest() for array in arrays]
        found = {key: seen[key] for key in keys if key in seen and not (with_features and seen[key][1] is None)}
        fresh = {key: array for key, array in zip(keys, arrays, strict=True) if key not in found}
        unknown = list(fresh)

        def encode(part: range) -> None:
            names = unknown[part.start : part.stop]
            with torch.no_grad():
                pixels = torch.from_numpy(np.stack([fresh[key] for key in names]))
                features = self.features_pixels(pixels.to(self.device))
                ids = self.quantise(features).cpu()
            small = features[0].numel() <= self.remembered_features
            kept = features.cpu() if small or with_features else [None] * len(names)
            found.update({key: (i, f) for key, i, f in zip(names, ids, kept, strict=True)})
            seen.update({key: (i, f if small else None) for key, i, f in zip(names, ids, kept, strict=True)})

        in_parts(len(unknown), batch_size or self._pictures_at_once(64), encode)
        for key in list(seen)[: max(0, len(seen) - self.remembered_pictures)]:
            del seen[key]
        return [found[key] for key in keys]

    def check_can_draw(self) -> None:
        """Raise a `RewindError` if there is no decoder for pictures."""
        if not self.can_draw:
            raise RewindError(
                f"{self.name} has no VQ decoder, so its pictures cannot be drawn: name a folder or Hub id that has "
                "one, --vq FOLDER (Meta's vqgan.ckpt, or an Anole checkpoint)"
            )

    def decode(self, ids_BK: Tensor | np.ndarray, batch_size: int | None = None) -> np.ndarray:
        """Vocabulary ids [B, K] -> uint8 RGB [B, H, W, 3]; `batch_size` at once, or what is quick and fits."""
        if batch_size is None:
            # 64 no longer fit a CPU's cache: a quarter slower.
            batch_size = self._pictures_at_once(16 if self.device.type == "cpu" else 64)
        ids_BK = torch.as_tensor(ids_BK).to(self.device)
        allowed = torch.isin(ids_BK, self.layout.image_ids_V.to(self.device))
        if not bool(allowed.all()):
            raise RewindError(
                f"token {int(ids_BK[~allowed][0])} is no image token of {self.name}: were these ids made by another?"
            )
        with torch.no_grad(), self._lock:
            few = in_parts(max(1, len(ids_BK)), batch_size, lambda n: self.decode_ids(ids_BK[n.start : n.stop]).cpu())
            return torch.cat(few).numpy()

    def _pictures_at_once(self, usual: int) -> int:
        """Pictures that the image tokenizer takes at once: `usual` is quick, memory or `max_rows` may ask for fewer."""
        fitting = rows_that_fit(Cost(0, picture_bytes(self)), 1, self.device, usual=usual)
        return fitting if self.max_rows is None else min(fitting, self.max_rows)

    # ---- words

    def text_ids(self, text: str) -> list[int]:
        """A text as ids without markers. Markers spelled out in the text stay plain text."""
        self._warn_of_new_words(text)
        with self._lock:  # a fast tokenizer is changed by encoding
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def text(self, ids: Sequence[int]) -> str:
        """Ids back into words; markers are left out."""
        with self._lock:
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

    # ---- prompts and targets: the one place that lays a sequence out

    def _rendered(self, segments: Sequence[str], action: str, **pictures: Sequence[int]) -> list[int]:
        """The ids of a prompt's segments."""
        layout = self.layout
        markers = {"<bos>": layout.begin_text, "<eos>": layout.end_text, **self.template.markers}
        ids: list[int] = []
        for segment in segments:
            if segment == "{action}":
                ids += self.text_ids(action)
            elif segment == "{header}":
                ids += layout.grammar.header
            elif segment in ("{source}", "{target}"):
                ids += layout.grammar.picture(pictures[segment[1:-1]])
            elif segment in markers:
                ids.append(markers[segment])
            else:
                ids += self.text_ids(segment)
        return ids

    def image_span(self, ids_K: Sequence[int]) -> list[int]:
        """A picture's ids between their markers."""
        return self.layout.grammar.picture(ids_K)

    def target_span(self, ids_K: Sequence[int]) -> list[int]:
        """A target's codes with what its family forces between them, T ids: what follows an FDM's prompt."""
        return self.layout.grammar.target(ids_K)

    def fdm_prompt(self, source_ids_K: Sequence[int], action: str) -> list[int]:
        """Everything before the first code of the target.

        An empty action gives the action-free prompt that guidance compares with.
        """
        template = self.template
        return self._rendered(template.fdm if action else template.fdm_free, action, source=source_ids_K)

    def free_prompts(self, source_ids_K: Sequence[int], count: int) -> list[list[int]]:
        """The prompts that guidance by so many numbers compares with, each with less of the condition."""
        known = [self.template.fdm_free, *self.template.fdm_freer]
        return [self._rendered(segments, "", source=source_ids_K) for segments in known[:count]]

    def check_guidance(self, count: int) -> None:
        """Raise a `RewindError` if the template has fewer free prompts than guidance has numbers."""
        if count > (known := 1 + len(self.template.fdm_freer)):
            raise RewindError(f"guidance takes at most {known} number(s) with {self.name}, one a prompt, not {count}")

    def without_words(self, mask_BT: Tensor) -> Tensor:
        """The mask of FDM sequences without their action, int64 [B, T]: 0 at its words too.

        What is left reads as the action-free prompt and the target, so that a loss can compare with it as the sampler's
        guidance does. The sequences are `fdm_prompt` and a whole target, padded on the left; positions must be counted
        anew along the mask.

        Raises:
            RewindError: a template that does not put the words first.
        """
        if not self.template.words_first:
            raise RewindError(f"{self.name} does not put the action first, so guidance is for sampling alone here")
        grammar = self.layout.grammar
        codes = [int(self.layout.image_ids_V[0])] * grammar.grid.codes
        behind = len(self.fdm_prompt(codes, "")) - 1 + len(grammar.free)  # all but the words and the begin of the text
        kept = torch.zeros_like(mask_BT)
        kept[:, -behind:] = 1
        return mask_BT * kept.scatter(1, mask_BT.argmax(-1, keepdim=True), 1)

    def idm_prompt(self, source_ids_K: Sequence[int], target_ids_K: Sequence[int]) -> list[int]:
        """Everything before the first token of the action."""
        return self._rendered(self.template.idm, "", source=source_ids_K, target=target_ids_K)

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
        with self._lock:
            model = self.model = adapters.attach(self.model, folder, name, self.name)
            model.peft_config[name].base_model_name_or_path = self.lasting_name  # its file's may lead nowhere from here

    @contextmanager
    def using(self, adapter: str | None, merged: bool = False) -> Iterator[None]:
        """Run with one adapter (None: with none) in evaluation mode; adapter, mode and gradients are restored after.

        Other threads that want the backbone wait meanwhile.

        Args:
            adapter: its name.
            merged: for reading alone: let the layers hold W + BA meanwhile instead of adding BAx to Wx at every token,
                which halves the time of a small model. Only float32 weights that lie here whole are merged (in half
                precision the sum would be rounded, so that the sampler's distribution would not be the trainer's);
                afterwards the very same W is put back.
        """
        with self._lock, adapters.using(self.model, adapter, merged, self.name):
            yield
