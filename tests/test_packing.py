"""Prompts that are read once for all their rows, with gradients: the same loss and the same gradients to rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny
from datasets import Dataset
from opened_families import opened, trainable
from test_grpo import low_tokens, trainer
from test_grpo_sentences import trainer as sentence_trainer
from torch import Tensor

from rewards import Reward
from rl.models import packing
from rl.models.attention import SHARED_PREFIX
from rl.models.distribution import TokenDistribution
from rl.models.unified import UnifiedVLM
from trainers.common.log_probs import IGNORED, score_under
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import WorldModelDPOTrainer
from trainers.grpo.together import together

ALONE, TOGETHER = 10_000, 1
WORDS = ("left", "remove all rings", "paint the blue star green")


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets from how many tokens on prompts are shared."""
    return lambda tokens: monkeypatch.setattr(packing, "SHARED_FROM", tokens)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Prompts and rows of each pass that reads prompts once, and whether it is one with gradients."""
    found: list[tuple[int, int, bool]] = []
    read = packing.Packing.read

    def noted(self: Any, vlm: UnifiedVLM) -> Tensor:
        found.append((self.prompts, self.rows, torch.is_grad_enabled()))
        return read(self, vlm)

    monkeypatch.setattr(packing.Packing, "read", noted)
    return found


def rows_of(vlm: Any, which: list[int]) -> dict[str, Tensor]:
    """Sequences behind the prompts of some words, padded as TRL pads them; the last one is two tokens short."""
    torch.manual_seed(2)
    ids = vlm.layout.image_ids_V
    sources = ids[torch.randint(len(ids), (len(WORDS), vlm.layout.tokens_per_image))].tolist()
    prompts = [vlm.fdm_prompt(source, words) for source, words in zip(sources, WORDS, strict=True)]
    spans = [vlm.target_span(ids[torch.randint(len(ids), (vlm.layout.tokens_per_image,))].tolist()) for _ in which]
    spans[-1] = spans[-1][:-2]
    before, after = max(map(len, prompts)), max(map(len, spans))
    sequences, mask = torch.full((len(which), before + after), vlm.layout.pad), torch.zeros(len(which), before + after)
    for row, number in enumerate(which):
        whole = [*prompts[number], *spans[row]]
        here = slice(before - len(prompts[number]), before + len(spans[row]))
        sequences[row, here], mask[row, here] = torch.tensor(whole), 1
    labels = sequences.masked_fill(mask == 0, IGNORED)
    labels[:, :before] = IGNORED
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": sequences, "attention_mask": mask.long(), "position_ids": positions, "labels": labels}
    return {**inputs, "own": after}  # type: ignore[dict-item]


def scored(vlm: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, and gradients of a sum of the former."""
    vlm.model.zero_grad()
    found = vlm.model(**inputs, fused_lm_head=True)
    own = inputs["own"]
    log_probs = found.log_probs[:, -own:]
    (torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs) * log_probs).sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in vlm.model.parameters() if p.grad is not None])
    return log_probs.detach(), found.entropy[:, -own:].detach(), gradients


@pytest.mark.parametrize(
    ("family", "guidance", "reentrant"),
    [("chameleon", 1.0, None), ("chameleon", 1.5, False), ("chameleon", 1.0, True), ("liquid", 1.0, False)],
)
def test_loss_and_gradients_are_those_of_rows_alone(
    family: str, guidance: float, reentrant: bool | None, share: Any, packed: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of several sizes in any order, prompts and rows of several lengths; LoRA; with guidance or without; fewer
    heads of keys than of queries; activations kept or, by both ways that torch has, computed again.
    """
    vlm = trainable(opened(family))
    monkeypatch.setattr(vlm.transformer().config, "_attn_implementation_internal", "sdpa")  # put back in the end
    score_under(vlm, TokenDistribution(vlm.layout.image_ids_V, 1.0, guidance), ["entropy"])
    inputs = rows_of(vlm, [2, 0, 1, 0, 2, 0])
    if guidance != 1:
        inputs = {name: value[:5] if torch.is_tensor(value) else value for name, value in inputs.items()}  # whole ones
    if reentrant is not None:
        vlm.model.train()
        vlm.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        vlm.model.enable_input_require_grads()
    share(ALONE)
    alone = scored(vlm, inputs)
    assert not packed
    share(TOGETHER)
    together = scored(vlm, inputs)
    branches = 1 if guidance == 1 else 2
    assert packed == [(3 * branches, len(inputs["input_ids"]) * branches, True)]
    for one, other in zip(alone[:2], together[:2], strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    scale = float(alone[2].abs().max())
    assert scale > 0
    assert torch.allclose(alone[2], together[2], atol=1e-5 * scale)
    share(ALONE)  # what the config says now changes no other pass
    for one, other in zip(alone, scored(vlm, inputs), strict=True):
        assert torch.equal(one, other)


def test_a_layer_runs_again_as_it_ran(share: Any, packed: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpointing each layer attends twice over prompts and rows together, whatever has run between."""
    vlm, calls = trainable(make_tiny()), []
    attend = packing.Packing.attend
    monkeypatch.setattr(packing.Packing, "attend", lambda *a, **k: (calls.append(1), attend(*a, **k))[1])
    score_under(vlm, TokenDistribution(vlm.layout.image_ids_V))
    vlm.model.train()
    vlm.model.gradient_checkpointing_enable({"use_reentrant": False})
    vlm.model.enable_input_require_grads()
    share(TOGETHER)
    found = vlm.model(**rows_of(vlm, [0, 0, 1]), fused_lm_head=True).log_probs
    with torch.no_grad():
        vlm.hidden_states(torch.tensor([[0, 40, 41]]))
    found.sum().backward()
    assert (len(packed), len(calls)) == (1, 4)


def test_every_reading_of_a_step_reads_prompts_once(tmp_path: Path, share: Any, packed: list) -> None:
    """Reference, check and loss, of both roles, as many rows at once as a pass has; two passes a step, whose groups
    stand together; the same figures as without.
    """
    names = ("loss", "grad_norm", "kl", "entropy", "reward", "sampling/sampling_logp_difference/max")
    two: dict[str, Any] = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    two |= {"beta": 0.1, "gradient_checkpointing": True}
    for make, rewards in ((trainer, [Reward.of(low_tokens)]), (sentence_trainer, ["fdm_likelihood"])):
        logs = []
        for tokens in (ALONE, TOGETHER):
            share(tokens)
            packed.clear()
            run = make(tmp_path / f"{make.__module__}-{tokens}", rewards, **two)
            run.train()
            assert run.sampler_trainer_gap < 1e-5
            logs.append([row[name] for row in run.state.log_history for name in names if name in row])
        without, loss = (1, 4, False), (1, 4, True)
        assert packed == [*[without] * 2, *[without] * 2, *[loss] * 2]  # reference, check of the first step, loss
        assert logs[0] == pytest.approx(logs[1], abs=1e-5, rel=1e-4)


def test_a_rollout_for_several_steps_stays_shuffled(tmp_path: Path, share: Any, packed: list) -> None:
    share(TOGETHER)
    off = {"gradient_accumulation_steps": 1, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    run = trainer(tmp_path, [Reward.of(low_tokens)], max_steps=2, **off)
    run.train()
    assert run.sampler_trainer_gap < 1e-5
    assert [one for one in packed if one[2]] == [(2, 4, True)] * 2  # of the two groups some of each


def test_a_pair_reads_its_prompt_once(tmp_path: Path, share: Any, packed: list) -> None:
    """DPO's policy and reference, in training and evaluation; prompts of several lengths, and of one short of them the
    pad; the same figures and weights as by TRL's own padding.
    """
    logs, weights = [], []
    for tokens in (ALONE, TOGETHER):
        share(tokens)
        packed.clear()
        vlm = trainable(make_tiny())
        spans = rows_of(vlm, [0, 1, 2, 0, 1, 2])
        ids = [row[mask.bool()].tolist() for row, mask in zip(spans["input_ids"], spans["attention_mask"], strict=True)]
        cut = [len(vlm.fdm_prompt([0] * vlm.layout.tokens_per_image, words)) for words in WORDS]
        pairs = Dataset.from_list(
            [
                {"prompt_ids": ids[n][: cut[n]], "chosen_ids": ids[n][cut[n] :], "rejected_ids": ids[n + 3][cut[n] :]}
                for n in range(3)
            ]
        )
        settings: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "ld_alpha": 0.5}
        settings |= {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 0.1, "logging_steps": 1}
        settings |= {"optim": "sgd", "gradient_checkpointing": True, "pad_to_multiple_of": 8, "eval_strategy": "steps"}
        settings |= {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "eval_steps": 2}
        run = WorldModelDPOTrainer(vlm, RewindDPOConfig(str(tmp_path), **settings), pairs, eval_dataset=pairs)
        run.train()
        assert packed == ([] if tokens == ALONE else [(3, 6, True), (3, 6, False)] * 2 + [(3, 6, False)] * 2)
        logs.append(run.state.log_history)
        weights.append(torch.cat([p.detach().flatten() for n, p in vlm.model.named_parameters() if ".default." in n]))
    for alone, shared in zip(*logs, strict=True):
        timed = ("runtime", "_per_second", "total_flos", "train_loss")
        for name in (name for name in alone if not name.endswith(timed)):
            assert alone[name] == pytest.approx(shared[name], abs=1e-5, rel=1e-4), name
    assert logs[0][0]["logps/chosen"] != logs[0][1]["logps/chosen"]
    assert torch.allclose(*weights, atol=1e-5)


def test_the_attention_is_named_under_the_backbones_lock(share: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that is in two parts puts back what it found: the name has to wait for it."""
    vlm, told = trainable(make_tiny()), []
    score_under(vlm, TokenDistribution(vlm.layout.image_ids_V))
    inputs = rows_of(vlm, [0, 0, 1])
    config = vlm.transformer().config
    monkeypatch.setattr(config, "_attn_implementation_internal", "sdpa")

    class Noted:
        def __enter__(self) -> None:
            told.append(config._attn_implementation)

        def __exit__(self, *_: Any) -> None:
            told.append(config._attn_implementation)

    share(TOGETHER)
    monkeypatch.setattr(vlm, "_lock", Noted())
    vlm.model(**inputs, fused_lm_head=True)
    assert told == ["sdpa", SHARED_PREFIX]


@pytest.mark.parametrize("half_base", [False, True], ids=["autocast", "bf16"])
def test_in_half_precision(half_base: bool, share: Any, packed: list) -> None:
    """Under autocast and with weights in bfloat16 as near to float32 as rows that are read for themselves."""
    vlm = trainable(make_tiny())
    score_under(vlm, TokenDistribution(vlm.layout.image_ids_V))
    inputs, found = rows_of(vlm, [2, 0, 1, 0, 2, 0]), {}
    with torch.no_grad():
        exact = vlm.model(**inputs, fused_lm_head=True).log_probs[:, -inputs["own"] :]
        if half_base:
            vlm.model.to(torch.bfloat16)
        for tokens in (ALONE, TOGETHER):
            share(tokens)
            with torch.autocast("cpu", torch.bfloat16, enabled=not half_base):
                found[tokens] = vlm.model(**inputs, fused_lm_head=True).log_probs[:, -inputs["own"] :]
    assert len(packed) == 1
    alone, together = (float((found[tokens] - exact).abs().mean()) for tokens in (ALONE, TOGETHER))
    assert 0 < together < 1.5 * alone


def test_rows_that_are_read_for_themselves(
    share: Any, packed: list, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts that all differ, and attention that was asked for by name, which is said once."""
    vlm = trainable(make_tiny())
    score_under(vlm, TokenDistribution(vlm.layout.image_ids_V))
    share(TOGETHER)
    vlm.model(**rows_of(vlm, [0, 1, 2]), fused_lm_head=True)
    config = vlm.transformer().config
    monkeypatch.setattr(packing, "_told", set())
    monkeypatch.setattr(config, "_attn_implementation_internal", "eager")
    for _ in range(2):
        vlm.model(**rows_of(vlm, [0, 0, 2]), fused_lm_head=True)
    assert not packed
    assert caplog.text.count("attention by eager reads a prompt anew for each candidate in training") == 1
    monkeypatch.undo()
    assert config._attn_implementation in ("sdpa", SHARED_PREFIX)


def test_dead_groups_are_dealt_out_evenly() -> None:
    """Live groups stand together, and no pass is without a token as long as there are enough."""
    prompts = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])
    live = (prompts == 1) | (prompts == 3)
    rows = {
        "prompt_ids": prompts[:, None],
        "completion_mask": live[:, None].long().expand(-1, 2),
        "number": torch.arange(12),
        "words": [str(n) for n in range(12)],
    }
    passes = [{name: value[begin : begin + 6] for name, value in rows.items()} for begin in (0, 6)]
    one, two = together(passes)
    assert [part["prompt_ids"][:, 0].tolist() for part in (one, two)] == [[1, 1, 1, 0, 0, 0], [3, 3, 3, 2, 2, 2]]
    for part in (one, two):
        assert part["words"] == [str(n) for n in part["number"].tolist()]
    assert sorted([*one["number"].tolist(), *two["number"].tolist()]) == list(range(12))
