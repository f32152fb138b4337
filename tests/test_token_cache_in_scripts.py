"""The token cache under training, and encoding that is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_tiny
from test_token_cache import ACTION, contents, written

from rl.models.families.chameleon import ChameleonVLM
from rl.models.saving import save_base
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.recipe import train_grpo
from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role


def test_training_reads_it_and_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(make_tiny(), tmp_path / "base", {})
    triplets = written(tmp_path / "data", 6)
    rows = [{"instruction": ACTION, "input": f"{n}.png", "output": f"{n + 1}.png"} for n in range(len(triplets))]
    (tmp_path / "data" / "triplets.json").write_text(json.dumps(rows))
    given: dict[str, Any] = {"triplets": [str(tmp_path / "data" / "triplets.json")]}
    cached = {**given, "token_cache": str(tmp_path / "tokens")}
    common: dict[str, Any] = {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    encoded: list[int] = []
    features = ChameleonVLM.features_pixels

    def counted(self: ChameleonVLM, images: Any) -> Any:
        encoded.append(len(images))
        return features(self, images)

    monkeypatch.setattr(ChameleonVLM, "features_pixels", counted)

    def fine_tuned(name: str, data: dict[str, Any]) -> bytes:
        asked = FDMArguments(base=str(tmp_path / "base"), token_weights=True, **data)
        config = RoleConfig(output_dir=str(tmp_path / name), per_device_train_batch_size=4, **common)
        folder = train_role("fdm", asked, config, LoraModelConfig())
        assert not (folder / "tokens").exists()  # a run's own is there while it trains
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    def improved(name: str, data: dict[str, Any]) -> bytes:
        asked = GRPOArguments(fdm=str(tmp_path / "a"), rewards=["copy_penalty=1.0"], monitors=["none"], **data)
        config = RewindGRPOConfig(output_dir=str(tmp_path / name), num_generations=2, **common)
        folder = train_grpo(asked, config)
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()

    plain = fine_tuned("a", given)
    assert encoded
    assert fine_tuned("b", cached) == plain  # encodes what is missing
    encoded.clear()
    assert fine_tuned("c", cached) == plain
    better = improved("d", cached)
    assert not encoded
    assert improved("e", given) == better


@pytest.mark.slow
def test_a_killed_encode_images_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    vlm = make_tiny()
    save_base(vlm, tmp_path / "base", {})
    triplets = written(tmp_path / "data", 300)
    rows = [{"instruction": ACTION, "input": f"{n}.png", "output": f"{n + 1}.png"} for n in range(len(triplets))]
    (tmp_path / "data" / "triplets.json").write_text(json.dumps(rows))
    flags = ["--base", tmp_path / "base", "--triplets", tmp_path / "data" / "triplets.json"]

    def start(folder: str) -> subprocess.Popen[str]:
        words = [sys.executable, ROOT / "scripts" / "encode_images.py", *flags, "--output", tmp_path / folder]
        return subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    whole, killed = start("whole"), start("killed")
    while not list((tmp_path / "killed").glob("*/distances-*.arrow")) and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert whole.wait() == 0
    said = start("killed").communicate()[0]
    assert "pictures encoded" in said
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
