"""Sentences of an inverse model and their log-likelihoods from one reading of each pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import rl.models.drawing
from rl.data.labels.labelling import name_pairs
from rl.models.distribution import TokenDistribution
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.triplets import Triplet
from rl.worlds.tabletop import Tabletop

pytestmark = pytest.mark.usefixtures("one_thread")


def noise_pairs(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    pictures = np.random.default_rng(0).integers(0, 256, (2, count, 32, 32, 3), dtype=np.uint8)
    return list(pictures[0]), list(pictures[1])


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_the_samplers_own_log_probs_are_the_score(tiny: ChameleonVLM, temperature: float) -> None:
    """At temperature 1 whatever the words are drawn at; sentences that were cut off or misspelt included."""
    idm = InverseDynamics(tiny)
    sources, targets = noise_pairs(4)
    settings: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_tokens": 12}
    groups = idm.name(sources, targets, 3, **settings)
    assert [group[0].text for group in groups] == idm.describe(sources, targets, **settings)
    for source, target, group in zip(sources, targets, groups, strict=True):
        for text, logprob in group:
            expected = idm.log_probs(source, [target], text)[0].sum() if text else 0.0
            assert logprob == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert len({said.text for group in groups for said in group}) >= 4


def test_describe_and_score_read_a_pair_once(shipped: UnifiedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that the model reads while it names pairs are prompts and words once, with no scoring pass."""
    world, rng = Tabletop(), np.random.default_rng(0)
    pictures = [world.render(world.sample_scene(rng), rng) for _ in range(6)]
    pairs = [Triplet(a, "", b) for a, b in zip(pictures[:3], pictures[3:], strict=True)]
    scored: list[int] = []
    real = rl.models.drawing.span_log_probs

    def counting(vlm: Any, prompts: Any, spans: Any, distribution: Any, **others: Any) -> list[torch.Tensor]:
        scored.append(len(spans))
        return real(vlm, prompts, spans, distribution, **others)

    monkeypatch.setattr(rl.models.drawing, "span_log_probs", counting)
    idm = InverseDynamics(shipped)
    read = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal read
        read += kwargs["input_ids"].shape[1]

    hook = shipped.transformer().register_forward_pre_hook(count, with_kwargs=True)
    named = name_pairs(idm, pairs)
    hook.remove()
    assert sum(scored) == 0
    codes = shipped.codes([pairs[0].source, pairs[0].target])  # type: ignore[list-item]
    longest = max(len(shipped.action_ids(words)) for words, _ in named)
    assert read <= len(shipped.idm_prompt(*codes)) + longest
    for pair, (words, score) in zip(pairs, named, strict=True):
        assert pair.target is not None
        assert score == pytest.approx(idm.log_probs(pair.source, [pair.target], words)[0].sum(), abs=1e-4)


def test_plain_log_probs_come_from_the_same_logits() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 8), torch.randn(11, 8)
    plain = TokenDistribution(torch.arange(11)).log_probs(hidden, head)
    for temperature in (0.0, 0.5, 1.0):
        distribution = TokenDistribution(torch.arange(11), temperature)
        found, told = distribution.log_probs_and_plain(hidden, head)
        assert torch.equal(found, distribution.log_probs(hidden, head))
        assert torch.equal(told, plain)
