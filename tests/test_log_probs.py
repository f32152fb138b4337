"""Scores of many tokens, some at a time: the same to rounding, no logits kept."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from rl.models.distribution import TokenDistribution, head_product, two_halves
from trainers.bench.measure import peak_bytes
from trainers.common import log_probs
from trainers.common.log_probs import IGNORED, OUTPUTS, TokenScores, token_scores

ROWS, OWN, HIDDEN, CODES = 3, 50, 16, 64
ALLOWED = torch.cat([torch.arange(3, 3 + CODES - 1), torch.tensor([90])])  # with a gap: rows are taken out of the head
WHOLE, SOME = 10**9, 16 * CODES
"""Logits at once: all of them, or those of 16 of some 120 tokens."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda logits: monkeypatch.setattr(log_probs, "LOGITS_AT_ONCE", logits)


def numbers(branches: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a head and labels, some of them -100."""
    torch.manual_seed(0)
    hidden = torch.randn(branches * ROWS, OWN, HIDDEN, dtype=dtype, requires_grad=True)
    labels = ALLOWED[torch.randint(CODES, (ROWS, OWN + 7))]
    labels[:, :7] = IGNORED
    labels[torch.rand(labels.shape) < 0.2] = IGNORED
    return hidden, torch.randn(100, HIDDEN, dtype=dtype), labels


def loss(found: TokenScores, names: list[str]) -> Tensor:
    """Another weight for each token and value."""
    values: list[Any] = [found[name] for name in names]
    return sum((torch.linspace(-1, 2, v.numel()).view_as(v) * v**2).sum() for v in values)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("outputs", "settings", "learns"),
    [
        ([], {}, False),
        (["entropy", "mean_logits", "is_top1"], {"temperature": 0.7}, False),
        (["entropy"], {}, True),
        (["log_z", "is_top1", "entropy"], {"temperature": 2.0}, True),
        (["entropy"], {"guidance": 1.5, "temperature": 1.3}, True),
    ],
    ids=["alone", "temperature", "entropy", "log_z", "guidance"],
)
def test_some_at_a_time_are_all_at_once(
    outputs: list[str], settings: dict[str, float], learns: bool, dtype: torch.dtype, at_once: Any
) -> None:
    """Values, and gradients in hidden states; also under autocast, which backward passes are outside of."""
    distribution = TokenDistribution(ALLOWED, **settings)
    names = ["log_probs", *[n for n in outputs if n == "log_z" or (n == "entropy" and learns)]]
    found, gradients = [], []
    for logits in (WHOLE, SOME):
        at_once(logits)
        hidden, head, labels = numbers(1 + distribution.free_prompts, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=logits == SOME):
            found.append(token_scores(distribution, hidden, head, labels, outputs, learns))
        (gradient,) = torch.autograd.grad(loss(found[-1], names), hidden)
        gradients.append(gradient.float())
        with torch.no_grad():
            alone = token_scores(distribution, hidden, head, labels, outputs, learns)
        assert all(torch.equal(alone[name], found[-1][name]) for name in ("log_probs", *outputs))
    assert set(found[0]) == set(found[1]) == {"log_probs", *outputs}
    for name in found[0]:
        assert found[0][name].shape == (ROWS, OWN + 7)
        assert found[0][name].requires_grad == found[1][name].requires_grad == (name in names)
        assert torch.allclose(found[0][name].float(), found[1][name].float(), atol=1e-5)
    scale = float(gradients[0].abs().max())
    within = 1e-5 if dtype == torch.float32 else 2e-2  # each is rounded to half precision, the slope before it too
    assert torch.allclose(*gradients, atol=within * scale)


def test_every_output_can_be_asked_for() -> None:
    hidden, head, labels = numbers()
    found = token_scores(TokenDistribution(ALLOWED), hidden, head, labels, OUTPUTS)
    assert set(found) == {"log_probs", *OUTPUTS}


def test_a_trained_head_learns(at_once: Any) -> None:
    """Its gradient is one sum in float32, so its tokens stay together."""
    gradients = []
    for logits in (WHOLE, SOME):
        at_once(logits)
        hidden, head, labels = numbers()
        found = token_scores(TokenDistribution(ALLOWED), hidden, head.requires_grad_(), labels, ["entropy"], True)
        gradients.append(torch.autograd.grad(loss(found, ["log_probs", "entropy"]), [hidden, head]))
    assert float(gradients[0][1].abs().max()) > 0
    for whole, some in zip(*gradients, strict=True):
        assert torch.equal(whole, some)


class Kept:
    """A tensor that a graph keeps, as long as it does."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(**settings: Any) -> tuple[int, int]:
    """What is kept of a forward pass for the one backwards, and the peak of both."""
    hidden, head, labels = numbers()
    kept: WeakSet[Kept] = WeakSet()

    def keep(tensor: Tensor) -> Kept:
        kept.add(found := Kept(tensor))
        return found

    def step() -> Any:
        return token_scores(TokenDistribution(ALLOWED), hidden, head, labels, ["entropy"], **settings).log_probs

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
        found = step()
        storages = [one.tensor.untyped_storage() for one in kept if one.tensor.is_floating_point()]
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    del found
    return sum(held.values()), peak_bytes(lambda: step().sum().backward())


def test_no_logits_are_kept(at_once: Any) -> None:
    """By tokens x hidden in place of tokens x codes; three or four tensors of a few tokens' logits at the peak."""
    learned = int((numbers()[2] != IGNORED).sum())
    slopes, logits = 4 * learned * HIDDEN, 4 * learned * CODES
    at_once(WHOLE)
    held, peak = kept_bytes()
    assert held >= logits
    assert peak >= 3 * logits
    at_once(SOME)
    held, less = kept_bytes()
    assert held == slopes
    assert less < 0.5 * peak
    assert kept_bytes(entropy_learns=True)[0] == 2 * slopes


def test_what_a_tile_needs_is_no_ones_to_put_away(at_once: Any) -> None:
    """Not for `--activation_offloading`: its hooks see what the loss keeps, and give it back backwards."""
    at_once(SOME)
    hidden, head, labels = numbers()
    asked: list[Tensor] = []

    def put_back(tensor: Tensor) -> Tensor:
        asked.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, put_back):
        found: Any = token_scores(TokenDistribution(ALLOWED), hidden, head, labels)
        assert not asked
        found.log_probs.sum().backward()
    assert asked


def test_small_slopes_are_not_lost_in_float16(at_once: Any) -> None:
    """The loss is scaled up so that its gradients can be told from 0; a slope of its own would be rounded before."""
    gradients = []
    for logits in (WHOLE, SOME):
        at_once(logits)
        hidden, head, labels = numbers(dtype=torch.float16)
        found: Any = token_scores(TokenDistribution(ALLOWED, temperature=0.01), hidden, head, labels)
        (found.log_probs.sum() * 65536 / 1e6).backward()
        gradients.append(hidden.grad)
    assert torch.equal(*gradients)


def test_halves_add_up() -> None:
    """What a GPU multiplies of a gradient in float32 with a head in bfloat16."""
    wide = torch.randn(1000) * torch.logspace(-20, 5, 1000)
    high, low = two_halves(wide)
    assert high.dtype == low.dtype == torch.bfloat16
    assert torch.allclose(high.float() + low.float(), wide, rtol=2**-16, atol=0)


def test_a_gpus_gradient_of_the_head_by_other_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its branch, with products as a GPU takes them: of halves, summed in float32."""
    hidden, head, _ = numbers(dtype=torch.bfloat16)
    weights = torch.randn(ROWS, OWN, len(head))
    (usual,) = torch.autograd.grad((head_product(hidden, head) * weights).sum(), hidden)
    products: list[torch.dtype] = []

    def product(one: Tensor, other: Tensor, out_dtype: torch.dtype) -> Tensor:
        products.append(out_dtype)
        return one.to(out_dtype) @ other.to(out_dtype)

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    (found,) = torch.autograd.grad((head_product(hidden, head) * weights).sum(), hidden)
    assert products == [torch.float32] * 3
    assert torch.allclose(found.float(), usual.float(), rtol=1e-2)
