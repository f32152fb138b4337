"""Data sets with pictures in parquet, those that the library `datasets` has saved, and one of the Hub."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_formats import encoded, red, said

from rl.data.left_out import LeftOut
from rl.data.triplet_files import read_triplets
from rl.errors import RewindError
from rl.pictures import Views


def test_bytemorph_parquet_with_pictures_as_bytes(tmp_path: Path) -> None:
    picture = [{"bytes": encoded(shade), "path": f"{shade}.png"} for shade in (1, 2, 3)]
    columns = {
        **{"image_id": ["a", "b", "c"], "edit_type": ["human", "camera", "object"], "src_img": picture},
        **{"tgt_img": [picture[1], None, {"bytes": picture[0]["bytes"][:45], "path": "cut.png"}]},
        **{"edit_prompt": ["The man sits."] * 3, "edit_prompt_rewrite_instruction": ["Let the man sit."] * 3},
    }
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "data" / "test-00000-of-00001.parquet")
    left: list[LeftOut] = []
    found = read_triplets(tmp_path / "data" / "test-00000-of-00001.parquet", left_out=left)
    assert said(found) == [("Let the man sit.", 1, 2), ("Let the man sit.", 2, None)]
    assert [t.task for t in found] == ["human", "camera"]
    assert "row 2, column 'tgt_img' cannot be read as an image" in left[0].what
    with pytest.raises(RewindError, match=r"there is no split 'train': it has test"):
        read_triplets(tmp_path, split="train")
    assert len(read_triplets(tmp_path, split="test", columns={"instruction": "edit_prompt"})) == 2
    pq.write_table(pa.table({"first": picture, "words": ["a"] * 3}), tmp_path / "other.parquet")
    with pytest.raises(RewindError, match=r"'input' .*; it has 'first', 'words' \(--columns input=THEIRS\)"):
        read_triplets(tmp_path / "other.parquet")


def test_a_saved_datasets_folder_with_classes_views_and_columns(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        before=datasets.List(datasets.Image()),
        after=datasets.List(datasets.Image()),
        words=datasets.Value("string"),
        kind=datasets.ClassLabel(names=["push", "pull"]),
        hardness=datasets.Value("int64"),
    )
    two = [{"bytes": encoded(shade)} for shade in (1, 2)]
    rows = {
        "before": [two, two],
        "after": [two[::-1], two],
        "words": ["go", "stop"],
        "kind": [1, 0],
        "hardness": [3, 4],
    }
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "set")
    mapped = ["input=before", "output=after", "instruction=words", "class=kind"]
    found = read_triplets(tmp_path / "set", columns=mapped)
    assert [(t.action, t.label, t.more) for t in found] == [
        ("go", "pull", {"hardness": 3}),
        ("stop", "push", {"hardness": 4}),
    ]
    assert isinstance(found[0].target, Views)
    assert [red(one) for one in found[0].target.pictures] == [2, 1]
    with pytest.raises(RewindError, match=r"no column 'befor', did you mean 'before': it has before, after, words"):
        read_triplets(tmp_path / "set", columns=["input=befor"])
    with pytest.raises(RewindError, match=r"a triplet has no 'inputt', did you mean 'input'"):
        read_triplets(tmp_path / "set", columns=["inputt=before"])
    with pytest.raises(RewindError, match="takes OURS=THEIRS"):
        read_triplets(tmp_path / "set", columns=["before"])


def test_a_hub_id_that_is_not_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(RewindError, match=r"nobody/nothing cannot be read as a data set .*Hub id that is in the cache"):
        read_triplets("nobody/nothing")
