"""`UnifiedVLM`: one backbone, one VQ image tokenizer and one vocabulary that holds text and image tokens.

An adapter a family (`rl/models/families/`) fills in the abstract methods; nothing else knows a family's ids,
names or modules. Axis letters: _B sample, _T token, _K image token, _D feature, _V allowed token.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl.actions import vector_of
from rl.codes import Grid
from rl.errors import RewindError
from rl.models import adapters
from rl.models.actions import SpeaksActions
from rl.models.bases import lasting_name
from rl.models.fingerprint import Fingerprint
from rl.models.grammar import Template
from rl.models.picture_tokens import PictureTokens
from rl.words import words_of


class UnifiedVLM(PictureTokens, SpeaksActions):
    """A backbone that reads and writes text and pictures as one sequence of tokens.

    Threads may share it: encoding, decoding and whatever runs `using` an adapter wait for one another, since an adapter
    in use changes the weights for all. A thread that trains does not wait, so nothing else may use its backbone.

    Attributes:
        family: name of the adapter, e.g. 'chameleon'.
        model: the transformers model; wrapped by peft as soon as an adapter is attached.
        tokenizer: a `PreTrainedTokenizerFast` for the text.
        template: the order of a prompt's segments. The default puts the words first: then the two pictures stand next
            to each other, so what stays is copied from a fixed distance, as in pretraining, however long the words are.
        known_words: words of the base's training text, if it says which.
        fingerprint: of the files that it was opened from; None for a base that was not.
        step: what reads one token after others, where that is compiled (`compiling`); None for the transformer itself.
        asked_size: `image_size` where whoever opened it asked for one, which its runs then keep.
        asked_vq: the image tokenizer's folder or Hub id, where one was named, which its runs then keep, too.
    """

    family: str
    model: nn.Module
    tokenizer: Any
    known_words: frozenset[str] | None = None
    fingerprint: Fingerprint | None = None
    asked_size: int | str | None = None
    asked_vq: str | None = None
    template: Template = Template()
    step: Callable[..., Any] | None = None
    _kept_head: Tensor | None = None
    _warned_of_new_words = False

    @property
    def lasting_name(self) -> str:
        """The base's name for files: a shipped name, or an absolute path."""
        return lasting_name(self.name)

    # ---- what a family must provide

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

    def pieces(self, segments: Sequence[str], grid: Grid) -> list[list[int] | str]:
        """A prompt's segments as ids; what differs from row to row stays a word: {action}, {source}, {target}.

        Ids that stand side by side are one piece. `grid` is that of the pictures, whose header may tell their size.
        """
        layout, found = self.layout, list[list[int] | str]()
        markers = {"<bos>": layout.begin_text, "<eos>": layout.end_text, **self.template.markers}
        for segment in segments:
            if segment in ("{action}", "{source}", "{target}"):
                found.append(segment)
                continue
            if segment == "{header}":  # the picture to be drawn has the source's size
                ids = list(layout.grammar.of(grid).header)
            else:
                ids = [markers[segment]] if segment in markers else self.text_ids(segment)
            if found and isinstance(found[-1], list):
                found[-1] += ids
            else:
                found.append(ids)
        return found

    def _rendered(self, segments: Sequence[str], action: str, **pictures: Sequence[int]) -> list[int]:
        """The ids of a prompt's segments."""
        ids: list[int] = []
        for piece in self.pieces(segments, self.layout.grammar_of(pictures["source"]).grid):
            if piece == "{action}":
                ids += self.action_segment(action)
            elif isinstance(piece, str):
                picture = pictures[piece[1:-1]]
                ids += self.layout.grammar_of(picture).picture(picture)
            else:
                ids += piece
        return ids

    def image_span(self, ids_K: Sequence[int]) -> list[int]:
        """A picture's ids between their markers."""
        return self.layout.grammar_of(ids_K).picture(ids_K)

    def target_span(self, ids_K: Sequence[int]) -> list[int]:
        """A target's codes with what its family forces between them, T ids: what follows an FDM's prompt."""
        return self.layout.grammar_of(ids_K).target(ids_K)

    def fdm_prompt(self, source_ids_K: Sequence[int], action: str) -> list[int]:
        """Everything before the first code of the target.

        An empty action gives the action-free prompt that guidance compares with.
        """
        segments = self.fdm_segments(vector_of(action) is not None) if action else self.template.fdm_free
        return self._rendered(segments, action, source=source_ids_K)

    def fdm_segments(self, of_vector: bool) -> tuple[str, ...]:
        """The segments of an FDM's prompt with an action in words, or with a vector."""
        return (self.template.fdm_vector if of_vector else ()) or self.template.fdm

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
            RewindError: a template that does not put the words first, or pictures of different sizes.
        """
        if not self.template.words_first or (self.actions is not None and self.template.fdm_vector):
            raise RewindError(f"{self.name} does not put the action first, so guidance is for sampling alone here")
        if self.picture_size.own:
            raise RewindError(f"guidance in training needs pictures of one size, not image_size {self.image_size}")
        grammar = self.layout.grammar
        codes = [int(self.layout.image_ids_V[0])] * grammar.grid.codes
        behind = len(self.fdm_prompt(codes, "")) - 1 + len(grammar.free)  # all but the words and the begin of the text
        kept = torch.zeros_like(mask_BT)
        kept[:, -behind:] = 1
        return mask_BT * kept.scatter(1, mask_BT.argmax(-1, keepdim=True), 1)

    def idm_prompt(self, source_ids_K: Sequence[int], target_ids_K: Sequence[int]) -> list[int]:
        """Everything before the first token of the action."""
        return [*self._rendered(self.template.idm, "", source=source_ids_K, target=target_ids_K), *self.before_action]

    @property
    def before_action(self) -> tuple[int, ...]:
        """The ids that an IDM's prompt ends with, after its segments."""
        return () if self.actions is None else tuple(self.actions.tokens.begin)

    # ---- the backbone and its adapters

    def head_weight(self) -> Tensor:
        """Weights of the output head, float [vocabulary, D]."""
        return self._head() if self._kept_head is None else self._kept_head

    def keep_head(self, device: torch.device, dtype: torch.dtype | None = None) -> None:
        """Read the head from a copy from now on, for trainers that divide the model's weights among processes."""
        self._kept_head = self._head().detach().clone().to(device, dtype)

    @property
    def device(self) -> torch.device:
        """Where the head is, and with it ids, states and pictures; layers of a divided model lie elsewhere too."""
        return self.head_weight().device

    @property
    def divided(self) -> bool:
        """Whether the weights lie on several devices (`device_map`)."""
        return len({str(place) for place in getattr(self.model, "hf_device_map", {}).values()}) > 1

    def hidden_states(self, input_ids_BT: Tensor, **kwargs: Any) -> Any:
        """The transformer's output (`last_hidden_state` float [B, T, D], `past_key_values`), active adapter in.

        What goes in and comes out is on `device`, wherever a divided model has its first and last layer.
        """
        single = input_ids_BT.shape[1] == 1 and not torch.is_grad_enabled()
        run = self.step if self.step is not None and single else self.transformer()  # compiled for fixed shapes
        output = run(input_ids=input_ids_BT, **kwargs)
        if output.last_hidden_state.device != input_ids_BT.device:
            output.last_hidden_state = output.last_hidden_state.to(input_ids_BT.device)
        return output

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
        """Run with one adapter (None: with none) in evaluation mode, for reading alone: weights may not change
        meanwhile. Adapter, mode and gradients are restored after.

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
