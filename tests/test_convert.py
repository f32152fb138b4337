"""`scripts/convert.py`: Meta's weights against Meta's own formula, and what a conversion leaves behind."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from published import Shelf
from published_parts import END_TURN, code_name, meta_weights
from safetensors.torch import load_file
from script_runs import start
from torch import Tensor
from torch.nn.functional import layer_norm, silu
from transformers import AutoTokenizer, ChameleonForConditionalGeneration

from rl import RewindError
from rl.models import conversion
from rl.models.conversion import file_size, prepare
from rl.models.opening import load_base
from rl.models.shards import write_shards
from rl.running.files import whole_folder

IDS = [0, 16400, 16401, 8197, 4, 8195, 77, 8196, 16650, END_TURN]


@torch.no_grad()
def metas_logits(ranks: list[dict[str, Tensor]], ids: list[int], heads: int, kv: int, swin: bool) -> Tensor:
    """Meta's Chameleon as it runs on several machines, each with its part of the weights: logits [T, vocabulary].

    RoPE turns neighbouring numbers as one complex number; queries and keys are normalised by LayerNorm within each
    head, with one weight and bias a rank.
    """
    ranks = [{name: value.float() for name, value in rank.items()} for rank in ranks]
    first, count, length = ranks[0], len(ranks), len(ids)
    x = torch.cat([rank["tok_embeddings.weight"][ids] for rank in ranks], 1)
    size = x.shape[1] // heads
    angles = torch.outer(torch.arange(length), 10000.0 ** (-torch.arange(0, size, 2) / size))
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    future = torch.full((length, length), float("-inf")).triu(1)

    def rms(h: Tensor, name: str) -> Tensor:
        return h * (h.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * first[name]

    def rotated(h: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(h.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    def attention(rank: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
        def part(kind: str) -> Tensor:
            found = (h @ rank[f"{name}.w{kind}.weight"].T).unflatten(-1, (-1, size))
            if kind == "v":
                return found
            norm = f"{name}.{kind}_normalization"
            return rotated(layer_norm(found, (size,), rank[f"{norm}.weight"], rank[f"{norm}.bias"], 1e-5))

        q, k, v = part("q"), part("k"), part("v")
        assert q.shape[1:] == (heads // count, size)
        assert k.shape[1:] == v.shape[1:] == (kv // count, size)
        k, v = (t.repeat_interleave(heads // kv, 1) for t in (k, v))
        weights = (torch.einsum("qhd,khd->hqk", q, k) / size**0.5 + future).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).flatten(1) @ rank[f"{name}.wo.weight"].T

    def feed(rank: dict[str, Tensor], name: str, h: Tensor) -> Tensor:
        gate, up = (h @ rank[f"{name}.w{n}.weight"].T for n in "13")
        return (silu(gate) * up) @ rank[f"{name}.w2.weight"].T

    for layer in range(2):
        for norm, name, run in (("attention_norm", "attention", attention), ("ffn_norm", "feed_forward", feed)):
            norm, name = f"layers.{layer}.{norm}.weight", f"layers.{layer}.{name}"
            h = x if swin else rms(x, norm)
            h = sum((run(rank, name, h) for rank in ranks), torch.zeros(()))  # what all machines reduce
            x = x + (rms(h, norm) if swin else h)
    x = rms(x, "norm.weight")
    return torch.cat([x @ rank["output.weight"].T for rank in ranks], 1)


@pytest.mark.parametrize(("size", "heads", "kv"), [("7b", 2, 2), ("30b", 8, 4)])
def test_converted_weights_give_metas_logits(size: str, heads: int, kv: int, shelf: Shelf, tmp_path: Path) -> None:
    """In plain transformers, with neither of our classes."""
    prepare(str(shelf[f"meta-{size}"]), tmp_path, dtype="float32", max_shard_size=3 * 10**6).write(tmp_path)
    wanted = metas_logits(meta_weights(size == "30b"), IDS, heads, kv, size == "30b")
    model, report = ChameleonForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    with torch.no_grad():
        found = model.lm_head(model.model(input_ids=torch.tensor([IDS])).last_hidden_state)[0]
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, atol=1e-4)
    assert wanted.std() > 0.5
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(["<image>", "<s>", code_name(53)]) == [8711, 0, 57]
    assert tokenizer("move")["input_ids"][0] == 0


def test_the_script_converts_metas_layout(shelf: Shelf, tmp_path: Path) -> None:
    output = tmp_path / "base"
    flags = ["--from", shelf["meta-30b"] / "models" / "30b", "--max_shard_size", "3MB", "--output", output]
    done = start("scripts/convert.py", *flags, "--family", "chameleon")
    assert done.returncode == 0, done.stderr
    assert "opens with load_fdm and load_idm, reads and draws pictures" in done.stdout
    shards = sorted(output.glob("model-*.safetensors"))
    sizes = [sum(t.nbytes for t in load_file(file).values()) for file in shards]
    assert len(shards) > 3
    assert max(sizes) <= 3 * 10**6
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert set(index["weight_map"].values()) == {file.name for file in shards}
    card = json.loads((output / "rewind.json").read_text())
    assert card["family"] == "chameleon"
    assert card["converted"]["from"] == str(shelf["meta-30b"] / "models" / "30b")
    assert not {p.suffix for p in output.rglob("*")} & {".pth", ".ckpt", ".bin"}
    shutil.copytree(output, tmp_path / "moved")  # stands alone
    assert load_base(tmp_path / "moved").can_draw
    assert "the output folder" in start("scripts/convert.py", *flags).stderr
    assert start("scripts/convert.py", *flags, "--overwrite").returncode == 0


@pytest.mark.parametrize(("name", "vq"), [("anole", None), ("lumina-without-tokenizer", "meta-7b")])
def test_what_transformers_opens_is_converted_too(name: str, vq: str | None, shelf: Shelf, tmp_path: Path) -> None:
    other = None if vq is None else str(shelf[vq])
    prepare(str(shelf[name]), tmp_path, vq=other, max_shard_size=2 * 10**6).write(tmp_path)
    before, after = load_base(shelf[name], vq=other), load_base(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    ids = before.encode(pictures)
    assert torch.equal(after.encode(pictures), ids)
    assert (after.decode(ids) == before.decode(ids)).all()
    for key, value in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[key], value), key
    assert after.model.dtype == torch.bfloat16
    assert before.text_ids("remove all rings") == after.text_ids("remove all rings")
    assert json.loads((tmp_path / "config.json").read_text())["bos_token_id"] == 0


def test_no_more_than_a_file_is_held(tmp_path: Path) -> None:
    alive = {"now": 0, "most": 0}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for number in range(12):
            tensor = torch.full((250,), float(number))
            alive["now"] += tensor.nbytes
            alive["most"] = max(alive.values())
            weakref.finalize(tensor, lambda: alive.update(now=alive["now"] - 1000))
            yield f"t{number:02d}", tensor
            del tensor

    assert write_shards(tmp_path, tensors(), 3500) == 12_000
    assert alive["most"] <= 3500 + 1000
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    assert [float(load_file(file)[f"t{3 * i:02d}"][0]) for i, file in enumerate(files)] == [0.0, 3.0, 6.0, 9.0]


def test_a_conversion_that_was_cut_off_leaves_nothing_that_opens(shelf: Shelf, tmp_path: Path) -> None:
    def cut_off() -> None:
        with whole_folder(tmp_path / "base", last="config.json") as beside:
            prepare(str(shelf["anole"]), tmp_path / "base").write(beside)
            shutil.copytree(beside, killed)
            raise OSError("full")

    killed = tmp_path / "other.partial"  # what a kill would leave, at the worst moment
    with pytest.raises(OSError, match="full"):
        cut_off()
    assert not (tmp_path / "base").exists()
    with pytest.raises(RewindError, match="is what a conversion that was cut off has left: convert again"):
        load_base(killed)


def test_room_is_looked_at_before(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "available_ram", lambda: 10**6)
    for name, instead in (("meta-7b", "a smaller --max_shard_size"), ("chameleon-7b", "a machine with more")):
        with pytest.raises(RewindError, match=rf"takes 0\.0 GB of memory and 0\.0 GB are free: use {instead}"):
            prepare(str(shelf[name]), tmp_path / "base")
    prepare(str(shelf["meta-7b"]), tmp_path / "base", max_shard_size=400_000)  # smaller files need less
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**6))
    for name in ("meta-7b", "chameleon-7b"):
        with pytest.raises(RewindError, match=r"the base takes 0\.0 GB and the disk of .* has 0\.0 GB left"):
            prepare(str(shelf[name]), tmp_path / "base", max_shard_size=400_000)
    assert not (tmp_path / "base").exists()


def test_bad_input_is_one_sentence(shelf: Shelf, tmp_path: Path) -> None:
    def copy(number: int) -> Path:
        return shutil.copytree(shelf["meta-30b"], tmp_path / str(number))

    with pytest.raises(RewindError, match=r"of the family 'chameleon', not of 'emu3'"):
        prepare(str(shelf["meta-7b"]), tmp_path / "out", family="emu3")
    (copy(1) / "models" / "30b" / "consolidated.02.pth").unlink()
    with pytest.raises(RewindError, match=r"has 3 files consolidated\*.pth, and 4 belong to it"):
        prepare(str(tmp_path / "1"), tmp_path / "out")
    params = copy(2) / "models" / "30b" / "params.json"
    params.write_text(params.read_text().replace('"n_layers": 2', '"n_layers": 3'))
    with pytest.raises(RewindError, match=r"does not fit params.json: 13 tensors are missing or left over"):
        prepare(str(tmp_path / "2"), tmp_path / "out")
    shutil.copytree(shelf["meta-7b"] / "models" / "7b", copy(3) / "models" / "7b")
    with pytest.raises(RewindError, match=r"holds 2 models in Meta's layout .*: name the folder of one"):
        prepare(str(tmp_path / "3"), tmp_path / "out")
    (copy(4) / "tokenizer" / "vqgan.ckpt").unlink()
    with pytest.raises(RewindError, match=r"has no weights of a VQ image tokenizer"):
        prepare(str(tmp_path / "4"), tmp_path / "out")
    torch.save({"weights": print}, copy(5) / "models" / "30b" / "consolidated.00.pth")
    with pytest.raises(RewindError, match=r"cannot be read as a pickle that holds tensors and nothing else"):
        prepare(str(tmp_path / "5"), tmp_path / "out")
    with pytest.raises(RewindError, match="there is no base"):
        prepare(str(tmp_path / "nothing"), tmp_path / "out")
    with pytest.raises(RewindError, match="'big' is no size of a file: write 5GB or 500MB"):
        file_size("big")
    assert (file_size("5GB"), file_size("500mb"), file_size("1.5GiB")) == (5 * 10**9, 5 * 10**8, 3 * 2**29)
