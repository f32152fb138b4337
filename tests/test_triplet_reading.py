"""Files of triplets as people have them: where pictures lie, how entries are written, and what is left out."""

from __future__ import annotations

import codecs
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from script_runs import start, succeed

from rl.data.left_out import LeftOut, for_resume, list_left_out
from rl.data.triplet_files import read_triplets
from rl.errors import RewindError
from rl.running.run_folder import claim


def save(path: Path, shade: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(path)
    return path


def entry(source: str = "a.png", target: str | None = "a.png", **more: Any) -> dict[str, Any]:
    return {"instruction": "lift it", "input": source, **({} if target is None else {"output": target}), **more}


def write(path: Path, entries: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


# ---- where pictures lie: judged as written


def test_hub_cache_links_in_a_data_folder(tmp_path: Path) -> None:
    """A snapshot of the Hub's cache holds links to blobs, the list of triplets among them."""
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    save(blobs / "picture.png").rename(blobs / "b00b")
    write(blobs / "l157", [entry("images/a.png", "images/a.png")])
    (snapshot / "images").mkdir(parents=True)
    (snapshot / "images" / "a.png").symlink_to("../../../blobs/b00b")
    (snapshot / "t.json").symlink_to("../../blobs/l157")
    assert len(read_triplets(snapshot / "t.json")) == 1


def test_a_linked_images_folder_and_a_linked_data_folder(tmp_path: Path) -> None:
    save(tmp_path / "disk" / "a.png")
    data = tmp_path / "data"
    write(data / "t.json", [entry("images/a.png", str(tmp_path / "data" / "images" / "a.png"))])
    (data / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(data)
    assert len(read_triplets(data / "t.json")) == len(read_triplets(tmp_path / "link" / "t.json")) == 1


def test_what_is_written_must_end_in_the_folder_or_the_root(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "a.png")
    save(tmp_path / "data" / "b.png")
    for name in ("../pictures/a.png", str(tmp_path / "pictures" / "a.png")):
        file = write(tmp_path / "data" / "t.json", [entry(name, "deep/../b.png")])
        with pytest.raises(RewindError, match=r"triplet 0: 'input': '.*a.png' lies outside .* give --image_root"):
            read_triplets(file)
        for root in (tmp_path, tmp_path / "pictures"):
            assert len(read_triplets(file, image_root=root)) == 1
    with pytest.raises(RewindError, match=r"there is no folder .*none for images"):
        read_triplets(file, image_root=tmp_path / "none")


def test_auroras_train_json(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its paths start from the repository, two folders above the list; other keys and a list of sentences occur."""
    save(tmp_path / "data" / "ag" / "images" / "1_left.png")
    name = "data/ag/images/1_left.png"
    listed = [entry(name, name, mask="0-mask.png", img_id="7"), {**entry(name, name), "instruction": ["open it", "x"]}]
    with caplog.at_level(logging.WARNING, logger="rl"):
        found = read_triplets(write(tmp_path / "data" / "ag" / "train.json", listed))
    assert [t.action for t in found] == ["lift it", "open it"]
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert f"image paths start from {tmp_path}, where they are found (--image_root sets it)" in said[0]
    deep = write(tmp_path / "1" / "2" / "3" / "4" / "t.json", listed)
    with pytest.raises(RewindError, match="there is no image"):
        read_triplets(deep)  # four folders up nobody looks
    assert len(read_triplets(deep, image_root=tmp_path)) == 2


def test_a_home_folder_is_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / "pictures" / "a.png")
    write(tmp_path / "data" / "t.json", [entry("~/pictures/a.png")])
    assert len(read_triplets("~/data/t.json", image_root="~/pictures")) == 1


# ---- how entries are written


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([entry()] * 2).encode(),
        codecs.BOM_UTF8 + json.dumps([entry()] * 2).encode(),
        json.dumps([entry()] * 2).encode("utf-16"),
        json.dumps({"version": 1, "data": [entry()] * 2}).encode(),
        "\n".join([json.dumps(entry())] * 2).encode(),
        codecs.BOM_UTF8 + "\r\n\r\n".join([json.dumps(entry())] * 2).encode(),
        json.dumps([{"prompt": "lift it", "input": "a.png", "output": "a.png"}] * 2).encode(),
        json.dumps([entry(where="a\u2028b")] * 2, ensure_ascii=False).encode(),
    ],
    ids=["list", "BOM", "UTF-16", "data", "lines", "lines with BOM", "prompt", "other keys"],
)
@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_how_entries_are_written(name: str, content: bytes, tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    found = read_triplets(tmp_path / name)
    assert [t.action for t in found] == ["lift it"] * 2
    assert all(t.target is not None for t in found)
    assert len(read_triplets(tmp_path / name, 1)) == 1


def test_lines_of_json(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    lines = [json.dumps(entry()), '{"instruction": "cut o', json.dumps(entry("b\u2028.png".replace("b\u2028", "a")))]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    left: list[LeftOut] = []
    assert len(read_triplets(tmp_path / "t.jsonl", left_out=left)) == 2
    assert [(one.entry, one.reason) for one in left] == [(1, "not JSON")]
    assert "triplet 1: line 2 is no JSON" in left[0].what
    (tmp_path / "one.jsonl").write_text(json.dumps(entry()))
    assert len(read_triplets(tmp_path / "one.jsonl")) == 1


@pytest.mark.parametrize("limit", [0, -2])
def test_a_limit_below_one_is_refused(limit: int, tmp_path: Path) -> None:
    with pytest.raises(RewindError, match=f"must be at least 1, not {limit}"):
        read_triplets(write(tmp_path / "t.json", [entry()]), limit)


# ---- what is left out


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Twelve entries, of which seven are good, one of these without a target."""
    for number in range(3):
        save(tmp_path / f"{number}.png", 50 * number)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png"):
        Image.fromarray(noise).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:9000])
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\26\7Mac OS X")
    bad = [entry("0.png", "cut.jpg"), entry("cut.png", "0.png"), entry("._a.jpg", "1.png"), entry("0.png", "none.png")]
    good = [entry(f"{n % 3}.png", f"{(n + 1) % 3}.png") for n in range(6)]
    return write(tmp_path / "t.json", [*good, *bad, {"instruction": " ", "input": "0.png"}, entry("0.png", None)])


def test_unreadable_and_missing_pictures_are_left_out_counted_and_listed(
    spoilt: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[LeftOut] = []
    with caplog.at_level(logging.WARNING, logger="rl"):
        found = read_triplets(spoilt, left_out=left)
    assert len(found) == 7
    counts = "3 unreadable picture, 1 missing picture, 1 no 'instruction'"
    assert (
        f"{spoilt}: 5 of 12 entries are left out ({counts}); the first: {spoilt}, triplet 6: 'output': " in caplog.text
    )
    assert [(one.entry, one.key) for one in left] == [
        (6, "output"),
        (7, "input"),
        (8, "input"),
        (9, "output"),
        (10, "instruction"),
    ]
    assert left[3].what == f"{spoilt}, triplet 9: 'output': there is no image {tmp_path / 'none.png'}: check the path"
    list_left_out(tmp_path, left)
    lines = [json.loads(line) for line in (tmp_path / "left_out.jsonl").read_text().splitlines()]
    assert [LeftOut(**line) for line in lines] == left


def test_entries_without_a_target_are_left_out_where_one_is_needed(spoilt: Path) -> None:
    left: list[LeftOut] = []
    found = read_triplets(spoilt, with_targets=True, left_out=left)
    assert all(t.target is not None for t in found)
    assert left[-1].reason == "no 'output'"


def test_strict_refuses_with_the_entrys_name(spoilt: Path) -> None:
    with pytest.raises(RewindError, match=r"t.json, triplet 6: 'output': .*cut.jpg cannot be read as an image"):
        read_triplets(spoilt, strict=True)
    assert len(read_triplets(spoilt, 6, strict=True)) == 6


def test_more_than_half_left_out_stops(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    good, bad = entry(), entry("none.png")
    assert len(read_triplets(write(tmp_path / "t.json", [good, bad, bad, good]))) == 2
    with pytest.raises(
        RewindError, match=r"2 of 3 entries cannot be used \(2 missing picture\); the first: .*triplet 1"
    ):
        read_triplets(write(tmp_path / "t.json", [good, bad, bad]))


def test_entries_that_are_not_as_their_format_says_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    left: list[LeftOut] = []
    pico = {"local_input_image": "a.png", "output_image": "a.png", "summarized_text": "brighten it"}
    turns = {"files": ["a.png"], "metadata_edit_turn_prompts": ["brighten it"]}
    assert len(read_triplets(write(tmp_path / "sft.json", [turns, pico, pico, {"files": 3}]), left_out=left)) == 2
    assert [(one.entry, one.reason) for one in left] == [(0, "not pico_banana"), (3, "not pico_banana")]
    plain = write(tmp_path / "t.json", [entry()])
    with pytest.raises(RewindError, match=r"is not written as --format something says \(KeyError: 'id'\)"):
        read_triplets(plain, format="something")
    with pytest.raises(RewindError, match="holds no pair of pictures beside"):
        read_triplets(tmp_path, format="instructpix2pix")
    with pytest.raises(RewindError, match="--columns gives 'input' two columns, 'a' and 'b'"):
        read_triplets(plain, columns=["input=a", "input=b"])


def test_a_scene_without_one_of_its_pictures_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    left: list[LeftOut] = []
    views = [entry(), {"instruction": "go", "input": [None]}, {**entry(), "input": ["a.png", None]}, entry()]
    assert len(read_triplets(write(tmp_path / "t.json", views), left_out=left)) == 2
    assert [(one.entry, one.reason) for one in left] == [(1, "no picture"), (2, "no picture")]


def test_parquet_in_a_folder_with_other_files(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    pq.write_table(pa.table({"instruction": ["go"], "input": ["a.png"]}), tmp_path / "rows.parquet")
    write(tmp_path / "notes.json", ["no table"])
    assert [t.action for t in read_triplets(tmp_path, image_root=tmp_path)] == ["go"]


def test_a_resumed_run_needs_the_same_entries(spoilt: Path, tmp_path: Path) -> None:
    left: list[LeftOut] = []
    read_triplets(spoilt, left_out=left)
    for before, after in ((left, left), ([], [])):
        claim(
            tmp_path / f"run-{len(before)}", "label.py", for_resume(before), resume=True
        )  # there is nothing to resume yet
        (tmp_path / f"run-{len(before)}" / "triplets.jsonl").write_text("{}\n")  # else it is taken over
        claim(tmp_path / f"run-{len(before)}", "label.py", for_resume(after), resume=True)
    for number, after in ((5, left[:4]), (5, [*left[:4], left[0]]), (5, []), (0, left)):
        with pytest.raises(RewindError, match=r"begun with other .*left_out"):
            claim(tmp_path / f"run-{number}", "label.py", for_resume(after), resume=True)
    list_left_out(tmp_path / "other", [])
    assert not (tmp_path / "other").exists()
    data = tmp_path / "pairs.json"
    data.write_text("[1]")
    claim(tmp_path / "changed", "label.py", for_resume([], [data, None]), resume=True)
    (tmp_path / "changed" / "words.jsonl").write_text("{}\n")
    claim(tmp_path / "changed", "label.py", for_resume([], [data]), resume=True)
    data.write_text("[2]")  # other pairs under the same name would get the words of these
    with pytest.raises(RewindError, match=r"begun with other .*contents_of_data"):
        claim(tmp_path / "changed", "label.py", for_resume([], [data]), resume=True)


def test_scripts_leave_out_list_and_refuse(spoilt: Path, tmp_path: Path) -> None:
    model = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--num_samples", 1, "--triplets", spoilt]
    succeed(*model, "--output", tmp_path / "sample")
    assert len((tmp_path / "sample" / "candidates.jsonl").read_text().splitlines()) == 7
    assert len((tmp_path / "sample" / "left_out.jsonl").read_text().splitlines()) == 5
    done = start(*model, "--strict", "--output", tmp_path / "strict")
    assert done.returncode == 2
    assert "triplet 6: 'output'" in done.stderr
    assert not (tmp_path / "strict").exists()
    moved = shutil.move(spoilt, tmp_path / "lists.json")
    elsewhere = tmp_path / "elsewhere" / "deep" / "deeper" / "deepest" / "t.json"
    elsewhere.parent.mkdir(parents=True)
    shutil.move(moved, elsewhere)
    train = ["scripts/train_idm.py", "--triplets", elsewhere, "--max_steps", 1, "--report_to", "none", "--lora_r", 2]
    succeed(*train, "--image_root", tmp_path, "--output_dir", tmp_path / "idm")
    assert len((tmp_path / "idm" / "left_out.jsonl").read_text().splitlines()) == 6  # one more has no target
    one = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--source", tmp_path / "0.png", "--action", "lift it"]
    done = start(*one, "--image_root", tmp_path, "--output", tmp_path / "one")
    assert "--image_root is about a file of triplets, and none is read" in done.stderr
