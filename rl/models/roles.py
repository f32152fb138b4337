"""The two roles of a unified VLM: `ForwardDynamics` draws the next picture, `InverseDynamics` names the action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from rl.errors import RewindError
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.noise import Noise
from rl.models.sampling import MAX_ROWS, sample_tokens
from rl.models.scoring import span_log_probs
from rl.models.unified import UnifiedVLM
from rl.pictures import Picture
from rl.triplets import Candidate

Role = Literal["fdm", "idm"]
FDM_ADAPTER, IDM_ADAPTER = "default", "idm"
"""Adapter names on a shared backbone; TRL expects the policy's to be `default`."""


class _Role:
    max_rows: int = 64
    """Sequences that are scored at once; lower it where memory is short."""

    def __init__(self, backbone: UnifiedVLM, adapter: str | None = None) -> None:
        self.backbone = backbone
        self.adapter = adapter


def check_actions(actions: Sequence[str]) -> None:
    """Raise a `RewindError` unless every action is a sentence."""
    for action in actions:
        if not isinstance(action, str):
            raise RewindError(f"an action is a sentence (str), not a {type(action).__name__}")
        if not action.strip():
            raise RewindError("the action is empty: say in words what happens between the two pictures")


class ForwardDynamics(_Role):
    """p(target | source, action): predicts the picture after an action.

    Args:
        backbone: the unified VLM.
        adapter: name of the LoRA adapter of this role on it, None for the base itself.
    """

    def distribution(self, temperature: float = 1.0, guidance: float = 1.0) -> TokenDistribution:
        """The distribution of image tokens that sampler and trainers share."""
        return TokenDistribution(self.backbone.layout.image_ids_V, temperature, guidance)

    def check(
        self,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Raise what `sample` would raise about its settings, without sampling."""
        if num_samples < 1:
            raise RewindError(f"num_samples must be at least 1, not {num_samples}")
        self.distribution(temperature, guidance)
        Truncation(top_k, top_p)
        Noise(seed)

    @overload
    def sample(
        self, source: Picture | Candidate, action: str, num_samples: int = ..., **settings: Any
    ) -> list[Candidate]: ...

    @overload
    def sample(
        self, source: Sequence[Picture | Candidate], action: Sequence[str], num_samples: int = ..., **settings: Any
    ) -> list[list[Candidate]]: ...

    def sample(  # type: ignore[misc]
        self,
        source: Picture | Candidate | Sequence[Picture | Candidate],
        action: str | Sequence[str],
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        step: int = 0,
        max_rows: int = MAX_ROWS,
        first: int = 0,
        kept: Sequence[np.ndarray] | None = None,
    ) -> list[Candidate] | list[list[Candidate]]:
        """Draw predicted targets.

        Args:
            source: a picture (uint8 RGB [H, W, 3] or PIL), or a list of them; a `Candidate` stands for its own ids.
            action: a sentence for each source.
            num_samples: candidates a source.
            temperature: 1 is the model's distribution; low ones tend to copy the source; 0 is greedy.
            top_k: draw from the k best tokens only (inference only).
            top_p: draw from the smallest set of tokens with this probability only (inference only).
            guidance: above 1 follows the action more, against the prompt without it.
            seed: same seed, same candidates, in any batch.
            step: a second number beside the seed, for callers that draw again and again.
            max_rows: candidates decoded at once; bounds memory, changes nothing else.
            first: number of the first candidate: 4 samples, and then 4 with `first=4`, are the 8 of one call.
            kept: int64 [K] a source: image-token ids that its candidates must have there, -1 where one is drawn.

        Returns:
            A list of candidates for one source, a list of lists for a list of sources.

        Raises:
            RewindError: an empty action, lists of different lengths, something that is no picture.
        """
        self.check(num_samples, temperature, top_k, top_p, guidance, seed)
        single = isinstance(action, str)
        if single == isinstance(source, list | tuple):
            raise RewindError("give one source and one action, or a list of sources and a list of actions")
        sources: Sequence[Any] = [source] if single else source  # type: ignore[assignment]
        actions: Sequence[str] = [action] if isinstance(action, str) else action
        if len(sources) != len(actions):
            raise RewindError(f"{len(sources)} sources and {len(actions)} actions: give one action a source")
        check_actions(actions)
        if not len(sources):
            raise RewindError("there is no picture to start from")
        vlm = self.backbone
        source_ids = token_ids(vlm, sources)
        kept_PT = None if kept is None else torch.from_numpy(np.stack(kept))
        if kept_PT is not None and kept_PT.shape != (len(sources), vlm.layout.tokens_per_image):
            raise RewindError(f"'kept' must hold {vlm.layout.tokens_per_image} ids (or -1) for each source")
        distribution = self.distribution(temperature, guidance)
        with vlm.using(self.adapter, merged=True):
            drawn = sample_tokens(
                vlm,
                [vlm.fdm_prompt(ids, words) for ids, words in zip(source_ids, actions, strict=True)],
                distribution,
                num_samples=num_samples,
                max_tokens=vlm.layout.tokens_per_image,
                noise=Noise(seed, step),
                unconditional=[vlm.fdm_prompt(ids, "") for ids in source_ids] if distribution.guided else None,
                truncation=Truncation(top_k, top_p) if top_k is not None or top_p is not None else None,
                max_rows=max_rows,
                first=first,
                kept_PT=kept_PT,
                after=vlm.layout.grammar.after,
            )
        groups = [
            [Candidate(ids, logprobs, vlm) for ids, logprobs in zip(*group, strict=True)]
            for group in zip(drawn.ids_PGT.cpu().numpy(), drawn.logprobs_PGT.cpu().numpy(), strict=True)
        ]
        return groups[0] if single else groups

    def score(
        self,
        source: Picture | Sequence[Picture],
        targets: Sequence[Picture | Candidate],
        action: str | Sequence[str],
        temperature: float = 1.0,
    ) -> list[float]:
        """Mean log-probability a token of each target's image tokens; arguments as for `InverseDynamics.score`."""
        return [float(x.mean()) for x in self.log_probs(source, targets, action, temperature)]

    @torch.no_grad()
    def log_probs(
        self,
        source: Picture | Sequence[Picture],
        targets: Sequence[Picture | Candidate],
        action: str | Sequence[str],
        temperature: float = 1.0,
    ) -> list[np.ndarray]:
        """Log-probability of each image token of each target, float32 [K], under the same distribution as `sample`."""
        vlm = self.backbone
        source_ids, target_ids, actions = _rows(vlm, source, targets, action)
        prompts = [vlm.fdm_prompt(ids, words) for ids, words in zip(source_ids, actions, strict=True)]
        with vlm.using(self.adapter, merged=True):
            found = span_log_probs(
                vlm,
                prompts,
                [vlm.target_span(ids) for ids in target_ids],
                self.distribution(temperature),
                max_rows=self.max_rows,
                free=vlm.layout.grammar.free,
            )
        return [x.cpu().numpy() for x in found]


def token_ids(vlm: UnifiedVLM, pictures: Sequence[Picture | Candidate]) -> list[list[int]]:
    """Image-token ids of pictures; a `Candidate` of the same backbone has its own, another backbone's is re-encoded."""
    fresh = {  # a picture that stands there many times, such as the source of a group, is encoded once
        id(picture): picture.image if isinstance(picture, Candidate) else picture
        for picture in pictures
        if not (isinstance(picture, Candidate) and picture.backbone is vlm)
    }
    encoded = dict(zip(fresh, vlm.encode(list(fresh.values())).tolist(), strict=True)) if fresh else {}
    return [encoded[id(p)] if id(p) in encoded else p.ids.tolist() for p in pictures]  # type: ignore[union-attr]


def _rows(
    vlm: UnifiedVLM,
    source: Picture | Sequence[Picture],
    targets: Sequence[Picture | Candidate],
    action: str | Sequence[str],
) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Source ids, target ids and actions of equal length from one source (or action) for all targets or one each."""
    many = isinstance(source, list | tuple)
    sources: Any = source if many else [source]
    actions = [action] * len(targets) if isinstance(action, str) else list(action)
    count = len(sources) if many else len(targets)
    if not count == len(targets) == len(actions):
        raise RewindError(f"{count} sources, {len(targets)} targets and {len(actions)} actions do not fit together")
    check_actions(actions)
    if not len(targets):
        return [], [], []
    source_ids = token_ids(vlm, sources) * (1 if many else count)
    return source_ids, token_ids(vlm, targets), actions


class InverseDynamics(_Role):
    """p(action | source, target): names what happened between two pictures."""

    def distribution(self) -> TokenDistribution:
        """The distribution of text tokens: image tokens cannot occur in an action."""
        return TokenDistribution(self.backbone.layout.text_ids_V)

    def score(
        self,
        source: Picture | Sequence[Picture],
        targets: Sequence[Picture | Candidate],
        action: str | Sequence[str],
    ) -> list[float]:
        """Mean log-probability a token of the action (its end included), one number a target: `idm_likelihood`.

        Args:
            source: one picture for all targets, or one a target.
            targets: pictures or candidates.
            action: one sentence for all targets, or one a target.
        """
        return [float(x.mean()) for x in self.log_probs(source, targets, action)]

    @torch.no_grad()
    def log_probs(
        self,
        source: Picture | Sequence[Picture],
        targets: Sequence[Picture | Candidate],
        action: str | Sequence[str],
    ) -> list[np.ndarray]:
        """Log-probability of each token of the action and of its end, float32 [tokens], one array a target."""
        vlm = self.backbone
        source_ids, target_ids, actions = _rows(vlm, source, targets, action)
        prompts = [vlm.idm_prompt(a, b) for a, b in zip(source_ids, target_ids, strict=True)]
        with vlm.using(self.adapter, merged=True):
            spans = [vlm.action_ids(words) for words in actions]
            found = span_log_probs(vlm, prompts, spans, self.distribution(), max_rows=self.max_rows)
        return [x.cpu().numpy() for x in found]

    @overload
    def describe(self, source: Picture, target: Picture | Candidate, **settings: Any) -> str: ...

    @overload
    def describe(
        self, source: Sequence[Picture], target: Sequence[Picture | Candidate], **settings: Any
    ) -> list[str]: ...

    def describe(  # type: ignore[misc]
        self,
        source: Picture | Sequence[Picture],
        target: Picture | Candidate | Sequence[Picture | Candidate],
        max_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str | list[str]:
        """The action in words, for one pair of pictures or for lists of them.

        Greedy at temperature 0; above, a sample (same seed, same words).
        """
        vlm = self.backbone
        single = not isinstance(source, list | tuple)
        sources: Any = [source] if single else source
        targets: Any = [target] if single else target
        if len(sources) != len(targets):
            raise RewindError(f"{len(sources)} sources and {len(targets)} targets: give one target a source")
        pairs = zip(token_ids(vlm, sources), token_ids(vlm, targets), strict=True)
        with vlm.using(self.adapter, merged=True):
            drawn = sample_tokens(
                vlm,
                [vlm.idm_prompt(a, b) for a, b in pairs],
                TokenDistribution(vlm.layout.text_ids_V, temperature),
                num_samples=1,
                max_tokens=max_tokens,
                noise=Noise(seed),
                stop=vlm.layout.end_text,
            )
        texts = [vlm.text(row) for row in drawn.ids_PGT[:, 0].tolist()]
        return texts[0] if single else texts


def continue_captions(
    vlm: UnifiedVLM, pictures: Sequence[Picture], begins: Sequence[str], max_tokens: int = 96
) -> list[str]:
    """The most likely rest (greedy) of a caption that begins with the given words, one a picture, by the base alone."""
    prompts = [
        [vlm.layout.begin_text, *vlm.image_span(ids), *vlm.text_ids(begin)]
        for ids, begin in zip(token_ids(vlm, pictures), begins, strict=True)
    ]
    with vlm.using(None):
        drawn = sample_tokens(
            vlm,
            prompts,
            TokenDistribution(vlm.layout.text_ids_V, temperature=0.0),
            num_samples=1,
            max_tokens=max_tokens,
            noise=Noise(),
            stop=vlm.layout.end_text,
        )
    return [vlm.text(row) for row in drawn.ids_PGT[:, 0].tolist()]
