"""Selection reads its files entry by entry: what is streamed, what is no file of entries, and the script."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from script_runs import start

import rl.data.entry_stream
from rl.data.entries import read_entries
from rl.data.entry_stream import entries_of
from rl.data.triplet_files import write_triplets
from rl.errors import RewindError
from rl.triplets import Triplet


def test_entries_are_streamed_as_they_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists in any layout and encoding, JSON lines, a list under "data"; whatever a read ends at."""
    rows = [{"input": f"pictures/{n}.png", "instruction": f'größer [{n}], "so" {{', "score": -n / 7} for n in range(9)]
    texts = {
        "indented": json.dumps(rows, indent=1, ensure_ascii=False),
        "compact": "\n " + json.dumps(rows, separators=(",", ":")) + "\n\n",
        "lines": "".join(json.dumps(row) + "\n\n" for row in rows),
        "broken": "\n".join([json.dumps(rows[0]), "{'no", json.dumps(rows[1])]),
        "data": json.dumps({"version": 1, "data": rows}),
        "one": json.dumps(rows[0], indent=2),
        "numbers": "[1, 22, 333]",
    }
    for at_once in (1, 7, 64, 2**20):
        monkeypatch.setattr(rl.data.entry_stream, "AT_ONCE", at_once)
        for name, text in texts.items():
            for encoding in ("utf-8", "utf-8-sig", "utf-16"):
                file = tmp_path / f"{name}.json"
                file.write_text(text, encoding=encoding)
                assert list(entries_of(file)) == list(read_entries(file)), (name, encoding, at_once)


@pytest.mark.parametrize(
    "text", ["[]", "", "[1, 2", '[{"input": "a"} {"input": "b"}]', "[1,]", "{}", "x", "[1] x", "[1] [2]", '{"data": 3}']
)
def test_streamed_files_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    for read in (entries_of, read_entries):
        with pytest.raises(RewindError, match=r"x.json (is not valid JSON|must be a JSON list)"):
            list(read(file))
    with pytest.raises(RewindError, match="cannot read the triplets"):
        list(entries_of(tmp_path / "none.json"))


def test_a_fault_is_at_an_entry(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for tail, said in (('{"a" 1}]', "entry 51: Expecting ':'"), ("", r"the list does not end \(after entry 50\)")):
        file.write_text("[" + '{"a": 1},\n' * 49 + '{"a": 1}' + (f", {tail}" if tail else ""))
        with pytest.raises(RewindError, match=said):
            list(entries_of(file))


def test_selecting_script(tmp_path: Path) -> None:
    """Unreadable pictures are replaced by the next best, all entries are accounted for, and columns are kept."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    words = ["push it", "push it", "lift it", "lift it now", "push that", "lift it"]
    rows = [
        Triplet(picture, text, picture[::-1], score=-float(n), more={"confidence": 0.9 - n / 10})
        for n, (picture, text) in enumerate(zip(pictures, words, strict=True))
    ]
    file = write_triplets(rows, tmp_path / "data")
    entries = json.loads(file.read_text())
    (tmp_path / "data" / entries[0]["output"]).write_bytes(b"torn")
    entries += [{**entries[1], "score": -9.0}, {"input": "images/none.png", "score": 1.0}]
    file.write_text(json.dumps(entries))
    command = ["scripts/select_triplets.py", "--triplets", file, "--k", 3, "--balance", "verb", "--max_words", 2]
    done = start(*command, "--near_duplicates", 8, "--link_pictures", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    chosen = json.loads((tmp_path / "out" / "triplets.json").read_text())
    assert [(one["instruction"], one["score"]) for one in chosen] == [
        ("lift it", -2.0),
        ("push it", -1.0),
        ("lift it", -5.0),
    ]
    assert chosen[0]["confidence"] == pytest.approx(0.7)
    assert chosen[0]["input"].startswith("pictures/")
    totals = json.loads((tmp_path / "out" / "totals.json").read_text())
    assert totals == {
        "in": 8,
        "selected": 3,
        "passed_over": {"more than 2 words": 1, "behind the chosen ones": 2},
        "left_out": {"no 'instruction'": 1, "unreadable picture": 1},
    }
    assert "lift: 2, push: 1" in done.stdout
    strict = start(*command, "--strict", "--output", tmp_path / "strict")
    assert strict.returncode == 2
    assert "without --strict it is left out" in strict.stderr
    none = start(*command, "--min_score", 0, "--output", tmp_path / "none")
    assert none.returncode == 2
    assert "may be chosen (6 score below 0)" in none.stderr
