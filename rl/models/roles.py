"""The two roles of a unified VLM: `ForwardDynamics` draws the next picture, `InverseDynamics` names the action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch

from rl.checks import check_whole
from rl.codes import by_grid
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.drafting import Counts
from rl.models.drawing import Said, drawn_sentences, sampled_pictures
from rl.models.inputs import action_texts, as_list, check_actions, rows_of, token_ids
from rl.models.noise import Noise
from rl.models.scoring import span_log_probs
from rl.models.streams import PrefixCache
from rl.models.unified import UnifiedVLM
from rl.pictures import PictureLike
from rl.triplets import Candidate

Role = Literal["fdm", "idm"]
FDM_ADAPTER, IDM_ADAPTER, JUDGE_ADAPTER = "default", "idm", "judge_idm"
"""Adapter names on a shared backbone; TRL expects the policy's to be `default`. A judge's is in no checkpoint."""
POLICY_ADAPTER, JUDGING_FDM_ADAPTER = "default", "fdm"
"""Where an inverse model is the policy, it has that name, and the forward model that judges it this one."""


class _Role:
    max_rows: int | None = None
    """The most rows that are drawn, described or scored at once; None for as many as fit (`rl.models.memory`)."""

    def __init__(self, backbone: UnifiedVLM, adapter: str | None = None) -> None:
        self.backbone = backbone
        self.adapter = adapter


class ForwardDynamics(_Role):
    """p(target | source, action): predicts the picture after an action.

    Args:
        backbone: the unified VLM.
        adapter: name of the LoRA adapter of this role on it, None for the base itself.

    Attributes:
        run: the folder or name that it was opened from, None if it was made otherwise.
        counts: passes of all `sample` calls so far, and how many tokens of the sources were guessed and came true.
    """

    def __init__(self, backbone: UnifiedVLM, adapter: str | None = None) -> None:
        super().__init__(backbone, adapter)
        self.run: str | None = None
        self.counts = Counts()

    def distribution(self, temperature: float = 1.0, guidance: float | Sequence[float] = 1.0) -> TokenDistribution:
        """The distribution of image tokens that sampler and trainers share."""
        return TokenDistribution(self.backbone.layout.image_ids_V, temperature, guidance)

    def check(
        self,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | Sequence[float] = 1.0,
        seed: int = 0,
    ) -> None:
        """Raise what `sample` would raise about its settings, without sampling."""
        check_whole("num_samples", num_samples, least=1)
        self.backbone.check_guidance(self.distribution(temperature, guidance).free_prompts)
        Truncation(top_k, top_p)
        Noise(seed)

    @overload
    def sample(
        self, source: PictureLike | Candidate, action: str, num_samples: int = ..., **settings: Any
    ) -> list[Candidate]: ...

    @overload
    def sample(
        self, source: Sequence[PictureLike | Candidate], action: Sequence[str], num_samples: int = ..., **settings: Any
    ) -> list[list[Candidate]]: ...

    def sample(  # type: ignore[misc]
        self,
        source: PictureLike | Candidate | Sequence[PictureLike | Candidate],
        action: str | Sequence[str],
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | Sequence[float] = 1.0,
        seed: int = 0,
        step: int = 0,
        max_rows: int | None = None,
        first: int = 0,
        kept: Sequence[np.ndarray] | None = None,
    ) -> list[Candidate] | list[list[Candidate]]:
        """Draw predicted targets.

        Args:
            source: a picture (uint8 RGB [H, W, 3], PIL, or the path of a file), or a list of them; a `Candidate` stands
                for its own ids.
            action: a sentence for each source, or a vector (list, tuple or array of numbers).
            num_samples: candidates a source.
            temperature: 1 is the model's distribution; low ones tend to copy the source; 0 is greedy.
            top_k: draw from the k best tokens only (inference only).
            top_p: draw from the smallest set of tokens with this probability only (inference only).
            guidance: above 1 follows the action more, against the prompt without it. A list of two, for families whose
                template has a prompt without the source too: of the action and of the source, e.g. [3.0, 1.2].
            seed: same seed, same candidates, in any batch.
            step: a second number beside the seed, for callers that draw again and again.
            max_rows: the most candidates decoded at once, changes nothing else; None for the role's own `max_rows`.
            first: number of the first candidate: 4 samples, and then 4 with `first=4`, are the 8 of one call.
            kept: int64 [K] a source: image-token ids that its candidates must have there, -1 where one is drawn.

        Returns:
            A list of candidates for one source, a list of lists for a list of sources.

        Raises:
            RewindError: an empty action, lists of different lengths, something that is no picture.
        """
        self.check(num_samples, temperature, top_k, top_p, guidance, seed)
        max_rows = self.max_rows if max_rows is None else max_rows
        if max_rows is not None:
            check_whole("max_rows", max_rows, least=1)
        check_whole("first", first, least=0)
        action = action_texts(action)
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
        for number, ids in enumerate(kept or ()):
            if len(kept or ()) != len(sources) or np.shape(ids) != (len(source_ids[number]),):
                raise RewindError(f"'kept' must hold {len(source_ids[number])} ids (or -1) for each source")
        distribution = self.distribution(temperature, guidance)
        with vlm.using(self.adapter, merged=True):
            groups = sampled_pictures(
                vlm,
                source_ids,
                actions,
                distribution,
                num_samples=num_samples,
                noise=Noise(seed, step),
                truncation=Truncation(top_k, top_p) if top_k is not None or top_p is not None else None,
                max_rows=max_rows,
                first=first,
                kept=kept,
                counts=self.counts,
            )
        return groups[0] if single else groups

    def score(
        self,
        source: PictureLike | Sequence[PictureLike],
        targets: Sequence[PictureLike | Candidate],
        action: str | Sequence[str],
        temperature: float = 1.0,
    ) -> list[float]:
        """Mean log-probability a token of each target's image tokens; arguments as for `InverseDynamics.score`."""
        return [float(x.mean()) for x in self.log_probs(source, targets, action, temperature)]

    @torch.no_grad()
    def log_probs(
        self,
        source: PictureLike | Sequence[PictureLike],
        targets: Sequence[PictureLike | Candidate],
        action: str | Sequence[str],
        temperature: float = 1.0,
    ) -> list[np.ndarray]:
        """Log-probability of each image token of each target, float32 [K], under the same distribution as `sample`."""
        vlm = self.backbone
        source_ids, target_ids, actions = rows_of(vlm, source, targets, action)
        distribution = self.distribution(temperature)
        found: dict[int, np.ndarray] = {}
        with vlm.using(self.adapter, merged=True):
            for grid, numbers in by_grid(target_ids).items():
                scores = span_log_probs(
                    vlm,
                    [vlm.fdm_prompt(source_ids[n], actions[n]) for n in numbers],
                    [vlm.target_span(target_ids[n]) for n in numbers],
                    distribution,
                    max_rows=self.max_rows,
                    free=vlm.layout.grammar.of(grid).free,
                )
                found |= {n: x.cpu().numpy() for n, x in zip(numbers, scores, strict=True)}
        return [found[n] for n in range(len(target_ids))]


class InverseDynamics(_Role):
    """p(action | source, target): names what happened between two pictures."""

    def distribution(self) -> TokenDistribution:
        """The distribution of text tokens, or of a vector's bins: image tokens cannot occur in an action."""
        return TokenDistribution(self.backbone.action_vocabulary)

    def score(
        self,
        source: PictureLike | Sequence[PictureLike],
        targets: Sequence[PictureLike | Candidate],
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
        source: PictureLike | Sequence[PictureLike],
        targets: Sequence[PictureLike | Candidate],
        action: str | Sequence[str],
        prefixes: PrefixCache | None = None,
    ) -> list[np.ndarray]:
        """Log-probability of each token of the action and of its end, float32 [tokens], one array a target.

        With `prefixes`, pairs that another call with it has just read are not read again.
        """
        vlm = self.backbone
        source_ids, target_ids, actions = rows_of(vlm, source, targets, action)
        prompts = [vlm.idm_prompt(a, b) for a, b in zip(source_ids, target_ids, strict=True)]
        with vlm.using(self.adapter, merged=True):
            spans = [vlm.action_ids(words) for words in actions]
            how: Any = {"max_rows": self.max_rows, "prefixes": prefixes}
            found = span_log_probs(vlm, prompts, spans, self.distribution(), **how)
        return [x.cpu().numpy() for x in found]

    @overload
    def describe(self, source: PictureLike, target: PictureLike | Candidate, **settings: Any) -> str: ...

    @overload
    def describe(
        self, source: Sequence[PictureLike], target: Sequence[PictureLike | Candidate], **settings: Any
    ) -> list[str]: ...

    def describe(  # type: ignore[misc]
        self,
        source: PictureLike | Sequence[PictureLike],
        target: PictureLike | Candidate | Sequence[PictureLike | Candidate],
        max_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
        prefixes: PrefixCache | None = None,
    ) -> str | list[str]:
        """The action in words, for one pair of pictures or for lists of them.

        Greedy at temperature 0; above, a sample (same seed, same words). A model of actions that are vectors says the
        text of one, `[0.1, -0.25]`, whatever `max_tokens` is.
        """
        single = not isinstance(source, list | tuple)
        sources: Any = [source] if single else source
        targets: Any = [target] if single else as_list("targets", target)
        said = self.name(sources, targets, 1, max_tokens, temperature, seed, scored=False, prefixes=prefixes)
        texts = [one.text for (one,) in said]
        return texts[0] if single else texts

    def name(
        self,
        sources: Sequence[PictureLike],
        targets: Sequence[PictureLike | Candidate],
        num_samples: int = 1,
        max_tokens: int = 48,
        temperature: float = 0.0,
        seed: int = 0,
        scored: bool = True,
        prefixes: PrefixCache | None = None,
    ) -> list[list[Said]]:
        """What `describe` says of each pair, `num_samples` times, with the log-likelihood of each sentence.

        That is the sum of `log_probs` (nats, end included, at temperature 1 whatever the sentences are drawn at), and a
        pair is read once for all of it. Where not `scored`, it is 0.
        """
        check_whole("num_samples", num_samples, least=1)
        check_whole("max_tokens", max_tokens, least=1)
        vlm = self.backbone
        if len(sources) != len(targets):
            raise RewindError(f"{len(sources)} sources and {len(targets)} targets: give one target a source")
        source_ids = token_ids(vlm, sources)
        target_ids = token_ids(vlm, targets, source_ids)
        how: Any = {"num_samples": num_samples, "max_tokens": max_tokens, "temperature": temperature, "scored": scored}
        how |= {"noise": Noise(seed), "max_rows": self.max_rows, "prefixes": prefixes}
        with vlm.using(self.adapter, merged=True), torch.no_grad():
            return drawn_sentences(vlm, source_ids, target_ids, **how)
