"""What published models for robots have beside their families: heads that are left out, other grammars, other names."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from opened_families import opened, pictures, shelf
from published_robots import action_head
from safetensors.torch import load_file, save_file

from rl import RewindError
from rl.models.opening import load_base
from rl.models.settings import Settings


def test_rynnvlas_action_head_is_left_out_and_that_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """The same model as Lumina's without the head; what is left over otherwise is still refused."""
    with caplog.at_level(logging.WARNING, "rl"):
        vlm = load_base(shelf()["rynnvla"], Settings(dtype="float32"), vq=shelf()["vqgan"])
    heads = action_head()
    assert f"{len(heads)} tensors are left out (action_head.*)" in caplog.text
    plain = opened("lumina")
    assert vlm.family == "lumina"
    assert (vlm.head_weight() == plain.head_weight()).all()
    ids = vlm.encode(pictures(vlm))
    assert (ids == plain.encode(pictures(vlm))).all()
    other = shutil.copytree(shelf()["rynnvla"], tmp_path / "other")
    index = json.loads((other / "model.safetensors.index.json").read_text())
    file = other / index["weight_map"]["action_head.hidden_projection.weight"]
    tensors = load_file(file)
    tensors["value_head.weight"] = tensors["action_head.hidden_projection.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    index["weight_map"]["value_head.weight"] = file.name
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RewindError, match=r"1 tensors are missing, left over or of another shape, e.g. 'value_head"):
        load_base(other, Settings(dtype="float32"), vq=shelf()["vqgan"])
