"""Data sets as they are published, each opened as it lies; small ones of their layouts are made here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rl.data.left_out import LeftOut
from rl.data.triplet_files import read_triplets
from rl.data.video.video_files import write_video
from rl.errors import RewindError
from rl.triplets import Triplet


def save(path: Path, shade: int = 100, format: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path, format)
    return path


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, entries: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, entries)) if lines else json.dumps(entries))
    return path


def table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def video(path: Path, shades: Sequence[int]) -> Path:
    """Frames of one shade each, a second apart, in a Matroska file (webm is one too)."""
    write_video(np.stack([np.full((16, 16, 3), shade, np.uint8) for shade in shades]), path, 1)
    return path


def red(picture: Any) -> int:
    return int(np.asarray(picture)[0, 0, 0])


def said(triplets: Sequence[Triplet]) -> list[tuple[str, int, int | None]]:
    return [(t.action, red(t.source), None if t.target is None else red(t.target)) for t in triplets]


# ---- AURORA


def test_aurora_something_rows_that_begin_with_dots(tmp_path: Path) -> None:
    """Paths that lead out of the list's folder and back, or into another folder below the repository's root."""
    save(tmp_path / "data" / "something" / "frames" / "1" / "first.jpg", 10, "PNG")
    save(tmp_path / "frames" / "2" / "first.jpg", 20, "PNG")
    inside, outside = "../../data/something/frames/1/first.jpg", "../../frames/2/first.jpg"
    listed = [{"instruction": "drop it", "input": name, "output": name} for name in (inside, outside)]
    file = write(tmp_path / "data" / "something" / "train.json", listed)
    left: list[LeftOut] = []
    assert said(read_triplets(file, left_out=left)) == [("drop it", 10, 10)]
    assert [one.reason for one in left] == ["outside the folder"]
    assert said(read_triplets(file, image_root=tmp_path / "data" / "something", left_out=[])) == [("drop it", 10, 10)]


def test_aurora_magicbrush_turns_keep_mask_and_number(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "magicbrush"
    for number, shade in enumerate((1, 2, 3)):
        save(folder / "images" / f"{number}.png", shade)
    listed = [
        {"input": f"data/magicbrush/images/{n}.png", "mask": f"{n}-mask.png", "img_id": "327726"}
        | {"output": f"data/magicbrush/images/{n + 1}.png", "instruction": ["turn on", "other words"]}
        for n in (0, 1)
    ]
    found = read_triplets(write(folder / "train.json", listed))
    assert said(found) == [("turn on", 1, 2), ("turn on", 2, 3)]
    assert found.columns == ["mask", "img_id"]
    assert found[1].more == {"mask": "1-mask.png", "img_id": "327726"}


def test_aurora_bench_with_rows_that_have_no_output(tmp_path: Path) -> None:
    save(tmp_path / "data" / "clevr" / "images" / "a.png", 5)
    name = "data/clevr/images/a.png"
    rows = [{"instruction": "turn it brown", "input": name, "task": "clevr", "id": "005422"}] * 3
    rows += [{"instruction": "lift it", "input": name, "output": name, "task": "ag", "id": "7"}] * 5
    file = write(tmp_path / "test.json", rows)
    assert len(read_triplets(file)) == 8
    left: list[LeftOut] = []
    assert {t.task for t in read_triplets(file, with_targets=True, left_out=left)} == {"ag"}
    assert [one.reason for one in left] == ["no 'output'"] * 3


# ---- videos with tables


def test_something_something_with_placeholders_filled_in(tmp_path: Path) -> None:
    video(tmp_path / "20bn-something-something-v2" / "78687.webm", [10, 20, 30])
    video(tmp_path / "20bn-something-something-v2" / "2.webm", [40, 50])
    labels = [
        {
            "id": "78687",
            "label": "holding potato next to box",
            "template": "Holding [something] next to [something]",
            "placeholders": ["potato", "box"],
        },
        {"id": "2", "label": "Opening something", "template": "Opening [something]", "placeholders": [], "lamp": "on"},
    ]
    found = read_triplets(write(tmp_path / "labels" / "train.json", labels))
    assert said(found) == [("Holding potato next to box", 10, 30), ("Opening something", 40, 50)]
    assert (found[0].label, found[0].provenance) == ("Holding something next to something", "78687")
    assert found[0].source.size == (16, 16)
    assert found.columns == ["label", "placeholders", "lamp"]  # what the user has added reaches rewards
    assert found[1].more["lamp"] == "on"
    unnamed = read_triplets(write(tmp_path / "labels" / "test.json", [{"id": "2"}]), named=False, with_targets=True)
    assert said(unnamed) == [("", 40, 50)]  # as test lists are: videos to name
    gone = [{"id": "3", "label": "a", "template": "b", "placeholders": []}, *labels, {"id": "4"}, *labels]
    left: list[LeftOut] = []
    assert len(read_triplets(write(tmp_path / "labels" / "t.json", gone), left_out=left)) == 4
    assert [one.reason for one in left] == ["missing picture", "no 'instruction'"]
    assert f"there is no video {tmp_path / '20bn-something-something-v2' / '3.webm'}" in left[0].what


EPIC_ROW = {
    **{"narration_id": "P01_11_0", "participant_id": "P01", "video_id": "P01_11", "start_timestamp": "00:00:01.00"},
    **{"stop_timestamp": "00:00:03.20", "start_frame": 1, "stop_frame": 3, "narration": "take plate", "verb": "take"},
}


def test_epic_kitchens_table_with_videos_or_frames(tmp_path: Path) -> None:
    file = table(tmp_path / "a" / "EPIC_100_train.csv", [EPIC_ROW])
    video(tmp_path / "a" / "P01" / "videos" / "P01_11.MP4", [0, 11, 22, 33, 44])
    found = read_triplets(file)
    assert said(found) == [("take plate", 11, 33)]
    assert (found[0].label, found[0].provenance) == ("take", "P01_11")
    assert found[0].more["narration_id"] == "P01_11_0"
    old = table(tmp_path / "old" / "EPIC_train_action_labels.csv", [{"uid": "0", **EPIC_ROW}])  # of the 55 kitchens
    video(tmp_path / "old" / "videos" / "train" / "P01" / "P01_11.MP4", [0, 11, 22, 33, 44])
    assert said(read_triplets(old)) == [("take plate", 11, 33)]
    for name, person in (("b", "P01"), ("c", "EPIC-KITCHENS/P01")):  # as the authors' script puts them
        other = table(tmp_path / name / "EPIC_100_train.csv", [EPIC_ROW])
        for number in (1, 3):
            save(tmp_path / name / person / "rgb_frames" / "P01_11" / f"frame_{number:010d}.jpg", number, "PNG")
        assert said(read_triplets(other)) == [("take plate", 1, 3)]


def test_a_table_of_clips_like_epics(tmp_path: Path) -> None:
    video(tmp_path / "clips" / "a.mkv", [0, 11, 22, 33])
    rows = [
        {"clip": "clips/a.mkv", "start": start, "stop": stop, "narration": "cut it"} for start, stop in ((0, 2), (1, 3))
    ]
    rows += [{"clip": "clips/a.mkv", "start": "soon", "stop": 2, "narration": "cut it"}]
    rows += [{"clip": "clips/a.mkv", "start": 1, "stop": 60, "narration": "cut it"}]
    left: list[LeftOut] = []
    found = read_triplets(table(tmp_path / "clips.csv", rows), left_out=left)
    assert said(found) == [("cut it", 0, 22), ("cut it", 11, 33)]
    assert [one.reason for one in left] == ["no second", "unreadable picture"]
    assert "'at' must be seconds" in left[0].what
    assert "has no frame at 60 s: its last is shown at 3 s" in left[1].what


# ---- folders and lists of edits


def test_instructpix2pix_folders_listed_and_walked(tmp_path: Path) -> None:
    for name, words in (("0001", "make it red"), ("0002", "make it dark")):
        folder = tmp_path / "shard-00" / name
        save(folder / "7_0.jpg", 10, "PNG")
        save(folder / "7_1.jpg", 20, "PNG")
        save(folder / "9_0.jpg", 30, "PNG")
        write(folder / "prompt.json", {"input": "a", "edit": words, "output": "b", "url": name})
    left: list[LeftOut] = []
    found = read_triplets(tmp_path, left_out=left)
    assert said(found) == [("make it red", 10, 20), ("make it dark", 10, 20)]
    assert [t.more for t in found] == [{"url": "0001"}, {"url": "0002"}]
    assert [(one.key, one.reason) for one in left] == [("output", "missing picture")] * 2
    write(tmp_path / "seeds.json", [["shard-00/0002", ["7"]]])
    assert said(read_triplets(tmp_path)) == [("make it dark", 10, 20)]
    (tmp_path / "seeds.json").write_text("[3]")
    with pytest.raises(RewindError, match=r"seeds.json must be a list of \[folder, \[seeds\]\]"):
        read_triplets(tmp_path)


def test_a_folder_with_metadata_as_image_folders_have(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2)
    row = {"input_image_file_name": "a.png", "edited_image_file_name": "b.png", "edit_prompt": "brighten it"}
    write(tmp_path / "metadata.jsonl", [row] * 2)
    assert said(read_triplets(tmp_path)) == [("brighten it", 1, 2)] * 2


def test_pico_banana_single_edits_and_turns(tmp_path: Path) -> None:
    save(tmp_path / "openimage_source_images" / "cb1_o.jpg", 1, "PNG")
    save(tmp_path / "images" / "positive-edit" / "1.png", 2)
    for turn in (1, 2):
        save(tmp_path / "images" / "multi-turn" / f"5_turn{turn}.png", 10 * turn)
    single = {
        **{
            "open_image_input_url": "https://c1.example/8/cb1_o.jpg",
            "text": "Remove the flag and",
            "edit_type": "Remove",
        },
        **{"output_image": "images/positive-edit/1.png", "summarized_text": "Remove the flag", "grade": 0.5},
    }
    found = read_triplets(
        write(tmp_path / "sft.jsonl", [single, {**single, "local_input_image": "images/positive-edit/1.png"}])
    )
    assert said(found) == [("Remove the flag", 1, 2), ("Remove the flag", 2, 2)]
    assert found[0].task == "Remove"
    assert found[0].more == {"text": "Remove the flag and", "grade": 0.5}
    assert read_triplets(tmp_path / "sft.jsonl", columns=["instruction=text"])[0].action == "Remove the flag and"
    files = [
        {"id": "original_input_image", "url": "https://c1.example/8/cb1_o.jpg"},
        {"id": "edit_turn1", "url": "images/multi-turn/5_turn1.png"},
        {"id": "final_image", "url": "images/multi-turn/5_turn2.png"},
    ]
    turns = {"files": files, "metadata_edit_turn_prompts": ["add a cat", "make it black"], "grade": 1.0}
    left: list[LeftOut] = []
    short = {**turns, "metadata_edit_turn_prompts": ["add a cat"]}
    found = read_triplets(write(tmp_path / "multi-turn.jsonl", [turns, short]), left_out=left)
    assert said(found) == [("add a cat", 1, 10), ("make it black", 10, 20)]
    assert [t.more for t in found] == [{"grade": 1.0, "turn": 1}, {"grade": 1.0, "turn": 2}]
    assert len(left) == 1


# ---- tables
