"""GRPO of the inverse role: sentences of their own lengths, one distribution, and a forward model that stands still.

What SWIRL's published code does otherwise (arXiv 2602.06130: reward prompts that are not the training's, questions
drawn at random, sums in half precision, prompts that are thrown away, a divisor that grows with the processes) is a
test here, in `test_rewards_of_sentences.py` or (the last) in `test_sharding.py`.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from transformers import TrainerCallback, set_seed

from rewards import Reward, load_rewards
from rl.data.candidates.sentence_store import SentenceStore
from rl.errors import RewindError
from rl.models.distribution import TokenDistribution
from rl.models.families.chameleon import ChameleonVLM
from rl.models.known import LINEAR_LAYERS
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter, only_policy_trains
from trainers.common.checkpoints import fit
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.monitors import Monitors, rules_of
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.watches_sentences import SENTENCE_RULES, WatchesSentences

pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(count: int) -> list[Triplet]:
    """Half of them have words."""
    pictures = np.random.default_rng(0).integers(0, 256, (2 * count, 32, 32, 3), dtype=np.uint8)
    words = ["", "remove all rings"]
    return [Triplet(pictures[2 * i], words[i % 2], pictures[2 * i + 1]) for i in range(count)]


def backbone(dropout: float = 0.0) -> ChameleonVLM:
    set_seed(0)
    vlm = make_tiny()
    few = sorted({*vlm.text_ids("move the red circle left")[:7], vlm.layout.end_text})  # so that some sentences end
    vlm.layout = replace(vlm.layout, text_ids_V=torch.tensor(few))
    for name in ("default", "fdm"):
        config = LoraConfig(r=4, target_modules=LINEAR_LAYERS, lora_dropout=dropout, init_lora_weights=False)
        add_adapter(vlm, config, name)
    only_policy_trains(vlm)
    return vlm


def brief(completions: list[str], **_: Any) -> list[float]:
    """Something that a policy can learn in a few steps."""
    return [-float(len(text)) for text in completions]


def trainer(
    folder: Path, rewards: list[Any], extra: dict[str, Any] | None = None, dropout: float = 0.0, **settings: Any
) -> WorldModelGRPOTrainer:
    vlm = backbone(dropout)
    fdm = ForwardDynamics(vlm, "fdm")
    loaded = load_rewards(rewards, fdm=fdm, actions=["move the red circle left"], role="idm")
    defaults = {"max_steps": 1, "learning_rate": 1e-3, "num_generations": 4, "per_device_train_batch_size": 8}
    defaults |= {"gradient_checkpointing": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no"}
    defaults |= {"loss_type": "dr_grpo", "disable_tqdm": True}
    arguments = RewindGRPOConfig(output_dir=str(folder), **{**defaults, **settings})
    more: dict[str, Any] = {"max_sentence_tokens": 6, "role": "idm", **(extra or {})}
    return WorldModelGRPOTrainer(vlm, pairs(8), loaded, arguments, **more)


def logged(run: WorldModelGRPOTrainer, name: str) -> list[float]:
    return [row[name] for row in run.state.log_history if name in row]


def test_sampler_and_loss_see_one_distribution_at_any_temperature(tmp_path: Path) -> None:
    """In half precision too, log-probabilities are float32 and compared at every step (SWIRL's fourth trap)."""
    run = trainer(tmp_path, ["fdm_likelihood"], dropout=0.3, beta=0.1, temperature=1.3, max_steps=2)
    run.train()
    assert run.sampler_trainer_gap < 1e-4
    assert max(logged(run, "sampling/sampling_logp_difference/max")) < 1e-4
    assert logged(run, "kl")[0] == pytest.approx(0.0, abs=1e-4)  # the reference is the policy's own start
    lengths = {len(row.candidate.ids) for row in run.last_rows}
    assert len(lengths) > 1  # ragged, or nothing is tested
    assert run.max_completion_length == 6
    assert 0 < logged(run, "exact_match")[0] + 1 <= 2


def test_a_gap_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rl.models.saying as module

    run = trainer(tmp_path, [brief])
    draw = module.sample_tokens

    def other(vlm: ChameleonVLM, prompts: Any, distribution: TokenDistribution, **settings: Any) -> Any:
        return draw(vlm, prompts, TokenDistribution(distribution.allowed_ids_V, temperature=1.1), **settings)

    monkeypatch.setattr(module, "sample_tokens", other)
    with pytest.raises(RewindError, match="the sampler and the loss disagree by"):
        run.train()


def test_the_end_is_drawn_and_padding_counts_nowhere(tmp_path: Path) -> None:
    """Also where a family pads with the very id that ends a text."""
    run = trainer(tmp_path, [brief])
    output = run._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])
    end, vlm = run.vlm.layout.end_text, run.vlm
    assert run.eos_token_ids == [end]
    for row, ids, mask in zip(run.last_rows, output["completion_ids"], output["completion_mask"], strict=True):
        said = row.candidate
        assert ids[: len(said.ids)].tolist() == said.ids.tolist()
        assert mask.tolist() == [1] * len(said.ids) + [0] * (len(ids) - len(said.ids))
        assert said.ended == (said.ids[-1] == end)
        assert end not in said.ids[:-1]
        assert len(said.logprobs) == len(said.ids)
    drawn = [row.candidate for row in run.last_rows]
    assert {said.ended for said in drawn} == {True, False}
    # one row's log-probabilities are those that the inverse model itself gives to the same tokens
    idm = InverseDynamics(vlm, "default")
    whole = next(row for row in run.last_rows if row.candidate.ended and row.candidate.text)
    (again,) = idm.log_probs([whole.triplet.source], [whole.triplet.target], [whole.candidate.text])  # type: ignore[list-item]
    if vlm.action_ids(whole.candidate.text) == whole.candidate.ids.tolist():
        assert again == pytest.approx(whole.candidate.logprobs, abs=1e-4)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    padded = ids.masked_fill(mask == 0, end)
    run.vlm.layout = replace(run.vlm.layout, pad=end)
    width = output["completion_ids"].shape[1]
    for one in (ids, padded):
        found, _, _ = run._get_per_token_logps_and_entropies(run.model, one, mask, width)
        kept = output["completion_mask"].bool()
        assert torch.allclose(found[kept], output["sampling_per_token_logps"][kept], atol=1e-4)
        assert not found[~kept].any()


def test_prompts_are_those_of_supervised_training(tmp_path: Path) -> None:
    """SWIRL's first two traps: the same prompt in SFT, policy and reward, and nothing drawn anew for a candidate."""
    run = trainer(tmp_path, ["fdm_likelihood"])
    run._generate_and_score_completions([{"prompt": "1"}] * 4 + [{"prompt": "2"}] * 4)
    vlm = run.vlm
    for row in run.last_rows:
        source, target = (ids.tolist() for ids in vlm.encode([row.triplet.source, row.triplet.target]))  # type: ignore[list-item]
        assert row.prompt_ids() == vlm.idm_prompt(source, target)
    by_hand = ForwardDynamics(vlm, "fdm")
    first, again = run.last_rows[0], [row for row in run.last_rows if row.candidate.text][-1]
    for row in (first, again):
        if row.candidate.text:
            (expected,) = by_hand.log_probs([row.triplet.source], [row.triplet.target], [row.candidate.text])
            assert row.scored.total == pytest.approx(float(expected.sum()), abs=1e-4)


def test_every_prompt_of_an_epoch_is_drawn_once(tmp_path: Path) -> None:
    """SWIRL's fifth trap: of a data loader whose batches are one prompt's, three of four prompts were thrown away."""
    run = trainer(tmp_path, [brief], max_steps=4)
    seen: list[int] = []
    told = run.role.told
    run.role.told = lambda rows: (seen.extend(row.number for row in rows), told(rows))[1]  # type: ignore[method-assign]
    run.train()
    assert sorted(seen) == [number for number in range(8) for _ in range(4)]


def test_a_resumed_run_ends_with_the_same_bytes_and_the_judge_stands_still(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "beta": 0.1, "learning_rate": 0.01}

    def make(name: str) -> WorldModelGRPOTrainer:
        monitors = Monitors(
            rules_of(["all"], usual=SENTENCE_RULES),
            tmp_path / f"{name}.json",
            watches=WatchesSentences(pairs(8), tmp_path / f"{name}-start.json"),
        )
        return trainer(tmp_path / name, ["fdm_margin"], {"monitors": monitors}, **settings)

    whole = make("whole")
    before = {name: weight.clone() for name, weight in whole.model.named_parameters() if ".fdm." in name}
    whole.train()
    cut = make("cut")

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step >= 3
            control.should_save = control.should_save and state.global_step < 3

    cut.add_callback(Stop())
    cut.train()
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4", ignore_errors=True)
    again = make("cut")
    fit(again, tmp_path / "cut", resume=True)
    assert before
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, whole.model.get_parameter(name)), name
        assert ".fdm." not in name or torch.equal(weight, before[name]), name
    assert logged(again, "reward") == logged(whole, "reward")


def test_sentences_are_measured_and_what_waits_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainers.grpo.monitors as module

    monkeypatch.setattr(module, "ENOUGH", 8)
    watches = WatchesSentences(pairs(8), tmp_path / "start.json")
    monitors = Monitors(rules_of(["all"], usual=SENTENCE_RULES), tmp_path / "monitors.json", watches=watches)
    run = trainer(tmp_path, [brief], {"monitors": monitors}, max_steps=2, learning_rate=0.05)
    run.train()
    assert len(json.loads((tmp_path / "start.json").read_text())["sentences"]) == 8
    assert logged(run, "monitors/as_start")[0] == 1.0  # nothing has been learned yet
    triplets, scored = [row.triplet for row in run.last_rows], [row.scored for row in run.last_rows]
    found = watches.measure(triplets, scored, 4, None)
    texts = [row.candidate.text for row in run.last_rows]
    assert found["distinct"] == (len(set(texts[:4])) + len(set(texts[4:]))) / 8
    assert found["empty"] == np.mean([not text for text in texts])
    assert found["cut_off"] == np.mean([not row.candidate.ended for row in run.last_rows])
    watches.write(tmp_path / "waiting.safetensors", triplets, scored)
    rows, kept = watches.read(tmp_path / "waiting.safetensors")
    assert watches.measure(rows, kept, 4, None) == found

    class Judge:
        def score(self, sources: Any, targets: Any, actions: list[str]) -> list[float]:
            assert all(action.strip() for action in actions)
            return [-2.0] * len(actions)

    judge: Any = Judge()
    assert watches.measure(rows, kept, 4, judge)["judge_idm"] == -2.0


def test_what_was_said_is_stored_and_shown(tmp_path: Path) -> None:
    store = SentenceStore(tmp_path / "sentences", "runs/fdm")
    extra = {"store": store, "validation": pairs(10)[8:]}
    settings = {"eval_strategy": "steps", "eval_steps": 1, "report_to": "tensorboard", "max_steps": 2}
    run = trainer(tmp_path, [brief], extra, **settings)
    run.train()
    rows = store.rows()
    assert len(rows) == 16
    assert {row["step"] for row in rows} == {0, 1}
    assert {row["true_action"] for row in rows} <= {None, "remove all rings"}
    for row in rows:
        assert row["scores"] == [-float(len(row["text"]))] == [row["total"]]
        assert len(row["ids"]) == len(row["logprobs"])
    assert len(logged(run, "eval_reward")) == 2
    with pytest.raises(RewindError, match="holds no scored sentences"):
        SentenceStore(tmp_path / "none").rows()


def test_options_of_the_other_role_are_refused(tmp_path: Path) -> None:
    for extra, sentence in (
        ({"guidance": 1.5}, "--guidance 1.5 is not used with --role idm"),
        ({"importance_advantages": "group"}, "--importance_advantages group is not used with --role idm"),
        ({"rollout_steps": 2}, "--rollout_steps 2 is not used with --role idm"),
        ({"role": "fdm"}, "--max_sentence_tokens is of --role idm"),
        ({"validation": [Triplet(pairs(1)[0].source, "go")]}, "a pair lacks its target"),
    ):
        with pytest.raises(RewindError, match=sentence):
            trainer(tmp_path, [brief], extra)
    with pytest.raises(RewindError, match="a sentence ends by itself: use --max_sentence_tokens"):
        trainer(tmp_path, [brief], max_completion_length=12)

    def of_pictures(predicted_ids: list[list[int]]) -> list[float]:
        return [0.0] * len(predicted_ids)

    with pytest.raises(RewindError, match="'of_pictures' asks for 'predicted_ids', so it scores predicted"):
        trainer(tmp_path, [Reward.of(of_pictures)])


def test_sentences_that_were_cut_off_can_be_left_out(tmp_path: Path) -> None:
    run = trainer(tmp_path, [brief], mask_truncated_completions=True)
    output = run._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])
    ended = [row.candidate.ended for row in run.last_rows]
    assert [bool(n) for n in output["completion_mask"].sum(1)] == ended
    assert not all(ended)


def test_a_sentence_counts_with_its_whole_log_likelihood(tmp_path: Path) -> None:
    """`dr_grpo` divides by a constant: at beta 1, with summed rewards, what is climbed is the ELBO's own gradient."""
    run = trainer(tmp_path, ["fdm_likelihood"], beta=1.0)
    output = run._generate_and_score_completions([{"prompt": str(n)} for n in (0, 0, 0, 0, 1, 1, 1, 1)])
    totals = np.array([row.scored.total for row in run.last_rows]).reshape(2, 4)
    centred = (totals - totals.mean(1, keepdims=True)).ravel()
    assert output["advantages"].numpy() == pytest.approx(centred, abs=1e-4)
    lengths = np.array([len(row.candidate.ids) for row in run.last_rows])
    assert len(set(lengths.tolist())) > 1
    run.current_gradient_accumulation_steps = 1  # transformers sets it in a step
    with torch.no_grad():
        loss = run._compute_loss(run.model, output)
    assert float(loss) == pytest.approx(-(centred * lengths).sum() / (8 * 6), abs=1e-4)  # the KL to the start is 0


@pytest.mark.slow
def test_the_reward_goes_up(tmp_path: Path) -> None:
    run = trainer(tmp_path, [brief], max_steps=30, per_device_train_batch_size=32, learning_rate=5e-3)
    run.train()
    rewards = logged(run, "reward")
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 1
    assert math.isfinite(rewards[-1])
