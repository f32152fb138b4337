"""Labelling by several processes: chunks of words, merged by the last one; what `label.py` writes and counts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny
from PIL import Image
from script_runs import start, succeed

from rl.data.formats.table import Options
from rl.data.labels.labelling import Naming, Proposal, propose
from rl.data.labels.shards import WORDS_FILE, Shards, unreadable
from rl.data.parquet_files import check_columns, plain_shards, rows_of, write_parquet
from rl.data.some_entries import streamed
from rl.data.tokens.encoding import read_from
from rl.data.triplet_files import read_triplets, write_triplets
from rl.errors import RewindError
from rl.models.roles import InverseDynamics
from rl.pictures import PictureFile, to_image
from rl.running.run_folder import claim
from rl.triplets import Triplet

PAIRS = [Triplet(np.full((8, 8, 3), n, np.uint8), "", np.full((8, 8, 3), n + 100, np.uint8)) for n in range(11)]


def shout(part: Sequence[Triplet]) -> list[list[Proposal]]:
    """Words that tell which pair and which chunk they are of; for every fourth pair none."""
    numbers = [int(np.asarray(pair.source)[0, 0, 0]) for pair in part]
    return [[Proposal(f"pair {n} of {numbers}", -float(n))] if n % 4 else [] for n in numbers]


def shards(output: Path, count: int) -> list[Shards]:
    return [Shards(output, (number, count) if count > 1 else None) for number in range(count)]


def begin(one: Shards, **config: Any) -> Shards:
    claim(one.folder, "label.py", config, resume=True, each_process=True)
    return one


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_processes_names_the_same(tmp_path: Path, count: int) -> None:
    expected = [said for start in range(0, 11, 2) for said in shout(PAIRS[start : start + 2])]
    for one in shards(tmp_path / "out", count):
        assert not one.complete({WORDS_FILE: 6})  # the seventh has no chunk, and must have begun all the same
        begin(one).name(WORDS_FILE, PAIRS, 2, shout)
    assert one.complete({WORDS_FILE: 6})
    assert list(one.words(WORDS_FILE, 6)) == expected


def test_a_picture_that_is_damaged_in_the_middle_costs_its_own_pair_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{n}.png" for n in range(4)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    pairs = [Triplet(PictureFile.of(files[n]), "", PictureFile.of(files[n + 1])) for n in range(3)]
    pairs.append(Triplet(np.zeros((8, 8, 3), np.uint8), ""))
    content = bytearray(files[2].read_bytes())
    content[len(content) // 2] ^= 0xFF
    files[2].write_bytes(content)

    def reads(part: Sequence[Triplet]) -> list[list[Proposal]]:
        return [[Proposal(f"{len(part)}", float(to_image(pair.source).width))] for pair in part if read_too(pair)]

    def read_too(pair: Triplet) -> bool:
        return pair.target is None or to_image(pair.target).width > 0

    one = begin(Shards(tmp_path / "out", None))
    one.name(WORDS_FILE, pairs, 4, reads)
    said = list(one.words(WORDS_FILE, 1))
    assert [len(sentences) for sentences in said] == [1, 0, 0, 1]
    assert said[0][0].text == "2"
    assert "2.png" in str(unreadable(pairs[1]))
    assert unreadable(pairs[0]) is None

    # With a token cache, too: what it lacks is encoded before, but for what cannot be read.
    vlm = make_tiny()
    with pytest.raises(RewindError, match=r"2\.png"):
        read_from(tmp_path / "strict", [vlm], pairs[:3])
    read_from(tmp_path / "tokens", [vlm], pairs, skip_unreadable=True)
    idm = InverseDynamics(vlm)
    cached = begin(Shards(tmp_path / "cached", None))
    cached.name(WORDS_FILE, pairs[:3], 4, lambda part: propose(idm, part, Naming(1.0, 2)))
    said = list(cached.words(WORDS_FILE, 1))
    assert [bool(sentences) for sentences in said] == [True, False, False]

    def fails(part: Sequence[Triplet]) -> list[list[Proposal]]:
        raise RewindError("of something else")

    with pytest.raises(RewindError, match="of something else"):
        begin(Shards(tmp_path / "other", None)).name(WORDS_FILE, pairs[:1], 4, fails)


def test_a_killed_shard_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """A torn line is no chunk: not for the others, who leave it alone, and not for the shard that goes on."""
    first, second = shards(tmp_path / "out", 2)
    for one in (first, second):
        begin(one).name(WORDS_FILE, PAIRS, 2, shout)
    file = first.folder / WORDS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"\n") + 5])
    torn = file.read_bytes()
    assert not second.complete({WORDS_FILE: 6})
    assert file.read_bytes() == torn
    named: list[int] = []

    def counting(part: Sequence[Triplet]) -> list[list[Proposal]]:
        named.append(len(part))
        return shout(part)

    first.name(WORDS_FILE, PAIRS, 2, counting)
    assert file.read_bytes() == whole
    assert named == [2, 2]
    assert second.complete({WORDS_FILE: 6})


def test_shards_of_different_runs_are_not_merged(tmp_path: Path) -> None:
    first, second = shards(tmp_path / "out", 2)
    begin(first, temperature=0.0, device="cuda:0", seed=1)
    begin(second, temperature=1.0, device="cuda:1", seed=1)
    with pytest.raises(RewindError, match=r"shard-0-of-2 has labels with another temperature than"):
        second.take({"temperature": 1.0, "device": "cuda:1", "seed": 1})


def test_shards_on_different_devices_are_merged(tmp_path: Path) -> None:
    first, second = shards(tmp_path / "out", 2)
    begin(first, device="cuda:0", seed=1)
    begin(second, device="cuda:1", seed=1)
    assert second.take({"device": "cuda:1", "seed": 1})
    assert json.loads((tmp_path / "out" / "run.json").read_text())["script"] == "label.py"


def test_an_output_of_something_else_is_left_alone(tmp_path: Path) -> None:
    one = Shards(tmp_path, (0, 2))
    begin(Shards(tmp_path, (1, 2)))
    one.make_room(resume=False, overwrite=False, inputs=[])  # the other shard is there, and no more
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RewindError, match=r"not empty and holds no run of label.py"):
        one.make_room(resume=True, overwrite=True, inputs=[])
    (tmp_path / "run.json").write_text('{"script": "label.py"}')
    (tmp_path / "triplets.json").write_text("[]")
    with pytest.raises(RewindError, match="exists: use --resume"):
        one.make_room(resume=False, overwrite=False, inputs=[])
    with pytest.raises(RewindError, match=r"would replace in .* what this run reads"):
        one.make_room(resume=False, overwrite=True, inputs=[tmp_path / "triplets.json"])
    one.make_room(resume=True, overwrite=False, inputs=[])
    assert (tmp_path / "triplets.json").is_file()
    one.make_room(resume=False, overwrite=True, inputs=[])
    assert not (tmp_path / "triplets.json").exists()


def test_label_script_in_shards_with_exact_totals(tmp_path: Path) -> None:
    """Two processes at once end with what one ends with, here as Parquet and there as JSON; every entry is labelled or
    counted by its reason.
    """
    pictures = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    write_triplets([Triplet(picture, "", picture[::-1]) for picture in pictures], tmp_path / "pairs", "pairs.json")
    file = tmp_path / "pairs" / "pairs.json"
    entries = json.loads(file.read_text())
    (tmp_path / "pairs" / entries[2]["input"]).write_bytes(b"torn")
    del entries[5]["output"]
    file.write_text(json.dumps(entries))
    command = ["scripts/label.py", "--idm", "tabletop-chameleon", "--pairs", file, "--chunk_size", 2]
    one = succeed(*command, "--output", tmp_path / "one")
    assert "7 entries in = 5 labelled + 2 left out (1 " in one
    totals = json.loads((tmp_path / "one" / "totals.json").read_text())
    assert totals == {"in": 7, "labelled": 5, "left_out": {"unreadable picture": 1, "no 'output'": 1}}
    assert len((tmp_path / "one" / "left_out.jsonl").read_text().splitlines()) == 2
    two = [*command, "--parquet", "--output", tmp_path / "two", "--shard"]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda shard: start(*two, shard), ["0/2", "1/2"]))
    assert [each.returncode for each in done] == [0, 0], done
    for name in ("totals.json", "left_out.jsonl", *(f"images/{n}-output.png" for n in range(5))):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    rows = list(rows_of([tmp_path / "two" / "triplets" / "triplets-00000-of-00001.parquet"]))
    assert rows == json.loads((tmp_path / "one" / "triplets.json").read_text())
    assert not (tmp_path / "two" / "triplets.json").exists()
    with pytest.raises(RewindError, match=r"two holds no data set .*two/triplets holds one: give that"):
        read_triplets(tmp_path / "two")
    assert sum("entries in = " in each.stdout for each in done) >= 1


LABELLED = [
    Triplet(pair.source, f"{n} up", pair.target, None, "a" if n % 2 else None, -n / 3, more={"margin": n} if n else {})
    for n, pair in enumerate(PAIRS)
]


def test_parquet_shards_are_committed_one_by_one_and_killed_runs_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_parquet(LABELLED, tmp_path / "whole", rows=4)
    assert [file.name for file in sorted(whole.iterdir())] == [f"triplets-0000{n}-of-00003.parquet" for n in range(3)]
    moved: list[Path] = []
    move = Path.replace

    def killed(beside: Path, file: Path) -> Path:
        if len(moved) == 1:
            raise KeyboardInterrupt
        moved.append(file)
        return move(beside, file)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_parquet(LABELLED, tmp_path / "killed", rows=4)
    monkeypatch.undo()
    left = {file: file.stat().st_mtime_ns for file in (tmp_path / "killed").rglob("*.p*") if file in moved}
    assert [*left] == [tmp_path / "killed" / "triplets" / "triplets-00000-of-00003.parquet"]
    with pytest.raises(RewindError, match=r"holds 1 of 3 shards: the run that wrote it did not end, --resume it"):
        read_triplets(tmp_path / "killed" / "triplets")
    gone, *others = sorted((tmp_path / "killed" / "images").glob("0[0-3]-*.png"))
    gone.write_bytes(b"")  # the machine stopped before it was on the disk
    pictures = {file: file.stat().st_mtime_ns for file in others}
    (tmp_path / "killed" / "triplets" / "mine").mkdir()
    killed_at = write_parquet(LABELLED, tmp_path / "killed", rows=4)
    assert all(file.stat().st_mtime_ns == when for file, when in (left | pictures).items())  # not written again
    assert list(rows_of(plain_shards(killed_at) or [])) == list(rows_of(plain_shards(whole) or []))
    assert len({*killed_at.iterdir()}) == 3 + 1
    assert gone.stat().st_size
    file = killed_at / "triplets-00001-of-00003.parquet"
    file.write_bytes(file.read_bytes()[:100])  # half of it, by another's hand
    write_parquet(LABELLED[:8], tmp_path / "killed", rows=4)
    assert [row["instruction"] for row in rows_of(plain_shards(killed_at) or [])] == [f"{n} up" for n in range(8)]


def test_parquet_labels_are_read_as_json_is(tmp_path: Path) -> None:
    """By the reader of triplets, and by the stream that `select_triplets.py` chooses from."""
    json_file = write_triplets(LABELLED, tmp_path / "json")
    folder = write_parquet(LABELLED, tmp_path / "parquet", rows=4)
    expected = read_triplets(json_file)
    read, some = streamed(folder, Options())
    assert plain_shards(folder) is not None
    for found in (read_triplets(folder), some(dict(enumerate(read())))[0]):
        assert len(found) == len(expected)
        for number, other in enumerate(expected):
            one = found[number]
            assert (one.action, one.label, one.score) == (other.action, other.label, other.score)
            assert (one.more, one.task) == (other.more, None)
            assert np.array_equal(np.asarray(one.target), np.asarray(other.target))
    assert plain_shards(json_file) is None
    mixed = [replace(one, more={"said": "so" if n else 3}) for n, one in enumerate(LABELLED[:2])]
    with pytest.raises(RewindError, match=r"the column 'said' has values of several types"):
        check_columns(mixed)
    for wrong in ([2**70], [2**60 + 1, 0.5]):
        with pytest.raises(RewindError, match="which Parquet does not hold"):
            check_columns([replace(LABELLED[0], more={"id": value}) for value in wrong])
    check_columns(LABELLED)


def test_linked_pictures_are_read_again_and_not_copied(tmp_path: Path) -> None:
    """Through a relative link, so that both folders can be moved together; arrays are written all the same."""
    (tmp_path / "given" / "deep").mkdir(parents=True)
    for name in ("a", "deep/b", "c"):
        Image.new("RGB", (8, 8), (len(name), 0, 0)).save(tmp_path / "given" / f"{name}.png")
    files = [tmp_path / "given" / f"{name}.png" for name in ("a", "deep/b", "c")]
    rows = [Triplet(files[0], "one", files[1]), Triplet([files[1], files[2]], "two", [files[0], files[2]])]  # type: ignore[arg-type]
    rows.append(Triplet(np.zeros((8, 8, 3), np.uint8), "three", files[2]))  # type: ignore[arg-type]
    file = write_triplets(rows, tmp_path / "out", link=True)
    assert not os.path.isabs(os.readlink(tmp_path / "out" / "pictures"))  # noqa: PTH115, PTH117
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["2-input.png"]
    entries = json.loads(file.read_text())
    assert entries[1]["input"] == ["pictures/deep/b.png", "pictures/c.png"]
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("given", "out"):
        (tmp_path / name).rename(moved / name)
    again = read_triplets(moved / "out" / "triplets.json")
    assert len(again) == 3
    assert np.asarray(again[0].target)[0, 0, 0] == len("deep/b")
    assert np.asarray(again[2].source).max() == 0
