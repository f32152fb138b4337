"""Flags and configs, and the run folders that scripts claim."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from rl.errors import RewindError
from rl.running.command_line import mapping, parse_with_config
from rl.running.run_folder import claim


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


def test_a_text_is_a_list_of_one_and_an_unknown_flag_is_told(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("output: o\nframes: photos\n")
    assert parse_with_config(parser(), ["--config", str(config)]).frames == [Path("photos")]
    for flags, sentence in (
        (["--famly", "a"], "there is no flag '--famly': did you mean '--family'?"),
        (["--famly=a"], "there is no flag '--famly': did you mean '--family'?"),
        (["--zzzz"], "there is no flag '--zzzz': --help shows all"),
    ):
        with pytest.raises(RewindError, match=re.escape(sentence)):
            parse_with_config(parser(), ["--config", str(config), *flags])
    assert parse_with_config(parser(), ["--output", "o", "--fram", "x"]).frames == [Path("x")]


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
    (run / "checkpoint" / "weights").write_text("old")

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
    assert sorted(path.name for path in run.iterdir()) == ["run.json", "run.lock"]
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
