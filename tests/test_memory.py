"""How many rows there are at once: from the config, from what is free, from `max_rows`; and what if memory ends."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from opened_families import opened

from rl.errors import RewindError
from rl.models import memory, sampling, scoring
from rl.models.costs import Cost
from rl.models.distribution import TokenDistribution
from rl.models.known import MAX_ROWS
from rl.models.memory import Portions, in_parts, kv_bytes, rows_that_fit, sampling_cost, scoring_cost
from rl.models.noise import Noise
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.streams import Stream
from rl.models.unified import UnifiedVLM

CPU = torch.device("cpu")
PROMPTS = [[0, 40, 41, 42], [0, 50, 51, 52, 53, 54, 55, 56], [0, 60]]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes may be used."""
    return lambda count: monkeypatch.setattr(memory, "free_bytes", lambda device: count)


@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
def test_keys_and_values_are_those_of_a_prefill(family: str) -> None:
    vlm = opened(family)
    with torch.no_grad():
        layers = Stream.prefill(vlm, [[0, 1, 2, 3, 4]]).layers
    assert kv_bytes(vlm, 5) == sum(tensor.nbytes for pair in layers for tensor in pair)


def test_a_row_of_7b_by_hand() -> None:
    """32 layers x 32 heads of 128 x 2 bytes, twice: half a MiB a token (docs/guide/scaling.md)."""
    vlm: Any = argparse.Namespace()
    vlm.transformer = lambda: argparse.Namespace(config=argparse.Namespace(**LLAMA_7B))
    vlm.head_weight = lambda: torch.empty(0, dtype=torch.bfloat16)
    assert kv_bytes(vlm) == 2**19
    shared = sampling_cost(vlm, 1040, 1024, 8192, shared=True)
    copied = sampling_cost(vlm, 1040, 1024, 8192, shared=False)
    assert copied.row - shared.row == 1040 * 2**19
    assert shared.fixed < 3 * 2**30  # 4,096 tokens of prompts in one pass
    assert 512 * 2**20 < shared.row < 520 * 2**20
    assert shared.prompt == 520 * 2**20
    assert sampling_cost(vlm, 1040, 1024, 8192, shared=True, streams=2).prompt == 2 * shared.prompt
    assert scoring_cost(vlm, 2080, 12, shared=True).row < 2 * 2**20
    assert scoring_cost(vlm, 2080, 12, shared=False).row > 2 * 2080 * 2**19


LLAMA_7B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
}


def test_rows_by_hand(free: Any) -> None:
    """A prompt of 10 and rows of 5 bytes, 4 rows a prompt: 30 bytes a group."""
    cost = Cost(10, 5)
    for bytes_free, rows in ((None, MAX_ROWS), (95, 12), (60, 8), (59, 4), (29, 3), (15, 1), (10**9, MAX_ROWS)):
        free(bytes_free)
        assert rows_that_fit(cost, 4, CPU) == rows
    free(95)
    assert rows_that_fit(Cost(10, 5, 35), 4, CPU) == 8
    assert rows_that_fit(cost, 4, CPU, max_rows=6) == 6
    free(10**9)
    assert rows_that_fit(cost, 4, CPU, max_rows=MAX_ROWS + 1) == MAX_ROWS + 1
    assert rows_that_fit(cost, 4, CPU, usual=64) == 64
    free(int(15 * memory.SHARE_OF_RAM) + 1)  # more than the share, less than what is free
    assert rows_that_fit(cost, 4, CPU) == 1
    free(2**30)
    with pytest.raises(RewindError, match=r"one row needs 4\.00 GiB and 2\.00 GiB are free on cpu: .*--dtype bfloat16"):
        rows_that_fit(Cost(0, 2**32), 1, CPU)
    with pytest.raises(RewindError, match="max_rows must be at least 1, not 0"):
        rows_that_fit(cost, 4, CPU, max_rows=0)


def test_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MemAvailable, or less in a container, shared by the processes of a machine."""
    info, group = tmp_path / "meminfo", tmp_path / "group"
    assert memory.available_ram(info, group) is None
    info.write_text("MemTotal: 4000 kB\nMemAvailable:  3000 kB\n")
    assert memory.available_ram(info, group) == 3000 * 1024
    group.mkdir()
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    (group / "memory.max").write_text("max\n")
    assert memory.available_ram(info, group) == 3000 * 1024
    (group / "memory.max").write_text("1000000\n")
    assert memory.available_ram(info, group) == 500_000
    monkeypatch.setattr(memory, "available_ram", lambda: 8000)
    assert memory.free_bytes(CPU) == 4000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.free_bytes(CPU) == 2000
    assert memory.free_bytes(torch.device("meta")) is None


def test_out_of_memory_halves_the_rows_once(caplog: pytest.LogCaptureFixture) -> None:
    """Every prompt and row is done exactly once, whatever fails; a second failure is the end."""

    def done_with(most: int, rows: int, prompts: int = 5, each: int = 4) -> list[tuple[int, int]]:
        done: list[tuple[int, int]] = []

        def work(part: range, few: range) -> None:
            if len(part) * len(few) > most:
                raise torch.OutOfMemoryError("Tried to allocate 1.00 GiB. And more.\nSecond line")
            done.extend((p, r) for p in part for r in few)

        Portions(rows).over(range(prompts), range(each), work)
        return done

    every = sorted((p, r) for p in range(5) for r in range(4))
    for most, rows in ((8, 12), (4, 8), (2, 4), (1, 3), (1, 2)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rl"):
            assert sorted(done_with(most, rows)) == every
        assert len(caplog.records) == 1
        assert "rows at once (--max_rows sets it" in caplog.records[0].getMessage()
    with pytest.raises(
        RewindError, match=r"out of memory with 4 rows at once: Tried to allocate 1\.00 GiB\. .*--max_r"
    ):
        done_with(3, 8)
    with pytest.raises(RewindError, match="out of memory with 1 rows at once"):
        done_with(0, 1)
    assert in_parts(5, 2, lambda part: list(part)) == [[0, 1], [2, 3], [4]]


def test_memory_of_a_cpu_ends_too(caplog: pytest.LogCaptureFixture) -> None:
    """What torch raises there halves the rows; any other error goes through as it is, and nothing is halved."""
    done: list[int] = []

    def work(part: range, _: range) -> None:
        if len(part) > 2:
            torch.empty(2**55, dtype=torch.uint8)  # more than any address space holds
        done.extend(part)

    with caplog.at_level(logging.WARNING, "rl"):
        Portions(4).over(range(5), range(1), work)
    assert done == [0, 1, 2, 3, 4]
    assert "out of memory: from here on 2 rows at once" in caplog.text
    with pytest.raises(RewindError, match=r"with 1 rows at once: .*DefaultCPUAllocator.*[^.]\. Give --max_rows"):
        Portions(1).over(range(5), range(1), lambda *_: work(range(3), range(1)))

    def wrong(*_: range) -> None:
        raise RuntimeError("shapes do not fit")

    portions = Portions(4)
    with pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        portions.over(range(5), range(1), wrong)
    assert not portions.halved


@torch.no_grad()
def test_running_out_changes_no_result(tiny: UnifiedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution = TokenDistribution(tiny.layout.image_ids_V)
    how: Any = {"num_samples": 6, "max_tokens": 4, "noise": Noise(1)}
    drawn = sampling.sample_tokens(tiny, PROMPTS, distribution, **how)
    spans = drawn.ids_PGT.flatten(0, 1).tolist()
    repeated = [prompt for prompt in PROMPTS for _ in range(6)]
    scores = scoring.span_log_probs(tiny, repeated, spans, distribution)
    original, most = UnifiedVLM.hidden_states, 9

    def short(self: UnifiedVLM, ids: torch.Tensor, **more: Any) -> Any:
        if len(ids) > most:
            raise torch.OutOfMemoryError("too much")
        return original(self, ids, **more)

    monkeypatch.setattr(UnifiedVLM, "hidden_states", short)
    again = sampling.sample_tokens(tiny, PROMPTS, distribution, **how)
    assert torch.equal(again.ids_PGT, drawn.ids_PGT)
    assert torch.allclose(again.logprobs_PGT, drawn.logprobs_PGT, atol=1e-5)
    found = scoring.span_log_probs(tiny, repeated, spans, distribution)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, scores, strict=True))


def test_little_memory_means_few_rows_and_the_same_results(free: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw, score, describe, encode and decode with room for three rows, then with `max_rows`, then with all."""
    pictures = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    words = ["move the red circle left", "remove all rings", "paint the blue star green", "move the red circle left"]

    def everything(**bounds: Any) -> tuple[Any, ...]:
        vlm = make_tiny()
        vlm.max_rows = bounds.get("max_rows")
        fdm, idm = ForwardDynamics(vlm), InverseDynamics(vlm)
        groups = fdm.sample(pictures, words, 3, seed=1)
        images = vlm.decode(np.stack([c.ids for group in groups for c in group]))
        rest = [p for p in pictures for _ in words], [p for p in pictures[::-1] for _ in words], words * 4
        scores = [x.tolist() for x in idm.log_probs(*rest)] + [x.tolist() for x in fdm.log_probs(*rest)]
        said = idm.describe(pictures, pictures[::-1], max_tokens=6)
        return [c.ids.tolist() for group in groups for c in group], said, images, scores

    sizes: list[int] = []
    hidden, pixels, decode = UnifiedVLM.hidden_states, type(make_tiny()).features_pixels, type(make_tiny()).decode_ids
    noted = lambda original: lambda self, x, *a, **k: (sizes.append(len(x)), original(self, x, *a, **k))[1]  # noqa: E731
    monkeypatch.setattr(UnifiedVLM, "hidden_states", noted(hidden))
    monkeypatch.setattr(type(make_tiny()), "features_pixels", noted(pixels))
    monkeypatch.setattr(type(make_tiny()), "decode_ids", noted(decode))
    expected = everything()
    assert max(sizes) == 12  # of 16 pairs with an action, some are equal
    sizes.clear()
    bounded = everything(max_rows=3)
    assert max(sizes) == 3
    monkeypatch.setattr(memory, "rows_that_fit", rows_that_fit)
    free(1)
    monkeypatch.setattr(memory, "SHARE_OF_RAM", 1e-12)  # so that one row is always allowed
    sizes.clear()
    alone = everything()
    assert max(sizes) == 1
    for found in (bounded, alone):
        assert found[:2] == expected[:2]
        assert np.abs(found[2].astype(int) - expected[2]).max() <= 1  # a level, where a sum is rounded up or down
        for a, b in zip(found[3], expected[3], strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_a_row_at_a_time_reads_a_short_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three prompts and four spans each, fifteen passes: not twenty-four."""
    vlm, passes = make_tiny(), []
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    allowed = vlm.layout.image_ids_V
    spans = [allowed[[n % 7, 1, 2]].tolist() for n in range(12)]
    distribution = TokenDistribution(allowed)
    with torch.no_grad():
        whole = scoring.span_log_probs(vlm, prompts, spans, distribution)
        read = UnifiedVLM.hidden_states
        monkeypatch.setattr(UnifiedVLM, "hidden_states", lambda *a, **k: (passes.append(1), read(*a, **k))[1])
        found = scoring.span_log_probs(vlm, prompts, spans, distribution, max_rows=1)
    assert len(passes) == 15
    for one, other in zip(whole, found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
