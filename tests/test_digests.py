"""Runs that go on notice retrained models that they ask: by an adapter's digest, or a base's fingerprint."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_tiny
from peft import LoraConfig

from rl.models.digests import weights_for_resume
from rl.models.known import LINEAR_LAYERS
from rl.models.saving import save_base
from rl.running.resumption import differences
from trainers.common.adapters import add_adapter, save_adapter


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    vlm = make_tiny()
    vlm.name = str(tmp_path / "base")
    save_base(vlm, tmp_path / "base", {"pretraining": {}})
    for name in ("first", "second"):
        add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
        save_adapter(vlm, tmp_path / name, name, role="idm")
    return tmp_path


def test_a_retrained_model_is_noticed(runs: Path) -> None:
    first = weights_for_resume(idm=runs / "first", verify=str(runs / "base"), judge_idm=None)
    assert first.keys() == {"idm_weights", "verify_weights"}
    assert weights_for_resume(idm=str(runs / "first")) == {"idm_weights": first["idm_weights"]}
    second = weights_for_resume(idm=runs / "second", verify=runs / "base")
    assert second["verify_weights"] == first["verify_weights"] != first["idm_weights"]
    assert differences(first, second).keys() == {"idm_weights"}
    assert differences({}, second) == {}  # a run that was begun before anybody wrote them down
    assert differences({"idm_weights": "x"}, {"fdm_weights": "y"}) == {}  # as `--role idm` was begun
    assert weights_for_resume(idm=runs / "nothing", verify="no-such-base") == {}
