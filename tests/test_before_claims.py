"""Refused before the output folder is claimed; and what a run is that goes on: the same rewards."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny
from opened_families import shelf as families
from PIL import Image
from published import Shelf
from transformers import ChameleonForConditionalGeneration

from rewards import load_rewards, scorers
from rl import RewindError
from rl.models.opening import load_base
from rl.models.settings import Settings
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.common.runs import begin_run
from trainers.sft.arguments import RoleConfig


@pytest.mark.parametrize("script", ["rerank", "sample"])
def test_a_base_that_cannot_draw(script: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "source.png")
    given = ["--fdm", shelf["chameleon-7b"], "--source", tmp_path / "source.png", "--action", "remove all rings"]
    monkeypatch.setattr("sys.argv", [script, *map(str, given), "--output", str(tmp_path / "out")])
    with pytest.raises(RewindError, match=r"has no VQ decoder, so its pictures cannot be drawn: .*--vq FOLDER"):
        importlib.import_module(f"scripts.{script}").main()
    assert not (tmp_path / "out").exists()


def test_fewer_queries_than_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--fdm", "tabletop-chameleon", "--world", "tabletop", "--rewards", "keep_unchanged", "--queries", "4"]
    monkeypatch.setattr("sys.argv", ["audit_reward", *given, "--output", str(tmp_path / "out")])
    with pytest.raises(RewindError, match=r"--queries must be at least 16, the scores of one round .*, not 4"):
        importlib.import_module("scripts.audit_reward").main()
    assert not (tmp_path / "out").exists()


def test_a_picture_size_before_the_language_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChameleonForConditionalGeneration, "from_pretrained", None)
    for name, size, sentence in (
        ("lumina", 100, "multiples of 32 pixels"),
        ("chameleon", 64, "32 x 32 alone"),
    ):
        vq = families()["vqgan"] if name == "lumina" else None
        with pytest.raises(RewindError, match=sentence):
            load_base(families()[name], Settings(image_size=size), vq)


def test_a_changed_reward_stops_a_run_that_goes_on(tmp_path: Path) -> None:
    """Its name is the same; a run that learned from one would end as no run of either would."""
    file = tmp_path / "mine.py"

    def begin(resume: bool) -> Path:
        rewards = load_rewards([f"{file}:score"])
        arguments = BestOfNArguments(fdm="run", rewards=[f"{file}:score"], resume=resume)
        config = RoleConfig(output_dir=str(tmp_path / "run"))
        return begin_run("train_best_of_n.py", arguments, config, [], vlm=make_tiny(), scorers=scorers(rewards))

    file.write_text("def score(predicted_ids):\n    return [1.0 for ids in predicted_ids]\n")
    output = begin(False)
    (output / "rounds.jsonl").write_text('{"round": 0}\n')  # it has finished something
    assert begin(True) == output
    file.write_text("def score(predicted_ids):\n    return [2.00 for ids in predicted_ids]\n")
    with pytest.raises(RewindError, match=r"begun with other values of scorers \(begun with .*score.*: resume with"):
        begin(True)
