"""What rewards of many rivals keep at once: a pair of pictures once, whatever is asked of it."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import numpy as np
import pytest
import torch
from conftest import make_tiny

from rewards import Batch, load_rewards, score
from rl.models import streams
from rl.models.attention import SharedPrefix
from rl.models.memory import kv_bytes
from rl.models.roles import InverseDynamics
from rl.models.streams import CopiedRows, PrefixCache, Stream
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate

RIVALS = ["paint the blue star green", "remove all rings", "move the red star right", "paint the red circle blue"]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of keys and values that are alive whenever more are made."""
    alive: WeakSet[Any] = WeakSet()
    found: list[int] = []

    def noted(original: Any) -> Any:
        def made(self: Any, *arguments: Any, **more: Any) -> None:
            original(self, *arguments, **more)
            alive.add(self)
            tensors = [x for one in alive for pair in _pairs(one) for x in pair]
            found.append(sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values()))

        return made

    for kind in (Stream, SharedPrefix, CopiedRows):
        monkeypatch.setattr(kind, "__init__", noted(kind.__init__))
    return found


def _pairs(one: Any) -> list[Any]:
    if isinstance(one, CopiedRows):
        return [(layer.keys, layer.values) for layer in one.cache.layers]
    return one.own if isinstance(one, SharedPrefix) else one.layers


@pytest.mark.parametrize("reward", ["idm_margin", "idm_choice", "ensemble"])
def test_eight_candidates_and_eight_rivals_keep_twelve_rows(
    reward: str, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pair of pictures of 144 tokens each is a row; with copies, as it was, there were four times as many."""
    vlm = make_tiny(image_size=192)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            parameter.mul_(0.3 if parameter.ndim > 1 else 1.0)  # else one action has all the probability
    idm = InverseDynamics(vlm)
    codes = vlm.layout.image_ids_V.numpy()[np.random.default_rng(0).integers(0, 16, (9, 144))]
    source, *candidates = [Candidate(ids, np.zeros(144, np.float32), vlm) for ids in codes]
    bounds: dict[str, Any] = {"idm_margin": {"num_rivals": 8, "floor": None}, "idm_choice": {"num_options": 8}}
    bounds["ensemble"] = {"others": [idm], "form": "idm_margin", "form_arguments": bounds["idm_margin"]}
    made = load_rewards([reward], idm, RIVALS, arguments={reward: bounds[reward]})
    batch = Batch(["move the red circle left"] * 8, candidates, [source] * 8)
    row = kv_bytes(vlm, len(vlm.idm_prompt(codes[0], codes[1])) + 12)
    totals = []
    for tokens in (10_000, streams.SHARED_FROM):
        monkeypatch.setattr(streams, "SHARED_FROM", tokens)
        kept.clear()
        totals.append([scored.total for scored in score(made, batch)])
        rows = max(kept) / row
        assert rows > 40 if tokens == 10_000 else rows <= 12
    assert totals[1] == pytest.approx(totals[0], abs=1e-5, rel=0)
    assert totals[1] == pytest.approx(totals[0], rel=1e-3)  # probabilities are small here
    assert len({round(total, 6) for total in totals[1]}) > 3


@torch.no_grad()
def test_a_pair_is_read_once_for_its_words_and_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """`idm_margin` names and scores eight candidates of two sources: the same scores, each pair in one prefill."""
    vlm = make_tiny(image_size=192)
    codes = vlm.layout.image_ids_V.numpy()[np.random.default_rng(0).integers(0, 16, (10, 144))]
    first, second, *drawn = [Candidate(ids, np.zeros(144, np.float32), vlm) for ids in codes]
    made = load_rewards(["idm_margin"], InverseDynamics(vlm), RIVALS)
    batch = Batch(["move the red circle left"] * 4 + ["remove all rings"] * 4, drawn, [first] * 4 + [second] * 4)
    prompts: list[Any] = []
    original = Stream.prefill

    def prefill(vlm: Any, given: Any) -> Stream:
        prompts.extend(map(tuple, given))
        return original(vlm, given)

    monkeypatch.setattr(Stream, "prefill", prefill)
    once = [scored.total for scored in score(made, batch)]
    assert len(prompts) == len(set(prompts)) == 8
    monkeypatch.setattr("rewards.idm_margin.prefix_cache", lambda vlm: None)
    assert [scored.total for scored in score(made, batch)] == pytest.approx(once, abs=1e-5, rel=0)
    assert len(prompts) == 3 * 8


@torch.no_grad()
def test_prompts_at_hand_in_any_order(tiny: UnifiedVLM) -> None:
    """Some of them, together or not, equal what is read anew; a prompt that is not at hand takes their place."""
    prompts = [[0, *range(40 + n, 40 + 2 * n)] for n in (5, 6, 7, 8)]
    cache = PrefixCache()
    whole = cache.read(tiny, prompts)
    for numbers in ([1, 2], [3, 0, 2], [0, 1, 2, 3]):
        found = cache.read(tiny, [prompts[n] for n in numbers])
        assert torch.equal(found.hidden, whole.hidden[numbers])
        assert torch.equal(found.layers[1][0], whole.layers[1][0][numbers])
        shared = found.layers[0][0].untyped_storage().data_ptr() == whole.layers[0][0].untyped_storage().data_ptr()
        assert shared == (numbers == sorted(numbers))
    assert len(cache.read(tiny, [[0, 41], prompts[0]]).hidden) == 2
    assert len(cache._numbers) == 2
