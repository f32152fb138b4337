"""The one distribution: numbers by hand, restricted softmax, guidance, truncation, noise."""

from __future__ import annotations

import math

import pytest
import torch

from rl.errors import RewindError
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.noise import Noise, prompt_key

# A head of 5 tokens over 2 features; only tokens 1, 2 and 4 are image tokens.
HEAD = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [9.0, -9.0], [1.0, 1.0]])
ALLOWED = torch.tensor([1, 2, 4])
HIDDEN = torch.tensor([1.0, 2.0])  # logits 1, 2, 3 on the allowed tokens, 27 and -9 on the others


def by_hand(*logits: float) -> list[float]:
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


def test_softmax_over_the_allowed_ids_only() -> None:
    found = TokenDistribution(ALLOWED).log_probs(HIDDEN, HEAD)
    assert found.tolist() == pytest.approx(by_hand(1, 2, 3), abs=1e-6)


def test_temperature_divides_the_logits() -> None:
    found = TokenDistribution(ALLOWED, temperature=0.5).log_probs(HIDDEN, HEAD)
    assert found.tolist() == pytest.approx(by_hand(2, 4, 6), abs=1e-6)


def test_temperature_zero_is_greedy() -> None:
    found = TokenDistribution(ALLOWED, temperature=0.0).log_probs(HIDDEN, HEAD)
    assert found.tolist() == [-math.inf, -math.inf, 0.0]


def test_guidance_mixes_before_the_softmax() -> None:
    unconditional = torch.tensor([2.0, 0.0])  # logits 2, 0, 2
    found = TokenDistribution(ALLOWED, guidance=3.0).log_probs(HIDDEN, HEAD, unconditional)
    assert found.tolist() == pytest.approx(by_hand(3 - 4, 6 - 0, 9 - 4), abs=1e-6)
    with pytest.raises(RewindError, match="unconditional"):
        TokenDistribution(ALLOWED, guidance=3.0).log_probs(HIDDEN, HEAD)


def test_guidance_by_several_numbers() -> None:
    """u + 1.2 (i - u) + 3.0 (c - i) is a weighted sum of three prompts' logits; one number in a list is that number."""
    image, nothing = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])  # logits 2, 0, 2 and 0, 1, 1
    distribution = TokenDistribution(ALLOWED, guidance=[3.0, 1.2])
    assert (distribution.guided, distribution.free_prompts) == (True, 2)
    found = distribution.log_probs(HIDDEN, HEAD, image, nothing)
    c, i, u = (1, 2, 3), (2, 0, 2), (0, 1, 1)
    expected = [u[k] + 1.2 * (i[k] - u[k]) + 3.0 * (c[k] - i[k]) for k in range(3)]
    assert found.tolist() == pytest.approx(by_hand(*expected), abs=1e-5)
    one = TokenDistribution(ALLOWED, guidance=[3.0]).log_probs(HIDDEN, HEAD, image)
    assert torch.equal(one, TokenDistribution(ALLOWED, guidance=3.0).log_probs(HIDDEN, HEAD, image))
    assert not TokenDistribution(ALLOWED, guidance=[1.0, 1.0]).guided
    hash(distribution)
    with pytest.raises(RewindError, match="beside the conditional ones: 2, not 1"):
        distribution.log_probs(HIDDEN, HEAD, image)
    for wrong in ([], [1.0, "2"], [3.0, 200.0]):
        with pytest.raises(RewindError, match="guidance"):
            TokenDistribution(ALLOWED, guidance=wrong)


def test_the_partition_function_is_that_of_the_allowed_ids() -> None:
    found, log_z = TokenDistribution(ALLOWED, temperature=0.5).log_probs_and_log_z(HIDDEN, HEAD)
    assert found.tolist() == pytest.approx(by_hand(2, 4, 6), abs=1e-6)
    assert float(log_z) == pytest.approx(math.log(math.exp(2) + math.exp(4) + math.exp(6)), abs=1e-5)
    with pytest.raises(RewindError, match="no partition function"):
        TokenDistribution(ALLOWED, temperature=0.0).log_probs_and_log_z(HIDDEN, HEAD)


def test_contiguous_ids_are_a_view_of_the_head() -> None:
    rows = TokenDistribution(torch.tensor([1, 2, 3])).rows(HEAD)
    assert rows.data_ptr() == HEAD[1:].data_ptr()
    assert torch.equal(TokenDistribution(torch.tensor([4, 1, 2])).rows(HEAD), HEAD[[4, 1, 2]])
    # Same span and length, another order: no view.
    assert torch.equal(TokenDistribution(torch.tensor([1, 3, 2, 4])).rows(HEAD), HEAD[[1, 3, 2, 4]])


def test_rows_are_taken_out_once() -> None:
    distribution = TokenDistribution(ALLOWED, temperature=0.5)
    rows, over = distribution.rows(HEAD), distribution.over_rows
    assert over.rows(rows).data_ptr() == rows.data_ptr()
    assert torch.equal(over.log_probs(HIDDEN, rows), distribution.log_probs(HIDDEN, HEAD))


def test_ids_that_cannot_occur() -> None:
    distribution = TokenDistribution(ALLOWED)
    assert distribution.positions(torch.tensor([4, 1])).tolist() == [2, 0]
    for token in (3, 99):
        with pytest.raises(RewindError, match=f"token {token} cannot occur"):
            distribution.positions(torch.tensor([1, token]))


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        (Truncation(top_k=1), [3]),
        (Truncation(top_k=2), [2, 3]),
        (Truncation(top_k=9), [0, 1, 2, 3]),
        (Truncation(top_p=0.5), [3]),
        (Truncation(top_p=0.75), [2, 3]),
        (Truncation(top_p=1.0), [0, 1, 2, 3]),
        (Truncation(top_k=3, top_p=0.5), [3]),
    ],
)
def test_truncation_keeps_the_head_and_renormalises(truncation: Truncation, kept: list[int]) -> None:
    probabilities = torch.tensor([0.08, 0.12, 0.2, 0.6])
    found = truncation.apply(probabilities.log()).exp()
    expected = torch.zeros(4)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_wrong_truncation(wrong: dict[str, float]) -> None:
    with pytest.raises(RewindError, match="must be"):
        Truncation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_wrong_temperature(temperature: float) -> None:
    with pytest.raises(RewindError, match="temperature must be 0 or more"):
        TokenDistribution(ALLOWED, temperature=temperature)


def test_noise_is_uniform_and_depends_on_every_part() -> None:
    keys, numbers = torch.full((20_000,), prompt_key([1, 2, 3])), torch.arange(20_000)
    draws = Noise(seed=1, step=2).uniform(keys, numbers, 3)
    assert draws.dtype == torch.float64
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    counts = torch.histc(draws, 20, 0, 1)
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 45  # chi squared, 19 degrees of freedom: p < 0.001 above
    assert abs(float(torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1])) < 0.03
    assert not bool((Noise(seed=0, step=31).uniform(keys, numbers, 3) == Noise(1, 0).uniform(keys, numbers, 3)).any())
    for other in (
        Noise(seed=2, step=2).uniform(keys, numbers, 3),
        Noise(seed=1, step=3).uniform(keys, numbers, 3),
        Noise(seed=1, step=2).uniform(keys + 1, numbers, 3),
        Noise(seed=1, step=2).uniform(keys, numbers + 20_000, 3),
        Noise(seed=1, step=2).uniform(keys, numbers, 4),
    ):
        assert not bool((draws == other).any())
        assert abs(float(torch.corrcoef(torch.stack([draws, other]))[0, 1])) < 0.03


def test_noise_stays_what_it_is() -> None:
    """Runs are resumed and compared across versions, so these numbers are part of the format."""
    draws = Noise(seed=0, step=0).uniform(torch.tensor([prompt_key([5, 6]), 0]), torch.tensor([0, 7]), 1)
    assert draws.tolist() == pytest.approx([0.24887179419078598, 0.46424428451081967], abs=1e-15)
