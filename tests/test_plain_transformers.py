"""What we write, transformers' own classes open: every weight in its place, and the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SENTENCES
from opened_families import opened, pictures, trainable
from peft import LoraConfig
from published import Shelf
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    GemmaForCausalLM,
)

from rl.models.export import save_merged
from rl.models.known import LINEAR_LAYERS
from rl.models.opening import load_base
from rl.models.saving import save_base
from rl.models.settings import Settings
from trainers.common.adapters import add_adapter

CLASSES: dict[str, tuple[Any, Any]] = {
    "chameleon": (ChameleonForConditionalGeneration, AutoModelForImageTextToText),
    "lumina": (ChameleonForConditionalGeneration, AutoModelForImageTextToText),
    "liquid": (GemmaForCausalLM, AutoModelForCausalLM),
    "emu3": (Emu3ForConditionalGeneration, AutoModelForImageTextToText),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def logits_of(vlm: Any, ids: list[int]) -> torch.Tensor:
    return vlm.hidden_states(torch.tensor([ids]), use_cache=False).last_hidden_state @ vlm.head_weight().T


@torch.no_grad()
def opens_in_transformers(folder: Path, vlm: Any, classes: tuple[Any, ...]) -> None:
    source = vlm.encode(pictures(vlm, 1))[0].tolist()
    ids = vlm.fdm_prompt(source, SENTENCES[0])
    ours = logits_of(vlm, ids)
    for kind in classes:
        plain, report = kind.from_pretrained(folder, output_loading_info=True)
        assert {name: found for name, found in report.items() if found} == {}
        assert plain.dtype == vlm.head_weight().dtype
        theirs = plain.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits
        # transformers' forward of a Chameleon forbids its codes
        allowed = vlm.layout.text_ids_V if vlm.family in ("chameleon", "lumina") else slice(None)
        torch.testing.assert_close(theirs[..., allowed], ours[..., allowed], atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)(SENTENCES[0], add_special_tokens=False)["input_ids"] == vlm.text_ids(
        SENTENCES[0]
    )


@pytest.mark.parametrize("family", list(CLASSES))
def test_an_exported_run_of_every_family(family: str, tmp_path: Path) -> None:
    made = trainable(opened(family))
    before = logits_of(made, vlm_prompt := made.fdm_prompt(made.encode(pictures(made, 1))[0].tolist(), SENTENCES[0]))
    save_merged(made, "default", tmp_path / "merged", {})
    assert float((logits_of(made, vlm_prompt) - before).abs().max()) < 1e-2
    opens_in_transformers(tmp_path / "merged", made, CLASSES[family])


@pytest.mark.parametrize(
    ("name", "vq"), [("chameleon-7b", None), ("chameleon-30b", "vqvae"), ("anole", None), ("converted meta-7b", None)]
)
def test_published_chameleons(name: str, vq: str | None, shelf: Shelf, tmp_path: Path) -> None:
    """With and without a decoder, which has a file to itself; converted ones too, and as they are in several files."""
    vlm: Any = load_base(shelf[name], Settings(dtype="float32"), None if vq is None else shelf[vq])
    if name.startswith("converted"):
        save_base(vlm, tmp_path / "out", {}, max_shard_size="1MB")
        assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    else:
        add_adapter(vlm, LoraConfig(r=2, target_modules=list(LINEAR_LAYERS), init_lora_weights=False))
        save_merged(vlm, "default", tmp_path / "out", {})
    assert (tmp_path / "out" / "decoder.safetensors").is_file() == vlm.can_draw
    opens_in_transformers(tmp_path / "out", vlm, CLASSES["chameleon"])
