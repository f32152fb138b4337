"""`scripts/fit_reward.py` in Python: a mix is fitted on a model's own candidates of labelled triplets."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from rewards import load_rewards
from rewards.mix import with_mixes
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics
from rl.triplets import Triplet
from trainers.common.candidates import scored_groups
from trainers.rerank.fitting import (
    check_terms,
    fitted,
    in_words,
    measured,
    mix_of_fit,
    write_mix,
)
from trainers.rerank.usual_change import UsualChange


def test_a_mix_is_fitted_on_a_models_own_candidates(tiny: ChameleonVLM, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (60, 2, tiny.image_size, tiny.image_size, 3), dtype=np.uint8)
    triplets = [Triplet(a, "lift the cup", b) for a, b in pictures]
    arguments = {"keep_unchanged": UsualChange(tiny, triplets).arguments}
    assert set(arguments["keep_unchanged"]) == {"default", "usual"}
    paths = ["keep_unchanged", "fdm_confidence"]
    rewards = load_rewards(paths, arguments=arguments)
    groups = list(scored_groups(ForwardDynamics(tiny), rewards, triplets, 4))
    found, about = fitted(groups, rewards, tiny)
    mix = mix_of_fit(found, paths, paths, arguments, about)
    write_mix(mix, [tmp_path])
    assert with_mixes(["fitted"], {}, tmp_path) == (mix["rewards"], mix["reward_arguments"])
    assert mix["triplets"] == 60
    assert mix["num_candidates"] == 4
    assert mix["rewards"][0].endswith("=1")
    assert "the most like of them" in in_words(mix, paths)


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        (["runs/fit/reward.json", "fdm_confidence"], "'runs/fit/reward.json' is a mix that was fitted"),
        (["fitted", "fdm_confidence"], "'fitted' is a mix that was fitted"),
        (["idm_margin=2", "fdm_confidence"], "'idm_margin=2' has a weight"),
        (["idm_margin"], "one reward alone needs no weight"),
    ],
)
def test_terms_of_a_fit_are_rewards_without_weights(
    rewards: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = ["--fdm", "none", "--triplets", "none.json", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["fit_reward.py", *given, "--rewards", *rewards])
    with pytest.raises(RewindError, match=sentence):
        runpy.run_path(str(ROOT / "scripts" / "fit_reward.py"))["main"]()


def test_a_reward_that_knows_the_truth_is_no_term() -> None:
    """It would win the fit, and score nothing where the mix then chooses."""
    with pytest.raises(RewindError, match="'target_distance' asks for the true target, which is not known"):
        check_terms(load_rewards(["copy_penalty", "target_distance"]))


@pytest.mark.parametrize("task", [None, "move"])
def test_a_fit_weighs_what_usually_changes_by_other_triplets(tiny: ChameleonVLM, task: str | None) -> None:
    """Its own true target must not say how much a triplet may change: new ones will have none."""
    rng = np.random.default_rng(0)
    side = tiny.image_size
    sources = rng.integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    targets = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8), *sources[1:3], sources[3]]  # one changes
    words = ["push the cup", "push the box", "push the box", "sing"]
    triplets = [Triplet(a, b, c, task) for a, b, c in zip(sources, words, targets, strict=True)]
    usual = UsualChange(tiny, triplets)
    most = usual.counts[0]
    assert most > 0
    assert usual.counts[1:] == [0, 0, 0]
    if task is None:
        assert usual.arguments["usual"] == {"push the cup": most, "push the box": 0.0, "sing": 0.0}
        assert usual.without(0) == 0.0  # by 'push the box', whose words are nearest
        assert usual.without(1) == 0.0  # by the other one of the same words
        assert usual.without(3) == usual.arguments["default"]  # nothing shares a word with it
    else:
        assert [usual.without(n) for n in range(4)] == [0.0] * 4
    rewards = load_rewards(["keep_unchanged"], arguments={"keep_unchanged": usual.arguments})
    groups = list(scored_groups(ForwardDynamics(tiny), rewards, triplets, 2))
    by_all, _, _ = measured(tiny, groups, ["keep_unchanged"])
    by_others, _, _ = measured(tiny, iter(groups), ["keep_unchanged"], usual)
    ids = [[one.candidate.ids for one in group] for _, group in groups]
    source = tiny.encode([sources[0]]).cpu().numpy()[0]
    assert by_others[0, :, 0].tolist() == [-float(tiny.changed(x, source).sum()) for x in ids[0]]
    if task is None:
        assert (by_all[0] > by_others[0]).all()
        assert np.array_equal(by_all[1], by_others[1])


def test_a_fit_holds_few_groups_at_once(tiny: ChameleonVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come one after the other, those that a term cannot score are left out, and the figures are the same."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 2, tiny.image_size, tiny.image_size, 3), dtype=np.uint8)
    triplets = [Triplet(a, "lift the cup", b) for a, b in pictures]
    groups = list(scored_groups(ForwardDynamics(tiny), load_rewards(["copy_penalty"]), triplets, 3))
    groups[2] = (groups[2][0], [replace(one, scores={"copy_penalty": None}) for one in groups[2][1]])
    terms, alike, left = measured(tiny, groups, ["copy_penalty"])
    usual = UsualChange(tiny, triplets).arguments
    assert (terms.shape, alike.shape, left) == ((4, 3, 1), (4, 3), 1)
    monkeypatch.setattr("trainers.rerank.fitting.AT_ONCE", 2)
    monkeypatch.setattr("trainers.rerank.usual_change.AT_ONCE", 2)
    again = measured(tiny, iter(groups), ["copy_penalty"])
    assert np.array_equal(again[0], terms)
    assert np.array_equal(again[1], alike)
    assert UsualChange(tiny, triplets).arguments == usual
    with pytest.raises(RewindError, match="no candidate has a score by all of copy_penalty"):
        measured(tiny, groups[2:3], ["copy_penalty"])
