"""Mining of long films: one pass, bounded memory, windows, cuts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rl.data.video.mining
from rl.data.video.keyframes import Mining, MotionMeter, Step, find_cuts
from rl.data.video.mining import MinedPair, mine, mined
from rl.data.video.video_files import timed_frames, write_video
from rl.errors import RewindError
from rl.worlds.tabletop import Tabletop

RULES = [Mining("settled"), Mining(min_gap=5), Mining(num_frames=2, min_gap=3)]


def shot(seed: int, frames: int, side: int = 64) -> np.ndarray:
    """A square that moves now and then over a ground of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    film = np.repeat(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[None], frames, 0)
    left = 0
    for image in film:
        left = min(side - 12, left + int(rng.integers(0, 3)) * int(rng.random() < 0.3))
        image[20:32, left : left + 12] = (250, 20, 20)
    return film


def as_numbers(pairs: list[MinedPair]) -> list[tuple[bytes, bytes, int, int, float]]:
    return [(pair.before.tobytes(), pair.after.tobytes(), pair.start, pair.end, pair.motion) for pair in pairs]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    write_video(
        np.concatenate([Tabletop().video(np.random.default_rng(n)).frames_THWC for n in range(4)]), tmp_path / "f"
    )
    return tmp_path / "f"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, once for each time."""
    seen: list[Path] = []

    def counted(path: Path) -> Iterator[tuple[float, np.ndarray]]:
        seen.append(path)
        return timed_frames(path)

    monkeypatch.setattr(rl.data.video.mining, "timed_frames", counted)
    monkeypatch.setattr(rl.data.video.mining, "frames_of", lambda path: (frame for _, frame in counted(path)))
    return seen


@pytest.mark.parametrize("mining", RULES, ids=["settled", "flow_peak", "few"])
@pytest.mark.parametrize("per_seconds", [None, 4.0])
def test_one_decode_pass(film: Path, passes: list[Path], mining: Mining, per_seconds: float | None) -> None:
    pairs = mine(film, mining, 64, per_seconds)
    assert pairs
    assert passes == [film]
    frames = [frame for _, frame in timed_frames(film)]
    for pair in pairs:
        np.testing.assert_array_equal(pair.before, frames[pair.start])
        np.testing.assert_array_equal(pair.after, frames[pair.end])


@pytest.mark.parametrize("mining", RULES, ids=["settled", "flow_peak", "few"])
@pytest.mark.parametrize("per_seconds", [None, 4.0])
def test_memory_is_bounded_and_pairs_stay(
    film: Path, passes: list[Path], mining: Mining, per_seconds: float | None
) -> None:
    """With room for a part of the pictures the pairs are the same, if need be by a second pass."""
    frames = len(list(timed_frames(film)))
    expected = as_numbers(mine(film, mining, 64, per_seconds))
    for room in (0, 20, frames // 2):
        passes.clear()
        found = list(mined(film, mining, 64, per_seconds, kept_bytes=room * 3 * 64 * 64))
        assert as_numbers(found) == expected
        assert len(passes) <= 2


def test_flow_peak_over_a_film_of_any_length_needs_one_pass(passes: list[Path], tmp_path: Path) -> None:
    write_video(shot(0, 600), tmp_path / "f")
    mining, room = Mining(num_frames=2, min_gap=4), 2 * 2 * 2 * 4 + 20  # pictures; the film has 600
    found = list(mined(tmp_path / "f", mining, 64, kept_bytes=room * 3 * 64 * 64))
    assert len(passes) == 1
    assert as_numbers(found) == as_numbers(mine(tmp_path / "f", mining, 64))


def test_what_may_still_become_a_key_frame_always_holds_what_does() -> None:
    rng = np.random.default_rng(0)
    for number in range(60):
        steps = [Step(float(m), 1.0, 0.1) for m in rng.integers(0, 30, 200)]
        mining = Mining(num_frames=2 + number % 3, min_gap=1 + number % 7)
        chosen = {t for pair in mining.pairs(np.array([s.motion for s in steps], np.float32)) for t in pair}
        for length in (40, 120, 200):
            possible = mining.still_possible(steps[:length])
            assert possible is not None
            assert {t for t in chosen if t <= length} <= possible
            assert len(possible) <= 2 * mining.num_frames * mining.min_gap + 10


def test_key_frames_per_window(tmp_path: Path) -> None:
    write_video(np.concatenate([shot(1, 160), shot(1, 160)[::-1]]), tmp_path / "f", frames_per_second=8)
    mining = Mining(num_frames=3, min_gap=4)
    assert len(mine(tmp_path / "f", mining, 64)) <= 2
    found = mine(tmp_path / "f", mining, 64, per_seconds=5)
    assert len(found) > 8  # of 8 windows
    assert all(pair.start // 40 == pair.end // 40 for pair in found)
    assert [pair.start for pair in found] == sorted(pair.start for pair in found)
    assert as_numbers(mine(tmp_path / "f", mining, 64, per_seconds=1000)) == as_numbers(
        mine(tmp_path / "f", mining, 64)
    )
    with pytest.raises(RewindError, match="longer than 0 seconds"):
        mine(tmp_path / "f", mining, 64, per_seconds=0)


def test_cuts_are_recognised_and_never_lie_inside_a_pair(tmp_path: Path) -> None:
    frames = np.concatenate([shot(seed, 40) for seed in range(5)])
    meter = MotionMeter()
    steps = [step for frame in frames if (step := meter.step(frame)) is not None]
    assert find_cuts(steps) == [39, 79, 119, 159]
    write_video(frames, tmp_path / "f")
    for mining in (Mining(num_frames=20, min_gap=3), Mining("settled", num_frames=50)):
        found = mine(tmp_path / "f", mining, 64)
        assert len(found) > 5
        assert all(pair.start // 40 == pair.end // 40 for pair in found)


def test_things_and_cameras_that_move_are_no_cuts() -> None:
    world, rng = Tabletop(), np.random.default_rng(0)
    ground = shot(3, 1, 256)[0]
    pan = [ground[:, 4 * t : 4 * t + 64] for t in range(40)]
    for frames in (*(world.video(rng).frames_THWC for _ in range(5)), pan):
        meter = MotionMeter()
        assert find_cuts([step for frame in frames if (step := meter.step(frame)) is not None]) == []
