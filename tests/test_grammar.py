"""Pictures with forced tokens (sizes, ends of rows) and prompts by template, through sampler, scorer and losses.

The stand-in family is Lumina's form on the tiny base: a header with the size, a token at the end of each row.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from test_sampler import slow_sample
from transformers import set_seed

from rewards import Reward
from rl.codes import Grid
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.families.chameleon import ChameleonVLM
from rl.models.grammar import PictureGrammar, Template
from rl.models.known import LINEAR_LAYERS
from rl.models.noise import Noise
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Scored, Triplet
from trainers.common.adapters import add_adapter
from trainers.common.log_probs import IGNORED, score_under
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import Preference, WorldModelDPOTrainer, preference_rows
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ACTION = "move the red circle left"
ROW_END, SIZE, SEP = 200, 201, 202  # bytes that no sentence here holds


def with_rows(trainable: bool = False) -> ChameleonVLM:
    """The tiny base with 2 x 2 codes, a size token, ends of rows, and the words behind the source."""
    vlm = make_tiny()
    old = vlm.layout
    grammar = PictureGrammar(Grid(2, 2), (old.begin_image, SIZE, SIZE), (old.end_image,), row_end=ROW_END)
    words = old.text_ids_V[~torch.isin(old.text_ids_V, torch.tensor([ROW_END, SIZE, SEP]))]
    vlm.layout = replace(old, grammar=grammar, text_ids_V=words)
    vlm.template = Template(
        fdm=("<bos>", "{source}", "{action}", "<sep>", "{header}"),
        fdm_free=("<bos>", "{source}", "<sep>", "{header}"),
        idm=("<bos>", "{source}", "{target}", "<sep>"),
        markers={"<sep>": SEP},
    )
    if trainable:
        add_adapter(vlm, LoraConfig(r=4, target_modules=list(LINEAR_LAYERS), init_lora_weights=False))
    return vlm


@pytest.fixture(scope="module")
def rows() -> ChameleonVLM:
    return with_rows()


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def test_a_picture_by_hand() -> None:
    grammar = PictureGrammar(Grid(2, 3), (7, 8, 9), (5, 4), row_end=6)
    assert grammar.picture([10, 11, 12, 13, 14, 15]) == [7, 8, 9, 10, 11, 12, 6, 13, 14, 15, 6, 5, 4]
    assert grammar.target([10, 11, 12, 13, 14, 15]) == [10, 11, 12, 6, 13, 14, 15]
    assert grammar.after == ((), (), (6,), (), (), ())
    assert grammar.free == (True, True, True, False, True, True, True)
    assert grammar.codes(grammar.target([10, 11, 12, 13, 14, 15])) == [10, 11, 12, 13, 14, 15]
    assert grammar.spread([1, 2, 3, 4, 5, 6], 0) == [1, 2, 3, 0, 4, 5, 6]
    between = replace(grammar, row_end_last=False)  # Emu3.5: between rows alone
    assert between.picture([10, 11, 12, 13, 14, 15]) == [7, 8, 9, 10, 11, 12, 6, 13, 14, 15, 5, 4]
    plain = PictureGrammar(Grid(1, 2), (7,), (4,))
    assert plain.picture([1, 2]) == [7, 1, 2, 4]
    assert plain.target([1, 2]) == [1, 2]
    with pytest.raises(RewindError, match="a picture has 6 codes here, not 2"):
        grammar.picture([1, 2])


@pytest.mark.parametrize(
    ("grid", "header", "trailer", "row_end", "tokens"),
    [  # the published lengths of a picture of 512 x 512
        ((32, 32), 1, 1, None, 1026),  # Chameleon, Liquid
        ((32, 32), 3, 1, 8803, 1060),  # Lumina, RynnVLA-002
        ((64, 64), 7, 2, 151846, 4169),  # Emu3: begin, '64*64' in five digits, image token
    ],
)
def test_published_lengths(grid: tuple[int, int], header: int, trailer: int, row_end: int | None, tokens: int) -> None:
    grammar = PictureGrammar(Grid(*grid), (1,) * header, (2,) * trailer, row_end)
    assert len(grammar.picture(range(grammar.grid.codes))) == tokens


def test_prompts_follow_the_template(rows: ChameleonVLM) -> None:
    codes = rows.layout.image_ids_V[:4].tolist()
    begin, end = rows.layout.begin_image, rows.layout.end_image
    span = [begin, SIZE, SIZE, codes[0], codes[1], ROW_END, codes[2], codes[3], ROW_END, end]
    bos, words = rows.layout.begin_text, rows.text_ids(ACTION)
    assert rows.fdm_prompt(codes, ACTION) == [bos, *span, *words, SEP, begin, SIZE, SIZE]
    assert rows.fdm_prompt(codes, "") == [bos, *span, SEP, begin, SIZE, SIZE]
    assert rows.idm_prompt(codes, codes) == [bos, *span, *span, SEP]
    assert Template.of({"fdm": ["<bos>", "{header}"]}).fdm == ("<bos>", "{header}")
    with pytest.raises(RewindError, match="a prompt template has no 'fmd'"):
        Template.of({"fmd": []})
    with pytest.raises(RewindError, match="does not put the action first"):
        rows.without_words(torch.ones(1, 30, dtype=torch.long))


@torch.no_grad()
def test_sampler_equals_a_slow_reference_with_forced_tokens(rows: ChameleonVLM) -> None:
    fdm, grammar = ForwardDynamics(rows), rows.layout.grammar
    source = pictures(1)[0]
    drawn = fdm.sample(source, ACTION, 5, seed=3)
    prompt = rows.fdm_prompt(rows.encode([source])[0].tolist(), ACTION)
    for g, candidate in enumerate(drawn):
        ids, logprobs = slow_sample(rows, prompt, g, fdm.distribution(), Noise(3), 4, grammar.after)
        assert candidate.ids.tolist() == ids
        assert candidate.logprobs.tolist() == pytest.approx(logprobs, abs=1e-4)
    assert len({candidate.ids.tobytes() for candidate in drawn}) > 1
    found = fdm.log_probs(source, drawn, ACTION)
    for candidate, scores in zip(drawn, found, strict=True):
        assert scores == pytest.approx(candidate.logprobs, abs=1e-5)
    assert np.asarray(drawn[0].image).shape == (32, 32, 3)
    words = InverseDynamics(rows).log_probs([source] * 5, drawn, ACTION)
    assert all(len(one) == len(rows.action_ids(ACTION)) for one in words)


def test_losses_leave_forced_tokens_out(rows: ChameleonVLM) -> None:
    source, target = pictures(2)
    (row,) = role_rows(rows, "fdm", [Triplet(source, ACTION, target)], row_weights=[2.0])
    codes = rows.encode([target])[0].tolist()
    assert row["input_ids"][-5:].tolist() == [codes[0], codes[1], ROW_END, codes[2], codes[3]]
    assert row["labels"][-5:].tolist() == [codes[0], codes[1], IGNORED, codes[2], codes[3]]
    assert row["weights"][-5:].tolist() == [2.0, 2.0, 0.0, 2.0, 2.0]
    vlm = with_rows()
    score_under(vlm, TokenDistribution(vlm.layout.image_ids_V), ["entropy"])
    ids = torch.from_numpy(row["input_ids"])[None]
    labels = torch.full_like(ids, IGNORED)
    labels[:, -5:] = ids[:, -5:]  # as TRL's DPO and GRPO label a completion, forced tokens too
    scores: Any = vlm.model(input_ids=ids, labels=labels, fused_lm_head=True)
    by_hand = ForwardDynamics(vlm).log_probs(source, [target], ACTION)[0]
    assert scores.log_probs[0, -5:].tolist() == pytest.approx([*by_hand[:2], 0.0, *by_hand[2:]], abs=1e-5)
    assert float(scores.entropy[0, -3].detach()) == 0.0


def _sft(vlm: ChameleonVLM, folder: Path) -> None:
    made = [Triplet(a, ACTION, b) for a, b in zip(pictures(4), pictures(8)[4:], strict=True)]
    config = RoleConfig(output_dir=str(folder), max_steps=2, report_to="none", disable_tqdm=True, save_strategy="no")
    trainer = RoleSFTTrainer(vlm, "fdm", config, role_rows(vlm, "fdm", made))
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0


def _dpo(vlm: ChameleonVLM, folder: Path) -> None:
    groups = ForwardDynamics(vlm, "default").sample(pictures(4), [ACTION] * 4, 2)
    pairs = [
        Preference(Triplet(p, ACTION), Scored(a, {}, 1.0), Scored(b, {}, 0.0))
        for p, (a, b) in zip(pictures(4), groups, strict=True)
    ]
    config = RewindDPOConfig(output_dir=str(folder), max_steps=2, report_to="none", disable_tqdm=True, logging_steps=1)
    trainer = WorldModelDPOTrainer(vlm, config, preference_rows(vlm, pairs))
    trainer.train()
    logs = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert logs[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)  # policy and reference are one at the start


def _grpo(vlm: ChameleonVLM, folder: Path) -> None:
    def low(predicted_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(np.mean([token % 2 == 0 for token in ids])) for ids in predicted_ids]

    config = RewindGRPOConfig(
        output_dir=str(folder),
        max_steps=2,
        num_generations=4,
        per_device_train_batch_size=8,
        beta=0.1,
        learning_rate=1e-3,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    made = [Triplet(a, ACTION, b) for a, b in zip(pictures(4), pictures(8)[4:], strict=True)]
    trainer = WorldModelGRPOTrainer(vlm, made, [Reward.of(low)], config, importance_advantages="group")
    trainer.train()
    assert trainer.sampler_trainer_gap < 1e-4
    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert logs[0]["completions/mean_length"] == 4  # codes alone count
    assert logs[0]["kl"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("train", [_sft, _dpo, _grpo])
def test_two_steps_of_each_method(train: Any, tmp_path: Path) -> None:
    set_seed(0)
    train(with_rows(trainable=True), tmp_path)
