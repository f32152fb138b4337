"""The arithmetic of memory: the ZeRO paper's own example, figures by hand, and real models counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_tiny
from peft import LoraConfig
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from rl.errors import RewindError
from rl.models.families.chameleon import TINY_DECODER, new_chameleon, tiny_vq_config
from rl.models.known import LINEAR_LAYERS, SHIPPED
from rl.models.opening import load_base
from scripts.plan import job_of, parser
from trainers.common.adapters import add_adapter
from trainers.plan import shapes
from trainers.plan.arithmetic import (
    Job,
    activation_bytes,
    memory,
    model_state_ratio,
    sequence_tokens,
)
from trainers.plan.shapes import KNOWN, Shape, shape_of
from trainers.plan.state import sent_bytes, state_bytes


def plan(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The script in a fresh interpreter: it imports nothing heavy."""
    command = [sys.executable, "scripts/plan.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


SMALL = Shape("small", "by hand", 8, 16, 2, 2, 1, 4, 100, 10, 4)


@pytest.mark.parametrize(("strategy", "gigabytes"), [("ddp", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)])
def test_the_papers_example(strategy: str, gigabytes: float) -> None:
    """7.5 B parameters on 64 GPUs: figure 1 of arXiv 1910.02054."""
    found = state_bytes(7_500_000_000, 0, strategy, 64)
    assert (found["weights"] + found["gradients"] + found["optimizer"]) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_frozen_weights_are_divided_by_zero3_alone() -> None:
    assert state_bytes(100, 1000, "zero2", 4) == {"weights": 2200, "gradients": 50, "optimizer": 300, "host": 0}
    assert state_bytes(100, 1000, "zero3", 4) == {"weights": 550, "gradients": 50, "optimizer": 300, "host": 0}
    offloaded = {"weights": 0, "gradients": 0, "optimizer": 0, "host": 900}
    assert state_bytes(100, 1000, "zero3_offload", 4) == offloaded
    assert state_bytes(100, 1000, "ddp", 1, weight_bytes=4)["optimizer"] == 800  # two moments beside the weight
    assert sent_bytes(100, 1000, "ddp", 1) == 0
    assert sent_bytes(100, 1000, "zero2", 4) == 400
    assert sent_bytes(100, 1000, "zero3", 4, accumulation=3) == 2 * 3 * (2 * 1100 + 100)
    with pytest.raises(RewindError, match="choose one of ddp, zero1"):
        state_bytes(1, 1, "zero4", 2)


def test_a_shape_by_hand() -> None:
    # q 8x8, k and v 8x4, o 8x8, gate, up and down 8x16; two norms of 8.
    layer = 64 + 32 + 32 + 64 + 3 * 128 + 16
    assert SMALL.layer_parameters() == layer
    assert SMALL.parameters() == 2 * layer + 8 + 2 * 100 * 8
    assert SMALL.lora_parameters(2, ["q_proj", "down_proj"]) == 2 * 2 * (16 + 24)
    assert SMALL.cache_bytes() == 2 * 2 * 4 * 2
    job = Job(lora_r=2, targets=["q_proj"], frozen_adapters=1, rows=3, rollout_rows=5, action_tokens=6)
    assert sequence_tokens(SMALL, job) == 18
    adapter, kept = 64, 2 * (16 + 16 + 8 + 64) + 64
    assert SMALL.layer_activations() == kept
    inputs, back = 2 * 8 * 2, 2 * (2 * 16 + 8)
    activations = 3 * 18 * (inputs + kept + back)  # more than the loss takes
    assert 3 * 18 * (kept + back) > 3 * 18 * 8 * (8 + 2) + 3 * 4 * 8 * 2 + 12 * 3 * 4 * 10
    assert activation_bytes(SMALL, job) == activations
    frozen = SMALL.parameters() + adapter
    found = memory(SMALL, job, "zero2", 2)
    assert found["cache"] == 5 * 18 * SMALL.cache_bytes()
    assert found["training"] == 2 * (frozen + adapter) + adapter + 6 * adapter + activations
    assert found["rollout"] > 2 * (frozen + adapter) + 6 * adapter + found["cache"]  # and a pass and its logits
    gathered = memory(SMALL, job, "zero3", 2)
    assert gathered["rollout"] - found["rollout"] == frozen + adapter  # a half and the whole
    with pytest.raises(RewindError, match="'head' is no linear layer"):
        SMALL.lora_parameters(2, ["head"])
    with pytest.raises(RewindError, match="rows must be at least 1"):
        Job(rows=0)


def test_full_fine_tuning() -> None:
    """16 bytes a weight, an eighth of them on each of eight GPUs under ZeRO-3; what stands beside it is a model too."""
    done = plan("--base", "chameleon-7b", "--use_peft", "false", "--algorithm", "sft", "--gpus", 8, "--rows", 1)
    assert "full fine-tuning" in done.stdout
    assert "a model of its own: 13.06 GiB of weights more each" in done.stdout
    found = memory(KNOWN["chameleon-7b"], Job(lora_r=0, frozen_adapters=0, rollout_rows=0), "zero3", 8)
    weights = KNOWN["chameleon-7b"].parameters()
    assert found["weights"] + found["gradients"] + found["optimizer"] == 16 * weights / 8


def test_real_models_are_counted() -> None:
    for vlm in (make_tiny(), load_base("tabletop-chameleon")):
        config = vlm.model.config
        heads = config.num_attention_heads
        sizes = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads, heads)
        shape = Shape("", "", *sizes, config.hidden_size // heads, config.vocab_size, 1, 1, tied=True, qk_norm=True)
        assert shape.parameters() == sum(p.numel() for p in vlm.model.parameters())
        add_adapter(vlm, LoraConfig(r=3, target_modules=LINEAR_LAYERS))
        trained = sum(p.numel() for p in vlm.model.parameters() if p.requires_grad)
        assert shape.lora_parameters(3) == trained
    assert shape_of("tabletop-chameleon").parameters() == shape.parameters()
    assert shape_of("tabletop-chameleon").tokens_per_image == 16
    assert shapes.SHIPPED == SHIPPED
    assert tuple(LINEAR_LAYERS) == shapes.LINEAR_LAYERS


@pytest.mark.parametrize("name", ["chameleon-7b", "chameleon-30b"])
def test_published_shapes_are_counted(name: str) -> None:
    shape = KNOWN[name]
    config = ChameleonConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocabulary_map={"<image>": 3},
    )
    with torch.device("meta"):
        model = ChameleonForConditionalGeneration(config)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert layer == shape.layer_parameters()
    outside = sum(p.numel() for p in model.model.vqmodel.parameters()) + layer
    counted = sum(p.numel() for p in model.parameters()) - outside
    assert counted + shape.layers * layer == shape.parameters()
    billions = {"chameleon-7b": 7.0, "chameleon-30b": 34.3, "emu3-8b": 8.5, "liquid-7b": 8.6, "lumina-7b": 7.0}
    assert {n: round(s.parameters() / 1e9, 1) for n, s in KNOWN.items()} == billions
    lumina = "Alpha-VLLM/Lumina-mGPT-7B-768"  # rows of a picture have ends
    assert [shape_of(lumina, size).tokens_per_image for size in (None, "768")] == [32 * 33, 48 * 49]


def test_activations_are_those_that_autograd_keeps() -> None:
    def kept(layers: int, tokens: int = 64) -> tuple[int, Shape]:
        sizes = {"hidden_size": 128, "num_layers": layers, "num_heads": 4}
        vlm = new_chameleon(make_tiny().tokenizer, tiny_vq_config(32, 16), TINY_DECODER, name="x", **sizes)
        add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS))
        config = vlm._chameleon.config
        constant = {x.untyped_storage().data_ptr() for x in [*vlm.model.parameters(), *vlm.model.buffers()]}
        alive: list[torch.Tensor] = []
        embedded = vlm.transformer().embed_tokens(torch.arange(5, 5 + tokens)[None]).detach().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: alive.append(x) or x, lambda x: x):
            vlm.transformer()(inputs_embeds=embedded, use_cache=False)
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
        total = sum(size for pointer, size in storages.items() if pointer not in constant)
        shape = (128, config.intermediate_size, 1, 4, 4, 32, 1, 1, 1)
        return total // tokens, Shape("", "", *shape, qk_norm=True, weight_bytes=4)

    (one, shape), (three, _) = kept(1), kept(3)
    assert (three - one) / 2 == pytest.approx(shape.layer_activations(), rel=0.05)


def test_one_backbone_for_three_models() -> None:
    assert model_state_ratio(KNOWN["chameleon-7b"], Job(lora_r=16)) == pytest.approx(0.35, abs=0.01)
    assert model_state_ratio(KNOWN["chameleon-7b"], Job(lora_r=1)) == pytest.approx(1 / 3, abs=0.005)


def test_the_script(tmp_path: Path) -> None:
    config = ["--config", "configs/grpo_tabletop.yaml", "--base", "chameleon-7b", "--per_device_train_batch_size", 4]
    done = plan(*config, "--gpus", 1, 8, "--output", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert "grpo, LoRA r 16: 40.0 M trained; a GPU reads 4 sequences at once and draws 4" in done.stdout
    assert "that change no memory: importance_advantages, learning_rate" in done.stdout
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert set(figures["gpus"]) == {"1", "8"}
    zero2 = figures["gpus"]["8"]["zero2"]
    job = Job(rows=4, grouped=4, rollout_rows=4, candidates=4, scored=4, checkpointing=False)
    assert zero2 == memory(KNOWN["chameleon-7b"], job, "zero2", 8)
    for name in sorted(p.name for p in (ROOT / "configs").glob("*_tabletop.yaml") if "pretrain" not in p.name):
        done = plan("--config", f"configs/{name}", "--base", "tabletop-chameleon", "--gpus", 1)
        if "role: idm" in (ROOT / "configs" / name).read_text():
            assert "only sentences are" in done.stderr
            continue
        assert done.returncode == 0, (name, done.stderr)
        assert "MiB a GPU" in done.stdout


def test_the_docs_show_what_it_prints() -> None:
    page = (ROOT / "docs" / "findings" / "memory.md").read_text()
    found = re.findall(r"```bash\npython scripts/plan.py ([^\n]*)\n```\n\n```text\n(.*?)\n```", page, flags=re.DOTALL)
    assert len(found) == 3
    for words, shown in found:
        assert plan(*words.split()).stdout.rstrip() == shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [([], "say which model"), (["--base", "gpt"], "neither a folder with config.json"), (["--gpus", "0"], "1 or more")],
)
def test_bad_input(arguments: list[str], sentence: str) -> None:
    done = plan(*arguments)
    assert (done.returncode, sentence in done.stderr) == (2, True)


def test_a_long_prompt_is_read_once_for_the_rows_behind_it() -> None:
    """Of eight sequences of 2,076 tokens, 1,052 of them the prompt; a rollout for several steps is shuffled."""
    shape, words = KNOWN["chameleon-7b"], 24
    alone, together = (activation_bytes(shape, Job(rows=8, grouped=n)) for n in (1, 8))
    assert sequence_tokens(shape, Job()) == 1024 + 1024 + words + 4 == 2076
    tokens = (8 * 1024 + 1052) / (8 * 2076)
    assert tokens == pytest.approx(0.557, abs=0.001)
    assert tokens < together / alone < 1.1 * tokens  # each row has its prompt's keys and values beside its own
    short = [activation_bytes(SMALL, Job(rows=8, grouped=n)) for n in (1, 8)]
    assert short[0] == short[1]
    read = ["--base", "chameleon-7b", "--num_generations", "8", "--gradient_accumulation_steps", "2"]
    for passes, grouped in ((None, 8), (1, 8), (2, 8), (4, 1)):
        given = [] if passes is None else ["--steps_per_generation", str(passes)]
        assert job_of(parser().parse_args([*read, *given]))[2].grouped == grouped
    assert job_of(parser().parse_args(["--base", "chameleon-7b", "--algorithm", "dpo"]))[2].grouped == 2


def test_guidance_reads_twice_and_both_roles_train_two_adapters() -> None:
    once, twice = (memory(SMALL, Job(lora_r=2, rows=3, rollout_rows=5, branches=n), "ddp", 1) for n in (1, 2))
    assert (twice["activations"], twice["cache"]) == (2 * once["activations"], 2 * once["cache"])
    assert (twice["weights"], twice["optimizer"]) == (once["weights"], once["optimizer"])
    sft = {"lora_r": 2, "frozen_adapters": 0, "rollout_rows": 0}
    one, both = (memory(SMALL, Job(**sft, trained_adapters=n), "ddp", 1) for n in (1, 2))
    assert (both["gradients"], both["optimizer"]) == (2 * one["gradients"], 2 * one["optimizer"])
    assert both["weights"] - one["weights"] == 2 * SMALL.lora_parameters(2, LINEAR_LAYERS)
    assert both["activations"] == one["activations"]  # a role after the other


def test_prompts_are_kept_once_and_rows_are_as_many_as_fit() -> None:
    shape, gib = KNOWN["chameleon-7b"], 2**30
    job = Job(rollout_rows=64, candidates=8, scored=64)
    found = memory(shape, job, "ddp", 1)
    assert found["at_once"] == 64
    assert found["cache"] == (8 * (24 + 1024 + 4) + 64 * 1024) * shape.cache_bytes()
    small = memory(shape, job, "ddp", 1, 24 * gib)
    assert small["at_once"] == 8
    assert small["rollout"] < 0.9 * 24 * gib < found["rollout"]
    assert small["reward"] < 0.9 * 24 * gib
    assert memory(shape, job, "ddp", 1, 8 * gib)["at_once"] == 1  # and it is over
    apart = memory(shape, Job(beside=shape.parameters(), frozen_adapters=1), "zero3", 8)
    assert apart["weights"] - memory(shape, Job(frozen_adapters=1), "zero3", 8)["weights"] == 2 * shape.parameters()


def test_a_judge_costs_a_model_where_it_stands_on_another_base(tmp_path: Path) -> None:
    for name, weights in (("fdm", "a"), ("judge", "a"), ("apart", "b")):
        folder = tmp_path / name / "adapter"
        folder.mkdir(parents=True)
        config = {"r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "tabletop-chameleon"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "rewind.json").write_text(json.dumps({"base": {"sha256": weights}}))
    words = ["--fdm", tmp_path / "fdm", "--algorithm", "grpo", "--gpus", 1, "--output", tmp_path / "plan.json"]
    weights = []
    for judge in ([], ["--judge_idm", tmp_path / "judge"], ["--judge_idm", tmp_path / "apart"]):
        assert plan(*words, *judge).returncode == 0
        weights.append(json.loads((tmp_path / "plan.json").read_text())["gpus"]["1"]["ddp"]["weights"])
    shape = shape_of("tabletop-chameleon")
    assert weights[1] - weights[0] == 4 * shape.lora_parameters(4, ["q_proj"])
    assert weights[2] - weights[0] == 4 * shape.parameters()


def test_the_script_knows_guidance_and_both_roles() -> None:
    def figures(*arguments: object) -> list[str]:
        shown = plan("--base", "chameleon-7b", "--gpus", 1, *arguments).stdout
        return next(line for line in shown.splitlines() if line.startswith("  single")).split()

    plain, guided = (figures("--algorithm", "grpo", "--guidance", g) for g in (1, 1.5))
    assert float(guided[4]) == pytest.approx(2 * float(plain[4]), rel=0.01)  # activations
    alone, both = figures("--algorithm", "sft"), figures("--algorithm", "sft", "--with_idm")
    assert float(both[3]) == pytest.approx(2 * float(alone[3]), rel=0.05)  # the optimizer
