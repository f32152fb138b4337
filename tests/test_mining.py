"""From videos to labelled triplets: key frames, labels, selection."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from rl.data.chains import chains
from rl.data.labels.labelling import label_pairs, labelled
from rl.data.labels.selection import select_stratified
from rl.data.triplet_files import read_triplets, write_triplets
from rl.data.video.keyframes import Mining, flow_magnitudes
from rl.data.video.mining import mine
from rl.data.video.video_files import write_video
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import InverseDynamics
from rl.triplets import Triplet
from rl.worlds.tabletop import Tabletop


def moving_square(positions: list[int], brightness: float = 1.0) -> np.ndarray:
    frames = np.full((len(positions), 64, 64, 3), 60, np.uint8)
    rng = np.random.default_rng(0)
    frames += rng.integers(0, 20, (64, 64, 3), dtype=np.uint8)  # a texture, for the flow to hold on to
    for frame, x in zip(frames, positions, strict=True):
        frame[24:40, x : x + 16] = 220
    return (frames * brightness).astype(np.uint8)


def test_motion_is_seen_and_flicker_is_not() -> None:
    motion = flow_magnitudes(moving_square([4, 4, 4, 8, 12, 16, 16, 16]))
    assert motion.shape == (7,)
    assert motion[[0, 1, 5, 6]].max() < 0.2 * motion[[2, 3, 4]].min()
    dark = np.concatenate([moving_square([4], b) for b in (1.0, 0.9, 1.0, 0.95)])
    assert flow_magnitudes(dark).max() < 0.2 * motion[[2, 3, 4]].min()
    assert flow_magnitudes([]).shape == flow_magnitudes(moving_square([4])).shape == (0,)


def test_flow_peak_takes_the_strongest_frames_apart() -> None:
    motion = np.array([0, 5, 4, 0, 0, 3, 0, 0, 2, 9], np.float32)
    # Frames by motion: 10 (9), 2 (5), 3 (4, too near 2), 6 (3), 9 (2, too near 10).
    assert Mining("flow_peak", num_frames=3, min_gap=3).pairs(motion) == [(2, 6), (6, 10)]
    assert Mining("flow_peak", num_frames=2, min_gap=3).pairs(motion) == [(2, 10)]
    assert Mining("flow_peak", num_frames=6, min_gap=100).pairs(motion) == []
    assert Mining("flow_peak", min_gap=1).pairs(np.zeros(9, np.float32)) == []  # a still clip has no pair


def test_settled_takes_the_quiet_frames_around_each_burst() -> None:
    motion = np.array([0.1, 0.0, 8, 9, 0.0, 0.0, 0.1, 5, 0.1], np.float32)
    # Frames 0..2 are still, 5..7 and 9: the stillest of each stretch.
    assert Mining("settled").pairs(motion) == [(0, 5), (5, 9)]
    assert len(Mining("settled", num_frames=2).pairs(motion)) == 1
    assert Mining("settled").pairs(np.zeros(5, np.float32)) == []
    assert Mining("settled").pairs(np.zeros(0, np.float32)) == []


@pytest.mark.parametrize(
    "wrong", [{"rule": "random"}, {"num_frames": 1}, {"min_gap": 0}, {"quiet": 1.5}, {"flow": "x"}]
)
def test_wrong_mining(wrong: dict[str, object]) -> None:
    with pytest.raises(RewindError):
        Mining(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("flow", ["farneback", "dis"])
def test_settled_pairs_of_the_world_hold_one_action(tmp_path: Path, flow: str) -> None:
    """On clips with known truth most pairs are the scenes before and after exactly one action, readable as such."""
    world, rng = Tabletop(), np.random.default_rng(3)
    right, total, truths_of_all = 0, 0, []
    for number in range(12):
        video = world.video(rng)
        file = tmp_path / f"{number}.mkv"
        write_video(video.frames_THWC, file)
        truths = {(s.source, s.target) for s in video.truth}
        truths_of_all.append(video.truth)
        for pair in mine(file, Mining("settled", flow=flow), 64):
            before, after = (r.scene for r in world.read(np.stack([pair.before, pair.after])))
            right += (before, after) in truths
            total += 1
    segments = sum(len(v) for v in truths_of_all)
    assert right / total > 0.8  # of the pairs found, and of the actions that there were
    assert right / segments > 0.8


def test_pairs_of_one_video_follow_one_another(tmp_path: Path) -> None:
    """Written as files of their own, read again and labelled; a pair that is left out parts what stood around it."""
    world, rng, pairs = Tabletop(), np.random.default_rng(3), []
    for number in range(4):
        write_video(world.video(rng).frames_THWC, tmp_path / f"{number}.mkv")
        found = mine(tmp_path / f"{number}.mkv", Mining("settled"), 64)
        assert all(one.end == other.start for one, other in itertools.pairwise(found))
        pairs.append([Triplet(pair.before, "", pair.after) for pair in found])
    rows = read_triplets(
        write_triplets([pair for video in pairs for pair in video], tmp_path, "pairs.json"), named=False
    )
    named = labelled(rows, [(str(number), -1.0) for number in range(len(rows))])
    assert sum(len(video) - 1 for video in pairs) > 0
    for steps in (2, 3):
        expected = sum(max(0, len(video) - steps + 1) for video in pairs)
        assert len(chains(rows, steps)) == len(chains(named, steps)) == expected
    whole = chains(named, 2)
    assert len(chains([row for row in named if row is not whole[0][1]], 2)) < len(whole)


def test_mining_a_file_that_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(RewindError, match=r"x.mp4 breaks off"):
        mine(tmp_path / "x.mp4", Mining(), 32)


def test_pairs_need_no_words(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    file = write_triplets([Triplet(picture, "", picture, label="move")], tmp_path)
    assert "instruction" not in json.loads(file.read_text())[0]
    assert read_triplets(file, named=False)[0].action == ""
    with pytest.raises(RewindError, match="needs at least 'instruction'"):
        read_triplets(file)


def test_labels_and_their_scores(tiny: ChameleonVLM) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 2, 32, 32, 3), dtype=np.uint8)
    pairs = [Triplet(a, "", b, label="move") for a, b in pictures]
    idm = InverseDynamics(tiny)
    found = label_pairs(idm, pairs)
    assert found
    for triplet in found:
        assert triplet.target is not None
        assert triplet.action == idm.describe(triplet.source, triplet.target)
        (log_probs,) = idm.log_probs(triplet.source, [triplet.target], triplet.action)
        assert triplet.score == pytest.approx(log_probs.sum(), abs=1e-4)  # of the sentence, not the mean a token
        assert (triplet.label, triplet.provenance) == ("move", "idm")
    sampled = label_pairs(idm, pairs, temperature=1.0, seed=1)
    assert [t.action for t in sampled] == [t.action for t in label_pairs(idm, pairs, temperature=1.0, seed=1)]
    assert [t.action for t in sampled] != [t.action for t in found]
    with pytest.raises(RewindError, match="pair 0 has no second picture"):
        label_pairs(idm, [Triplet(pictures[0, 0], "")])


def test_selection_goes_round_robin() -> None:
    scores = [0.1, 0.9, 0.5, 0.5, 0.8, -3.0]
    classes = ["b", "a", "a", "a", "b", "c"]
    assert select_stratified(scores, classes, 6).tolist() == [1, 4, 5, 2, 0, 3]
    assert select_stratified(scores, classes, 2).tolist() == [1, 4]
    assert select_stratified(scores, classes, 99).tolist() == [1, 4, 5, 2, 0, 3]
    assert select_stratified([], [], 3).tolist() == []


def test_selection_equals_the_plain_loop() -> None:
    rng = np.random.default_rng(1)
    scores, classes = rng.integers(0, 20, 200) / 10, rng.integers(0, 7, 200)
    left = {c: sorted(np.flatnonzero(classes == c), key=lambda i: -scores[i]) for c in range(7)}
    expected: list[int] = []
    while len(expected) < 150:
        for c in range(7):
            if left[c] and len(expected) < 150:
                expected.append(int(left[c].pop(0)))
    assert select_stratified(scores, classes, 150).tolist() == expected


def test_wrong_selection() -> None:
    with pytest.raises(RewindError, match="k must be at least 1"):
        select_stratified([1.0], ["a"], 0)
    with pytest.raises(RewindError, match="do not fit"):
        select_stratified([1.0], ["a", "b"], 1)
    with pytest.raises(RewindError, match="entry 1 has no finite score"):
        select_stratified([1.0, float("nan")], ["a", "b"], 1)
