"""The token cache: each picture encoded once, found by content, appended safely, and the very codes in every script."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from opened_families import shelf
from PIL import Image

from rl import RewindError
from rl.data.importance import Importance, feature_distances
from rl.data.tokens import encoding
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import encode_missing
from rl.data.tokens.shards import Shards
from rl.models.families.chameleon import ChameleonVLM
from rl.models.inputs import token_ids
from rl.models.opening import load_base
from rl.models.settings import Settings
from rl.pictures import PictureFile, Views
from rl.triplets import Triplet
from trainers.sft.both_roles import both_rows
from trainers.sft.rows import mixed, role_rows

ACTION = "move the red circle left"


def written(folder: Path, count: int, side: int = 32) -> list[Triplet]:
    """Triplets whose pictures lie in files; the target of one is the source of the next."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    files = [folder / f"{number}.png" for number in range(count + 1)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
    return [Triplet(a, ACTION, b) for a, b in pairwise(files)]


@pytest.fixture
def vlm() -> ChameleonVLM:
    return make_tiny()


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is decoded from now on."""
    opened: list[Any] = []
    before = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or before(*a, **k))
    return opened


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_codes_are_the_same_and_pixels_are_never_opened_again(
    vlm: ChameleonVLM, tmp_path: Path, no_pixels: Any
) -> None:
    triplets = written(tmp_path / "data", 6)
    pictures = [t.source for t in triplets]
    plain = vlm.codes(pictures)
    cache = TokenCache(tmp_path / "tokens", vlm)
    counts = encode_missing(vlm, cache, triplets)
    assert (counts.encoded, counts.known, counts.pairs) == (7, 0, 0)  # of 12 pictures, what occurs twice is one
    vlm.cache, vlm._seen = TokenCache(tmp_path / "tokens", vlm), None
    no_pixels.clear()
    assert vlm.codes(pictures) == plain
    assert token_ids(vlm, pictures) == plain
    assert torch.equal(vlm.encode(pictures), torch.tensor(plain))
    assert encode_missing(vlm, vlm.cache, triplets).known == 7
    assert not no_pixels
    array = np.asarray(pictures[0])
    assert vlm.codes([array]) == plain[:1]  # pictures in memory are encoded as ever


def test_pictures_are_known_by_content(vlm: ChameleonVLM, tmp_path: Path) -> None:
    (triplet,) = written(tmp_path / "data", 1)
    file, folder = tmp_path / "data" / "0.png", tmp_path / "tokens"
    encode_missing(vlm, TokenCache(folder, vlm), [triplet])
    file.rename(tmp_path / "data" / "moved.png")
    moved = Triplet(tmp_path / "data" / "moved.png", ACTION)
    assert encode_missing(vlm, TokenCache(folder, vlm), [moved]).encoded == 0
    Image.fromarray(np.full((32, 32, 3), 7, np.uint8)).save(tmp_path / "data" / "moved.png")
    vlm.cache = cache = TokenCache(folder, vlm)
    changed = Triplet(tmp_path / "data" / "moved.png", ACTION)
    assert encode_missing(vlm, cache, [changed]).encoded == 1  # the same path with other pixels is another picture
    assert vlm.codes([changed.source]) == vlm.codes([np.full((32, 32, 3), 7, np.uint8)])


def test_a_cache_of_another_tokenizer_is_left_alone_and_said(
    vlm: ChameleonVLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    triplets, other = written(tmp_path / "data", 3), make_tiny(seed=5)
    encode_missing(other, TokenCache(tmp_path / "tokens", other), triplets)
    before = contents(tmp_path / "tokens")
    cache = TokenCache(tmp_path / "tokens", vlm)
    assert "of another image tokenizer" in caplog.text
    assert vlm.tokenizer_key() != other.tokenizer_key()
    assert encode_missing(vlm, cache, triplets).encoded == 4
    assert before.items() <= contents(tmp_path / "tokens").items()
    vlm.cache = cache
    assert vlm.codes([triplets[0].source]) == make_tiny().codes([triplets[0].source])
    with torch.no_grad():
        vlm.decoder.conv_out.weight.add_(1)  # type: ignore[union-attr]  # takes no part in encoding
        assert vlm.tokenizer_key() == make_tiny().tokenizer_key()
        vlm.vqmodel.quantize.embedding.weight.add_(1)
    assert vlm.tokenizer_key() != make_tiny().tokenizer_key()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(RewindError, match=r"holds run.json and no token cache"):
        TokenCache(tmp_path / "run", vlm)


def test_a_run_that_stops_anywhere_goes_on_to_the_same_bytes(
    vlm: ChameleonVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 4)
    triplets = written(tmp_path / "data", 10)
    encode_missing(vlm, TokenCache(tmp_path / "whole", vlm), triplets, distances=True)
    append, calls = Shards.append, []

    def cut_off(self: Shards, *arguments: Any) -> None:
        calls.append(self.kind)
        if len(calls) == stop:
            raise InterruptedError
        append(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "append", cut_off)
        for stop in range(1, 11):  # noqa: B007  # cut off before its first shard, its second, ...
            calls.clear()
            with suppress(InterruptedError):
                encode_missing(vlm, TokenCache(tmp_path / "parts", vlm), triplets, distances=True)
    assert len(calls) < stop  # the last one came through
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    for number in range(2):  # two processes: what one has, the other takes in
        encode_missing(vlm, TokenCache(tmp_path / "both", vlm), triplets, distances=True, shard=(number, 2))
    both, whole = (TokenCache(tmp_path / name, vlm) for name in ("both", "whole"))
    assert encode_missing(vlm, both, triplets, distances=True).encoded == 0
    assert len(both.codes) == len(whole.codes) == 11


def test_a_full_disk_and_damaged_shards_leave_the_others_valid(
    vlm: ChameleonVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoding, "BLOCK", 4)
    triplets, folder = written(tmp_path / "data", 8), tmp_path / "tokens"
    encode_missing(vlm, TokenCache(folder, vlm), triplets[:4])
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(RewindError, match=r"cannot be written to .*No space left.*stays valid"):
            encode_missing(vlm, TokenCache(folder, vlm), triplets)
    cache = TokenCache(folder, vlm)
    assert len(cache.codes) == 5
    assert not list(folder.rglob(".*"))
    (shard,) = cache.own.glob("codes-*.arrow")
    shard.write_bytes(shard.read_bytes()[:100])
    assert len(TokenCache(folder, vlm).codes) == 0
    assert "is damaged and left out" in caplog.text
    assert encode_missing(vlm, TokenCache(folder, vlm), triplets).encoded == 9


def test_a_picture_that_cannot_be_read_stops_or_is_left_out(vlm: ChameleonVLM, tmp_path: Path) -> None:
    triplets = written(tmp_path / "data", 3)
    (tmp_path / "data" / "0.png").write_bytes(b"no picture")
    with pytest.raises(RewindError, match=r"0.png cannot be read as an image"):
        encode_missing(vlm, TokenCache(tmp_path / "a", vlm), triplets)
    counts = encode_missing(vlm, TokenCache(tmp_path / "b", vlm), triplets, distances=True, skip_unreadable=True)
    assert (counts.encoded, counts.pairs, len(counts.unreadable)) == (3, 2, 1)


@pytest.mark.parametrize("size", ["32", "own:64"])
def test_rows_of_sft_are_the_same_with_and_without(size: str, tmp_path: Path, no_pixels: Any) -> None:
    vlm: Any = make_tiny() if size == "32" else load_base(shelf()["emu3"], Settings(image_size=size))
    triplets = written(tmp_path / "data", 6, side=vlm.cell * 4)
    cache = TokenCache(tmp_path / "tokens", vlm)
    encode_missing(vlm, cache, triplets, distances=True)
    no_pixels.clear()
    importance = Importance()
    fdm = role_rows(vlm, "fdm", triplets, importance, cache=cache)
    both = both_rows(fdm, role_rows(vlm, "idm", triplets, cache=cache))
    found = [both[number] for number in range(6)]
    part = next(iter(mixed(fdm, 4, 0.5, seed=0)))
    assert not no_pixels
    plain = both_rows(role_rows(vlm, "fdm", triplets, importance), role_rows(vlm, "idm", triplets))
    for row, other in zip(found, plain, strict=True):
        assert row.keys() == other.keys() == {"input_ids", "labels", "weights", "idm_input_ids", "idm_labels"}
        assert all(np.allclose(row[name], other[name], rtol=1e-4) for name in row)  # only weights are no integers
        assert all(isinstance(values, np.ndarray) for values in row.values())  # no list of tokens on the way
    source, target = (vlm.codes([picture])[0] for picture in (triplets[2].source, triplets[2].target))
    assert found[2]["input_ids"].tolist() == [*vlm.fdm_prompt(source, ACTION), *vlm.target_span(target)]
    assert found[2]["idm_input_ids"].tolist() == [*vlm.idm_prompt(source, target), *vlm.action_ids(ACTION)]
    assert any(np.array_equal(part["input_ids"], row["input_ids"]) for row in found)


def test_distances_are_the_very_same_however_they_came_there(vlm: ChameleonVLM, tmp_path: Path) -> None:
    triplets, found = written(tmp_path / "data", 9), []
    whole, parts = (TokenCache(tmp_path / name, vlm) for name in ("whole", "parts"))
    encode_missing(vlm, whole, triplets, distances=True)
    for some in ([3], [0, 8], [7, 6, 5], range(9)):
        encode_missing(vlm, parts, [triplets[n] for n in some], distances=len(some) > 1)
    keys = [pair.key or b"" for pair in encoding.pairs_of(vlm, whole, triplets)]
    for cache in (whole, parts):
        found.append([cache.distance(place) for place in cache.distances.find(keys)])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
    plain = feature_distances(vlm, [t.source for t in triplets], [t.target for t in triplets if t.target is not None])
    assert all(np.allclose(a, b.numpy(), rtol=1e-4) for a, b in zip(found[0], plain, strict=True))


def test_distances_in_half_the_bytes_are_a_cache_of_their_own(vlm: ChameleonVLM, tmp_path: Path) -> None:
    triplets = written(tmp_path / "data", 3)
    whole, half = TokenCache(tmp_path / "whole", vlm), TokenCache(tmp_path / "half", vlm, "float16")
    for cache in (whole, half):
        encode_missing(vlm, cache, triplets, distances=True)
    half = TokenCache(tmp_path / "half", vlm)  # whoever reads it need not say so
    assert len(whole.distances) == len(half.distances) == len(triplets)
    for place in range(len(triplets)):
        exact, near = whole.distance(place), half.distance(place)
        assert near.dtype == np.float32
        assert np.array_equal(near, exact.astype(np.float16).astype(np.float32))
    half.append_distances([bytes(16)], [np.array([1e6], np.float32)])  # nothing becomes infinite
    assert half.distance(int(half.distances.find([bytes(16)])[0])) == [np.finfo(np.float16).max]
    for folder, kept, other in (("whole", "float32", "float16"), ("half", "float16", "float32")):
        with pytest.raises(RewindError, match=f"keeps distances as {kept}: leave --distances {other} out"):
            TokenCache(tmp_path / folder, vlm, other)


def test_views_have_a_key_too(tmp_path: Path) -> None:
    from rl.picture_keys import content_key, stamp

    files = [triplet.source for triplet in written(tmp_path, 3)]
    one, other = Views((files[0], files[1])), Views((files[1], files[0]))
    assert stamp(one) != stamp(other)
    assert content_key(one) != content_key(other)
    assert content_key(one) == content_key(Views((files[0], files[1])))
    assert stamp(Views((files[0], np.asarray(files[1])))) is None  # not all of it lies in files
    assert stamp(PictureFile(tmp_path / "gone.png", (32, 32))) is None
    with pytest.raises(RewindError, match=r"gone.png cannot be read"):
        content_key(tmp_path / "gone.png")
