"""Data on disk: triplets, videos, pools, and the real ones where they are."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.data.frames import find_media, pool_from_frames, read_captions, read_texts, video_frames
from rl.data.pools import pool_from_world
from rl.data.triplet_files import read_triplets, write_triplets
from rl.data.video.video_files import write_video
from rl.errors import RewindError
from rl.pictures import PictureFile
from rl.triplets import Triplet, columns_of
from rl.worlds.tabletop import Tabletop


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_triplets_come_back_as_written(tmp_path: Path) -> None:
    triplets = [
        Triplet(noise(8, 8, 3), "move it", noise(9, 9, 3), "move", "label", -0.5, "idm"),
        Triplet(Image.fromarray(noise(8, 8, 3)), "paint it"),
    ]
    found = read_triplets(write_triplets(triplets, tmp_path))
    assert (np.asarray(found[0].target) == triplets[0].target).all()
    assert (found[0].action, found[0].task, found[0].label, found[0].score) == ("move it", "move", "label", -0.5)
    assert found[0].provenance == "idm"
    assert found[1].target is None


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "at least one triplet"),
        ({"a": 1}, "must be a JSON list"),
        ([{"input": "a.png"}], "triplet 0: needs at least 'instruction'"),
        ([{"instruction": " ", "input": "a.png"}], "the instruction is empty"),
        ([{"instruction": "x", "input": "../a.png"}], "lies outside the folder"),
        ([{"instruction": "x", "input": "/etc/passwd"}], "lies outside the folder"),
        ([{"instruction": "x", "input": "a.png", "output": "b.png"}], "there is no image"),
        ([{"instruction": "x", "input": None}], "every triplet needs a source"),
    ],
)
def test_wrong_triplets(tmp_path: Path, entries: object, sentence: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for place in (tmp_path, folder):
        Image.fromarray(noise(8, 8, 3)).save(place / "a.png")
    (folder / "t.json").write_text(json.dumps(entries))
    with pytest.raises(RewindError, match=sentence):
        read_triplets(folder / "t.json")


def test_further_columns_are_kept_and_written_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Triplet(noise(8, 8, 3), "move it", task="move", more={"mask": [[0, 1]], "id": "a", "input": "none.png"})
    second = Triplet(noise(8, 8, 3), "paint it", more={"mask": np.eye(2, dtype=bool), "view": Image.new("L", (2, 2))})
    with caplog.at_level(logging.WARNING, logger="rl"):
        found = read_triplets(write_triplets([first, second, Triplet(noise(8, 8, 3), "wait")], tmp_path))
    assert [t.more for t in found] == [{"mask": [[0, 1]], "id": "a"}, {"mask": [[True, False], [False, True]]}, {}]
    assert "the column 'view' is not written, as JSON cannot hold it: it is a Image" in caplog.text
    assert columns_of(found) == ["mask", "id"]
    entries = json.loads((tmp_path / "triplets.json").read_text())
    assert [sorted(e) for e in entries[::2]] == [
        ["id", "input", "instruction", "mask", "task"],
        ["input", "instruction"],
    ]
    same = Triplet(first.source, "move it", task="move", more={"mask": [[0, 1]], "id": "b"})
    assert first != same  # and hashable wherever its pictures are
    file = PictureFile(tmp_path / "a.png", (8, 8))
    assert hash(Triplet(file, "go", more={"a": []})) == hash(Triplet(file, "go"))


def test_triplets_that_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="cannot read the triplets"):
        read_triplets(tmp_path / "none.json")
    (tmp_path / "t.json").write_text("[")
    with pytest.raises(RewindError, match="not valid JSON"):
        read_triplets(tmp_path / "t.json")


def test_videos_are_written_without_loss(tmp_path: Path) -> None:
    frames = Tabletop().video(np.random.default_rng(0)).frames_THWC
    write_video(frames, tmp_path / "label" / "a.mkv", frames_per_second=8)
    found, rate = video_frames(tmp_path / "label" / "a.mkv", 64, 100)
    assert (found == frames).all()
    assert rate == 8
    some, rate = video_frames(tmp_path / "label" / "a.mkv", 64, len(frames) // 2)
    assert len(some) == len(frames) // 2
    assert rate == pytest.approx(4, rel=0.1)


def test_a_pool_from_pictures_videos_and_words(tmp_path: Path) -> None:
    frames = Tabletop().video(np.random.default_rng(0)).frames_THWC
    write_video(frames, tmp_path / "a.mkv", frames_per_second=8)
    Image.fromarray(noise(50, 40, 3)).save(tmp_path / "b.png")
    (tmp_path / "captions.json").write_text(json.dumps([{"image": "b.png", "caption": "noise"}]))
    (tmp_path / "words.txt").write_text("move it\n\npaint it\n")
    (tmp_path / "aurora.json").write_text(json.dumps([{"instruction": "lift it"}]))
    pool = pool_from_frames(
        [tmp_path],
        32,
        100,
        read_captions(tmp_path / "captions.json"),
        read_texts([tmp_path / "words.txt", tmp_path / "aurora.json"]),
    )
    assert pool.images_NHWC.shape == (1 + len(frames), 32, 32, 3)
    assert pool.captions[0] == ["noise"]
    assert not any(pool.captions[1:])
    assert pool.pairs_P2.tolist() == [[1 + t, 5 + t] for t in range(len(frames) - 4)]  # half a second at 8 a second
    assert pool.texts == ["move it", "paint it", "lift it"]
    assert pool.all_text() == ["noise", "move it", "paint it", "lift it"]


def test_a_link_to_a_folder_of_videos_is_followed_and_circles_are_recognised(tmp_path: Path) -> None:
    clips, disk = tmp_path / "clips", tmp_path / "disk"
    for file in (clips / "a" / "1.mp4", disk / "2.mp4", disk / "deep" / "3.mp4", tmp_path / "other.mp4"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (clips / "b").symlink_to(disk)
    (clips / "0 again").symlink_to(clips / "a")  # the folder itself keeps its name, which is its class
    (disk / "deep" / "round").symlink_to(disk)
    (clips / "a" / "home").symlink_to(clips)
    (clips / "up").symlink_to(tmp_path)
    (clips / "nowhere").symlink_to(tmp_path / "gone")
    (clips / "a" / "._1.mp4").touch()
    _, videos = find_media([clips])
    assert [str(video.relative_to(clips)) for video in videos] == ["a/1.mp4", "b/2.mp4", "b/deep/3.mp4"]
    (tmp_path / "all").symlink_to(clips)
    assert len(find_media([tmp_path / "all"])[1]) == 3


def test_captions_of_linked_pictures(tmp_path: Path) -> None:
    """As the Hub's cache has them: two names of one blob keep captions of their own."""
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "blob.png")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a.png", "b.png"):
        (data / name).symlink_to("../blob.png")
    (data / "captions.json").write_text(json.dumps([{"image": f"{n}.png", "caption": n} for n in "ab"]))
    (tmp_path / "link").symlink_to(data)
    captions = read_captions(data / "captions.json")
    assert pool_from_frames([data], 8, 10, captions).captions == [["a"], ["b"]]
    (data / "b.png").unlink()
    (data / "captions.json").write_text(json.dumps([{"image": "a.png", "caption": "a"}]))
    captions = read_captions(data / "captions.json")
    assert pool_from_frames([tmp_path / "link"], 8, 10, captions).captions == [["a"]]


def test_a_broken_picture_in_a_folder_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(noise(8, 8, 3)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:100])
    (tmp_path / "captions.json").write_text(json.dumps([{"image": "c.png", "caption": "third"}]))
    with caplog.at_level(logging.WARNING, logger="rl"):
        pool = pool_from_frames([tmp_path], 8, 10, read_captions(tmp_path / "captions.json"))
    assert pool.captions == [[], ["third"]]
    assert "1 of 3 pictures are left out; the first:" in caplog.text
    assert "b.png cannot be read" in caplog.text


def test_home_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    frames = Tabletop().video(np.random.default_rng(0)).frames_THWC[:4]
    write_video(frames, tmp_path / "clips" / "a.mkv")
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "clips" / "b.png")
    (tmp_path / "clips" / "captions.json").write_text(json.dumps([{"image": "b.png", "caption": "noise"}]))
    (tmp_path / "words.txt").write_text("move it\n")
    captions, texts = read_captions(Path("~/clips/captions.json")), read_texts([Path("~/words.txt")])
    pool = pool_from_frames([Path("~/clips")], 8, 10, captions, texts)
    assert pool.captions[0] == ["noise"]
    assert len(pool.images_NHWC) == 1 + len(video_frames(Path("~/clips/a.mkv"), 8, 9)[0]) == 5


def test_wrong_material(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match=r"there is no .*missing"):
        pool_from_frames([tmp_path / "missing"], 32, 10)
    with pytest.raises(RewindError, match="holds no picture"):
        pool_from_frames([tmp_path], 32, 10)
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(RewindError, match="no picture could be read"):
        pool_from_frames([tmp_path], 32, 10)
    (tmp_path / "captions.json").write_text(json.dumps([{"image": "../b.png", "caption": "x"}]))
    with pytest.raises(RewindError, match="lies outside its folder"):
        read_captions(tmp_path / "captions.json")
    (tmp_path / "captions.json").write_text("{}x")
    with pytest.raises(RewindError, match="is no JSON list"):
        read_captions(tmp_path / "captions.json")
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.png")
    with pytest.raises(RewindError, match=r"b.png has a caption but is not among"):
        pool_from_frames([tmp_path / "a.png"], 32, 10, {(tmp_path / "b.png").resolve(): ["x"]})
    with pytest.raises(RewindError, match="neither lines of text nor"):
        read_texts([tmp_path / "captions.json"])


def test_no_sentence_of_a_pool_tells_the_action_of_its_pair() -> None:
    """The base knows pictures and words, not dynamics: actions occur as text alone, about other scenes."""
    world = Tabletop()
    pool = pool_from_world(world, 200, 2, np.random.default_rng(0))
    assert len(pool.texts) == len(pool.pairs_P2) == 200
    assert all(world.family(text) for text in pool.texts)
    about = [s for group in (*pool.captions, *pool.pair_captions) for s in group]
    assert not any(world.family(sentence) for sentence in about)
    verbs = {text.split()[0] for text in pool.texts}
    assert not verbs & {word for sentence in about for word in sentence.split()}
    reading = world.read(pool.images_NHWC[pool.pairs_P2[:, 0]])
    matches = sum(bool(world.outcomes(r.scene, t)) for r, t in zip(reading, pool.texts, strict=True) if r.scene)
    assert matches < 60  # a sentence that happens to be possible on the scene beside it is chance


def test_a_world_without_captions_is_described_by_actions() -> None:
    class Silent:
        name, image_size = "silent", 64

        def __init__(self) -> None:
            self.inner = Tabletop()
            for method in ("sample_scene", "sample_action", "outcomes", "render", "judge"):
                setattr(self, method, getattr(self.inner, method))

    with pytest.warns(UserWarning, match="has no caption"):
        pool = pool_from_world(Silent(), 5, 3, np.random.default_rng(0))  # type: ignore[arg-type]
    assert len(pool.images_NHWC) == 10
    assert [len(words) for words in pool.captions] == [1, 0] * 5


def test_real_clips_and_a_corrupted_one(real_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="rl"):
        pool = pool_from_frames([real_data / "videos", real_data / "aurora-bench-sample" / "images"], 32, 400)
    assert len(pool.images_NHWC) > 300
    assert len(pool.pairs_P2) > 50
    assert "corrupted.mp4 breaks off" in caplog.text


def test_aurora_bench_pairs(real_data: Path) -> None:
    triplets = read_triplets(real_data / "aurora-bench-sample" / "test.json")
    assert len(triplets) == 40
    assert {t.task for t in triplets} == {"magicbrush", "ag", "something", "whatsup", "kubric"}
    assert all(t.target is not None for t in triplets)
