"""Search on real bases: true targets, many sources, rollouts and refinement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_search import ACTION

from rl import load_world, rerank, rollout
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.unified import UnifiedVLM


def test_rewards_that_ask_get_the_true_target(tiny: ChameleonVLM) -> None:
    pictures = list(np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    fdm, truth = ForwardDynamics(tiny), pictures[2]
    wanted = tiny.encode([truth]).numpy()[0]
    found = rerank(fdm, None, pictures[0], ACTION, 6, ["target_distance"], target_image=truth)
    assert found.best.total == -min(float((s.candidate.ids != wanted).mean()) for s in found.candidates)
    assert rerank(fdm, None, pictures[0], ACTION, 2, ["target_distance"]).abstained  # None where it is unknown
    known, unknown = rerank(fdm, None, pictures[:2], [ACTION] * 2, 6, ["target_distance"], target_image=[truth, None])
    assert [s.total for s in known.candidates] == [s.total for s in found.candidates]
    assert unknown.abstained
    seen: list[Any] = []

    def asks(target_image: list[Any]) -> list[float]:
        seen.append({id(target) for target in target_image})
        return [0.0] * len(target_image)

    rollout(fdm, pictures[0], [ACTION] * 2, num_candidates=2, rewards=[asks], target_image=[None, truth])
    assert seen == [{id(None)}, {id(truth)}]
    for wrong in ([truth], [truth] * 3):
        with pytest.raises(RewindError, match="give one an action, or None"):
            rollout(fdm, pictures[0], [ACTION] * 2, target_image=wrong)
    with pytest.raises(RewindError, match="give one target_image for one source"):
        rerank(fdm, None, pictures[0], ACTION, 2, [asks], target_image=[truth])
    with pytest.raises(
        RewindError, match="2 sources, 2 actions, 2 tasks, 1 targets and 2 rows of further columns do not fit together"
    ):
        rerank(fdm, None, pictures[:2], [ACTION] * 2, 2, [asks], target_image=[truth])


def test_many_sources_and_any_memory_bound_give_the_same(tiny: ChameleonVLM) -> None:
    pictures = list(np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    ids = lambda found: [s.candidate.ids.tolist() for s in found.candidates]  # noqa: E731
    many = rerank(fdm, idm, pictures, [ACTION] * 3, 9)
    for max_rows in (4, 512):
        alone = [rerank(fdm, idm, picture, ACTION, 9, max_rows=max_rows) for picture in pictures]
        assert [ids(found) for found in alone] == [ids(found) for found in many]
        totals = [[s.total for s in found.candidates] for found in many]
        assert [[s.total for s in found.candidates] for found in alone] == [pytest.approx(x, abs=1e-5) for x in totals]
    stopped = rerank(fdm, idm, pictures[0], ACTION, 9, good_enough=-1e9)
    assert (len(stopped.candidates), stopped.saved) == (1, 8)
    assert ids(rerank(fdm, idm, pictures[0], ACTION, 9, good_enough=0.0)) == ids(many[0])  # nothing is good enough
    with pytest.raises(RewindError, match="do not fit together"):
        rerank(fdm, idm, pictures, [ACTION] * 2, 3)
    with pytest.raises(RewindError, match="at least 2 candidates"):
        rerank(fdm, idm, pictures[0], ACTION, 1, refine=1)


def test_rollout_and_refinement_on_the_shipped_base(shipped: UnifiedVLM) -> None:
    world, rng = load_world("tabletop"), np.random.default_rng(0)
    scene, action = world.sample_task(rng)  # type: ignore[attr-defined]
    picture = world.render(scene, rng)
    fdm, idm = ForwardDynamics(shipped), InverseDynamics(shipped)
    asked: list[Any] = []

    def bright(completions, source_image, **_):  # type: ignore[no-untyped-def]
        asked.extend(np.asarray(source).shape for source in source_image)
        return [float(np.asarray(image).mean()) for image in completions]

    steps = rollout(fdm, picture, [action, action], idm, num_candidates=3, rewards=["idm_likelihood=0", bright])
    assert set(asked) == {(64, 64, 3)}
    assert [len(step.candidates) for step in steps] == [3, 3]
    assert all(step.score == max(s.total or 0 for s in step.candidates) for step in steps)
    second = fdm.sample(steps[0].best.candidate, action, 3, step=1)  # goes on from the tokens, with noise of its own
    assert {tuple(c.ids) for c in second} == {tuple(s.candidate.ids) for s in steps[1].candidates}
    plain = rollout(fdm, picture, [action])
    assert plain[0].best.candidate.ids.tolist() == fdm.sample(picture, action)[0].ids.tolist()
    assert plain[0].score is None
    with pytest.raises(RewindError, match="something to choose by"):
        rollout(fdm, picture, [action], num_candidates=2)

    source_ids = shipped.encode([picture])[0].tolist()
    found = rerank(fdm, idm, picture, action, 6, refine=2)
    first = rerank(fdm, idm, picture, action, 3)
    assert (found.best.total or 0) >= (first.best.total or 0) - 1e-5
    assert len(found.candidates) > 3
    assert 3 * 16 < found.sampled_tokens <= 6 * 16
    assert len(source_ids) == 16
