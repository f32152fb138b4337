"""The public doors say in one sentence what they were given, and nothing of ours is deprecated."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from rl import load_fdm, load_idm, rerank, rollout
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.triplets import Candidate

WORDS = "remove all rings"
Call = Callable[[ForwardDynamics, InverseDynamics, np.ndarray], Any]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda f, i, x: f.sample(x, WORDS, seed=None), "a seed must be a whole number, not None"),
        (lambda f, i, x: f.sample(x, WORDS, seed=1.0), "a seed must be a whole number, not 1.0"),
        (lambda f, i, x: f.sample(x, WORDS, 2.0), "num_samples must be a whole number, not 2.0"),
        (lambda f, i, x: f.sample(x, WORDS, True), "num_samples must be a whole number, not True"),
        (lambda f, i, x: f.sample(x, WORDS, max_rows=0), "max_rows must be at least 1, not 0"),
        (lambda f, i, x: f.sample(x, WORDS, first=-1), "first must be at least 0, not -1"),
        (lambda f, i, x: f.sample(x, WORDS, step=0.5), "a step must be a whole number, not 0.5"),
        (lambda f, i, x: f.sample(x, WORDS, temperature=None), "the temperature must be a number, not None"),
        (lambda f, i, x: f.sample(x, WORDS, guidance="2"), "guidance must be a number, not '2'"),
        (lambda f, i, x: f.sample(x, WORDS, top_k=5.0), "top_k must be a whole number, not 5.0"),
        (lambda f, i, x: f.sample(x, WORDS, top_p="0.9"), "top_p must be a number, not '0.9'"),
        (lambda f, i, x: f.score(x, [x], WORDS, temperature="1"), "the temperature must be a number, not '1'"),
        (lambda f, i, x: rerank(f, i, x, WORDS, 2.0), "num_candidates must be a whole number, not 2.0"),
        (lambda f, i, x: rerank(f, i, x, WORDS, 0), "num_candidates must be at least 1, not 0"),
        (lambda f, i, x: rerank(f, i, x, WORDS, 2, seed=None), "a seed must be a whole number, not None"),
        (lambda f, i, x: rerank(f, i, x, WORDS, 2, max_rows=0), "max_rows must be at least 1, not 0"),
        (lambda f, i, x: rerank(f, i, x, WORDS, 2, refine=None), "refine must be a whole number, not None"),
        (lambda f, i, x: rerank(f, i, x, WORDS, 2, min_score="0"), "min_score must be a number, not '0'"),
        (
            lambda f, i, x: rollout(f, x, [WORDS], num_candidates=None),
            "num_candidates must be a whole number, not None",
        ),
        (lambda f, i, x: rollout(f, x, [WORDS], beam=1.5), "the beam must be a whole number, not 1.5"),
        (lambda f, i, x: rollout(f, x, 3), "a rollout takes a list of actions, not one int"),
        (lambda f, i, x: rollout(f, x, WORDS), "a rollout takes a list of actions, not one str"),
        (lambda f, i, x: rollout(f, x, [WORDS], seed="0"), "a seed must be a whole number, not '0'"),
        (lambda f, i, x: i.score(x, x, WORDS), "targets must be a list, not one ndarray"),
        (lambda f, i, x: i.score(x, f.sample(x, WORDS)[0], WORDS), "targets must be a list, not one Candidate"),
        (lambda f, i, x: i.score(x, None, WORDS), "targets must be a list, not one NoneType"),
        (lambda f, i, x: i.score(x, [x], None), "actions must be a list, not one NoneType"),
        (lambda f, i, x: i.score(None, [x], WORDS), "a picture is a uint8 array .* not a NoneType"),
        (lambda f, i, x: i.describe([x], x), "targets must be a list, not one ndarray"),
        (lambda f, i, x: i.describe(x, x, max_tokens=0), "max_tokens must be at least 1, not 0"),
        (lambda f, i, x: i.describe(x, x, seed=None), "a seed must be a whole number, not None"),
        (lambda f, i, x: load_fdm(None), "a base or run is given by name or path .* not as a NoneType"),
        (lambda f, i, x: load_fdm("tiny", f), "backbone= takes a loaded backbone, .* not a ForwardDynamics"),
        (lambda f, i, x: load_idm("tiny", base=3), "a base or run is given by name or path .* not as a int"),
        (lambda f, i, x: load_idm("tiny", adapter="a.b"), "an adapter's name is one word .* not 'a.b'"),
    ],
)
def test_one_sentence_for_what_is_no_number_or_no_list(
    tiny: ChameleonVLM, picture: np.ndarray, call: Call, sentence: str
) -> None:
    with pytest.raises(RewindError, match=sentence):
        call(ForwardDynamics(tiny), InverseDynamics(tiny), picture)


def test_rows_at_once_of_a_role(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    idm = InverseDynamics(tiny)
    idm.max_rows = 0
    with pytest.raises(RewindError, match="max_rows must be at least 1, not 0"):
        idm.score(picture, [picture], WORDS)


def test_numpy_numbers_are_numbers(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm = ForwardDynamics(tiny)
    one = fdm.sample(picture, WORDS, np.int64(2), temperature=np.float32(1), seed=np.int32(3))  # type: ignore[call-overload]
    two = fdm.sample(picture, WORDS, 2, temperature=1, seed=3)
    assert [c.ids.tolist() for c in one] == [c.ids.tolist() for c in two]


def test_one_reward_needs_no_list(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)

    def bright(completions: Any, **_: Any) -> list[float]:
        return [float(np.asarray(image).mean()) for image in completions]

    by_name = rerank(fdm, idm, picture, WORDS, 3, "idm_likelihood")
    assert [s.scores for s in by_name.candidates] == [
        s.scores for s in rerank(fdm, idm, picture, WORDS, 3, ["idm_likelihood"]).candidates
    ]
    assert set(rerank(fdm, None, picture, WORDS, 3, "fdm_confidence=2").best.scores) == {"fdm_confidence"}
    assert set(rerank(fdm, None, picture, WORDS, 3, bright).best.scores) == {"bright"}
    assert set(rollout(fdm, picture, [WORDS], idm, 2, "idm_likelihood")[0].best.scores) == {"idm_likelihood"}


def test_a_pickled_candidate_carries_no_model(tiny: ChameleonVLM, picture: np.ndarray) -> None:
    candidate = ForwardDynamics(tiny).sample(picture, WORDS)[0]
    candidate.image  # noqa: B018  (a decoded picture is not kept either)
    packed = pickle.dumps(candidate)
    assert len(packed) < 2000
    again: Candidate = pickle.loads(packed)
    assert (again.ids == candidate.ids).all()
    assert again.logprob == candidate.logprob
    for read in (
        lambda: again.image,
        lambda: np.asarray(again),
        lambda: InverseDynamics(tiny).score(picture, [again], WORDS),
    ):
        with pytest.raises(RewindError, match=r"comes from a pickle.*: use dataclasses.replace"):
            read()
    whole = dataclasses.replace(again, backbone=tiny)
    assert (np.asarray(whole) == np.asarray(candidate)).all()
    for one in (copy.copy(candidate), copy.deepcopy([candidate])[0]):
        assert one.backbone is tiny
        assert (one.ids == candidate.ids).all()


def test_warnings_as_errors_start_clean(tmp_path: Any) -> None:
    """`python -W error`: opening a base and a run, sampling, scoring and a script use nothing deprecated."""
    code = (
        "import sys, runpy, numpy as np, rl\n"
        "fdm = rl.load_fdm('tabletop-chameleon')\n"
        "idm = rl.load_idm('tabletop-chameleon-judge', backbone=fdm.backbone)\n"
        "picture = np.zeros((64, 64, 3), np.uint8)\n"
        "drawn = fdm.sample(picture, 'remove the red ring', 2)\n"
        "idm.score(picture, drawn, 'remove the red ring'), idm.describe(picture, drawn[0])\n"
        "drawn[0].image.save(sys.argv[1] + '/source.png')\n"
        "words = ['--source', sys.argv[1] + '/source.png', '--action', 'remove the red ring', '--num_samples', '2']\n"
        "sys.argv[1:] = ['--fdm', 'tabletop-chameleon', *words, '--output', sys.argv[1] + '/out']\n"
        "runpy.run_path('scripts/sample.py', run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "sheet.png").is_file()
