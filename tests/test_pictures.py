"""Pictures in and out: reading, cropping, candidates that decode when looked at, sheets."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rl.errors import RewindError
from rl.pictures import load_image, to_array
from rl.report import grids
from rl.report.grids import sheet
from rl.triplets import Candidate


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    picture = noise(32, 32, 3)
    assert to_array(picture, 32) is picture
    assert (to_array(Image.fromarray(picture), 32) == picture).all()


def test_another_size_is_cropped_and_scaled_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 200  # the centre square
    with caplog.at_level(logging.WARNING, logger="rl"):
        assert (to_array(picture, 16) == 200).all()
        to_array(picture, 16)
    assert [r.getMessage() for r in caplog.records] == [
        "pictures of 80x40: the centre square is cut out and scaled to 16x16"
    ]


@pytest.mark.parametrize("wrong", [noise(8, 8), noise(8, 8, 4), noise(8, 8, 3) / 255, noise(0, 8, 3)])
def test_what_is_no_picture(wrong: np.ndarray) -> None:
    with pytest.raises(RewindError, match="a picture is uint8 RGB"):
        to_array(wrong, 8)


def test_grey_and_transparent_files_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "grey.png")
    Image.fromarray(noise(8, 8, 4), "RGBA").save(tmp_path / "alpha.png")
    for name in ("grey.png", "alpha.png"):
        assert to_array(load_image(tmp_path / name), 8).shape == (8, 8, 3)


def test_unreadable_images(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="there is no image"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(RewindError, match=r"text.png cannot be read as an image"):
        load_image(tmp_path / "text.png")
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:500])
    with pytest.raises(RewindError, match=r"cut.png cannot be read"):
        load_image(tmp_path / "cut.png")


def test_candidates_decode_when_looked_at() -> None:
    calls = []

    class Backbone:
        def decode(self, ids_BK: np.ndarray, grid: None) -> list[np.ndarray]:
            calls.append(ids_BK)
            return [noise(8, 8, 3)]

    candidate = Candidate(np.arange(4), np.full(4, -0.5, np.float32), Backbone())  # type: ignore[arg-type]
    assert not calls
    assert candidate.image.size == (8, 8)
    assert candidate.image is candidate.image
    assert len(calls) == 1
    assert candidate.logprob == -2.0


def test_sheets_hold_all_pictures() -> None:
    page = sheet(
        [[(noise(8, 8, 3), "one"), (noise(500, 500, 3), "two words that wrap " * 4)], [(noise(8, 8, 3), "")]], 64
    )
    assert page.width == 6 + 2 * 70
    assert page.height > 2 * 64


def test_emoji_and_chinese_in_sheets_are_escaped_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drawn: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda pen, at, t, **k: (drawn.append(t), text(pen, at, t, **k)))
    monkeypatch.setattr(grids, "_said", set())
    cell = np.zeros((8, 8, 3), np.uint8)
    sheet([[(cell, "rot → grün"), (cell, "красный"), (cell, "a \u732b"), (cell, "\U0001f984")]], 256)
    sheet([[(cell, "\u732b\n")]], 256)
    assert drawn == ["rot → grün", "красный", r"a \u732b", r"\U0001f984", r"\u732b"]
    assert [record.message for record in caplog.records if "font" in record.message] == [
        r"the font of sheets lacks characters of the captions, which are drawn as \u732b, \U0001f984"
    ]


def test_what_an_untrained_model_says_can_be_drawn() -> None:
    """Ends of paragraphs and of records, on which Pillow's layout fails, and other control characters."""
    said = "move \x85 \u2029 \x1c \x00\u0301\u200d\ufffd the \u0645\u0631 red \x7f \u00e9"
    picture = np.zeros((8, 8, 3), np.uint8)
    assert sheet([[(picture, said), (picture, said[::-1])]]).width > 200
