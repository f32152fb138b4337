"""`make bench`: both arms of a part do the same work, and figures are made of what the arms measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT

from rl.data.triplet_files import write_triplets
from rl.errors import RewindError
from rl.evaluation.oracle import sample_tasks, triplets_of
from rl.models.attention import SharedPrefix
from rl.models.distribution import TokenDistribution
from rl.models.memory import kv_bytes
from rl.worlds import load_split
from trainers.bench import kept, labels, logprobs, sampler, scorer, state, tokens
from trainers.bench.arms import PARTS, measure
from trainers.bench.figures import bench, figures, in_a_fresh_process
from trainers.bench.measure import peak_bytes, seconds, state_bytes
from trainers.bench.passes import rerank_passes

SIZE = {"prompts": 2, "candidates": 3, "repeats": 1, "pairs": 2, "actions": 4}


def test_bytes_and_seconds_by_hand() -> None:
    def work() -> None:
        first, second = torch.zeros(1000), torch.zeros(2000)
        del first
        torch.zeros(500) + second[:500]

    assert peak_bytes(work) == 12_000  # 4,000 + 8,000; later 8,000 + 2,000 + 2,000
    assert len(seconds(work, 3)) == 3
    layer = torch.nn.Linear(10, 10, bias=False)
    assert state_bytes([layer, layer]) == 400
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(10)).sum().backward()
    optimizer.step()
    assert state_bytes([layer], [optimizer]) == 1200


def test_generate_draws_image_tokens_too() -> None:
    vlm, prompts = sampler.setting(SIZE)
    drawn, other = sampler.draw(vlm, prompts, SIZE), sampler.generate(vlm, prompts, SIZE)
    assert drawn.shape == other.shape == (2, 3, 16)
    for ids in (drawn, other, sampler.generate(vlm, prompts, SIZE, "static")):
        assert bool(torch.isin(ids, vlm.layout.image_ids_V).all())


def test_both_ways_to_label_say_and_score_the_same() -> None:
    size = PARTS["labels_256"][2] | PARTS["labels_256"][3]
    vlm, prompts = labels.setting(size)
    ids, scores = labels.name(vlm, prompts, 3)
    for cache in ("dynamic", "static"):
        other, other_scores = labels.name_and_score(vlm, prompts, 3, cache)
        assert ids.tolist() == other.tolist()
        torch.testing.assert_close(scores, other_scores, rtol=1e-4, atol=1e-4)


def test_long_pictures_are_drawn_from_shared_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random base with 144 tokens a picture: both arms draw, and ours holds less than a copy a candidate would."""
    size = PARTS["sampler_256"][2] | PARTS["sampler_256"][3] | {"repeats": 1}
    vlm, prompts = sampler.setting(size)
    assert vlm.layout.tokens_per_image == 144
    made: list[SharedPrefix] = []
    original = SharedPrefix.__init__
    monkeypatch.setattr(SharedPrefix, "__init__", lambda self, *a, **k: (made.append(self), original(self, *a, **k))[1])
    assert sampler.draw(vlm, prompts, size).shape == sampler.generate(vlm, prompts, size).shape == (2, 2, 144)
    assert len(made) == 1
    size = PARTS["rollout_cache"][2] | PARTS["rollout_cache"][3]
    held, copied = (kept.ours(size | {"candidates": 8})["bytes"], kept.baseline(size | {"candidates": 8})["bytes"])
    assert copied == 16 * kv_bytes(vlm, len(prompts[0]) + 144)
    assert 0.5 < held / copied < 1
    assert 2 < kept.margin(PARTS["margin"][2] | PARTS["margin"][3])["rows"] < 20


def test_many_targets_of_one_source() -> None:
    size = PARTS["scorer_256"][2] | PARTS["scorer_256"][3] | {"targets": 3, "repeats": 1}
    vlm, prompts, spans = scorer.setting(size)
    ours, other = scorer.shared(vlm, prompts, spans), scorer.one_row_each(vlm, prompts, spans)
    torch.testing.assert_close(torch.stack(ours), torch.stack(other), atol=1e-4, rtol=1e-4)
    prompt = len(prompts[0])
    assert scorer.ours(size)["limit"] == pytest.approx(3 * (prompt + 144) / (prompt + 3 * 144))


def test_both_scorers_give_the_same() -> None:
    vlm, prompts, spans = scorer.setting(SIZE)
    ours, other = scorer.shared(vlm, prompts, spans), scorer.one_row_each(vlm, prompts, spans)
    assert len(set(map(tuple, prompts))) == 2
    assert [len(x) for x in ours] == [len(span) for span in spans]
    torch.testing.assert_close(torch.cat(ours), torch.cat(other), atol=1e-4, rtol=1e-4)


def test_log_probs_against_trls_tiled_head() -> None:
    """`logprob_memory_ratio`, `logprob_time_ratio`: with the whole vocabulary allowed both say the same."""
    size = {"tokens": 32, "hidden": 16, "vocabulary": 4096, "codes": 4092, "repeats": 1}
    hidden, head, ids, _ = logprobs.setting(size)
    both = [
        logprobs.restricted(hidden, head, ids, TokenDistribution(torch.arange(4096))),
        logprobs.tiled(logprobs.fused_head(hidden, head), ids),
    ]
    gradients = [torch.autograd.grad(log_probs.mean(), hidden)[0] for log_probs, _ in both]
    for ours_of, theirs_of in (*zip(*both, strict=True), gradients):
        torch.testing.assert_close(ours_of, theirs_of, atol=1e-5, rtol=1e-4)
    ours, other = logprobs.ours(size | {"codes": 64}), logprobs.baseline(size)
    assert other["bytes"] >= 4 * 32 * 32768  # TRL's tile of 32,768 words
    assert 0 < ours["bytes"] < 0.2 * other["bytes"]


def test_one_backbone_needs_a_third() -> None:
    size = {"hidden": 256, "layers": 2, "r": 4, "rows": 1}
    ours, other = state.ours(size), state.baseline(size)
    assert 1 / 3 < ours["bytes"] / other["bytes"] < 0.4
    assert ours["peak"] >= ours["bytes"]


def test_figures_are_of_medians(tmp_path: Path) -> None:
    def run(part: str, arm: str, preset: str) -> dict[str, Any]:
        more = {"peak": 1, "limit": 4.0, "rows": 9.5, "bytes_a_million": 7.0, "encoder_seconds": [3.0]}
        seconds_of = {"ours": [1.0, 2.0, 9.0], "static": [3.0]}
        return {"seconds": seconds_of.get(arm, [4.0]), "bytes": 10 if arm == "ours" else 40, **more}

    found = bench("smoke", tmp_path, run=run)
    assert found["sampler_speedup"] == 2.0
    assert found["sampler_256_speedup"] == found["sampler_1024_speedup"] == 1.5  # against the faster cache
    assert (found["scorer_of_token_limit"], found["margin_rows"]) == (0.5, 9.5)
    assert found["logprob_time_ratio"] == 0.5
    assert found["model_state_ratio"] == found["logprob_memory_ratio"] == found["rollout_cache_ratio"] == 0.25
    assert found["selection_seconds"] == {"100000": 4.0}
    assert (found["store_bytes_a_million"], found["encoding_of_encoder"]) == (7.0, 0.75)
    assert found["raw"]["sampler"]["ours"]["all_seconds"] == [1.0, 2.0, 9.0]
    assert found["raw"]["state"]["compared"] == {"peak_ratio": 1.0}
    computed = found["raw"]["state"]["computed_7b"]
    assert computed["ratio"] == pytest.approx(0.35, abs=0.01)
    assert computed["peak_of_three"] - computed["peak"] == pytest.approx(2 * 2 * 7.0137e9, rel=1e-4)  # bfloat16
    assert computed["ratio"] < computed["peak_ratio"] < 1
    assert found["raw"]["state_of_shipped_base"]["compared"]["ratio"] == 0.25
    command = found["raw"]["sampler"]["baseline"]["command"]
    assert command == "python -m trainers.bench.arms sampler baseline --preset smoke"
    assert json.loads((tmp_path / "bench.json").read_text()) == found
    assert set(figures({})) == set()  # what is not measured is absent
    assert "bench: " in (ROOT / "Makefile").read_text()


def test_one_part_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = bench("smoke", tmp_path, ["selection_100000"])
    assert set(found) == {"selection_seconds", "preset", "raw", "machine", "versions"}
    assert found["selection_seconds"]["100000"] > 0
    for arm in ("ours", "dis"):
        assert measure("mining", arm, "smoke")["seconds"][0] > 0
    with pytest.raises(RewindError, match="there is no part 'speed'"):
        bench("smoke", tmp_path, ["speed"])
    with pytest.raises(RewindError, match=r"the arm 'ours' of 'speed' failed \(exit code 2\): .*invalid choice"):
        in_a_fresh_process("speed", "ours", "smoke")
    assert set(PARTS) >= {"sampler", "scorer", "logprobs", "state", "mining"}


def test_passes_are_counted_with_a_forward_model(tmp_path: Path) -> None:
    """A draft of the source saves passes; they are in the file beside the figures."""
    found = rerank_passes("tabletop-chameleon", scenes=3)
    assert 1 < found["rerank_passes"] < found["of"] == 16
    assert 0 < found["accepted"] < 1
    arm = {"seconds": [1.0], "bytes": 1, "peak": 1}
    written = bench("smoke", tmp_path, ["logprobs"], run=lambda *_: dict(arm), fdm="tabletop-chameleon")
    assert 1 < written["rerank_passes"] < 16
    assert written["raw"]["passes"]["scenes"] == 24
    assert "logprobs" in written["raw"]


def test_passes_on_triplets(tmp_path: Path) -> None:
    world = load_split("tabletop", "train")
    write_triplets(triplets_of(world, sample_tasks(world, 2, 0), "world"), tmp_path)
    found = rerank_passes("tabletop-chameleon", tmp_path / "triplets.json")
    assert found["scenes"] == 2
    assert 1 < found["rerank_passes"] < 16


class Here:
    """A process that is none: what it is to run, runs here."""

    def __init__(self, target: Any, args: Any) -> None:
        self.start = lambda: target(*args)

    def join(self) -> None:
        pass


def test_data_of_methods_and_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's files are no pictures, so whoever decodes one fails; bytes are those of codes and distances."""
    monkeypatch.setattr(tokens, "get_context", lambda _: SimpleNamespace(Process=Here))
    small = measure("sft_data_1000", "ours", "smoke")
    assert small["bytes_a_triplet"] == pytest.approx(
        2 * 144 * 2 + 144 * 4, rel=0.8
    )  # keys and headers of a small shard
    assert {"bytes", "grown_bytes", "batch_seconds"} <= {*measure("grpo_data_1000", "grpo", "smoke")}
    assert all({*measure("epoch", arm, "smoke")} == {"seconds"} for arm in PARTS["epoch"][1])
    assert {*measure("encoding", "encoding", "smoke")} == {"seconds", "encoder_seconds"}
    stored = {arm: measure("store", arm, "smoke") for arm in PARTS["store"][1]}
    assert stored["ours"]["disk_bytes_a_million"] > 1e6 * 144
    found = figures({"store": stored, "epoch": {"epoch": {"seconds": 2.0}, "epoch_of_pictures": {"seconds": 6.0}}})
    assert found["store_bytes_a_million"] == stored["ours"]["bytes_a_million"]
    assert found["store_dpo_bytes_a_million"] == stored["dpo"]["bytes_a_million"]
    assert found["epoch_cache_speedup"] == 3.0
    for method, arm in (("sft", "ours"), ("grpo", "grpo")):
        raw = {f"{method}_data_{n}": {arm: {"bytes": n}} for n in (1000, 1100)}
        assert figures(raw)[f"{method}_memory_growth"] == pytest.approx(1.1)
