"""One contract for all families, on tiny random checkpoints in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_families import SIZE, opened, pictures, reference, shelf, trainable
from torch import Tensor
from transformers import set_seed

from rewards import Reward
from rl import RewindError, rerank
from rl.models.export import save_merged
from rl.models.families.emu3 import _layout as emu3_layout
from rl.models.known import LINEAR_LAYERS
from rl.models.noise import Noise, prompt_key
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.saving import save_base
from rl.models.settings import Settings
from rl.models.sizes import PictureSize
from rl.triplets import Scored, Triplet
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import Preference, WorldModelDPOTrainer, preference_rows
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.plan.shapes import shape_of
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ACTION = "move the red circle left"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["chameleon", "lumina", "liquid", "emu3", "univla"])
def vlm(request: pytest.FixtureRequest) -> Any:
    return opened(request.param)


# ---- pictures


def test_pictures_become_ids_and_pictures_again(vlm: Any) -> None:
    images = pictures(vlm)
    ids, (codes, drawn) = vlm.encode(images), reference(vlm, images)
    assert ids.tolist() == vlm.layout.image_ids_V[codes.long()].tolist()
    assert len(set(ids.flatten().tolist())) > len(images)  # they depend on the picture
    found = vlm.decode(ids)
    assert found.shape == (4, vlm.image_size, vlm.image_size, 3)
    assert np.abs(found.astype(int) - drawn).max() <= 1  # a rounding
    assert drawn.std() > 10
    picture = vlm.image_span(ids[0].tolist())
    assert picture[0] == vlm.layout.begin_image
    assert picture[-1] == vlm.layout.end_image
    assert [token for token in picture if token in set(vlm.layout.image_ids_V.tolist())] == ids[0].tolist()
    assert not set(vlm.layout.image_ids_V.tolist()) & set(vlm.layout.text_ids_V.tolist())


def test_a_language_model_in_half_precision_leaves_the_codes(vlm: Any) -> None:
    half = opened(vlm.family, "bfloat16")
    assert half.head_weight().dtype == torch.bfloat16
    assert {p.dtype for p in half.vqmodel.parameters()} == {torch.float32}
    assert torch.equal(half.encode(pictures(vlm)), vlm.encode(pictures(vlm)))
    half.model.train()
    assert not half.vqmodel.training
    drawn = ForwardDynamics(half).sample(pictures(vlm)[0], ACTION, 2)
    assert np.isfinite([c.logprobs for c in drawn]).all()


# ---- tokens


@torch.no_grad()
def by_hand(vlm: Any, sequence: list[int], allowed_V: Tensor) -> Tensor:
    """Log-probabilities of the next token among the allowed ones, float64."""
    hidden = vlm.hidden_states(torch.tensor([sequence]), use_cache=False).last_hidden_state[0, -1].double()
    return torch.log_softmax(vlm.head_weight().double()[allowed_V] @ hidden, -1)


@torch.no_grad()
def test_the_sampler_equals_a_slow_reference(vlm: Any) -> None:
    """Candidates one token at a time without a cache, forced tokens between; then scored again; then the words."""
    fdm, idm, grammar = ForwardDynamics(vlm), InverseDynamics(vlm), vlm.layout.grammar
    source, allowed = pictures(vlm)[0], vlm.layout.image_ids_V
    drawn = fdm.sample(source, ACTION, 2, seed=3)
    prompt = vlm.fdm_prompt(vlm.encode([source])[0].tolist(), ACTION)
    for g, candidate in enumerate(drawn):
        sequence, ids, scores = list(prompt), [], []
        for t in range(grammar.grid.codes):
            log_probs = by_hand(vlm, sequence, allowed)
            u = Noise(3).uniform(torch.tensor([prompt_key(prompt)]), torch.tensor([g]), t)
            cumulative = log_probs.exp().cumsum(0)
            chosen = int(torch.searchsorted(cumulative, u * cumulative[-1], right=True))
            ids.append(int(allowed[chosen]))
            scores.append(float(log_probs[chosen]))
            sequence += [ids[-1], *grammar.after[t]]
        assert candidate.ids.tolist() == ids
        assert candidate.logprobs.tolist() == pytest.approx(scores, abs=1e-3)
        assert fdm.log_probs(source, [candidate], ACTION)[0].tolist() == pytest.approx(scores, abs=1e-3)
    assert np.asarray(drawn[0].image).shape == (vlm.image_size, vlm.image_size, 3)
    prompt = vlm.idm_prompt(prompt_ids := vlm.encode([source])[0].tolist(), prompt_ids)
    words = vlm.action_ids(ACTION)
    assert vlm.text(words) == ACTION
    scores = [
        float(by_hand(vlm, prompt + words[:t], vlm.layout.text_ids_V)[(vlm.layout.text_ids_V == word).nonzero().item()])
        for t, word in enumerate(words)
    ]
    assert idm.log_probs(source, [source], ACTION)[0].tolist() == pytest.approx(scores, abs=1e-3)


def test_an_inverse_model_says_words(vlm: Any) -> None:
    layout, images = vlm.layout, pictures(vlm)
    markers = {
        layout.begin_image,
        layout.end_image,
        layout.begin_text,
        layout.pad,
        *layout.grammar.trailer,
        layout.grammar.row_end,
    }
    special = {number for number, token in vlm.tokenizer.added_tokens_decoder.items() if token.special}
    assert not (markers | special - {layout.end_text}) & set(layout.text_ids_V.tolist())
    assert layout.end_text in layout.text_ids_V
    texts = InverseDynamics(vlm).describe(images[:3], images[1:], temperature=1.0, max_tokens=12, seed=1)
    assert all(texts)
    assert not any(marker in text for text in texts for marker in ("<", "IMGIMG", "reserved", "unused"))


@torch.no_grad()
def test_guidance_is_u_plus_g_times_c_minus_u(vlm: Any) -> None:
    source, allowed = pictures(vlm)[0], vlm.layout.image_ids_V
    ids = vlm.encode([source])[0].tolist()
    drawn = ForwardDynamics(vlm).sample(source, ACTION, 2, guidance=3.0, seed=1)
    c, u = (by_hand(vlm, vlm.fdm_prompt(ids, words), allowed) for words in (ACTION, ""))
    guided = torch.log_softmax(u + 3.0 * (c - u), -1)
    for candidate in drawn:
        place = int((allowed == int(candidate.ids[0])).nonzero().item())
        assert float(candidate.logprobs[0]) == pytest.approx(float(guided[place]), abs=2e-3)
    assert float((c - u).abs().max()) > 0.01  # the words do something


def test_reranking(vlm: Any) -> None:
    fdm, idm, source = ForwardDynamics(vlm), InverseDynamics(vlm), pictures(vlm)[0]
    found = rerank(fdm, idm, source, ACTION, 3, seed=5)
    drawn = fdm.sample(source, ACTION, 3, seed=5)
    assert found.best.score == pytest.approx(max(idm.score(source, drawn, ACTION)), abs=1e-3)


# ---- adapters, folders


def test_adapters_are_on_the_language_model_alone(vlm: Any, tmp_path: Path) -> None:
    """On its linear layers, so that the codes stay; merged and exported, the folder opens as the run was."""
    made = trainable(vlm)
    with_adapter = {name.rsplit(".lora_A", 1)[0] for name, _ in made.model.named_parameters() if ".lora_A." in name}
    inside = {f"base_model.model.{name}" for name, _ in vlm.model.named_modules() if name.endswith(LINEAR_LAYERS)}
    assert with_adapter == inside
    assert len(inside) == 7 * 2
    assert not any("lora" in name or "vqmodel" in name for name, _ in made.vqmodel.named_parameters())
    made._seen = None
    images = pictures(vlm)
    assert torch.equal(made.encode(images), vlm.encode(images))
    targets = ForwardDynamics(vlm).sample(images[0], ACTION, 2)
    learned = ForwardDynamics(made, "default").log_probs(images[0], targets, ACTION)
    assert np.abs(np.array(learned) - [c.logprobs for c in targets]).max() > 0.01
    save_merged(made, "default", tmp_path / "merged", {})
    merged = load_base(tmp_path / "merged", Settings(dtype="float32"))
    assert (merged.family, merged.image_size, merged.template) == (vlm.family, vlm.image_size, vlm.template)
    np.testing.assert_allclose(
        ForwardDynamics(merged).log_probs(images[0], targets, ACTION), learned, atol=1e-3, rtol=1e-4
    )


def test_a_saved_base_opens_as_it_was(vlm: Any, tmp_path: Path) -> None:
    save_base(vlm, tmp_path / "base", {})
    again = load_base(tmp_path / "base", Settings(dtype="float32"))  # its size, its VQ tokenizer, from the folder alone
    images = pictures(vlm)
    ids = vlm.encode(images)
    assert torch.equal(again.encode(images), ids)
    assert (again.decode(ids) == vlm.decode(ids)).all()
    assert again.layout.grammar == vlm.layout.grammar
    assert again.fingerprint == vlm.fingerprint is not None  # whatever is named or stored otherwise
    assert again.idm_prompt(ids[0].tolist(), ids[1].tolist()) == vlm.idm_prompt(ids[0].tolist(), ids[1].tolist())
    a, b = (ForwardDynamics(v).sample(images[0], ACTION, 2, seed=1) for v in (vlm, again))
    assert [c.ids.tolist() for c in a] == [c.ids.tolist() for c in b]
    assert not [p.name for p in (tmp_path / "base").iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth")]


def test_plan_counts_it(vlm: Any) -> None:
    shape = shape_of(str(shelf()[vlm.family]))
    assert shape.parameters() == sum(p.numel() for p in vlm.model.parameters())
    assert shape.image_codes == len(vlm.layout.image_ids_V)
    if vlm.family != "liquid" and vlm.family not in SIZE:  # whose folder says nothing of the size
        assert abs(shape.tokens_per_image - len(vlm.layout.grammar.free)) <= 1  # the last row's end


# ---- training


def triplets(vlm: Any) -> list[Triplet]:
    images = pictures(vlm)
    return [Triplet(a, ACTION, b) for a, b in zip(images[:2], images[2:], strict=True)]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    return {"output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, **quiet, **more}


@pytest.mark.parametrize("role", ["fdm", "idm"])
def test_two_steps_of_sft(vlm: Any, role: Any, tmp_path: Path) -> None:
    """The first loss is that of the log-probabilities that the role itself gives, forced tokens left out."""
    made, given = trainable(vlm), triplets(vlm)
    model = (ForwardDynamics if role == "fdm" else InverseDynamics)(made, "default")
    sources, targets = [t.source for t in given], [t.target for t in given]
    by_role = np.concatenate(model.log_probs(sources, targets, [ACTION] * len(given)))
    config = RoleConfig(**settings(tmp_path, learning_rate=1e-2))
    trainer = RoleSFTTrainer(made, role, config, role_rows(made, role, given))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(-by_role.mean(), abs=1e-3)
    assert losses[1] < losses[0]


def test_two_steps_of_dpo(vlm: Any, tmp_path: Path) -> None:
    made = trainable(vlm)
    groups = ForwardDynamics(made, "default").sample(pictures(made)[:2], [ACTION] * 2, 2)
    pairs = [
        Preference(triplet, Scored(a, {}, 1.0), Scored(b, {}, 0.0))
        for triplet, (a, b) in zip(triplets(made), groups, strict=True)
    ]
    trainer = WorldModelDPOTrainer(made, RewindDPOConfig(**settings(tmp_path)), preference_rows(made, pairs))
    trainer.train()
    logs = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert logs[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-3)  # policy and reference are one at the start
    assert len(logs) == 2


def test_two_steps_of_grpo(vlm: Any, tmp_path: Path) -> None:
    def even(predicted_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(np.mean([token % 2 == 0 for token in ids])) for ids in predicted_ids]

    set_seed(0)
    made = trainable(vlm)
    config = RewindGRPOConfig(**settings(tmp_path, num_generations=2, beta=0.1, learning_rate=1e-3))
    trainer = WorldModelGRPOTrainer(made, triplets(made), [Reward.of(even)], config)
    trainer.train()
    assert trainer.sampler_trainer_gap < 1e-3  # in training mode: no dropout of the base is live
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert logs[0]["completions/mean_length"] == made.layout.tokens_per_image  # codes alone count
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-3)


# ---- what one family has


def test_emu3_by_the_published_numbers() -> None:
    """Ids, a header as its processor writes it, prompts; no dropout of its own, RoPE as its class says."""
    vlm = opened("emu3")
    layout, grammar = vlm.layout, vlm.layout.grammar
    text = "<|image start|>3*3<|image token|>"
    assert list(grammar.header) == vlm.tokenizer.encode(text, add_special_tokens=False)
    assert (grammar.row_end, grammar.trailer) == (151846, (151847, 151853))
    assert layout.image_ids_V.tolist() == list(range(151854, 184622))
    assert (layout.begin_text, layout.end_text, layout.pad) == (151849, 151850, 151643)
    assert layout.text_ids_V.tolist() == [*range(151643), 151850]
    config = vlm.model.config
    assert (config.text_config.attention_dropout, config.text_config.rope_parameters["rope_theta"]) == (0.0, 1e6)
    ids = vlm.encode(pictures(vlm)[:2]).tolist()
    asked, drawn = (vlm.tokenizer.decode(x) for x in (vlm.idm_prompt(*ids), vlm.fdm_prompt(ids[0], ACTION)))
    assert asked.startswith(f"<|extra_203|>You are a helpful assistant. USER: {text}")
    assert asked.endswith("<|image end|>Name the action that leads from the first image to the second. ASSISTANT:")
    assert drawn.startswith(f"<|extra_203|>{text}")
    assert drawn.endswith(f"<|image end|>{ACTION} masterpiece, film grained, best quality.{text}")
    usual = emu3_layout(config, vlm.tokenizer, "it", PictureSize.of(512)).grammar
    assert len(usual.picture(range(64 * 64))) == 4169
    with pytest.raises(RewindError, match="multiples of 8 pixels, differ"):
        emu3_layout(config, vlm.tokenizer, "it", PictureSize.of(20))
