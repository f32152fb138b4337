"""Names of models on the Hub: a cache laid out by hand, a server that refuses, and the way from a name to a picture."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import SENTENCES
from peft import LoraConfig
from PIL import Image
from published import Shelf, in_hub_cache
from script_runs import start
from test_grpo import low_tokens
from transformers import set_seed

from rewards import Reward
from rl import RewindError, load_fdm, load_idm
from rl.models.families.chameleon import ChameleonVLM
from rl.models.hub import folder_of, is_hub_id
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter, save_adapter
from trainers.grpo.arguments import RewindGRPOConfig
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.arguments import RoleConfig
from trainers.sft.rows import role_rows
from trainers.sft.trainer import RoleSFTTrainer

ANOLE = "leloy/Anole-7b-v0.1-hf"


@pytest.fixture
def cache(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub's cache with an Anole in it, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    in_hub_cache(tmp_path / "hub", ANOLE, shelf["anole"])
    in_hub_cache(tmp_path / "hub", ANOLE, shelf["converted meta-7b"], "v2", "b" * 40)
    return tmp_path / "hub"


def test_names_and_revisions_open_from_the_cache(cache: Path) -> None:
    place = cache / "models--leloy--Anole-7b-v0.1-hf" / "snapshots"
    assert folder_of(ANOLE) == folder_of(f"{ANOLE}@main") == folder_of(f"{ANOLE}@{'a' * 40}") == place / ("a" * 40)
    assert folder_of(f"{ANOLE}@v2") == place / ("b" * 40)
    fdm = load_fdm(ANOLE)
    assert fdm.backbone.name == ANOLE
    assert fdm.backbone.can_draw
    assert load_idm(ANOLE, backbone=fdm.backbone).backbone is fdm.backbone
    assert "boi_token_id" not in json.loads((folder_of(f"{ANOLE}@v2") / "config.json").read_text())


def test_a_folder_comes_before_a_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ANOLE).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(ANOLE)
    assert folder_of(ANOLE) == Path(ANOLE)
    with pytest.raises(RewindError, match="there is no base"):
        load_base(ANOLE)


@pytest.mark.parametrize("name", ["leloy/nothing", f"{ANOLE}@v3"])
def test_what_is_not_in_the_cache_without_a_network(name: str, cache: Path) -> None:
    with pytest.raises(
        RewindError, match=rf"there is no folder {name} here and none of that name in the Hub's cache"
    ) as found:
        load_fdm(name)
    assert "hf download" in str(found.value)
    assert "\n" not in str(found.value)


class Refusing(BaseHTTPRequestHandler):
    """Answers of the Hub, by the owner's name."""

    ANSWERS: ClassVar = {
        "gated": (403, "GatedRepo"),
        "missing": (404, "RepoNotFound"),
        "known": (404, "RevisionNotFound"),
    }

    def do_GET(self) -> None:
        owner = self.path.removeprefix("/api/models/").split("/")[0]
        status, code = self.ANSWERS[owner]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    huggingface_hub.close_session()  # one made under a proxy would stay
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    found.shutdown()
    found.server_close()
    thread.join()
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gated/model", r"gated/model is gated: accept its licence on its page on the Hub"),
        ("missing/model", r"there is no folder missing/model here and no repository of that name on the Hub"),
        ("known/model@v9", r"known/model has no revision 'v9': look at its branches and tags"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(name: str, sentence: str, server: None) -> None:
    with pytest.raises(RewindError, match=sentence):
        load_base(name)


def test_an_adapter_on_a_published_model(cache: Path, tmp_path: Path) -> None:
    """LoRA on the language model's linear layers alone; saved, it opens by folder and by name, and its base by name."""
    torch.manual_seed(0)
    vlm = load_base(ANOLE)
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    trained = [name for name, p in vlm.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 7 * 2  # two layers, seven linear layers each, A and B
    assert all(".layers." in name and "vqmodel" not in name and "lora_" in name for name in trained)
    run = save_adapter(vlm, tmp_path / "run").parent
    in_hub_cache(cache, "somebody/anole-fdm", run / "adapter")
    with torch.no_grad():
        picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        source = [vlm.fdm_prompt(vlm.encode([picture])[0].tolist(), SENTENCES[0])]
        wanted = vlm.hidden_states(torch.tensor(source), use_cache=False).last_hidden_state
        for name in (run, "somebody/anole-fdm"):
            fdm = load_fdm(name)
            assert fdm.backbone.name == ANOLE
            with fdm.backbone.using(fdm.adapter):
                found = fdm.backbone.hidden_states(torch.tensor(source), use_cache=False).last_hidden_state
            assert torch.equal(found, wanted)
        plain = load_base(ANOLE).hidden_states(torch.tensor(source), use_cache=False).last_hidden_state
    assert not torch.equal(plain, wanted)


def test_training_leaves_the_picture_tokenizer_alone(cache: Path, tmp_path: Path) -> None:
    """Two steps of SFT and of GRPO in bfloat16: only LoRA weights move, and the sampler agrees with the loss."""
    set_seed(0)
    vlm = load_base(ANOLE)
    assert isinstance(vlm, ChameleonVLM)
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False))
    before = {name: p.clone() for name, p in vlm.model.named_parameters()}
    codes = vlm._codebook.clone()
    pictures = np.random.default_rng(0).integers(0, 256, (4, 2, 64, 64, 3), dtype=np.uint8)
    triplets = [Triplet(a, SENTENCES[i % 3], b) for i, (a, b) in enumerate(pictures)]
    shared = {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
    shared |= {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "gradient_checkpointing": True}
    sft = RoleSFTTrainer(vlm, "fdm", RoleConfig(str(tmp_path / "sft"), **shared), role_rows(vlm, "fdm", triplets))  # type: ignore[arg-type]
    sft.train()
    config = RewindGRPOConfig(str(tmp_path / "grpo"), num_generations=4, **shared)  # type: ignore[arg-type]
    grpo = WorldModelGRPOTrainer(vlm, triplets, [Reward.of(low_tokens)], config)
    grpo.train()
    assert grpo.state.global_step == 2
    assert grpo.sampler_trainer_gap < 0.1  # bfloat16 rounds another way in batches
    moved = {name for name, p in vlm.model.named_parameters() if not torch.equal(p, before[name])}
    assert len(moved) == 28
    assert all("lora_" in name for name in moved)
    assert torch.equal(vlm._codebook, codes)
    assert vlm._codebook.dtype == torch.float32


def test_from_a_name_to_a_reranked_picture(cache: Path, tmp_path: Path) -> None:
    """The command of the README, on a machine whose cache holds the model."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    flags = ["--fdm", ANOLE, "--idm", ANOLE, "--source", tmp_path / "a.png", "--action", SENTENCES[0]]
    done = start(
        "scripts/rerank.py",
        *(*flags, "--num_candidates", "2", "--output", tmp_path / "best"),
        HF_HUB_CACHE=str(cache),
        OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    )
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" not in done.stderr
    (drawn,) = (tmp_path / "best").glob("0000-best.png")
    assert Image.open(drawn).size == (64, 64)
