"""Files that are whole or absent: what a kill or a full disk leaves behind, and what a script says of it."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rl.errors import RewindError
from rl.running.command_line import run as run_script
from rl.running.files import json_lines, whole_folder, write_whole


@contextmanager
def small_files() -> Iterator[None]:
    """A file that grows beyond 4096 bytes fails as on a full disk; no fixture, else it would hold for pytest's log."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_a_full_disk_leaves_the_text_that_was_there(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    write_whole(file, "old")
    with small_files(), pytest.raises(OSError, match="File too large"):
        write_whole(file, "x" * 10_000)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_written_beside_and_its_marks_come_last(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for text in ("old", "new"):
        with whole_folder(folder, last="config") as beside:
            (beside / "weights").write_text(text)
            (beside / "config").write_text(text)
            assert (folder / "weights").exists() == (text == "new")

    def fail() -> None:
        with whole_folder(folder, last="config") as beside:
            (beside / "config").write_text("newer")
            (beside / "weights").write_text("x" * 10_000)

    with small_files(), pytest.raises(OSError, match="File too large"):
        fail()
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"weights": "new", "config": "new"}
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_disk_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def weights() -> None:
        save_file({"a": np.zeros(10_000, np.float32)}, tmp_path / "it.safetensors")

    def text() -> None:
        (tmp_path / "it.txt").write_text("x" * 10_000)

    def told() -> None:
        try:
            text()
        except OSError as error:
            raise RewindError("the candidates cannot be written: make room") from error

    def quota() -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "runs/out/results.json")

    unwritten = "error: a file could not be written"
    for main, sentence in (
        (weights, f"{unwritten} (File too large); what has been saved stays: make room, and go on with --resume"),
        (text, f"{unwritten} (File too large); what has been saved stays"),
        (quota, f"{unwritten} ({os.strerror(errno.EDQUOT)}: runs/out/results.json); what has been saved stays"),
        (told, "error: the candidates cannot be written: make room\n"),
    ):
        with small_files(), pytest.raises(SystemExit) as ended:
            run_script(main)
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith(sentence)
    with pytest.raises(FileNotFoundError):  # anything else shows where it was
        run_script(lambda: bool((tmp_path / "none").read_text()))  # type: ignore[arg-type]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "it.jsonl"
    assert json_lines(file) == []
    file.write_text('{"a": 1}\n[2, "\u2028"]\n{"a": 3')
    assert json_lines(file) == [{"a": 1}, [2, "\u2028"]]
    assert file.read_text() == '{"a": 1}\n[2, "\u2028"]\n'
    file.write_text('{"a": 1}\n{"a\n{"a": 3}\n')
    with pytest.raises(RewindError, match=r"it.jsonl, line 2 cannot be read: repair it"):
        json_lines(file)
