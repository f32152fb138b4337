"""One scene through several cameras: pictures one after the other, drawn, scored and learned as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_families import opened, trainable
from PIL import Image
from script_runs import start
from transformers import set_seed

from rewards import Reward
from rewards.target_distance import MEASURES, TargetDistance
from rl import RewindError, rerank
from rl.codes import Grid
from rl.data.candidates.store import CandidateStore
from rl.data.triplet_files import read_triplets, write_triplets
from rl.evaluation.benchmark import compare
from rl.evaluation.rollout_measures import measure
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.pictures import Views, to_array, to_image
from rl.triplets import Candidate, Scored, Triplet
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.waiting import read_waiting, write_waiting
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ACTION = "move the red circle left"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["chameleon", "lumina", "emu3"])
def vlm(request: pytest.FixtureRequest) -> Any:
    return opened(request.param)


def shots(vlm: Any, count: int, seed: int = 0) -> list[np.ndarray]:
    size = int(vlm.image_size)
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def test_views_are_pictures_one_after_the_other(vlm: Any) -> None:
    front, wrist = shots(vlm, 2)
    (codes,) = vlm.codes([Views((front, wrist))])
    one, other = vlm.codes([front, wrist])
    assert list(codes) == [*one, *other]
    assert codes.grid == Grid(one.grid.rows, one.grid.columns, 2)
    assert vlm.image_span(codes) == [*vlm.image_span(one), *vlm.image_span(other)]
    grammar = vlm.layout.grammar_of(codes)
    assert grammar.codes(grammar.target(codes)) == list(codes)
    assert sum(grammar.free) == len(codes)
    drawn = vlm.decode(np.array([codes]), grid=codes.grid)[0]
    assert (drawn == np.concatenate(vlm.decode(np.array([one, other])))).all()
    assert (vlm.features_of([Views((front, wrist))])[0] == torch.cat(vlm.features_of([front, wrist]))).all()
    prompt = vlm.fdm_prompt(codes, ACTION)
    assert prompt[-len(vlm.layout.grammar.header) :] == list(vlm.layout.grammar.header)
    with pytest.raises(RewindError, match="one size and one view"):
        vlm.encode([Views((front, wrist))])


def test_drawn_scored_and_described(vlm: Any) -> None:
    """Beside a picture of one camera, as alone; a drawn token has the log-probability that scoring gives it."""
    a, b, c = shots(vlm, 3)
    both, fdm, idm = Views((a, b)), ForwardDynamics(vlm), InverseDynamics(vlm)
    groups = fdm.sample([both, c], [ACTION] * 2, 2, seed=3)
    assert (groups[1][0].ids == fdm.sample(c, ACTION, 1, seed=3)[0].ids).all()
    (drawn, _), size = groups[0], int(vlm.image_size)
    assert drawn.image.size == (size, 2 * size)
    np.testing.assert_allclose(drawn.logprobs, fdm.log_probs(both, [drawn], ACTION)[0], atol=2e-5)
    together, alone = idm.score([both, c], [drawn, groups[1][0]], ACTION), idm.score(both, [drawn], ACTION)
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    assert isinstance(idm.describe(both, drawn, max_tokens=2), str)
    best = rerank(fdm, idm, source=both, action=ACTION, num_candidates=2)
    assert best.best.candidate.grid == drawn.grid
    seen = drawn.picture
    assert isinstance(seen, Views)  # what another base reads: each camera by itself
    assert (np.asarray(seen) == np.asarray(drawn.image)).all()


def test_two_steps_of_training(vlm: Any, tmp_path: Path) -> None:
    pictures = shots(vlm, 8)
    pairs = [(Views((a, b)), Views((b, a))) for a, b in zip(pictures[::2], pictures[1::2], strict=True)]
    triplets = [Triplet(source, ACTION, target) for source, target in pairs]
    set_seed(0)
    how: dict[str, Any] = {"max_steps": 2, "report_to": [], "save_strategy": "no", "per_device_train_batch_size": 4}
    model = trainable(vlm)
    rows = role_rows(model, "fdm", triplets)
    codes = 2 * vlm.layout.tokens_per_image
    assert all(sum(label != -100 for label in row["labels"]) == codes for row in rows)
    RoleSFTTrainer(model, "fdm", RoleConfig(output_dir=str(tmp_path / "sft"), **how), rows).train()
    model = trainable(vlm)
    reward = Reward.of(lambda predicted_ids: [float(sum(ids) % 7) for ids in predicted_ids], "sevens")
    config = RewindGRPOConfig(output_dir=str(tmp_path / "grpo"), num_generations=2, **how)
    grpo = WorldModelGRPOTrainer(model, triplets, [reward], config, importance_advantages="target")
    grpo.train()
    assert grpo.sampler_trainer_gap < 1e-4
    if vlm.template.words_first:
        with pytest.raises(RewindError, match="guidance in training needs pictures of the base's one size"):
            WorldModelGRPOTrainer(trainable(vlm), triplets, [reward], config, guidance=2.0)


def test_kept_and_read_again(vlm: Any, tmp_path: Path) -> None:
    a, b = shots(vlm, 2)
    triplet = Triplet(Views((a, b)), ACTION, Views((b, a)))
    drawn = ForwardDynamics(vlm).sample(triplet.source, ACTION, 2)
    scored = [Scored(one, {"r": 1.0}, 1.0) for one in drawn]
    store = CandidateStore(tmp_path / "store")
    store.append([(triplet, scored)], seed=0, step=0)
    ((again, group),) = store.groups(vlm)
    assert (np.asarray(again.source) == np.asarray(triplet.source)).all()
    assert isinstance(again.source, Views)
    assert [s.candidate.codes for s in group] == [c.codes for c in drawn]
    assert vlm.codes([again.source, again.target]) == vlm.codes([triplet.source, triplet.target])
    write_waiting(tmp_path / "waiting.safetensors", [triplet] * 2, scored)
    rows, waiting = read_waiting(tmp_path / "waiting.safetensors", vlm)
    assert isinstance(rows[0].source, Views)
    assert [s.candidate.codes.grid for s in waiting] == [c.codes.grid for c in drawn]


def test_measured_as_one_scene(vlm: Any) -> None:
    """A copy of the source and the true target are read camera by camera, as predictions are."""
    a, b, c, d = shots(vlm, 4)
    triplets = [Triplet(Views((a, b)), ACTION, Views((a, b))), Triplet(c, ACTION, d)]
    fdm, idm = ForwardDynamics(vlm), InverseDynamics(vlm)
    found, drawn = compare(fdm, idm, triplets)
    same, other = (Triplet(t.source, t.action, t.target, task) for t, task in zip(triplets, "xy", strict=True))
    by_task, _ = compare(fdm, idm, [same, other])
    assert by_task["copy"]["x"] == by_task["truth"]["x"]
    assert by_task["copy"]["x"]["token_accuracy"] == 1
    assert by_task["copy"]["x"]["l1"] == 0
    (said,) = idm.score(triplets[0].source, [triplets[0].source], ACTION)
    assert by_task["copy"]["x"]["idm_likelihood"] == pytest.approx(said)
    assert found["tasks"]["average"]["n"] == len(drawn) == 2


def test_tokens_survive_camera_by_camera(vlm: Any) -> None:
    a, b = shots(vlm, 2)
    alone = ForwardDynamics(vlm).sample([a, b], [ACTION] * 2, 1)
    ids = np.concatenate([group[0].ids for group in alone])
    grid = replace(vlm.layout.grammar.grid, views=2)
    both = Candidate(ids, np.zeros(len(ids), np.float32), vlm, grid)
    together = measure([Triplet(Views((a, b)), ACTION)], [Scored(both, {}, 0.0)], 1)
    each = measure([Triplet(one, ACTION) for one in (a, b)], [Scored(group[0], {}, 0.0) for group in alone], 1)
    assert together["survival"] == pytest.approx(each["survival"])
    after = Triplet(both, "push it")  # type: ignore[arg-type]  # the second step of a rollout
    assert measure([after], [Scored(both, {}, 0.0)], 1)["brightness"] == pytest.approx(0)


def test_what_takes_one_camera_says_so(vlm: Any, tmp_path: Path) -> None:
    a, b = shots(vlm, 2)
    triplets = [Triplet(Views((a, b)), ACTION, Views((b, a)))] * 2
    config = RewindGRPOConfig(output_dir=str(tmp_path), num_generations=2, per_device_train_batch_size=2, report_to=[])
    reward = Reward.of(lambda predicted_ids: [0.0 for _ in predicted_ids], "none")
    with pytest.raises(RewindError, match="guidance in training needs pictures of the base's one size, and one view"):
        WorldModelGRPOTrainer(trainable(vlm), triplets, [reward], config, guidance=2.0)
    with pytest.raises(RewindError, match="the source has 2 views and the target 1"):
        Triplet(Views((a, b)), ACTION, a)
    judged = to_array(Views((np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 255, np.uint8))), (20, 10))
    assert (judged[:10] == 0).all()
    assert (judged[10:] == 255).all()


def test_one_view_is_not_held_against_two(vlm: Any) -> None:
    a, b = shots(vlm, 2)
    both, idm, fdm = Views((a, b)), InverseDynamics(vlm), ForwardDynamics(vlm)
    (two,), (one,) = fdm.sample([both, a], [ACTION] * 2, 1)
    asks: list[Any] = [
        lambda: idm.score(both, [a], ACTION),
        lambda: idm.describe(both, a),
        lambda: idm.describe(both, one),
        lambda: fdm.score(both, [one], ACTION),
        *(lambda measure=m: TargetDistance(measure)([two], [a]) for m in MEASURES),
    ]
    for ask in asks:
        with pytest.raises(RewindError, match="a picture of 1 views is held against one of 2"):
            ask()
    with pytest.raises(RewindError, match="a picture of 2 views is held against one of 1"):
        idm.score(a, [two], ACTION)
    assert TargetDistance()([two], [both])[0] is not None


def test_an_audit_of_views_or_sizes_is_refused_before_models_are_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
    both = ["a.png", "b.png"]
    for pictures, more, sentence in (
        (both, [], "not 'push it' with several views"),
        ("a.png", ["--image_size", "own:64"], "not --image_size own:64"),
    ):
        entries = [{"instruction": "push it", "input": pictures, "output": pictures}] * 2
        (tmp_path / "triplets.json").write_text(json.dumps(entries))
        asked = ["--idm", tmp_path / "none", "--triplets", tmp_path / "triplets.json", "--rewards", "idm_likelihood"]
        done = start("scripts/audit_reward.py", *asked, "--output", tmp_path / "out", *more)
        assert f"an audit needs pictures of one size and one view, {sentence}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_views_in_files(tmp_path: Path) -> None:
    """A list of pictures in an entry; one that is missing leaves the entry out."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    entries = [
        {"instruction": "push it", "input": ["a.png", "b.png"], "output": ["b.png", "c.png"]},
        {"instruction": "pull it", "input": "a.png", "output": "b.png"},
        {"instruction": "lift it", "input": ["a.png", "gone.png"], "output": "b.png"},
        {"instruction": "drop it", "input": ["a.png", 3]},
    ]
    (tmp_path / "triplets.json").write_text(json.dumps(entries))
    left: list[Any] = []
    first, second = read_triplets(tmp_path / "triplets.json", left_out=left)
    assert isinstance(first.source, Views)
    assert len(first.source.pictures) == 2
    assert not isinstance(second.source, Views)
    assert [one.reason for one in left] == ["missing picture", "not a path"]
    assert to_image(first.source).size == (30, 40)
    again, _ = read_triplets(write_triplets([first, second], tmp_path / "again"))
    assert (np.asarray(again.source) == np.asarray(first.source)).all()
    assert isinstance(again.target, Views)
    one = Triplet([tmp_path / "a.png", tmp_path / "b.png"], "push it")  # type: ignore[arg-type]
    assert isinstance(one.source, Views)
    with pytest.raises(RewindError, match="of one camera each"):
        Views((one.source, one.source))
    with pytest.raises(RewindError, match="at least two pictures"):
        Views((tmp_path / "a.png",))  # type: ignore[arg-type]


def test_a_copy_of_a_candidate_of_views(vlm: Any) -> None:
    candidate = Candidate(np.array(vlm.codes(shots(vlm, 1))[0]), np.zeros(vlm.layout.tokens_per_image, np.float32), vlm)
    assert candidate.picture is candidate.image  # of one camera


def test_a_target_of_other_cameras_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
    both = ["a.png", "b.png"]
    pairs = [(both, both), (both, "a.png")]
    entries = [{"instruction": "push it", "input": source, "output": target} for source, target in pairs]
    (tmp_path / "triplets.json").write_text(json.dumps(entries))
    left: list[Any] = []
    assert len(read_triplets(tmp_path / "triplets.json", left_out=left)) == 1
    assert [one.reason for one in left] == ["other views"]
