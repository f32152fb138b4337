"""What a GPU does otherwise: one kernel for a step's attention, CUDA graphs, the kernels behind torch's sdpa.

Without a GPU the first test shows by torch alone that a step with its place on the device is the same step; the others
are left out.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from opened_families import opened
from test_shared_prefix import assert_same, both, share  # noqa: F401

from rl.models import attention, costs, graphs, partial_attention, streams
from rl.models.distribution import TokenDistribution, head_product
from rl.models.noise import Noise
from rl.models.sampling import sample_tokens
from rl.models.unified import UnifiedVLM
from trainers.bench import logprobs
from trainers.bench.measure import peak_bytes
from trainers.common import log_probs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
PROMPTS = [[0, 40, 41, 42], [0, 50, 51, 52, 53, 54, 55, 56], [0, 60]]


def spans_by_torch(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    begin: torch.Tensor,
    end: torch.Tensor,
    scaling: float,
    before: tuple[torch.Tensor, torch.Tensor] | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `rl.models.gpu_attention.attend` computes, which `test_gpu.py` compares with it."""
    (rows, heads, size), (spans, kv_heads, length, _) = query.shape, keys.shape
    packed = query.view(spans, rows // spans, kv_heads, -1, size).float()
    scores = torch.einsum("btkgd,bknd->btkgn", packed, keys.float()) * scaling
    at = torch.arange(length, device=query.device)
    ends = end[:, None] + torch.arange(rows // spans, device=query.device) * causal
    inside = (at >= begin[:, None, None]) & (at < ends[..., None])
    scores = scores.masked_fill(~inside[:, :, None, None], float("-inf"))
    sums = scores.logsumexp(-1)
    found = torch.einsum("btkgn,bknd->btkgd", (scores - sums[..., None]).exp(), values.float())
    found, sums = found.reshape(rows, heads, size), sums.reshape(rows, heads)
    if before is None:
        return found, sums
    both = torch.logaddexp(sums, before[1])
    parts = ((found, sums), before)
    return sum(mean * (part - both).exp()[..., None] for mean, part in parts), both  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("family", ["chameleon", "liquid", "emu3"])
def test_a_step_with_its_place_on_the_device(
    family: str,
    share: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same candidates by spans in place of masks; where no graph can be recorded, that is said."""
    vlm = opened(family)
    caplog.set_level(logging.WARNING, "rl")
    copied, _ = both(share, vlm, PROMPTS, num_samples=3)
    monkeypatch.setattr(attention, "single_kernel", lambda device: spans_by_torch)
    monkeypatch.setattr(streams, "LEAST_STEPS", 4)
    monkeypatch.setattr(graphs, "EAGER_STEPS", 1)
    monkeypatch.setattr(graphs, "_told", set())  # it is said once
    assert_same(copied, both(share, vlm, PROMPTS, num_samples=3)[1])
    if not torch.cuda.is_available():
        assert "a step of the sampler is no CUDA graph" in caplog.text


def test_the_kernel_fits_into_a_card() -> None:
    h200, consumer = 232_448, 101_376
    assert costs.kernel_sides(False, 16, 256, h200) == (16, 64, 3)  # heads of 128 in half precision
    assert costs.kernel_sides(True, 64, 256, h200) == (64, 32, 4)
    assert costs.kernel_sides(False, 16, 256, consumer) == (16, 64, 2)
    for key_bytes in (512, 1024, 2048):  # up to heads of 512 in float32
        for several, most in ((False, 16), (True, 16), (True, 64)):
            queries, keys, stages = costs.kernel_sides(several, most, key_bytes, consumer)
            assert (2 * keys * stages + queries) * key_bytes <= consumer
            assert min(keys, queries) >= 16


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("prompts", "times", "heads", "groups", "size"),
    [(3, 5, 2, 1, 64), (2, 1, 3, 4, 48), (1, 40, 1, 2, 128), (1, 2, 1, 2, 256)],
)
def test_the_kernel_of_a_step(dtype: torch.dtype, prompts: int, times: int, heads: int, groups: int, size: int) -> None:
    from rl.models.gpu_attention import attend

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype)

    torch.manual_seed(0)
    rows = prompts * times
    query = random(rows, heads * groups, size)
    ours = theirs = None
    for spans, length in ((prompts, 131), (rows, 77)):
        keys, values = (random(spans, heads, length + 30, size)[:, :, :length] for _ in range(2))
        begin = torch.randint(0, 9, (spans,), device="cuda")
        end = torch.tensor([length - 5], device="cuda").expand(spans)
        ours = attend(query, keys, values, begin, end, 0.2, ours)
        theirs = spans_by_torch(query, keys, values, begin, end, 0.2, theirs)
        far = 1e-5 if dtype == torch.float32 else 2e-2
        assert torch.allclose(ours[0].float(), theirs[0], atol=far)
        assert torch.allclose(ours[1], theirs[1], atol=far)


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["free", "masked", "causal"])
def test_the_kernels_behind_sdpa(dtype: torch.dtype, way: str) -> None:
    torch.manual_seed(0)
    queries, keys = (37, 37) if way == "causal" else (5, 37)
    q, k, v = (torch.randn(3, 2, n, 64, device="cuda", dtype=dtype) for n in (queries, keys, keys))
    mask = torch.zeros(3, 1, 1, keys, device="cuda", dtype=dtype)
    mask[..., :2] = float("-inf")
    given = mask if way == "masked" else None
    found, sums = partial_attention.partial_attention(q, k, v, 0.2, given, way == "causal")
    seen = partial_attention.additive(torch.ones(37, 37, device="cuda").tril() > 0, dtype) if way == "causal" else given
    other, other_sums = partial_attention._by_hand(q, k, v, 0.2, seen)
    far = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(found.float(), other.float(), atol=far)
    assert torch.allclose(sums, other_sums, atol=far)


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "tokens"), [(3, 7), (1, 40), (4, 2)])
def test_the_kernel_of_tokens_that_stand_behind_one_another(dtype: torch.dtype, rows: int, tokens: int) -> None:
    """Each sees itself and what is before it in its row, as `causal` says; rows are at different places."""
    from rl.models.gpu_attention import attend

    torch.manual_seed(0)
    query = torch.randn(rows * tokens, 4, 64, device="cuda", dtype=dtype)
    keys, values = (torch.randn(rows, 2, 200, 64, device="cuda", dtype=dtype) for _ in range(2))
    begin, end = torch.zeros(rows, dtype=torch.long, device="cuda"), 1 + 17 * torch.arange(rows, device="cuda")
    first = torch.randn(rows * tokens, 4, 64, device="cuda"), torch.randn(rows * tokens, 4, device="cuda")
    ours = attend(query, keys, values, begin, end, 0.2, first, causal=True)
    theirs = spans_by_torch(query, keys, values, begin, end, 0.2, first, causal=True)
    far = 1e-5 if dtype == torch.float32 else 2e-2
    assert torch.allclose(ours[0].float(), theirs[0], atol=far)
    assert torch.allclose(ours[1], theirs[1], atol=far)


@needs_gpu
@torch.no_grad()
def test_a_recorded_step_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graph, kernel by kernel, masks in place of the kernel, a copy of the prompt for each row: the same ids."""
    from trainers.bench.mid import ACTIONS, mid_base, random_pictures

    size = {"image_tokens": 256, "hidden": 128, "layers": 2}
    vlm: UnifiedVLM = mid_base(size)
    prompts = [vlm.fdm_prompt(ids, action) for ids, action in zip(random_pictures(vlm, 3), ACTIONS, strict=True)]
    recorded: list[bool] = []
    record = graphs.Recorded._record
    monkeypatch.setattr(
        graphs.Recorded, "_record", lambda self, *a: (record(self, *a), recorded.append(self.recording is not None))[0]
    )

    def drawn() -> list[Any]:
        distribution = TokenDistribution(vlm.layout.image_ids_V)
        found = sample_tokens(vlm, prompts, distribution, num_samples=3, max_tokens=256, noise=Noise(0))
        return found.ids_PGT.tolist()  # type: ignore[no-any-return]

    first = drawn()
    assert recorded == [True]
    held = torch.cuda.memory_allocated()
    assert drawn() == first
    assert torch.cuda.memory_allocated() == held  # neither caches nor graphs stay behind
    monkeypatch.setattr(streams, "can_record", lambda vlm: False)
    assert drawn() == first
    monkeypatch.setattr(attention, "single_kernel", lambda device: None)
    assert drawn() == first
    monkeypatch.setattr(streams, "SHARED_FROM", 10_000)
    assert drawn() == first
    assert recorded == [True, True]


@needs_gpu
def test_the_head_in_half_precision() -> None:
    """Not rounded after the product, forwards; backwards the gradient of that."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(5000, 64, device="cuda", dtype=torch.bfloat16)
    weights = torch.randn(2, 3, 5000, device="cuda")
    (head_product(hidden, head) * weights).sum().backward()
    wide = hidden.detach().float().requires_grad_()
    logits = torch.nn.functional.linear(wide, head.float())
    (logits * weights).sum().backward()
    assert torch.allclose(head_product(hidden, head), logits, atol=1e-4)
    assert wide.grad is not None
    assert hidden.grad is not None
    assert torch.allclose(hidden.grad.float(), wide.grad, rtol=1e-2, atol=1e-2)


@needs_gpu
def test_log_probs_without_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of all tokens at once and their gradient, in half of what TRL's tiled head holds."""
    size = {"tokens": 1024, "hidden": 4096, "vocabulary": 65536, "codes": 8192, "half": 1, "repeats": 1}
    ours, theirs = (peak_bytes(step) for step in logprobs.steps(size))
    assert ours < 0.5 * theirs
    hidden, head, ids, allowed = logprobs.setting(size)
    found = []
    for at_once in (2**21, 2**40):
        monkeypatch.setattr(log_probs, "LOGITS_AT_ONCE", at_once)
        both = logprobs.restricted(hidden, head, ids, TokenDistribution(allowed))
        (gradient,) = torch.autograd.grad(both[0].mean(), hidden)
        found.append((*(value.detach() for value in both), gradient.float()))
    for some, every in zip(*found, strict=True):
        assert torch.allclose(some, every, rtol=1e-2, atol=1e-2 * float(every.abs().max()))
