"""A mix of rewards whose weights come from labelled triplets: the fit, its file, and who uses it by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from peft import LoraConfig

from rewards import Batch, load_rewards
from rewards.fitting import FEWEST, Fit, fit, numbers_of
from rewards.keep_unchanged import KeepUnchanged
from rewards.mix import MIX_FILE, default_rewards, resolve, with_mixes
from rl import load_fdm, rerank, rollout
from rl.errors import RewindError
from rl.evaluation.premise import likeness
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.search.best_of_n import expected_best
from trainers.common.adapters import add_adapter, save_adapter
from trainers.grpo.arguments import GRPOArguments
from trainers.rerank.fitting import (
    better_alone,
    mix_of_fit,
)


def two_terms_and_noise(sources: int = 80, count: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Two terms that each see half of what is right, in other units, and one that sees nothing."""
    rng = np.random.default_rng(0)
    halves = rng.integers(0, 2, (sources, count, 2)).astype(float)
    noise = rng.normal(size=(sources, count, 3))
    terms = np.concatenate([halves * [1.0, 100.0], np.zeros((sources, count, 1))], -1) + noise * [0.2, 20.0, 1.0]
    return terms, halves.prod(-1)


def test_terms_that_help_are_weighed_in_their_own_units_and_beat_each_alone() -> None:
    terms_SNR, likeness_SN = two_terms_and_noise()
    found = fit(terms_SNR, likeness_SN)
    first, second, nothing = found.weights
    assert 0.2 < first / (100 * second) < 5
    assert nothing < 0.2 * first
    for alone in found.alone:
        assert found.held_out[8] > alone[8] + 0.1
    assert found.by_n[1] == found.held_out[1] == pytest.approx(likeness_SN.mean(), abs=1e-4)
    assert found.best[8] == pytest.approx(likeness_SN.max(1).mean(), abs=1e-4)


def test_a_term_that_says_nothing_or_the_opposite_has_no_weight() -> None:
    terms_SNR, likeness_SN = two_terms_and_noise()
    useless = np.stack([np.full_like(likeness_SN, 3.0), -likeness_SN], -1)
    found = fit(np.concatenate([terms_SNR[..., :2], useless], -1), likeness_SN)
    assert found.weights[2:] == [0.0, 0.0]
    assert min(found.weights[:2]) > 0


def test_the_value_of_a_mix_is_the_unbiased_estimate_of_best_of_n() -> None:
    terms_SNR, likeness_SN = two_terms_and_noise(40, 6)
    found = fit(terms_SNR[..., :1], likeness_SN)
    assert numbers_of(6) == [1, 2, 4, 6]
    for n, value in found.alone[0].items():
        by_hand = [expected_best(t, x, n) for t, x in zip(terms_SNR[..., 0].tolist(), likeness_SN, strict=True)]
        assert value == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_a_term_that_alone_chooses_better_is_taken_alone() -> None:
    """What all terms together give on triplets of their own may be less, where there are few."""
    values = ({1: 0.3, 2: 0.5}, {1: 0.3, 2: 0.4}, [{1: 0.3, 2: 0.35}, {1: 0.3, 2: 0.45}], {1: 0.3, 2: 0.6})
    found = Fit([2.0, 1.0], *values, [(-0.05, 0.01), (0.05, 0.02)])
    assert better_alone(found) == 1
    mix = mix_of_fit(
        found, ["a.py:f", "keep_unchanged"], ["f", "keep_unchanged"], {"keep_unchanged": {"default": 2}}, {}
    )
    assert mix["rewards"] == ["keep_unchanged=1"]
    assert mix["reward_arguments"] == {"keep_unchanged": {"default": 2}}
    assert mix["unused_arguments"] == {}
    other = mix_of_fit(found, ["keep_unchanged", "g"], ["keep_unchanged", "g"], {"keep_unchanged": {"default": 2}}, {})
    assert (other["reward_arguments"], other["unused_arguments"]) == ({}, {"keep_unchanged": {"default": 2}})
    better = replace(found, leads=[(-0.05, 0.01), (0.05, 0.03)])  # within its noise
    assert better_alone(better) is None
    assert mix_of_fit(better, ["a.py:f", "keep_unchanged"], ["f", "keep_unchanged"], {}, {})["rewards"] == [
        "a.py:f=1",
        "keep_unchanged=0.5",
    ]


def test_too_few_triplets_to_choose_from_are_refused() -> None:
    terms_SNR, likeness_SN = two_terms_and_noise(40)
    likeness_SN[FEWEST - 1 :] = 1.0
    with pytest.raises(RewindError, match=r"15 of 40 triplets .* needs 16"):
        fit(terms_SNR, likeness_SN)


def test_likeness_counts_the_tokens_that_changed_or_should_have() -> None:
    changed, should = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool)
    assert likeness(changed, should, np.array([0, 1, 1, 0], bool)) == pytest.approx(1 / 3)
    assert likeness(should, should, np.zeros(4, bool)) == 1.0
    assert likeness(np.zeros(4, bool), should, should) == 0.0  # a copy
    assert likeness(np.zeros(4, bool), np.zeros(4, bool), np.zeros(4, bool)) == 1.0


def written(folder: Path, **more: object) -> Path:
    mix = {"rewards": ["copy_penalty=2", "keep_unchanged=0.5"], "reward_arguments": {"copy_penalty": {"least": 3}}}
    folder.mkdir(exist_ok=True)
    (folder / MIX_FILE).write_text(json.dumps({**mix, **more}))
    return folder


def test_a_mix_stands_for_its_terms(tmp_path: Path) -> None:
    run = written(tmp_path / "run")
    assert default_rewards(run) == ["fitted"]
    assert default_rewards(run, temperature=0.0) == ["idm_likelihood"]
    assert default_rewards(tmp_path) == default_rewards(None) == ["idm_likelihood"]
    specs, arguments = with_mixes(["fitted=0.5", "idm_margin"], {"keep_unchanged": {"default": 1}}, run)
    assert specs == ["copy_penalty=1", "keep_unchanged=0.25", "idm_margin"]
    assert arguments == {"copy_penalty": {"least": 3}, "keep_unchanged": {"default": 1}}
    without = written(tmp_path / "none", rewards=["idm_margin=1"], unused_arguments={"keep_unchanged": {"default": 7}})
    assert with_mixes(["fitted"], {}, without)[1] == {"copy_penalty": {"least": 3}}
    assert with_mixes(["fitted", "keep_unchanged"], {}, without)[1]["keep_unchanged"] == {"default": 7}
    by_hand = with_mixes([str(run / MIX_FILE)], {"copy_penalty": {"least": 1}}, None)[1]
    assert by_hand == {"copy_penalty": {"least": 1}}
    loaded = load_rewards("fitted", run=run)
    assert [(reward.name, reward.weight) for reward in loaded] == [("copy_penalty", 2.0), ("keep_unchanged", 0.5)]
    given = SimpleNamespace(rewards=["fitted"], reward_arguments=None, fdm=str(run))
    resolve(given)
    assert given.rewards == ["copy_penalty=2", "keep_unchanged=0.5"]
    assert given.reward_arguments == {"copy_penalty": {"least": 3}}


def test_training_on_a_mix_asks_the_start_how_likely_a_candidate_is(tmp_path: Path) -> None:
    run = written(tmp_path / "run", rewards=["idm_margin=1", "fdm_confidence=9"], reward_arguments={})
    given = GRPOArguments(fdm=str(run), rewards=["fitted"])
    assert given.rewards == ["idm_margin=1", "fdm_confidence=9"]
    assert given.reward_arguments == {"fdm_confidence": {"fdm": str(run)}}
    assert GRPOArguments(fdm=str(run), rewards=["fdm_confidence"]).reward_arguments is None
    weighed = GRPOArguments(fdm=str(run), rewards=["fitted", "fdm_confidence=1", "keep_unchanged=0.2"])
    assert weighed.rewards == ["idm_margin=1", "fdm_confidence=1", "keep_unchanged=0.2"]  # as named, not as fitted
    assert weighed.reward_arguments == given.reward_arguments


def test_a_frozen_forward_model_beside_the_one_that_is_trained(tmp_path: Path) -> None:
    """It shares the base, gives what the run gives alone, and does not move with the policy."""
    vlm = load_fdm("tabletop-chameleon").backbone
    add_adapter(vlm, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    save_adapter(vlm, tmp_path, role="fdm")
    source = np.zeros((64, 64, 3), np.uint8)
    group = ForwardDynamics(vlm, "default").sample(source, "lift the cup", 3)
    alone = ForwardDynamics(vlm, "default").score([source] * 3, group, ["lift the cup"] * 3)
    frozen = load_rewards("fdm_confidence", InverseDynamics(vlm), arguments={"fdm_confidence": {"fdm": str(tmp_path)}})
    assert frozen[0].function.fdm.backbone is vlm  # type: ignore[attr-defined]
    for name, parameter in vlm.model.named_parameters():
        if ".default." in name:
            parameter.data.zero_()
    batch = Batch(["lift the cup"] * 3, group, [source] * 3)
    assert frozen[0](batch) == pytest.approx(list(alone), abs=1e-5)


def test_a_mix_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match=r"no fitted mix of rewards \(.* has no reward.json\): fit one with"):
        with_mixes(["fitted"], {}, tmp_path)
    with pytest.raises(RewindError, match="no forward model's run is given"):
        load_rewards("fitted")
    with pytest.raises(RewindError, match=r"there is no file .*other\.json"):
        with_mixes([str(tmp_path / "other.json")], {}, None)
    with pytest.raises(RewindError, match="holds no mix of rewards"):
        with_mixes(["fitted"], {}, written(tmp_path / "run", rewards=[]))
    with pytest.raises(RewindError, match="'reward_arguments' are no mapping by reward"):
        with_mixes(["fitted"], {}, written(tmp_path / "run", reward_arguments=[1]))
    with pytest.raises(RewindError, match="holds a mix of mixes"):
        with_mixes(["fitted"], {}, written(tmp_path / "run", rewards=["fitted=2"], reward_arguments={}))


def test_rerank_takes_the_mix_of_the_models_run(tiny: ChameleonVLM, picture: np.ndarray, tmp_path: Path) -> None:
    fdm = ForwardDynamics(tiny)
    fdm.run = str(written(tmp_path / "run"))
    found = rerank(fdm, None, picture, "lift the cup", num_candidates=2)
    assert set(found.best.scores) == {"copy_penalty", "keep_unchanged"}
    with pytest.raises(RewindError, match="'fitted' were fitted to scores as they are: leave out normalise=True"):
        rerank(fdm, None, picture, "lift the cup", num_candidates=2, normalise=True)
    asked = SimpleNamespace(rewards=["fitted=2"], reward_arguments=None, fdm=fdm.run, normalise_rewards=True)
    with pytest.raises(RewindError, match="leave out --normalise_rewards"):
        resolve(asked)
    fdm.run = None
    with pytest.raises(RewindError, match="needs an inverse model"):
        rerank(fdm, None, picture, "lift the cup", num_candidates=2)


def test_a_rollout_without_an_inverse_model_takes_a_mix_that_needs_none(
    tiny: ChameleonVLM, picture: np.ndarray, tmp_path: Path
) -> None:
    fdm, words = ForwardDynamics(tiny), ["lift the cup", "remove all rings"]
    fdm.run = str(written(tmp_path / "run"))
    steps = rollout(fdm, picture, words, num_candidates=2)
    assert [set(step.best.scores) for step in steps] == [{"copy_penalty", "keep_unchanged"}] * 2
    assert rollout(fdm, picture, words)[0].score is None  # one sample is taken as it comes
    with pytest.raises(RewindError, match="something to choose by"):
        rollout(fdm, picture, words, num_candidates=2, temperature=0.0)
    written(tmp_path / "run", rewards=["idm_margin=1"], reward_arguments={})
    with pytest.raises(RewindError, match="the reward 'idm_margin' needs an inverse model"):
        rollout(fdm, picture, words, num_candidates=2)


def test_usual_change_of_a_sentence_is_that_of_the_nearest() -> None:
    keep = KeepUnchanged(usual={"push the box": 4.0, "push the ball": 6.0, "turn left": 1.0}, default=9.0)
    changed = [np.ones(8, bool)] * 4
    prompts = ["push the box", "push the cup", "turn right", "sing"]
    assert keep(changed, [None] * 4, prompts) == [-4 / 4, -3 / 5, -7 / 1, 0.0]
    assert KeepUnchanged({"move": 2.0}, usual={"sing": 1.0})([np.ones(8, bool)], ["move"], ["sing"]) == [-3.0]
