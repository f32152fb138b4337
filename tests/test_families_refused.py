"""What no family opens, and what does not belong together: one sentence each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from opened_families import VQ, shelf
from published_families import CODES

from rl.errors import RewindError
from rl.models.opening import load_base
from rl.models.settings import Settings


def copy_with(folder: Path, source: Path, **changes: Any) -> Path:
    """A folder of links to another's files, with changes of its config; None drops a key."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def refused(folder: Path, sentence: str, vq: Path | None = None, **how: Any) -> None:
    with pytest.raises(RewindError, match=sentence) as error:
        load_base(folder, Settings(**how), vq=vq)
    assert "\n" not in str(error.value)


def test_what_is_of_no_family(tmp_path: Path) -> None:
    refused(
        shelf()["gemma"], "holds a Gemma with 10240 ids; of Gemma's kind Liquid alone .* has 264192", shelf()["vqgan"]
    )
    llama = copy_with(tmp_path / "llama", shelf()["gemma"], model_type="llama")
    refused(llama, "families that can be opened are chameleon, emu3, liquid, lumina, univla")
    remote = copy_with(tmp_path / "remote", shelf()["gemma"], model_type="Emu3")
    refused(remote, "of Emu3's kind with 10240 ids, whose code is not run .* Emu3 and UniVLA can be opened")
    without = copy_with(tmp_path / "without", shelf()["gemma"], model_type="emu3")
    refused(without, "lacks its vocabulary_map")
    other = copy_with(tmp_path / "other", shelf()["gemma"])
    (other / "rewind.json").write_text('{"family": "lumina"}')
    refused(other, "a 'gemma' checkpoint of which rewind.json says 'lumina'; the families that can be opened are")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "there is no base .*empty'")


def test_what_does_not_belong_together() -> None:
    other = shelf()["vqgan of 4096"]
    refused(shelf()["lumina"], f"names {CODES} image codes, and the VQ tokenizer has 4096", other)
    refused(shelf()["liquid"], f"{CODES} ids behind its words and the VQ tokenizer 4096 codes", other)
    refused(shelf()["emu3"], "their codebooks differ", shelf()["vqgan"], image_size=24)
    for name in ("lumina", "liquid"):
        refused(shelf()[name], "has no weights of a VQ image tokenizer: .*--vq FOLDER")


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("lumina", 48, "sides are multiples of 32 pixels"),
        ("liquid", 128, "knows pictures of 64 pixels alone"),
        ("chameleon", 64, "knows pictures of 32 x 32 alone"),
        ("emu3", 720, r"not 720 \(16398 tokens\)"),
    ],
)
def test_sizes_that_a_family_cannot_take(name: str, size: int, sentence: str) -> None:
    refused(shelf()[name], sentence, shelf()[VQ[name]] if name in VQ else None, image_size=size)
