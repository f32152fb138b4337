"""`--deepspeed FILE.json` of the training scripts: what `accelerate launch` would say, or refused in a sentence."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from test_sharding import config

from rl.errors import RewindError
from trainers.common.sharding import as_launched, stage_asked_for


def test_deepspeed_as_a_flag_is_what_the_launcher_would_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USE_DEEPSPEED", "DEEPSPEED_CONFIG_FILE", "DEEPSPEED_ZERO3_INIT"):
        monkeypatch.setenv(f"ACCELERATE_{name}", "")  # so that all are put back
    file = str(config(tmp_path, "zero3").with_suffix(".json"))

    def told(deepspeed: Any) -> argparse.Namespace:
        found = argparse.Namespace(deepspeed=deepspeed)
        as_launched(found)
        return found

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    told(None)
    assert stage_asked_for() == 0
    with pytest.raises(RewindError, match=r"needs a launcher: torchrun .* accelerate launch"):
        told(file)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for wrong in (str(tmp_path / "none.json"), str(tmp_path / "zero3.yaml"), {"zero_optimization": {"stage": 3}}):
        with pytest.raises(RewindError, match="--deepspeed takes a JSON file that is there"):
            told(wrong)
    assert told(file).deepspeed is None  # transformers would begin in its own way
    assert stage_asked_for() == 3
    assert told(file).deepspeed is None
    with pytest.raises(RewindError, match=r"asks for DeepSpeed too \(.*zero3.json\): leave --deepspeed out"):
        told(str(config(tmp_path, "zero2").with_suffix(".json")))
