"""Files in and out: images, arguments, run folders, triplets, videos, pools."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rl.arguments import mapping, parse_with_config
from rl.data.frames import pool_from_frames, read_captions, read_texts, video_frames
from rl.data.pretraining import pool_from_world
from rl.data.triplets_io import read_triplets, write_triplets
from rl.data.video_files import write_video
from rl.errors import RewindError
from rl.images import load_image, to_array
from rl.report.grids import sheet
from rl.run_folder import claim
from rl.triplets import Candidate, Triplet
from rl.worlds.tabletop import Tabletop


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# ---- images


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
        def decode(self, ids_BK: np.ndarray) -> list[np.ndarray]:
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


# ---- arguments


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser()
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--steps", type=int, default=5)
    p.add_argument("--frames", type=Path, nargs="+")
    p.add_argument("--family", choices=["a", "b"], default="a")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--settings", type=mapping)
    return p


def test_flags_win_over_the_config(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("steps: 7\noutput: from_file\nframes: [x, y]\nresume: true\n")
    found = parse_with_config(parser(), ["--config", str(config), "--output", "flag"])
    assert (found.steps, found.output, found.frames, found.resume) == (7, Path("flag"), [Path("x"), Path("y")], True)
    assert parse_with_config(parser(), ["--config", str(config)]).output == Path("from_file")
    assert parse_with_config(parser(), ["--output", "o"]).steps == 5
    config.write_text("output: o\nsettings: {keep: {free: {move: 2}}}\n")
    assert parse_with_config(parser(), ["--config", str(config)]).settings == {"keep": {"free": {"move": 2}}}
    found = parse_with_config(parser(), ["--config", str(config), "--settings", '{"keep": {"default": 1}}'])
    assert found.settings == {"keep": {"default": 1}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stps: 7", "unknown key 'stps': did you mean 'steps'"),
        ("zzzz: 7", "unknown key 'zzzz'; known keys: family, frames"),
        ("steps: many", "'steps' cannot be 'many'"),
        ("family: c", "'family' must be one of a, b"),
        ("resume: 3", "'resume' must be true or false"),
        ("- 1\n- 2", "must hold 'key: value' lines"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("output: null", "'output'"),
        ("settings: [1]", "'settings' takes one value"),
        ("settings: 'a=1'", "'a=1' is not JSON"),
    ],
)
def test_wrong_configs(tmp_path: Path, text: str, sentence: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(RewindError, match=sentence):
        parse_with_config(parser(), ["--config", str(config)] + ([] if "output" in text else ["--output", "o"]))
    with pytest.raises(RewindError, match="cannot read the config"):
        parse_with_config(parser(), ["--config", str(tmp_path / "none.yaml")])


# ---- run folders


def test_an_output_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, "train.py", {"steps": 3, "resume": False}, resume=False)
    (run / "weights").write_text("precious")
    with pytest.raises(RewindError, match="exists: use --resume, --overwrite"):
        claim(run, "train.py", {"steps": 3}, resume=False)
    with pytest.raises(RewindError, match="exists: use --overwrite or another"):
        claim(run, "train.py", {"steps": 3})
    with pytest.raises(RewindError, match="begun with other values of steps"):
        claim(run, "train.py", {"steps": 4}, resume=True)
    assert claim(run, "train.py", {"steps": 3, "resume": True}, resume=True) == run
    assert (run / "weights").read_text() == "precious"
    claim(run, "train.py", {"steps": 4}, overwrite=True)
    assert not (run / "weights").exists()
    assert json.loads((run / "run.json").read_text())["config"] == {"steps": 4}


def test_a_kill_while_a_folder_is_claimed_blocks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json.partial").write_text('{"scri')  # killed while it wrote the marker of an empty folder
    claim(run, "train.py", {"steps": 3}, resume=False)
    (run / "checkpoint").mkdir()
    (run / "weights").write_text("old")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)  # in the middle of --overwrite
        with pytest.raises(KeyboardInterrupt):
            claim(run, "train.py", {"steps": 3}, overwrite=True, resume=False)
    with pytest.raises(RewindError, match="was killed: use --overwrite again"):
        claim(run, "train.py", {"steps": 3}, resume=True)
    with pytest.raises(RewindError, match=r"holds a run of train\.py"):
        claim(run, "label.py", {"steps": 3}, overwrite=True)
    claim(run, "train.py", {"steps": 4}, overwrite=True, resume=False)
    assert [path.name for path in run.iterdir()] == ["run.json"]
    claim(run, "train.py", {"steps": 4}, resume=True)


def test_overwrite_removes_neither_another_scripts_run_nor_the_input(tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(run, "label.py", {})
    (run / "triplets.json").write_text("[]")
    with pytest.raises(RewindError, match=r"holds a run of label.py: use another --output"):
        claim(run, "train.py", {}, overwrite=True)
    with pytest.raises(RewindError, match=r"--overwrite would remove .*triplets.json, which this run reads"):
        claim(run, "label.py", {}, inputs=[None, "a name", run / "triplets.json"], overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(run)
    with pytest.raises(RewindError, match="is a link: choose another name"):
        claim(link, "label.py", {}, overwrite=True)
    assert (run / "triplets.json").exists()


def test_only_the_first_process_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(RewindError, match=r"label.py runs in one process"):
        claim(tmp_path / "run", "label.py", {})
    assert not (tmp_path / "run").exists()
    claim(tmp_path / "shard", "rerank.py", {}, each_process=True)


def test_a_folder_of_something_else_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(RewindError, match="use another --output"):
        claim(tmp_path, "train.py", {}, overwrite=True)
    with pytest.raises(RewindError, match="use another --output"):
        claim(tmp_path, "train.py", {}, resume=True)
    with pytest.raises(RewindError, match="is a file"):
        claim(tmp_path / "thesis.tex", "train.py", {})
    assert (tmp_path / "thesis.tex").exists()


# ---- triplets


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


def test_triplets_that_are_no_json(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match="cannot read the triplets"):
        read_triplets(tmp_path / "none.json")
    (tmp_path / "t.json").write_text("[")
    with pytest.raises(RewindError, match="not valid JSON"):
        read_triplets(tmp_path / "t.json")


# ---- videos and pools


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
