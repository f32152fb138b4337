"""Sampler and scorer against slow references: no cache, no padding, one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import make_tiny

from rl.errors import RewindError
from rl.models.distribution import TokenDistribution, Truncation
from rl.models.families.chameleon import ChameleonVLM
from rl.models.noise import Noise, prompt_key
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.sampling import sample_tokens
from rl.models.scoring import span_log_probs
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate

PROMPTS = [[0, 40, 41, 42], [0, 50, 51, 52, 53, 54, 55, 56], [0, 60]]


def slow_sample(
    vlm: UnifiedVLM,
    prompt: list[int],
    candidate: int,
    distribution: TokenDistribution,
    noise: Noise,
    tokens: int,
    after: Sequence[Sequence[int]] | None = None,
) -> tuple[list[int], list[float]]:
    """No cache, no batch, plain Python loop over the cumulative distribution; `after` each token what is forced."""
    sequence, ids, logprobs = list(prompt), [], []
    for t in range(tokens):
        hidden = vlm.hidden_states(torch.tensor([sequence]), use_cache=False).last_hidden_state[0, -1]
        probabilities = distribution.log_probs(hidden, vlm.head_weight()).double().exp()
        u = float(noise.uniform(torch.tensor([prompt_key(prompt)]), torch.tensor([candidate]), t))
        total, chosen = 0.0, len(probabilities) - 1
        for index, p in enumerate(probabilities.tolist()):
            total += p
            if u * float(probabilities.sum()) < total:
                chosen = index
                break
        ids.append(int(distribution.allowed_ids_V[chosen]))
        sequence += [ids[-1], *(after[t] if after is not None else ())]
        logprobs.append(float(probabilities[chosen].log()))
    return ids, logprobs


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_fast_sampler_equals_slow_reference(tiny: ChameleonVLM, temperature: float) -> None:
    distribution, noise = TokenDistribution(tiny.layout.image_ids_V, temperature), Noise(seed=3, step=1)
    drawn = sample_tokens(tiny, PROMPTS, distribution, num_samples=5, max_tokens=4, noise=noise)
    assert drawn.ids_PGT.shape == (3, 5, 4)
    for p, prompt in enumerate(PROMPTS):
        for g in range(5):
            ids, logprobs = slow_sample(tiny, prompt, g, distribution, noise, 4)
            assert drawn.ids_PGT[p, g].tolist() == ids
            assert drawn.logprobs_PGT[p, g].tolist() == pytest.approx(logprobs, abs=1e-4)
    if temperature:
        assert len({tuple(row) for row in drawn.ids_PGT[0].tolist()}) > 1


@torch.no_grad()
def test_scorer_gives_back_the_samplers_log_probs(tiny: ChameleonVLM) -> None:
    distribution = TokenDistribution(tiny.layout.image_ids_V, temperature=0.7)
    drawn = sample_tokens(tiny, PROMPTS, distribution, num_samples=4, max_tokens=4, noise=Noise())
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    found = span_log_probs(tiny, prompts, drawn.ids_PGT.flatten(0, 1).tolist(), distribution, max_rows=5)
    assert torch.stack(found).numpy() == pytest.approx(drawn.logprobs_PGT.flatten(0, 1).numpy(), abs=1e-5)


def test_log_probs_by_hand_on_a_picture_of_four_tokens(tiny: ChameleonVLM) -> None:
    """Token t of the target is predicted at the position before it; the softmax runs over image ids alone."""
    prompt, target = PROMPTS[0], tiny.layout.image_ids_V[[3, 0, 15, 7]].tolist()
    found = span_log_probs(tiny, [prompt], [target], TokenDistribution(tiny.layout.image_ids_V))[0]
    hidden = tiny.hidden_states(torch.tensor([prompt + target]), use_cache=False).last_hidden_state[0].detach()
    image_logits = hidden @ tiny.head_weight().detach()[tiny.layout.image_ids_V].T
    for t, code in enumerate([3, 0, 15, 7]):
        row = image_logits[len(prompt) - 1 + t].double()
        by_hand = float(row[code] - torch.log(sum(torch.exp(x) for x in row)))
        assert float(found[t]) == pytest.approx(by_hand, abs=1e-5)
    assert found.requires_grad


@torch.no_grad()
def test_batch_padding_and_chunks_do_not_change_a_sample(tiny: ChameleonVLM) -> None:
    distribution, noise = TokenDistribution(tiny.layout.image_ids_V), Noise(seed=9)

    def draw(prompts: list[list[int]], samples: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        found = sample_tokens(
            tiny, prompts, distribution, num_samples=samples, max_tokens=4, noise=noise, max_rows=rows
        )
        return found.ids_PGT.numpy(), found.logprobs_PGT.numpy()

    ids, logprobs = draw(PROMPTS, 6, 512)
    for rows in (1, 4, 7, 18):
        again, again_logprobs = draw(PROMPTS, 6, rows)
        assert (again == ids).all()
        assert again_logprobs == pytest.approx(logprobs, abs=1e-5)
    for p, prompt in enumerate(PROMPTS):
        assert (draw([prompt], 6, 512)[0][0] == ids[p]).all()
    assert (draw(PROMPTS[::-1], 6, 512)[0][::-1] == ids).all()
    assert (draw(PROMPTS, 3, 512)[0] == ids[:, :3]).all()  # more candidates leave the first ones alone


@torch.no_grad()
def test_kept_tokens_are_scored_by_the_same_distribution(tiny: ChameleonVLM) -> None:
    """Kept tokens stand in their places, those drawn before them are the free sampler's, all are scored."""
    distribution, noise = TokenDistribution(tiny.layout.image_ids_V, temperature=0.8), Noise(seed=2)
    free = sample_tokens(tiny, PROMPTS, distribution, num_samples=6, max_tokens=4, noise=noise)
    kept = torch.full((3, 4), -1)
    kept[0, 2], kept[1, 0], kept[1, 3] = tiny.layout.image_ids_V[[3, 1, 7]]
    settings = {"num_samples": 6, "max_tokens": 4, "noise": noise, "kept_PT": kept}
    drawn = sample_tokens(tiny, PROMPTS, distribution, max_rows=7, **settings)  # type: ignore[arg-type]
    assert (drawn.ids_PGT[0, :, 2] == kept[0, 2]).all()
    assert (drawn.ids_PGT[1, :, [0, 3]] == kept[1, [0, 3]]).all()
    assert (drawn.ids_PGT[0, :, :2] == free.ids_PGT[0, :, :2]).all()
    assert (drawn.ids_PGT[2] == free.ids_PGT[2]).all()
    prompts = [prompt for prompt in PROMPTS for _ in range(6)]
    found = span_log_probs(tiny, prompts, drawn.ids_PGT.flatten(0, 1).tolist(), distribution)
    assert torch.stack(found).numpy() == pytest.approx(drawn.logprobs_PGT.flatten(0, 1).numpy(), abs=1e-5)
    settings = {"num_samples": 2, "max_tokens": 4, "noise": noise}
    later = sample_tokens(tiny, PROMPTS, distribution, first=4, **settings)  # type: ignore[arg-type]
    assert (later.ids_PGT == free.ids_PGT[:, 4:]).all()
    mixed = sample_tokens(tiny, PROMPTS, distribution, first=[4, 0, 2], max_rows=2, **settings)  # type: ignore[arg-type]
    assert all((mixed.ids_PGT[p] == free.ids_PGT[p, g : g + 2]).all() for p, g in enumerate((4, 0, 2)))
    kept[0, 0] = tiny.layout.end_text
    with pytest.raises(RewindError, match="cannot occur"):
        sample_tokens(tiny, PROMPTS, distribution, num_samples=1, max_tokens=4, noise=noise, kept_PT=kept)


@torch.no_grad()
def test_a_stop_token_ends_a_row(tiny: ChameleonVLM) -> None:
    distribution = TokenDistribution(tiny.layout.image_ids_V)
    stop, pad = int(tiny.layout.image_ids_V[5]), tiny.layout.pad
    free = sample_tokens(tiny, PROMPTS, distribution, num_samples=20, max_tokens=8, noise=Noise())
    drawn = sample_tokens(
        tiny, PROMPTS, distribution, num_samples=20, max_tokens=8, noise=Noise(), stop=stop, max_rows=7
    )
    stopped = 0
    for a, b, logprobs in zip(
        free.ids_PGT.flatten(0, 1).tolist(),
        drawn.ids_PGT.flatten(0, 1).tolist(),
        drawn.logprobs_PGT.flatten(0, 1).tolist(),
        strict=True,
    ):
        end = a.index(stop) + 1 if stop in a else len(a)
        stopped += stop in a
        assert b[:end] == a[: min(end, len(b))]
        assert set(b[end:]) <= {pad}
        assert all(x == 0 for x in logprobs[end:])
    assert stopped > 5


def test_spans_after_shared_prompts(tiny: ChameleonVLM) -> None:
    """Prompts that are read once give what reading every sequence gives, in the order asked for."""
    distribution = TokenDistribution(tiny.layout.text_ids_V)
    words = [int(token) for token in tiny.layout.text_ids_V[:9]]
    prompts = [PROMPTS[i % 2] for i in range(11)]
    spans = [words[: 1 + i % 5] if i % 3 else words[4 : 5 + i % 4] for i in range(11)]
    plain = span_log_probs(tiny, prompts, spans, distribution)  # gradients are on: every sequence is read
    with torch.no_grad():
        for max_rows in (1, 64):
            shared = span_log_probs(tiny, prompts, spans, distribution, max_rows=max_rows)
            for a, b in zip(plain, shared, strict=True):
                assert a.requires_grad
                assert torch.allclose(a, b, atol=1e-5)
        assert span_log_probs(tiny, PROMPTS[:1] * 2, [[words[0]]] * 2, distribution)[0].shape == (1,)


@torch.no_grad()
def test_guided_sampling_equals_guided_scoring(tiny: ChameleonVLM) -> None:
    distribution = TokenDistribution(tiny.layout.image_ids_V, guidance=2.0)
    bare = [[0], [0, 50], [0]]
    drawn = sample_tokens(
        tiny, PROMPTS, distribution, num_samples=3, max_tokens=4, noise=Noise(), unconditional=[bare], max_rows=4
    )
    found = span_log_probs(
        tiny,
        [p for p in PROMPTS for _ in range(3)],
        drawn.ids_PGT.flatten(0, 1).tolist(),
        distribution,
        unconditional=[[p for p in bare for _ in range(3)]],
    )
    assert torch.stack(found).numpy() == pytest.approx(drawn.logprobs_PGT.flatten(0, 1).numpy(), abs=1e-4)
    plain = sample_tokens(
        tiny, PROMPTS, TokenDistribution(tiny.layout.image_ids_V), num_samples=3, max_tokens=4, noise=Noise()
    )
    assert not torch.equal(plain.ids_PGT, drawn.ids_PGT)


@torch.no_grad()
def test_guidance_by_words_and_by_picture(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    """Three prompts: with words and source, without words, without both; by hand for the first token."""
    fdm, words, weights = ForwardDynamics(tiny), "remove all rings", [3.0, 1.2]
    one, *_ = fdm.sample(picture, words, 4, seed=2, guidance=weights)
    source = tiny.encode([picture])[0].tolist()
    prompts = [tiny.fdm_prompt(source, words), tiny.fdm_prompt(source, ""), [tiny.layout.begin_text]]
    prompts[2] = [*prompts[2], *tiny.layout.grammar.header]
    assert tiny.free_prompts(source, 2) == prompts[1:]
    head = tiny.head_weight()[tiny.layout.image_ids_V]
    c, i, u = (tiny.hidden_states(torch.tensor([p])).last_hidden_state[0, -1] @ head.T for p in prompts)
    by_hand = torch.log_softmax(u + 1.2 * (i - u) + 3.0 * (c - i), -1)
    place = tiny.layout.image_ids_V.tolist().index(int(one.ids[0]))
    assert float(one.logprobs[0]) == pytest.approx(float(by_hand[place]), abs=1e-4)
    plain = [fdm.sample(picture, words, 4, seed=2, guidance=g) for g in (3.0, [3.0], [3.0, 1.0])]
    assert all((a.ids == b.ids).all() for other in plain[1:] for a, b in zip(plain[0], other, strict=True))
    with pytest.raises(RewindError, match=r"at most 2 number\(s\) with tiny, one a prompt, not 3"):
        fdm.sample(picture, words, guidance=[3.0, 1.2, 1.1])


def test_sample_returns_candidates(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm = ForwardDynamics(tiny)
    one = fdm.sample(picture, "move the red circle left", 3, seed=4)
    assert all(isinstance(candidate, Candidate) for candidate in one)
    assert one[0].ids.shape == one[0].logprobs.shape == (4,)
    assert one[0].image.size == (32, 32)
    many = fdm.sample([255 - picture, picture], ["remove all rings", "move the red circle left"], 3, seed=4)
    assert [c.ids.tolist() for c in many[1]] == [c.ids.tolist() for c in one]
    assert [c.ids.tolist() for c in fdm.sample(picture, "move the red circle left", 3, seed=5)] != [
        c.ids.tolist() for c in one
    ]
    found = fdm.log_probs(picture, one, "move the red circle left")
    assert np.stack(found) == pytest.approx(np.stack([c.logprobs for c in one]), abs=1e-5)
    assert fdm.score(picture, one, "move the red circle left") == pytest.approx([x.mean() for x in found])
    narrow = fdm.sample(picture, "move the red circle left", 8, seed=4, top_k=1)
    assert len({tuple(c.ids) for c in narrow}) == 1
    assert [c.logprob for c in narrow] == [0.0] * 8
    assert Truncation(top_k=1).apply(torch.tensor([0.0, 1.0])).tolist() == [-float("inf"), 0.0]


def test_idm_scores_and_describes(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    idm, other = InverseDynamics(tiny), 255 - picture
    action = "move the red circle left"
    scores = idm.score(picture, [other, picture], action)
    assert len(scores) == 2
    prompt = tiny.idm_prompt(tiny.encode([picture])[0].tolist(), tiny.encode([other])[0].tolist())
    span = [*tiny.text_ids(action), tiny.layout.end_text]
    by_hand = span_log_probs(tiny, [prompt], [span], TokenDistribution(tiny.layout.text_ids_V))[0]
    assert scores[0] == pytest.approx(float(by_hand.mean()), abs=1e-5)
    rows = idm.score([picture, other], [other, picture], [action, "remove all rings"])
    assert rows[0] == pytest.approx(scores[0], abs=1e-5)
    assert idm.score(picture, [], action) == []
    said = idm.describe([picture, other], [other, picture], max_tokens=6)
    assert said[0] == idm.describe(picture, other, max_tokens=6)
    candidate = ForwardDynamics(tiny).sample(picture, action)[0]
    assert idm.score(picture, [candidate], action) == idm.score(picture, [candidate], [action])


def test_no_image_token_in_a_description(tiny: ChameleonVLM) -> None:
    text, images = set(tiny.layout.text_ids_V.tolist()), set(tiny.layout.image_ids_V.tolist())
    assert not text & images
    markers = {tiny.layout.begin_image, tiny.layout.end_image, tiny.layout.pad, tiny.layout.begin_text}
    assert not text & markers
    assert tiny.layout.end_text in text


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda f, i, x: f.sample(x, "  "), "the action is empty"),
        (lambda f, i, x: f.sample(x, "remove all rings", 0), "num_samples must be at least 1"),
        (lambda f, i, x: f.sample([x], ["a", "b"]), "1 sources and 2 actions"),
        (lambda f, i, x: f.sample([], []), "there is no picture"),
        (lambda f, i, x: f.sample(x.astype(float), "remove all rings"), "not float64"),
        (lambda f, i, x: f.sample("photo.jpg", "remove all rings"), "there is no image photo.jpg"),
        (lambda f, i, x: f.sample(x, "remove all rings", temperature=-1), "temperature must be"),
        (lambda f, i, x: i.score(x, [x, x], ["a"]), "do not fit together"),
        (lambda f, i, x: i.describe([x], [x, x]), "1 sources and 2 targets"),
    ],
)
def test_bad_input_is_one_sentence(tiny: ChameleonVLM, picture: np.ndarray, call, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RewindError, match=sentence):
        call(ForwardDynamics(tiny), InverseDynamics(tiny), picture)


def test_probabilities_that_are_no_numbers_are_no_picture() -> None:
    """float16 overflows in some models: every token would be the last code."""
    vlm = make_tiny()
    with torch.no_grad():
        vlm.head_weight().fill_(float("nan"))
    with pytest.raises(RewindError, match="probabilities that are no numbers"):
        ForwardDynamics(vlm).sample(np.zeros((32, 32, 3), np.uint8), "lift the cup", 2)
