"""Pictures that are not square, and batches of pictures that each keep their own shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opened_families import VQ, shelf, trainable
from transformers import set_seed

from rewards import Batch, Reward
from rewards.target_distance import TargetDistance
from rl import RewindError, rerank
from rl.codes import Codes, Grid
from rl.data.candidates.store import CandidateStore
from rl.data.importance import Importance
from rl.evaluation.benchmark import compare
from rl.evaluation.rollout_measures import measure
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.saving import save_base
from rl.models.settings import Settings
from rl.models.sizes import PictureSize, best_shape
from rl.pictures import to_array
from rl.triplets import Scored, Triplet
from trainers.dpo.arguments import RewindDPOConfig
from trainers.dpo.trainer import Preference, WorldModelDPOTrainer, preference_rows
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.monitors import Monitors
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.grpo.waiting import read_waiting, write_waiting
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ACTION = "move the red circle left"
OWN = {"lumina": "own:96", "emu3": "own:24"}
WIDE = {"lumina": "64x128", "emu3": "16x32"}
OPENED: dict[tuple[str, str], Any] = {}


pytestmark = pytest.mark.usefixtures("one_thread")


def opened(family: str, size: str) -> Any:
    if (family, size) not in OPENED:
        vq = shelf()[VQ[family]] if family in VQ else None
        OPENED[family, size] = load_base(shelf()[family], Settings(dtype="float32", image_size=size), vq=vq)
    return OPENED[family, size]


@pytest.fixture(scope="module", params=["lumina", "emu3"])
def own(request: pytest.FixtureRequest) -> Any:
    return opened(request.param, OWN[request.param])


def shots(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Noise of given heights and widths."""
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


MIXED = ((60, 100), (80, 80), (100, 60), (60, 100))


# ---- the rule


def test_sizes_in_words() -> None:
    assert PictureSize.of(512) == PictureSize.of("512") == PictureSize(512, 512)
    assert PictureSize.of("384x672") == PictureSize.of((384, 672)) == PictureSize(384, 672)
    assert PictureSize.of("own:512") == PictureSize(512, 512, own=True)
    for written in (512, "384x672", "own:512"):
        assert PictureSize.of(written).written == written
    for wrong in ("big", "0", "-3", "own", "own:3x4", "3x", (1, 2, 3), 2.5, True):
        with pytest.raises(RewindError, match="image_size is 512"):
            PictureSize.of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 100), (10, 1000), (1080, 1920), (333, 500)])
def test_the_shape_loses_least(size: tuple[int, int]) -> None:
    """No shape of Lumina-mGPT's own list (arXiv 2408.02657) keeps more of a picture."""
    height, width = size
    rows, columns = 1, 256
    theirs = []
    while columns > 0:  # all that have at most 256 cells, along the edge of what fits
        if max(rows, columns) <= 4 * min(rows, columns):
            theirs.append((rows, columns))
        rows, columns = (rows + 1, columns) if (rows + 1) * columns <= 256 else (rows, columns - 1)

    def kept(shape: tuple[int, int]) -> float:
        vertical, horizontal = shape[0] / height, shape[1] / width
        return min(vertical, horizontal) / max(vertical, horizontal)

    ours = best_shape(height, width, 256)
    assert ours[0] * ours[1] <= 256
    assert max(ours) <= 4 * min(ours)
    assert kept(ours) == max(map(kept, theirs))
    assert best_shape(width, height, 256) in (ours[::-1], ours)


def test_a_picture_is_cut_to_a_shape_and_not_stretched() -> None:
    ramp = np.zeros((50, 200, 3), np.uint8)
    ramp[:, 50:150] = 255  # what is left of it at 1 : 2 is white
    assert (to_array(ramp, (30, 60)) == 255).all()
    assert to_array(ramp, (30, 60)).shape == (30, 60, 3)
    assert to_array(ramp.swapaxes(0, 1), (60, 30)).min() == 255


@pytest.mark.parametrize(
    ("family", "size", "said"),
    [
        ("lumina", "own:100", "multiples of 32"),
        ("lumina", "64x288", "factor of 4"),
        ("lumina", "1024x1056", "area of 1024 x 1024"),
        ("emu3", "20x24", "multiples of 8"),
        ("emu3", "own:1024", "two fit into 9216 positions"),
        ("chameleon", "16x32", "alone: leave out image_size 16x32"),
        ("liquid", "own:64", "alone: leave image_size out"),
    ],
)
def test_sizes_that_a_family_cannot_take(family: str, size: str, said: str) -> None:
    vq = shelf()[VQ[family]] if family in VQ else None
    with pytest.raises(RewindError, match=said):
        load_base(shelf()[family], Settings(image_size=size), vq=vq)


# ---- one size that is no square


@pytest.mark.parametrize("family", ["lumina", "emu3"])
def test_a_wide_picture(family: str, tmp_path: Path) -> None:
    vlm = opened(family, WIDE[family])
    height, width = map(int, WIDE[family].split("x"))
    ids = vlm.encode(shots((height, width), (70, 70)))
    grid = vlm.layout.grammar.grid
    assert (grid.rows * vlm.cell, grid.columns * vlm.cell) == (height, width)
    assert ids.shape == (2, grid.codes)
    assert vlm.decode(ids).shape == (2, height, width, 3)
    span = vlm.image_span(ids[0].tolist())
    told = vlm.tokenizer.decode(span[: len(vlm.layout.grammar.header)])
    assert (
        f"{grid.rows}*{grid.columns}" in told
        if family == "emu3"
        else len(span) == 3 + grid.rows * (grid.columns + 1) + 1
    )
    (candidate,) = ForwardDynamics(vlm).sample(shots((70, 70))[0], ACTION, 1)
    assert candidate.image.size == (width, height)
    save_base(vlm, tmp_path / "again", {})
    assert load_base(tmp_path / "again").image_size == WIDE[family]


# ---- each its own


def test_each_picture_keeps_its_shape(own: Any) -> None:
    images = shots(*MIXED)
    found = own.codes(images)
    for codes, image in zip(found, images, strict=True):
        rows, columns = best_shape(*image.shape[:2], (own.picture_size.height // own.unit) ** 2)
        assert codes.grid == Grid(rows * own.unit // own.cell, columns * own.unit // own.cell)
        assert len(codes) == codes.grid.codes
        assert own.decode(np.array([codes]), grid=codes.grid)[0].shape == own.to_array(image).shape
        assert list(codes) == list(own.codes([image])[0])  # whatever it stands beside
        grammar = own.layout.grammar_of(codes)
        assert grammar.codes(grammar.target(codes)) == list(codes)
    assert len({codes.grid for codes in found}) == 3
    assert found[0] != found[3]
    (as_first,) = own.codes([images[1]], [found[0]])
    assert as_first.grid == found[0].grid
    with pytest.raises(RewindError, match="pictures of one size and one view"):
        own.encode(images)


def test_a_batch_mixes_sizes(own: Any) -> None:
    """Drawn, scored and described together as alone; a drawn token has the log-probability that scoring gives it."""
    fdm, idm, images, actions = ForwardDynamics(own), InverseDynamics(own), shots(*MIXED), [ACTION] * 4
    together = fdm.sample(images, actions, 2, seed=5)
    for image, group in zip(images, together, strict=True):
        alone = fdm.sample(image, ACTION, 2, seed=5)
        for one, other in zip(alone, group, strict=True):
            assert (one.ids == other.ids).all()
            assert one.grid == other.grid
            assert other.image.size[::-1] == own.to_array(image).shape[:2]
    firsts = [group[0] for group in together]
    for candidate, logprobs in zip(firsts, fdm.log_probs(images, firsts, actions), strict=True):
        np.testing.assert_allclose(candidate.logprobs, logprobs, atol=2e-5)
    scores = idm.score(images, firsts, ACTION)
    np.testing.assert_allclose(scores[1], idm.score(images[1], firsts[1:2], ACTION)[0], atol=1e-5)
    said = idm.describe(images, firsts, max_tokens=3)
    assert said[2] == idm.describe(images[2], firsts[2], max_tokens=3)
    best = rerank(fdm, idm, images, actions, num_candidates=2)
    assert [len(one.candidates) for one in best] == [2] * 4


def test_a_target_gets_its_sources_size(own: Any) -> None:
    source, target = shots((60, 100), (80, 80))
    (row,) = role_rows(own, "fdm", [Triplet(source, ACTION, target)], Importance())
    (codes,) = own.codes([source])
    free = own.layout.grammar_of(codes).free
    assert sum(label != -100 for label in row["labels"]) == len(codes)
    assert sum(weight > 0 for weight in row["weights"]) == len(codes)
    assert len(row["input_ids"]) == len(own.fdm_prompt(codes, ACTION)) + len(free)


def test_measures_of_mixed_sizes(own: Any, tmp_path: Path) -> None:
    fdm, images = ForwardDynamics(own), shots(*MIXED)
    triplets = [Triplet(image, ACTION, image) for image in images]
    drawn = [one for group in fdm.sample(images, [ACTION] * 4, 2, seed=1) for one in group]
    rows = [triplet for triplet in triplets for _ in range(2)]
    for kind in ("tokens", "pixels", "features"):
        reward = Reward.of(TargetDistance(kind))
        batch = Batch([ACTION] * 8, drawn, [t.source for t in rows], [t.target for t in rows])
        assert all(score is not None and score <= 0 for score in reward(batch))
    found = measure(rows, [Scored(one, {}, 0.0) for one in drawn], 2)
    assert found["copy_rate"] == 0
    table, _ = compare(fdm, None, triplets)
    assert table["copy"]["average"]["token_accuracy"] == table["copy"]["average"]["copy_rate"] == 1
    assert table["copy"]["average"]["near_copy_rate"] == 1
    scored = [Scored(one, {"r": 1.0}, 1.0) for one in drawn]
    store = CandidateStore(tmp_path / "store")
    store.append([(triplets[n], scored[2 * n : 2 * n + 2]) for n in range(4)], seed=0, step=0)
    kept = [s.candidate for _, group in store.groups(own) for s in group]
    assert [(c.grid, c.ids.tolist()) for c in kept] == [(c.grid, c.ids.tolist()) for c in drawn]
    write_waiting(tmp_path / "waiting.safetensors", rows, scored)
    _, again = read_waiting(tmp_path / "waiting.safetensors", own)
    assert [s.candidate.codes for s in again] == [c.codes for c in drawn]
    assert [s.candidate.codes.grid for s in again] == [c.codes.grid for c in drawn]


def tiny_training(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"output_dir": str(folder), "max_steps": 2, "report_to": [], "save_strategy": "no"} | settings


def test_two_steps_of_each_method(own: Any, tmp_path: Path) -> None:
    """The loss of GRPO reads mixed sizes as the sampler did, padding counts nowhere."""
    images = shots((60, 100), (80, 80), (100, 60), (80, 80))
    triplets = [Triplet(image, ACTION, image) for image in images]
    set_seed(0)
    vlm = trainable(own)
    config = RoleConfig(**tiny_training(tmp_path / "sft", per_device_train_batch_size=4))
    trainer = RoleSFTTrainer(vlm, "fdm", config, role_rows(vlm, "fdm", triplets))
    assert np.isfinite(trainer.train().training_loss)

    vlm = trainable(own)
    how = tiny_training(tmp_path / "grpo", per_device_train_batch_size=4, num_generations=2, logging_steps=1)
    reward = Reward.of(lambda predicted_ids: [float(sum(ids) % 7) for ids in predicted_ids], "sevens")
    grpo = WorldModelGRPOTrainer(vlm, triplets, [reward], RewindGRPOConfig(**how), monitors=Monitors({}, None))
    grpo.train()
    assert grpo.sampler_trainer_gap < 1e-4
    with pytest.raises(RewindError, match="importance_advantages needs pictures of one size"):
        WorldModelGRPOTrainer(vlm, triplets, [reward], RewindGRPOConfig(**how), importance_advantages="target")

    vlm = trainable(own)
    groups = ForwardDynamics(vlm, "default").sample(images, [ACTION] * 4, 2)
    pairs = [
        Preference(t, *(Scored(one, {}, float(n)) for n, one in enumerate(group)))
        for t, group in zip(triplets, groups, strict=True)
    ]
    config = RewindDPOConfig(**tiny_training(tmp_path / "dpo", per_device_train_batch_size=4))
    WorldModelDPOTrainer(vlm, config, preference_rows(vlm, pairs)).train()


def test_a_candidate_keeps_its_grid(own: Any) -> None:
    import copy
    import pickle

    (candidate,) = ForwardDynamics(own).sample(shots((60, 100))[0], ACTION, 1)
    assert isinstance(candidate.codes, Codes)
    for other in (copy.copy(candidate), replace(candidate), pickle.loads(pickle.dumps(candidate))):
        assert other.grid == candidate.grid


def test_stored_candidates_of_another_size_are_refused(own: Any, tmp_path: Path) -> None:
    source = shots((80, 80))[0]
    scored = [Scored(one, {"r": 1.0}, 1.0) for one in ForwardDynamics(own).sample(source, ACTION, 2)]
    store = CandidateStore(tmp_path)
    store.append([(Triplet(source, ACTION), scored)], seed=0, step=0)
    assert len(store.groups(own)) == 1
    family = "emu3" if own.family == "emu3" else "lumina"
    with pytest.raises(RewindError, match=f"image_size {WIDE[family]} asks for"):
        store.groups(opened(family, WIDE[family]))
