"""The help texts of the training scripts are what their parsers print, and serve only the versions that they are of."""

from __future__ import annotations

import runpy

import pytest
from conftest import ROOT

from trainers.common import help as texts


@pytest.mark.parametrize("script", texts.SCRIPTS)
def test_a_help_text_is_what_the_parser_prints(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a change of arguments: `make help-texts`. Line breaks do not count, which versions of Python differ in."""
    monkeypatch.setenv("COLUMNS", str(texts.WIDTH))
    monkeypatch.setenv("REWIND_HELP", "parser")
    monkeypatch.setattr("sys.argv", [f"scripts/{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    text = texts.text_of(script)
    assert text is not None
    assert text.split() == capsys.readouterr().out.split(), "run `make help-texts`"


def test_every_training_script_has_a_text() -> None:
    assert {f"{script}.py" for script in texts.SCRIPTS} == {p.name for p in (ROOT / "scripts").glob("train_*.py")}


def test_other_versions_have_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts.text_of("train_fdm") is not None
    monkeypatch.setattr(texts, "version", lambda name: "0.0.1")
    assert texts.text_of("train_fdm") is None
