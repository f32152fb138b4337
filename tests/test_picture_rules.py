"""The rules for pictures that are no plain 8-bit RGB, at every door that a picture comes by."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rl.data.candidates.store import CandidateStore, picture_key
from rl.data.candidates.stored_groups import picture_file
from rl.data.formats.arrow import TableRows
from rl.data.frames import pool_from_frames
from rl.data.triplet_files import read_triplets, write_triplets
from rl.errors import RewindError
from rl.pictures import EncodedPicture, PictureFile, load_image, to_array, to_image
from rl.report.grids import sheet
from rl.triplets import Triplet

SIDE = 16
RNG = np.random.default_rng(0)
SHADES = RNG.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
CLEAR = RNG.random((SIDE, SIDE)) < 0.5


def grey(shades: np.ndarray) -> np.ndarray:
    return np.repeat(shades[..., None], 3, axis=2)


def with_alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(np.where(CLEAR, 0, 255).astype(np.uint8)))
    return image


def on_white(picture: np.ndarray, clear: np.ndarray = CLEAR) -> np.ndarray:
    return np.where(clear[..., None], 255, picture).astype(np.uint8)


def paletted() -> Image.Image:
    image = Image.fromarray((SHADES % 4).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    return image


PALETTE = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)[SHADES % 4]


def kind(name: str, folder: Path) -> tuple[Path, np.ndarray]:
    """A file of a kind, and what everybody should see in it."""
    fine = (SHADES.astype(np.uint16) * 257 + RNG.integers(-128, 129, SHADES.shape)).clip(0, 65535)
    turned: Image.Exif = Image.Exif()
    turned[0x112] = 6  # seen by turning it a quarter clockwise
    images = {
        "16-bit grey.png": (Image.fromarray(fine.astype(np.uint16)), grey(SHADES), {}),
        "16-bit grey, one value clear.png": (
            Image.fromarray(SHADES.astype(np.uint16) * 257),
            on_white(grey(SHADES), SHADES[3, 5] == SHADES),
            {"transparency": int(SHADES[3, 5]) * 257},
        ),
        "32-bit integers.tif": (Image.fromarray(fine.astype(np.int32)), grey(SHADES), {}),
        "32-bit integers of 8 bit.tif": (Image.fromarray(SHADES.astype(np.int32)), grey(SHADES), {}),
        "floats.tif": (Image.fromarray((SHADES / 255).astype(np.float32)), grey(SHADES), {}),
        "RGBA.png": (with_alpha(Image.fromarray(COLOURS)), on_white(COLOURS), {}),
        "LA.png": (with_alpha(Image.fromarray(SHADES)), on_white(grey(SHADES)), {}),
        "palette.png": (paletted(), PALETTE, {}),
        "palette, one colour clear.png": (paletted(), on_white(PALETTE, SHADES % 4 == 1), {"transparency": 1}),
        "RGB, one colour clear.png": (
            Image.fromarray(COLOURS),
            on_white(COLOURS, (COLOURS[2, 3] == COLOURS).all(2)),
            {"transparency": tuple(map(int, COLOURS[2, 3]))},
        ),
        "turned.png": (Image.fromarray(COLOURS), np.rot90(COLOURS, -1), {"exif": turned}),
        "turned.tif": (Image.fromarray(COLOURS), np.rot90(COLOURS, -1), {"exif": turned}),
        "turned and clear.webp": (
            with_alpha(Image.fromarray(COLOURS)),
            np.rot90(on_white(COLOURS), -1),
            {"exif": turned, "lossless": True},
        ),
        "1-bit.png": (Image.fromarray(SHADES > 127), grey(np.where(SHADES > 127, 255, 0).astype(np.uint8)), {}),
        "CMYK.tif": (Image.fromarray(255 - COLOURS).convert("CMYK"), 255 - COLOURS, {}),
        "plain.png": (Image.fromarray(COLOURS), COLOURS, {}),
    }
    image, seen, options = images[name]
    image.save(folder / name, **options)
    return folder / name, seen


KINDS = [
    *("16-bit grey.png", "16-bit grey, one value clear.png", "32-bit integers.tif", "32-bit integers of 8 bit.tif"),
    *("floats.tif", "RGBA.png", "LA.png", "palette.png", "palette, one colour clear.png", "RGB, one colour clear.png"),
    *("turned.png", "turned.tif", "turned and clear.webp", "1-bit.png", "CMYK.tif", "plain.png"),
]


def through_triplets(path: Path) -> np.ndarray:
    (path.parent / "t.json").write_text(json.dumps([{"instruction": "x", "input": path.name}]))
    return to_array(read_triplets(path.parent / "t.json")[0].source, SIDE)


def through_bytes(path: Path) -> np.ndarray:
    return np.asarray(EncodedPicture(path.read_bytes(), path.name))


def through_a_table(path: Path) -> np.ndarray:
    cells = pa.chunked_array([[{"bytes": path.read_bytes(), "path": None}]])
    rows = TableRows(pa.table({"input": cells}), {}, "t")
    return np.asarray(rows[0]["input"])


def through_a_store(path: Path) -> np.ndarray:
    store = CandidateStore(path.parent / "store")
    return np.asarray(load_image(picture_file(store.folder, store._keep(Image.open(path)))))


def through_a_sheet(path: Path) -> np.ndarray:
    return np.asarray(sheet([[(Image.open(path), "")]], SIDE))[6 : 6 + SIDE, 6 : 6 + SIDE]


DOORS: dict[str, Callable[[Path], np.ndarray]] = {
    "path": lambda path: to_array(str(path), SIDE),
    "load_image": lambda path: np.asarray(load_image(path)),
    "PIL": lambda path: to_array(Image.open(path), SIDE),
    "PIL, twice": lambda path: to_array(to_image(to_image(Image.open(path))), SIDE),
    "PictureFile": lambda path: np.asarray(PictureFile.of(path)),
    "frames": lambda path: pool_from_frames([path], SIDE, 10).images_NHWC[0],
    "triplets": through_triplets,
    "written": lambda path: np.asarray(
        read_triplets(write_triplets([Triplet(Image.open(path), "x")], path.parent / "written"))[0].source
    ),
    "bytes": through_bytes,
    "table": through_a_table,
    "store": through_a_store,
    "sheet": through_a_sheet,
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_at_every_door(name: str, tmp_path: Path) -> None:
    path, seen = kind(name, tmp_path)
    for door, look in DOORS.items():
        assert (look(path) == seen).all(), door
    assert picture_key(Image.open(path)) == picture_key(np.ascontiguousarray(seen)) == picture_key(PictureFile.of(path))


def test_palette_with_alpha_shows_white() -> None:
    assert (to_array(with_alpha(paletted()), SIDE) == on_white(PALETTE)).all()
    hidden = with_alpha(paletted()).convert("PA")
    assert hidden.mode == "PA"
    assert (to_array(hidden, SIDE)[CLEAR] == 255).all()


def test_half_transparent_is_mixed_with_white() -> None:
    assert (to_array(Image.new("RGBA", (4, 4), (0, 0, 0, 51)), 4) == 204).all()


def test_plain_rgb_is_not_even_copied() -> None:
    image = Image.fromarray(COLOURS)
    assert to_image(image) is image


def test_a_turned_photograph_keeps_its_size_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 8
    for name in ("a.jpg", "a.tif", "a.png"):
        Image.fromarray(COLOURS[:8]).save(tmp_path / name, exif=exif)
        assert Image.open(tmp_path / name).convert("RGB").info.get("exif") or name == "a.tif"
        found = PictureFile.of(tmp_path / name)
        assert found.size == load_image(tmp_path / name).size == (8, 16)
        assert load_image(tmp_path / name).getexif().get(0x112, 1) == 1  # so that nobody turns it again


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.full((8, 8), 1.5, np.float32), r"a picture of floats holds values 0..1, not 1.5..1.5: scale it"),
        (np.full((8, 8), -0.5, np.float32), "floats holds values 0..1"),
        (np.full((8, 8), np.nan, np.float32), "floats holds values 0..1"),
        (np.full((8, 8), -1, np.int32), "integers holds values 0..255 or 0..65535, not -1..-1"),
        (np.full((8, 8), 70_000, np.int32), "integers holds values"),
    ],
)
def test_values_that_are_no_shades_are_refused(values: np.ndarray, sentence: str, tmp_path: Path) -> None:
    image = Image.fromarray(values)
    image.save(tmp_path / "depth.tif")
    with pytest.raises(RewindError, match=sentence):
        to_array(image, 8)
    for look in (load_image, PictureFile.of):
        with pytest.raises(RewindError, match=f"depth.tif: a picture of .*{sentence[-10:]}"):
            look(tmp_path / "depth.tif")


def test_of_several_frames_the_first_is_taken_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.rgb._said", set())
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for name in ("a.gif", "a.png", "a.tif", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.WARNING, logger="rl"):
        for name in ("a.gif", "a.png", "a.tif", "a.webp"):
            assert (np.asarray(load_image(tmp_path / name)) == [255, 0, 0]).all(), name
            assert (to_array(Image.open(tmp_path / name), 8) == [255, 0, 0]).all(), name
    assert [r.getMessage() for r in caplog.records] == [
        "a picture has several frames or pages: only one is taken, in a file the first"
    ]


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL refuses twice as many
    with pytest.raises(RewindError, match="bomb cannot be read as an image"):
        np.asarray(EncodedPicture((tmp_path / "bomb.png").read_bytes(), "bomb"))
    for look in (load_image, PictureFile.of):
        with pytest.raises(RewindError, match=r"bomb.png cannot be read as an image \(Image size \(4096 pixels\)"):
            look(tmp_path / "bomb.png")


def test_an_image_that_breaks_off_is_a_sentence_through_python_too(tmp_path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:5000])
    with pytest.raises(RewindError, match="the picture cannot be decoded"):
        to_array(Image.open(tmp_path / "cut.png"), 8)


def test_one_line_for_many_picture_sizes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rl"):
        for width in (30, 30, 31, 32, 33, 30):
            to_array(np.zeros((20, width, 3), np.uint8), 12)
    assert [r.getMessage() for r in caplog.records] == [
        "pictures of 30x20: the centre square is cut out and scaled to 12x12",
        "pictures of other sizes: the centre square is cut out and scaled to 12x12",
    ]
