"""Videos as cameras, editors and broken disks leave them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from rl.data.video.keyframes import Mining
from rl.data.video.mining import MinedPair, mined
from rl.data.video.video_files import frame_rate, frames_of, timed_frames, write_video
from rl.errors import RewindError


def film(frames: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A square that goes right, rests, and goes right again, over a coarse ground."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 120, (height // 8, width // 8, 3), dtype=np.uint8)
    found = np.repeat(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[None], frames, 0)
    for t, image in enumerate(found):
        left = min(width - 16, 2 * (t - t % 8) // 2 + 2 * min(t % 8, 4))
        image[8:24, left : left + 16] = (240, 40, 40)
    return found


def encode(path: Path, frames: np.ndarray, codec: str = "ffv1", pix_fmt: str = "bgr0", **more: Any) -> Path:
    """Write a video, perhaps with `rotation`, `transfer` or `times` (of the frames, in thousandths of a second)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.color_trc = more.get("transfer", 1)
        if "rotation" in more:
            stream.set_display_rotation(more["rotation"])
        for t, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = more.get("times", range(0, 10**9, 125))[t], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def pairs_and_fault(path: Path, **more: Any) -> tuple[list[MinedPair], str | None]:
    found = []
    try:
        for pair in mined(path, Mining("settled"), 32, **more):
            found.append(pair)
    except RewindError as error:
        return found, str(error)
    return found, None


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotation_metadata(tmp_path: Path, rotation: int) -> None:
    frames = film(4)
    path = encode(tmp_path / "turned.mp4", frames, "libx264rgb", "rgb24", rotation=rotation)
    found = np.stack(list(frames_of(path))).astype(int)
    upright = np.rot90(frames, rotation // 90, axes=(1, 2)).astype(int)
    assert found.shape == upright.shape
    assert np.abs(found - upright).mean() < 6


def write_sound(path: Path, cover: bool) -> Path:
    """A piece of music, perhaps with a picture of its cover."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height = picture.width = 32
            picture.pix_fmt = "yuvj420p"
            picture.disposition = Disposition.attached_pic
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 250, np.uint8), format="rgb24")
            container.mux([*picture.encode(image), *picture.encode()])
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    return path


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "song.mp4", cover=True)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1  # which the container calls a video stream
    assert pairs_and_fault(path) == ([], f"{path} has no video stream")


def test_frames_are_timed_by_the_file(tmp_path: Path) -> None:
    """Slow, then fast: a window of a second holds few frames, then many."""
    times = [*range(0, 8000, 500), *range(8000, 10000, 50)]
    path = encode(tmp_path / "vfr.mkv", film(len(times)), times=times)
    assert [round(1000 * seconds) for seconds, _ in timed_frames(path)] == times
    found, fault = pairs_and_fault(path, per_seconds=4)
    assert fault is None
    assert found
    assert all(times[pair.start] // 4000 == times[pair.end] // 4000 for pair in found)


def test_audio_only_and_zero_length(tmp_path: Path) -> None:
    write_sound(tmp_path / "sound.mp4", cover=False)
    assert pairs_and_fault(tmp_path / "sound.mp4") == ([], f"{tmp_path / 'sound.mp4'} has no video stream")
    assert frame_rate(tmp_path / "sound.mp4") == 25.0
    (tmp_path / "empty.mp4").write_bytes(b"")
    found, fault = pairs_and_fault(tmp_path / "empty.mp4")
    assert found == []
    assert "empty.mp4 breaks off" in str(fault)
    write_video(film(1), tmp_path / "one.mkv")
    assert pairs_and_fault(tmp_path / "one.mkv") == ([], None)


def test_ten_bits_a_channel(tmp_path: Path) -> None:
    path = encode(tmp_path / "deep.mkv", film(6), pix_fmt="yuv444p10le")
    found = np.stack(list(frames_of(path)))
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - film(6)).max() <= 4


def test_high_dynamic_range(tmp_path: Path) -> None:
    """PQ codes of 0, 203 (white) and 22 candela a square metre, and of what is brighter than white."""
    frame = np.zeros((1, 48, 64, 3), np.uint8)
    frame[:, :, 16:32], frame[:, :, 32:48], frame[:, :, 48:] = 148, 93, 255
    path = encode(tmp_path / "hdr.mkv", frame, pix_fmt="yuv444p10le", transfer=16)
    (found,) = frames_of(path)
    for column, expected in ((8, 0), (24, 255), (40, 93), (56, 255)):
        assert np.abs(found[:, column].astype(int) - expected).max() <= 8


def test_pairs_before_a_fault_are_kept(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mkv", film(64))
    expected, fault = pairs_and_fault(whole, per_seconds=2)
    assert fault is None
    content = bytearray(whole.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (tmp_path / "half.mkv").write_bytes(content)
    found, fault = pairs_and_fault(tmp_path / "half.mkv", per_seconds=2)
    assert 0 < len(found) < len(expected)
    assert [(pair.start, pair.end) for pair in found] == [(pair.start, pair.end) for pair in expected[: len(found)]]


def test_a_size_that_changes_is_a_fault_that_names_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [*film(20), *film(3, 64, 64)]
    monkeypatch.setattr(
        "rl.data.video.mining.timed_frames", lambda path: ((t / 8, image) for t, image in enumerate(images))
    )
    found, fault = pairs_and_fault(tmp_path / "x.mkv")
    assert found
    assert fault == f"{tmp_path / 'x.mkv'}, frame 20: a video's frames must all have one size"
