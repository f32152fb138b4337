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
from rl.models.streams import CopiedRows, Stream
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
