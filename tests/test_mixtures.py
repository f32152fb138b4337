"""Mixtures of data sets, readers of the user's, and how many triplets lie in how little memory."""

from __future__ import annotations

import json
import os
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_runs import start, succeed

from rl.data.chains import chains
from rl.data.entries import JsonRows
from rl.data.left_out import LeftOut, for_resume
from rl.data.triplet_files import read_triplets
from rl.data.triplet_table import Triplets, joined
from rl.errors import RewindError
from rl.triplets import Triplet, columns_of


def dataset(folder: Path, name: str, count: int) -> Path:
    """A list of so many triplets, told apart by their words."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    entries = [{"instruction": f"{name} {n}", "input": "a.png", "output": "a.png"} for n in range(count)]
    (folder / f"{name}.json").write_text(json.dumps(entries))
    return folder / f"{name}.json"


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    for name, count in (("kubric", 20), ("ag", 8), ("something", 6)):
        dataset(tmp_path / name, name, count)
    return tmp_path


def mixture(folder: Path, text: str) -> Path:
    (folder / "mixture.yaml").write_text(text)
    return folder / "mixture.yaml"


WEIGHED = """
seed: 3
mixture:
  - triplets: kubric/kubric.json
    name: kubric
    at_most: 10
    weight: 0.5
  - triplets: ag/ag.json
    name: ag
    weight: 2.25
  - triplets: something/something.json
"""


def test_a_mixture_has_weights_caps_and_provenance(sets: Path) -> None:
    found = read_triplets(mixture(sets, WEIGHED))
    assert Counter(t.more["dataset"] for t in found) == {"kubric": 5, "ag": 18, "something/something.json": 6}
    assert "dataset" in columns_of(found)
    times = Counter(Counter(t.action for t in found if t.more["dataset"] == "ag").values())
    assert times == {2: 6, 3: 2}  # 2.25 times: all twice, a quarter once more
    assert [t.action for t in found] == [t.action for t in read_triplets(sets / "mixture.yaml")]
    assert len({t.more["dataset"] for t in found[:10]}) > 1  # they are mixed
    assert [t.action for t in read_triplets(sets / "mixture.yaml", 4)] == [t.action for t in found[:4]]
    other = read_triplets(mixture(sets, WEIGHED.replace("seed: 3", "seed: 4")))
    kept = [sorted(t.action for t in one if t.more["dataset"] == "kubric") for one in (found, other)]
    assert kept[0] != kept[1]


def test_what_is_drawn_of_a_data_set_does_not_change_with_the_others(sets: Path) -> None:
    drawn = []
    for text in (WEIGHED, WEIGHED.partition("  - triplets: ag")[0]):
        found = read_triplets(mixture(sets, text))
        drawn.append(sorted(t.action for t in found if t.more["dataset"] == "kubric"))
    assert drawn[0] == drawn[1]


def test_left_out_entries_of_a_mixture_are_counted_a_data_set(sets: Path) -> None:
    entries = json.loads((sets / "ag" / "ag.json").read_text())
    (sets / "ag" / "ag.json").write_text(json.dumps([*entries, {"instruction": "x", "input": "none.png"}]))
    left: list[LeftOut] = []
    file = mixture(sets, WEIGHED)
    read_triplets(file, left_out=left)
    assert [(one.file, one.entry) for one in left] == [(str(sets / "ag" / "ag.json"), 8)]
    with pytest.raises(RewindError, match=r"ag.json, triplet 8: .*without --strict"):
        read_triplets(file, strict=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"names no data set: write 'mixture:' and below it"),
        ("mixture: []", "names no data set"),
        ("mixture: [{weight: 2}]", r"\{'weight': 2\} names no data set"),
        ("mixture: [{triplets: ag/ag.json, wieght: 2}]", "there is no 'wieght', did you mean 'weight'"),
        ("mixture: [{triplets: ag/ag.json, weight: 0}]", "the weight of ag/ag.json must be a number above 0, not 0"),
        ("mixture: [{triplets: ag/ag.json, at_most: 1.5}]", "'at_most' of ag/ag.json must be a whole number"),
        ("mixture: [{triplets: ag/ag.json}, {triplets: ag/ag.json}]", "has 'ag/ag.json' twice"),
        ("mixture: [{triplets: other.yaml}]", "holds the mixture other.yaml"),
        ("seed: -1\nmixture: [{triplets: ag/ag.json}]", "'seed' must be a whole number"),
        ("mixture: [{triplets: none.json}]", r"cannot read the triplets none.json"),
        ("mixture: [{triplets: ag/ag.json, format: epik}]", "--format: there is no 'epik'"),
        ("mixture: [", "is no YAML"),
        ("mixture: [{triplets: ag/ag.json, weight: 0.01}]", "ag/ag.json: its weight 0.01 takes none of 8 triplets"),
        ("mixture: [{triplets: ag/ag.json, columns: input=a}]", "'columns' of ag/ag.json must be .*, not 'input=a'"),
        ("mixture: [{triplets: ag/ag.json, columns: {input: 5}}]", "'columns' of ag/ag.json must be .*, not {'input'"),
        ("mixture: [{triplets: ag/ag.json, image_root: 5}]", "'image_root' of ag/ag.json must be text, not 5"),
    ],
)
def test_mixtures_that_say_nothing_that_can_be_done(text: str, sentence: str, sets: Path) -> None:
    with pytest.raises(RewindError, match=sentence):
        read_triplets(mixture(sets, text))


def test_a_resumed_run_needs_the_same_mixture_and_data(sets: Path) -> None:
    file = mixture(sets, WEIGHED)
    before = for_resume([], [file])
    assert before == for_resume([], [file])
    dataset(sets / "ag", "ag", 9)
    assert for_resume([], [file]) != before


READER = """
import numpy as np

def pairs():
    pictures = {n: np.full((8, 8, 3), n, np.uint8) for n in (1, 2)}
    return [{"instruction": f"go {n}", "input": one, "output": "a.png", "n": n} for n, one in pictures.items()]

def broken():
    raise KeyError("no such table")

class Lazy:
    def __len__(self):
        return 3
    def __getitem__(self, number):
        if number == 1:
            raise OSError("no record 1")
        return {"instruction": f"go {number}", "input": "a.png"}
"""


def test_a_reader_of_ones_own(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (sets / "ag" / "reader_of_mine.py").write_text(READER)
    found = read_triplets(f"{sets}/ag/reader_of_mine.py:pairs")
    assert [(t.action, int(np.asarray(t.source).max()), t.more) for t in found] == [
        ("go 1", 1, {"n": 1}),
        ("go 2", 2, {"n": 2}),
    ]
    assert found[0].target is not None
    beside = mixture(sets / "ag", "mixture: [{triplets: 'reader_of_mine.py:pairs', name: mine}]")  # from its folder on
    assert [t.action for t in read_triplets(beside)].count("go 1") == 1
    left: list[LeftOut] = []
    assert len(read_triplets(f"{sets}/ag/reader_of_mine.py:Lazy", left_out=left)) == 2
    assert [(one.entry, one.reason) for one in left] == [(1, "reader raised")]
    assert "OSError: no record 1" in left[0].what
    monkeypatch.chdir(sets / "ag")
    assert len(read_triplets("reader_of_mine:pairs")) == 2
    for name, sentence in (
        ("reader_of_mine:pair", r"has no function 'pair', did you mean 'pairs'"),
        ("reader_of_mine:broken", r"it raised KeyError: 'no such table'"),
        ("nowhere_at_all:pairs", "does not import: ModuleNotFoundError"),
        ("nowhere.py:pairs", "there is no file nowhere.py with the function 'pairs'"),
    ):
        with pytest.raises(RewindError, match=sentence):
            read_triplets(name)


def test_flags_of_data_sets_in_scripts(sets: Path, tmp_path: Path) -> None:
    (sets / "set").mkdir()
    Image.new("RGB", (32, 32)).save(sets / "set" / "a.png")
    (sets / "set" / "t.csv").write_text("vorher,nachher,words\na.png,a.png,go left\na.png,a.png,go right\n")
    model = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--num_samples", 1]
    columns = ["--columns", "input=vorher", "output=nachher", "instruction=words"]
    succeed(*model, "--triplets", sets / "set" / "t.csv", *columns, "--output", tmp_path / "out")
    assert len((tmp_path / "out" / "candidates.jsonl").read_text().splitlines()) == 2
    done = start(*model, "--triplets", sets / "set" / "t.csv", "--columns", "input=vor", "--output", tmp_path / "no")
    assert done.returncode == 2
    assert "has no column 'vor', did you mean 'vorher'" in done.stderr
    assert not (tmp_path / "no").exists()
    done = start(*model, "--triplets", mixture(sets, WEIGHED), *columns, "--output", tmp_path / "no")
    assert "--columns is of one data set" in done.stderr


# ---- a table of triplets


def test_triplets_are_a_sequence(sets: Path) -> None:
    found = read_triplets(sets / "kubric" / "kubric.json")
    assert isinstance(found[2:5], Triplets)
    assert [t.action for t in found[2:5]] == ["kubric 2", "kubric 3", "kubric 4"]
    assert found[-1].action == "kubric 19"
    assert found[3] is found[3]  # a group's rewards are told apart by their source's identity
    own = Triplet(np.zeros((8, 8, 3), np.uint8), "own", more={"n": 1})
    longer = joined([found, [own]])
    assert (len(longer), longer[20].action, longer.columns) == (21, "own", ["n"])
    assert [t.action for t in (found + [own])[19:]]  # noqa: RUF005  (a sum is what is tried) == ["kubric 19", "own"]
    assert found == list(found)
    assert found != list(found)[:-1]
    with pytest.raises(IndexError):
        found[20]


def test_pictures_of_large_sets_are_judged_by_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Path
) -> None:
    """Files that break off are left out before a run begins, of however many; damage in the middle with `decode`."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for ending in ("jpg", "png", "webp"):
        Image.fromarray(noise).save(tmp_path / f"good.{ending}")
        whole = (tmp_path / f"good.{ending}").read_bytes()
        (tmp_path / f"cut.{ending}").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(noise).save(tmp_path / "good.bmp")  # its ends say nothing, so it is decoded
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "good.bmp").read_bytes()[:-90])
    middle = bytearray((tmp_path / "good.png").read_bytes())
    middle[2000:2100] = bytes(100)
    (tmp_path / "middle.png").write_bytes(bytes(middle))
    bad = sorted(p.name for p in tmp_path.glob("cut.*"))
    names = [*bad, "middle.png", *["good.jpg", "good.png", "good.webp", "good.bmp"] * 4]
    entries = [{"instruction": "x", "input": name} for name in names]
    (tmp_path / "t.json").write_text(json.dumps(entries))
    monkeypatch.setattr("rl.data.triplet_files.FEW", 3)
    for how, more in (("ends", 0), (None, 0), ("decode", 1)):
        left: list[LeftOut] = []
        read_triplets(tmp_path / "t.json", left_out=left, check_pictures=how)
        assert [one.entry for one in left] == list(range(len(bad) + more)), how
        assert {one.reason for one in left} == {"unreadable picture"}
    with pytest.raises(RewindError, match="--check_pictures is one of decode, ends, not 'none'"):
        read_triplets(tmp_path / "t.json", check_pictures="none")


def test_ten_thousand_triplets_take_some_hundred_bytes_each(tmp_path: Path) -> None:
    """Neither pictures nor Python objects are kept, also after all of them were gone through."""
    count = 10_000
    Image.new("RGB", (64, 64)).save(tmp_path / "0.jpg")
    (tmp_path / "images").mkdir()
    for number in range(50):
        os.link(tmp_path / "0.jpg", tmp_path / "images" / f"{number}.jpg")
    row: dict[str, Any] = {"instruction": "move the red scissors further right, then left", "img_id": "327726"}
    names = [(f"images/{n % 50}.jpg", f"images/{(n + 1) % 50}.jpg") for n in range(count)]
    (tmp_path / "t.json").write_text(json.dumps([{**row, "input": a, "output": b} for a, b in names]))
    tracemalloc.start()
    try:
        found = read_triplets(tmp_path / "t.json")
        kept, most = tracemalloc.get_traced_memory()
        # A reading of the whole file and a few thousand entries at a time, but never all of them as objects.
        assert kept / count < 100
        assert most / count < 400
        assert sum(len(t.action) for t in found) == count * len(row["instruction"])
        chains(found, 1)
        assert len(found._last) <= 1024
    finally:
        tracemalloc.stop()
    assert len(pickle.dumps(JsonRows(json.loads((tmp_path / "t.json").read_text())))) / count < 200
