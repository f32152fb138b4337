"""Shared by all tests: offline, quiet, few threads; a tiny random base; the shipped base; the real data if present."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from judge_server import Server, serving

from rl.models.families.chameleon import TINY_DECODER, ChameleonVLM, new_chameleon, tiny_vq_config
from rl.models.text_tokenizer import train_text_tokenizer
from rl.models.unified import UnifiedVLM

if TYPE_CHECKING:
    from published import Shelf

ROOT = Path(__file__).parent.parent
SENTENCES = ["move the red circle left", "paint the blue star green", "remove all rings"]


def make_tiny(seed: int = 0, image_size: int = 32, num_codes: int = 16, known_words: bool = False) -> ChameleonVLM:
    """A base with random weights: 4 tokens a picture of 32 pixels, two layers."""
    torch.manual_seed(seed)
    tokenizer = train_text_tokenizer(SENTENCES * 3, 300)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()}) if known_words else None
    vlm = new_chameleon(
        tokenizer,
        tiny_vq_config(image_size, num_codes),
        TINY_DECODER,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        name="tiny",
        known_words=words,
    )
    # Random weights give nearly uniform logits; larger ones make the distributions worth testing.
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return vlm


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Convolutions and products this small take longer in several threads than in one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> ChameleonVLM:
    return make_tiny()


@pytest.fixture(scope="session")
def shipped() -> UnifiedVLM:
    from rl.models.opening import load_base

    return load_base("tabletop-chameleon")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """Tiny random checkpoints in published layouts, each written when it is first asked for."""
    from published import Shelf

    return Shelf(tmp_path_factory.mktemp("published"))


TINY = ["--labelled", 40, "--videos", 6, "--selected", 4, "--test", 6, "--validation", 20, "--idm_steps", 2]
TINY += ["--fdm_steps", 2, "--grpo_steps", 2, "--grpo_prompts", 3, "--best_of_n_steps", 2]
TINY += ["--budget", "grpo_evaluations=1", "sentences=2"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the main job at the amounts of `TINY`."""
    from script_runs import succeed

    output = tmp_path_factory.mktemp("demo") / "run"
    shown = succeed("scripts/demo.py", *TINY, "--output", output)
    assert "best of N by the IDM, grpo" in shown
    return output


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A local server for the judge, in an environment that names no other."""
    for name in ("OPENAI_API_KEY", "REWIND_JUDGE_URL", "REWIND_JUDGE_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as found:
        yield found


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pictures and clips; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("REWIND_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "aurora-bench-sample" / "test.json").is_file():
        pytest.skip(f"no real data in {folder}: set REWIND_REAL_DATA to a folder with aurora-bench-sample and videos")
    return folder
