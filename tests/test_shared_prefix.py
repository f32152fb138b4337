"""Two-part attention behind prompts that are kept once: the same as a copy of the prompt for each row."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny
from opened_families import opened, trainable
from transformers.utils import is_flash_attn_2_available

from rl import RewindError, load_fdm
from rl.models import attention, partial_attention, scoring, streams
from rl.models.attention import SHARED_PREFIX, SharedPrefix, two_parts
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.noise import Noise
from rl.models.sampling import Drawn, sample_tokens
from rl.models.saving import save_base
from rl.models.scoring import span_log_probs
from rl.models.streams import Stream
from rl.models.unified import UnifiedVLM

PROMPTS = [[0, 40, 41, 42], [0, 50, 51, 52, 53, 54, 55, 56], [0, 60]]
COPIED, SHARED = 10_000, 1


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets from how many tokens on prompts are shared."""
    return lambda tokens: monkeypatch.setattr(streams, "SHARED_FROM", tokens)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each row in each pass of two-part attention."""
    found: list[int] = []
    original = SharedPrefix.end
    monkeypatch.setattr(SharedPrefix, "end", lambda self, tokens: (found.append(tokens), original(self, tokens))[1])
    return found


def both(share: Any, vlm: UnifiedVLM, prompts: list[list[int]], **settings: Any) -> tuple[Drawn, Drawn]:
    """What copied and what shared prompts give."""
    distribution = settings.pop("distribution", None) or TokenDistribution(vlm.layout.image_ids_V)
    found = []
    for tokens in (COPIED, SHARED):
        share(tokens)
        found.append(sample_tokens(vlm, prompts, distribution, **{"noise": Noise(3), "max_tokens": 4, **settings}))
    return found[0], found[1]


def assert_same(copied: Drawn, shared: Drawn, atol: float = 1e-5) -> None:
    assert copied.ids_PGT.tolist() == shared.ids_PGT.tolist()
    assert torch.allclose(copied.logprobs_PGT, shared.logprobs_PGT, atol=atol)


@torch.no_grad()
@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
@pytest.mark.parametrize("adapter", [None, "plain", "merged"])
def test_every_family_draws_and_scores_the_same(family: str, adapter: str | None, share: Any, passes: list) -> None:
    """Gemma and Emu3 with fewer heads of keys than of queries, Emu3 with ends of rows that are read and not drawn."""
    vlm = opened(family) if adapter is None else trainable(opened(family))
    layout = vlm.layout
    # Liquid's logits reach 33 here, and a float32 of that size is known to 4e-6: sums of products in another order.
    atol = 1e-4 if family == "liquid" else 1e-5
    codes = layout.image_ids_V[torch.randint(len(layout.image_ids_V), (2, layout.tokens_per_image))].tolist()
    prompts = [vlm.fdm_prompt(ids, words) for ids, words in zip(codes, ("left", "remove all rings"), strict=True)]
    with vlm.using("default" if adapter else None, merged=adapter == "merged"):
        copied, shared = both(
            share, vlm, prompts, num_samples=3, max_tokens=layout.tokens_per_image, after=layout.grammar.after
        )
        assert passes
        assert set(passes) == {1 + len(ids) for ids in layout.grammar.after[:-1]}
        assert_same(copied, shared, atol)
        spans = [vlm.target_span(ids) for ids in shared.ids_PGT.flatten(0, 1).tolist()]
        repeated = [prompt for prompt in prompts for _ in range(3)]
        distribution = TokenDistribution(layout.image_ids_V)
        found = []
        for tokens in (COPIED, SHARED):
            share(tokens)
            found.append(torch.stack(span_log_probs(vlm, repeated, spans, distribution, free=layout.grammar.free)))
        assert torch.allclose(found[0], found[1], atol=atol)
        assert torch.allclose(found[1], shared.logprobs_PGT.flatten(0, 1), atol=atol)
    assert vlm.transformer().config._attn_implementation == "sdpa"


@torch.no_grad()
def test_chunks_kept_tokens_truncation_and_stops(tiny: UnifiedVLM, share: Any) -> None:
    """Prompts of different lengths are padded on the left; all that a sampler is asked for is answered alike."""
    ids = tiny.layout.image_ids_V
    kept = torch.full((3, 4), -1)
    kept[0, 2], kept[1, 0] = ids[[3, 1]]
    cases: list[dict[str, Any]] = [
        {"num_samples": 5, "kept_PT": kept},
        {"num_samples": 5, "max_rows": 2, "first": [4, 0, 2]},
        {"num_samples": 20, "max_rows": 7, "max_tokens": 8, "stop": int(ids[5])},
        {"num_samples": 6, "truncation": Truncation(top_k=5, top_p=0.9)},
        {"num_samples": 1, "distribution": TokenDistribution(ids, temperature=0.0)},
        {
            "num_samples": 3,
            "distribution": TokenDistribution(ids, guidance=2.0),
            "unconditional": [[[0], [0, 50], [0]]],
            "max_rows": 4,
        },
    ]
    for case in cases:
        assert_same(*both(share, tiny, PROMPTS, **case))


@torch.no_grad()
def test_spans_behind_shared_prompts(
    tiny: UnifiedVLM, share: Any, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans of any lengths, one or several behind a prompt, in the order asked for, in any chunks."""
    distribution = TokenDistribution(tiny.layout.text_ids_V)
    words = [int(token) for token in tiny.layout.text_ids_V[:9]]
    prompts = [PROMPTS[i % 2] for i in range(11)] + [PROMPTS[2]]
    spans = [words[: 1 + i % 5] if i % 3 else words[4 : 5 + i % 4] for i in range(12)]
    share(COPIED)
    copied = span_log_probs(tiny, prompts, spans, distribution)
    assert not passes
    share(SHARED)
    for max_rows in (None, 1, 3):
        passes.clear()
        shared = span_log_probs(tiny, prompts, spans, distribution, max_rows=max_rows)
        assert passes
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(copied, shared, strict=True))
    with monkeypatch.context() as patch:  # few logits at once
        patch.setattr(scoring, "LOGITS_AT_ONCE", 3 * len(distribution.allowed_ids_V))
        parts = span_log_probs(tiny, prompts, spans, distribution)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(copied, parts, strict=True))
    with torch.enable_grad():  # the path of gradients is as it was
        passes.clear()
        assert span_log_probs(tiny, prompts, spans, distribution)[0].requires_grad
        assert not passes


@torch.no_grad()
def test_different_prompts_that_begin_alike_are_read_from_where_they_differ(
    tiny: UnifiedVLM, share: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs of a source with many targets read it once; a lone prompt and one that is the beginning of others, too."""
    distribution = TokenDistribution(tiny.layout.text_ids_V)
    words = [int(token) for token in tiny.layout.text_ids_V[:9]]
    begin = [0, 40, 41, 42, 43, 44, 45, 46]
    prompts = [[*begin, *range(50 + i, 52 + i + i % 3)] for i in range(5)]
    prompts = [prompts[0], [0, 60, 61, 62, 63], *prompts[1:], begin, [0, 70]]
    spans = [words[: 1 + i % 4] for i in range(len(prompts))]
    read: list[int] = []
    original = UnifiedVLM.hidden_states

    def counting(self: UnifiedVLM, ids: torch.Tensor, **more: Any) -> Any:
        read.append(ids.numel())
        return original(self, ids, **more)

    monkeypatch.setattr(UnifiedVLM, "hidden_states", counting)
    monkeypatch.setattr(scoring, "SHARED_FROM", 4)
    share(COPIED)
    whole = span_log_probs(tiny, prompts, spans, distribution)
    tokens_of_rows = sum(read)
    share(SHARED)
    for max_rows in (None, 1, 4):
        read.clear()
        found = span_log_probs(tiny, prompts, spans, distribution, max_rows=max_rows)
        assert [len(x) for x in found] == [len(span) for span in spans]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, found, strict=True))
        assert max_rows == 1 or sum(read) < 0.75 * tokens_of_rows


@torch.no_grad()
def test_a_prompt_is_kept_once_and_nothing_grows(tiny: UnifiedVLM, share: Any, monkeypatch: Any) -> None:
    """The cache of 3 prompts x 4 rows x 8 tokens: 3 prompts and 12 x 8 tokens from the first pass to the last."""
    made: list[SharedPrefix] = []
    original = SharedPrefix.__init__
    monkeypatch.setattr(SharedPrefix, "__init__", lambda self, *a, **k: (made.append(self), original(self, *a, **k))[1])
    shapes, update = set(), SharedPrefix.update
    places = set()

    def noted(self: SharedPrefix, *a: Any, **k: Any) -> Any:
        shapes.add(tuple(tensor.shape for pair in (*self.own, *self.layers_of_prompts) for tensor in pair))
        places.update(tensor.data_ptr() for pair in self.own for tensor in pair)
        return update(self, *a, **k)

    monkeypatch.setattr(SharedPrefix, "update", noted)
    share(SHARED)
    sample_tokens(tiny, PROMPTS, TokenDistribution(tiny.layout.image_ids_V), num_samples=4, max_tokens=8, noise=Noise())
    assert len(made) == len(shapes) == 1
    assert len(places) == 4  # keys and values of two layers, where they were from the start
    own, prompt = (12, 2, 8, 16), (3, 2, 8, 16)
    assert shapes == {(own,) * 4 + (prompt,) * 4}


@torch.no_grad()
def test_long_prompts_are_read_a_few_at_once(tiny: UnifiedVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass or in several: the same keys and values where a prompt has tokens."""
    whole = Stream.prefill(tiny, PROMPTS)
    original, seen = UnifiedVLM.hidden_states, []
    monkeypatch.setattr(
        UnifiedVLM, "hidden_states", lambda self, ids, **k: (seen.append(len(ids)), original(self, ids, **k))[1]
    )
    for tokens, sizes in ((8, [1, 1, 1]), (16, [2, 1]), (24, [3])):
        monkeypatch.setattr(streams, "TOKENS_A_PASS", tokens)
        seen.clear()
        parts = Stream.prefill_long(tiny, PROMPTS)
        assert seen == sizes
        assert torch.equal(parts.mask, whole.mask)
        assert torch.allclose(parts.hidden, whole.hidden, atol=1e-5)
        here = whole.mask.bool()[:, None, :, None]
        for one, other in zip(parts.layers, whole.layers, strict=True):
            assert all(torch.allclose(a * here, b * here, atol=1e-5) for a, b in zip(one, other, strict=True))


@torch.no_grad()
def test_shapes_stay_within_a_block(tiny: UnifiedVLM, share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the own part is shown in blocks, and what is not written yet weighs nothing."""
    copied, _ = both(share, tiny, PROMPTS, num_samples=3, max_tokens=8)
    original, seen = attention.partial_attention, set()

    def noted(query: torch.Tensor, key: torch.Tensor, *a: Any) -> Any:
        seen.add(key.shape[2])
        return original(query, key, *a)

    monkeypatch.setattr(attention, "partial_attention", noted)
    init = SharedPrefix.__init__
    monkeypatch.setattr(SharedPrefix, "__init__", lambda self, *a, **k: init(self, *a, **k, block=3))
    assert_same(copied, both(share, tiny, PROMPTS, num_samples=3, max_tokens=8)[1])
    assert seen == {8, 3, 6}  # prompts of 8; the 7 tokens that are read


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", ["", "batch", "both"])
def test_both_ways_to_attend_to_a_part(causal: bool, masked: str) -> None:
    """The kernel of a CPU and the two products of other devices, with few scores at once: sums too."""
    torch.manual_seed(0)
    queries, keys = (7, 7) if causal else (5, 7)
    q, k, v = torch.randn(3, 2, queries, 16), torch.randn(3, 2, keys, 16), torch.randn(3, 2, keys, 16)
    mask = None
    if masked and not causal:
        mask = torch.zeros(3, 1, 1, keys) if masked == "batch" else torch.zeros(queries, keys)
        mask[..., 0, :2] = float("-inf")
    found, lse = partial_attention.partial_attention(q, k, v, 0.25, mask, causal)
    seen = partial_attention.additive(torch.ones(7, 7).tril() > 0, q.dtype) if causal else mask
    for scores_at_once in (2**27, 60):
        partial_attention.SCORES_AT_ONCE, before = scores_at_once, partial_attention.SCORES_AT_ONCE
        other, other_lse = partial_attention._by_hand(q, k, v, 0.25, seen)
        partial_attention.SCORES_AT_ONCE = before
        assert torch.allclose(found, other, atol=1e-6)
        assert torch.allclose(lse, other_lse, atol=1e-6)
    scores = q.double() @ k.double().transpose(-1, -2) * 0.25 + (0 if seen is None else seen)
    assert torch.allclose(lse, scores.logsumexp(-1).float(), atol=1e-6)
    assert torch.allclose(found, (scores.softmax(-1) @ v.double()).float(), atol=1e-6)


@pytest.mark.skipif(is_flash_attn_2_available(), reason="it is there")
def test_attention_that_is_not_there(tmp_path: Path) -> None:
    save_base(make_tiny(), tmp_path, {})
    with pytest.raises(RewindError, match=r"cannot be opened: FlashAttention2 has been toggled on, but"):
        load_fdm(tmp_path, attn_implementation="flash_attention_2")


@torch.no_grad()
def test_attention_that_cannot_share_falls_back_and_says_so(share: Any, passes: list[int], caplog: Any) -> None:
    vlm = make_tiny()
    copied, _ = both(share, vlm, PROMPTS, num_samples=2)
    passes.clear()
    vlm.transformer().config._attn_implementation = "flex_attention"
    share(SHARED)
    with caplog.at_level(logging.WARNING, "rl"):
        assert not streams.shares_prompts(vlm, PROMPTS)
        assert not streams.shares_prompts(vlm, PROMPTS)
    assert [record.getMessage() for record in caplog.records] == [
        "attention by flex_attention cannot share prompts, so each row keeps a copy: sdpa on one device can"
    ]
    vlm.transformer().config._attn_implementation = "eager"
    assert_same(copied, both(share, vlm, PROMPTS, num_samples=2)[1])
    assert passes


@torch.no_grad()
def test_a_plain_pass_meanwhile_is_plain(tiny: UnifiedVLM) -> None:
    """Another backbone may share the config: its passes carry no prefix, so they are what they always are."""
    ids, mask = streams.pad_left(PROMPTS, tiny.layout.pad, tiny.device)
    before = tiny.hidden_states(ids, attention_mask=mask, use_cache=False).last_hidden_state
    with two_parts(tiny):
        assert tiny.transformer().config._attn_implementation == SHARED_PREFIX
        assert torch.equal(tiny.hidden_states(ids, attention_mask=mask, use_cache=False).last_hidden_state, before)


@torch.no_grad()
def test_under_autocast_the_prompt_is_cast_once(tiny: UnifiedVLM, share: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        copied, shared = both(share, tiny, PROMPTS, num_samples=8)
    same = copied.ids_PGT == shared.ids_PGT
    assert same.float().mean() > 0.5  # a token that another rounding changes changes all behind it
    assert torch.allclose(copied.logprobs_PGT[..., 0], shared.logprobs_PGT[..., 0], atol=0.2)
