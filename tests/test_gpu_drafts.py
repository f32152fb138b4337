"""Drafted passes on a GPU: windows by the kernel of a step, recorded as CUDA graphs.

Without a GPU the first test shows by torch alone that they draw the same; the other is left out.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from opened_families import opened
from test_gpu import PROMPTS, needs_gpu, spans_by_torch
from test_shared_prefix import assert_same

from rl.models import attention, drafting, graphs, streams
from rl.models.distribution import TokenDistribution
from rl.models.noise import Noise
from rl.models.sampling import Drawn, sample_tokens
from rl.models.unified import UnifiedVLM


def drafted_ways(vlm: UnifiedVLM, length: int) -> dict[str, dict[str, Any]]:
    """Ways to draw so many tokens behind `PROMPTS`: several candidates, one row, kept tokens, guidance."""
    ids = vlm.layout.image_ids_V
    kept = torch.full((len(PROMPTS), length), -1)
    kept[:, 1::2] = ids[2]
    guided = {"distribution": TokenDistribution(ids, guidance=2.0), "unconditional": [[[0], [0, 50], [0]]]}
    one = {"prompts": PROMPTS[1:2], "num_samples": 1}
    return {"several": {}, "one": one, "kept": {"kept_PT": kept}, "guided": guided}


def drawn(vlm: UnifiedVLM, length: int, **way: Any) -> Drawn:
    given: dict[str, Any] = {"prompts": PROMPTS, "distribution": TokenDistribution(vlm.layout.image_ids_V)}
    given |= {"num_samples": 3, "max_tokens": length, "noise": Noise(3), "after": vlm.layout.grammar.after, **way}
    return sample_tokens(vlm, given.pop("prompts"), given.pop("distribution"), **given)


def spoilt(vlm: UnifiedVLM, plain: Drawn) -> torch.Tensor:
    """What the first candidates are, but for every fifth token."""
    draft, ids = plain.ids_PGT[:, 0].cpu().clone(), vlm.layout.image_ids_V.cpu()
    draft[:, ::5] = ids[(torch.searchsorted(ids, draft[:, ::5].contiguous()) + 1) % len(ids)]
    return draft


@torch.no_grad()
@pytest.mark.parametrize("way", ["several", "one", "kept", "guided"])
@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
def test_a_drafted_pass_with_its_places_on_the_device(family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same candidates where rows get ahead of one another; passes are all as wide, for a graph is of one shape."""
    vlm = opened(family)
    length = vlm.layout.tokens_per_image
    how = drafted_ways(vlm, length)[way]
    plain = drawn(vlm, length, **how)
    widths: set[int] = set()
    read_on = streams.SharedRows.read_on
    monkeypatch.setattr(
        streams.SharedRows, "read_on", lambda self, ids: (widths.add(ids.shape[1]), read_on(self, ids))[1]
    )
    monkeypatch.setattr(attention, "single_kernel", lambda device: spans_by_torch)
    monkeypatch.setattr(streams, "LEAST_STEPS", 4)
    monkeypatch.setattr(drafting, "_pays", lambda *_: True)
    for recordable in (True, False):
        monkeypatch.setattr(streams, "can_record", lambda vlm, can=recordable: can)
        found = drawn(vlm, length, draft_PT=spoilt(vlm, plain), **how)
        assert_same(plain, found, 1e-4 if family == "liquid" else 1e-5)
        assert found.counts.accepted > 0
    assert len(widths) == 1


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("way", ["several", "one", "kept", "guided"])
def test_a_recorded_draft_draws_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows as a CUDA graph, as kernels one by one, behind masks, and a token a pass: the same ids."""
    from trainers.bench.mid import mid_base

    vlm: UnifiedVLM = mid_base({"image_tokens": 256, "hidden": 128, "layers": 2})
    how = drafted_ways(vlm, 256)[way]
    plain = drawn(vlm, 256, **how)
    draft = spoilt(vlm, plain)
    recorded: list[bool] = []
    record = graphs.Recorded._record
    monkeypatch.setattr(
        graphs.Recorded, "_record", lambda self, *a: (record(self, *a), recorded.append(self.recording is not None))[0]
    )
    monkeypatch.setattr(drafting, "_pays", lambda *_: True)
    found = [drawn(vlm, 256, draft_PT=draft, **how)]
    assert recorded == [True] * (2 if way == "guided" else 1)
    held = torch.cuda.memory_allocated()
    assert drawn(vlm, 256, draft_PT=draft, **how).counts == found[0].counts
    assert torch.cuda.memory_allocated() == held
    seen = len(recorded)
    monkeypatch.setattr(streams, "can_record", lambda vlm: False)
    found.append(drawn(vlm, 256, draft_PT=draft, **how))
    monkeypatch.setattr(attention, "single_kernel", lambda device: None)
    found.append(drawn(vlm, 256, draft_PT=draft, **how))
    assert len(recorded) == seen
    for each in found:
        assert each.ids_PGT.tolist() == plain.ids_PGT.tolist()
        assert torch.allclose(each.logprobs_PGT, plain.logprobs_PGT, atol=1e-4)
        assert each.counts.accepted > 0
