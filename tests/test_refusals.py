"""An option is honoured or refused in one sentence before the run folder is claimed; none is accepted and ignored.

TRL 1.16 and transformers 5.23: their configs, and what a trainer would find out only while it is built or in its steps.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from peft import LoraConfig
from PIL import Image
from script_runs import start
from test_sft import trainer as sft_trainer
from transformers import set_seed

from rl import load_fdm
from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.models.saving import save_base
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.best_of_n.recipe import train_best_of_n
from trainers.common import refusals
from trainers.common.adapters import add_adapter
from trainers.common.arguments import parse
from trainers.common.preflight import check_training
from trainers.dpo.arguments import DPOArguments, RewindDPOConfig
from trainers.dpo.recipe import train_dpo
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.recipe import train_grpo
from trainers.sft.arguments import FDMArguments, IDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role

CONFIGS = {
    RoleConfig: refusals.SFT,
    RewindDPOConfig: refusals.DPO,
    RewindGRPOConfig: refusals.GRPO,
    LoraModelConfig: refusals.MODEL,
}
METHODS: dict[str, tuple[Any, tuple[type[Any], ...]]] = {
    "idm": (lambda *found: train_role("idm", *found), (IDMArguments, RoleConfig, LoraModelConfig)),
    "fdm": (lambda *found: train_role("fdm", *found), (FDMArguments, RoleConfig, LoraModelConfig)),
    "best_of_n": (train_best_of_n, (BestOfNArguments, RoleConfig)),
    "dpo": (train_dpo, (DPOArguments, RewindDPOConfig)),
    "grpo": (train_grpo, (GRPOArguments, RewindGRPOConfig)),
}


def run(method: str, *flags: object) -> Path:
    """A method as its script runs it, in this process."""
    train, types = METHODS[method]
    found: Path = train(*parse(types, list(map(str, flags))))
    return found


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_of_every_config_is_sorted(config: type[Any]) -> None:
    """Fails when a release of TRL or transformers adds an option or drops one: sort it in trainers/common/refusals.py,
    by what our losses, samplers and backbones do with it.
    """
    options, fields = CONFIGS[config], {field.name for field in dataclasses.fields(config)}
    assert sorted(fields - options.honoured - options.refused.keys()) == []
    assert sorted((options.honoured | options.refused.keys()) - fields) == []
    refusals.refuse_ignored(config(), options)  # the defaults are no wish of anybody's


def test_an_option_stands_once() -> None:
    with pytest.raises(AssertionError, match="sorted twice: packing"):
        refusals.Options(frozenset({"packing"}), {"packing": "no"})
    assert "packing" in refusals.SFT.with_("packing").honoured
    assert "packing" not in refusals.SFT.with_("packing").refused


SFT_FLAGS = [
    ("--max_length 512", "--max_length 512 is not used: rows are token ids already"),
    ("--max_length 1024", "--max_length 1024 is not used"),  # TRL's own default, given by somebody
    ("--loss_type dft", "--loss_type dft is not used: the loss is the weighted negative log-likelihood"),
    ("--packing", "--packing true is not used: every row is a sequence of its own"),
    ("--label_smoothing_factor 0.1", "--label_smoothing_factor 0.1 is not used"),
    ("--assistant_only_loss", "--assistant_only_loss true is not used"),
    ("--completion_only_loss true", "--completion_only_loss true is not used"),
    ("--resume_from_checkpoint OUT/checkpoint-5", "use --resume true"),
    ("--max_steps 0", "--max_steps must be 1 or more, not 0"),
    ("--max_steps -2", "--max_steps must be 1 or more, not -2"),
    ("--limit -2", "--limit must be 1 or more, not -2"),
    ("--num_train_epochs 0", "--num_train_epochs must be above 0, not 0"),
    ("--per_device_train_batch_size -4", "--per_device_train_batch_size must be 1 or more, not -4"),
    ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps must be 1 or more"),
    ("--seed -1", "--seed must be a whole number from 0 to 4294967295, not -1"),
    ("--learning_rate nan", "--learning_rate must be 0 or more, not nan"),
    ("--save_steps 0", "--save_steps must be above 0"),
    ("--warmup_steps -1", "Expected value warmup_steps >= 0"),
    ("--optim adamw_8bit", "--optim adamw_8bit cannot be used as it is configured: You need to install `bitsandbytes`"),
    ("--optim_args fused=1", "it has no use for --optim_args fused=1"),
    ("--adam_beta1 1.5", "Invalid beta parameter"),
    ("--lr_scheduler_type cosine_with_min_lr", "min_lr"),
    ("--report_to wandb", "--report_to wandb cannot be used"),
    ("--report_to tensorbord", "--report_to tensorbord cannot be used"),
    ("--dataloader_persistent_workers true", "persistent_workers option needs num_workers > 0"),
    ("--hub_token hf_secret", "--hub_token is not used: nothing is uploaded"),
    ("--do_predict", "--do_predict true is not used"),
]
MODEL_FLAGS = [
    (
        "--model_name_or_path gpt2",
        "is not used: the model is given by its folder: use --base",
    ),
    ("--load_in_4bit", "quantization '4bit' needs bitsandbytes"),  # which is not installed here
    ("--load_in_4bit --load_in_8bit", "You can't use 8 bit and 4 bit precision at the same time"),
    ("--bnb_4bit_quant_type fp4", "--bnb_4bit_quant_type fp4 is not used: four bits are NF4"),
    ("--dtype float8", "dtype must be one of auto, float32, bfloat16, float16, not 'float8'"),
    ("--lora_r 0", "--lora_r must be 1 or more, not 0"),
    ("--lora_dropout 1.5", "--lora_dropout must lie from 0 to below 1, not be 1.5"),
    ("--lora_modules_to_save lm_head", "the head stays frozen"),
    ("--use_peft false --lora_alpha 8", "--use_peft false trains all weights and no adapter: leave --lora_alpha out"),
]
EVALUATION_FLAGS = [
    ("--eval_strategy steps", "give --validation held-out.json, or leave out --eval_strategy"),
    ("--eval_on_start true", "give --validation held-out.json"),
    ("--validation held-out.json", "--validation is never looked at without --eval_strategy"),
]
BEST = "--validation a.json --eval_strategy epoch --save_strategy epoch --load_best_model_at_end true"
GRPO_FLAGS = [
    ('--model_init_kwargs {"dtype":"bfloat16"}', "--model_init_kwargs is not used"),
    ("--max_completion_length 3", "a prediction has as many tokens as the base's pictures"),
    ("--use_vllm", "--use_vllm true is not used: image tokens are drawn by a sampler of our own"),
    ("--scale_rewards often", "--scale_rewards is one of group, batch, none, not 'often'"),
    ("--loss_type ppo", "--loss_type is one of grpo, bnpo"),
    ("--temperature 0", "--temperature must be above 0, not 0"),
    ("--top_p 0.9", "--top_p 0.9 is not used: it would move the support of the policy"),
    ("--sync_ref_model true", "the reference is a copy of the adapter"),
    ("--log_completions true", "a prediction is no text to be printed"),
    ("--data_seed 3", "the order of the prompts follows --seed"),
    ("--early_stop -1", "--early_stop"),
    ("--limit -2", "--limit must be 1 or more"),
    ("--seed -1", "--seed must be a whole number"),
    ("--report_to wandb", "--report_to wandb cannot be used"),
    ("--max_sentence_tokens 20", "--max_sentence_tokens is of --role idm"),
    (
        "--rewards fdm_margin",
        "'fdm_margin' scores sentences, for train_grpo.py --role idm, and here predicted pictures",
    ),
    ("--role idm --guidance 1.5", "--guidance 1.5 is not used with --role idm: an inverse model's prompt has no words"),
    ("--role idm --importance_advantages group", "--importance_advantages group is not used with --role idm"),
    ("--role idm --rollout_steps 3", "--rollout_steps 3 is not used with --role idm: a sentence is about one pair"),
    ("--role idm --rollout_credit trajectory", "--rollout_credit trajectory is not used with --role idm"),
    ("--role idm --max_completion_length 20", "a sentence ends by itself: use --max_sentence_tokens"),
    ("--role idm --max_sentence_tokens 0", "max_sentence_tokens must be"),
    ("--role idm --rewards idm_margin", "'idm_margin' scores predicted pictures and here sentences are scored"),
    ("--role idm --top_k 50", "--top_k 50 is not used: it would move the support of the policy"),
    ("--role idm", "give the inverse model to improve and pairs to try: --role idm --idm"),
]
DPO_FLAGS = [
    ("--max_length 512", "--max_length 512 is not used"),
    ("--loss_type sigmoids", "--loss_type is one or more of aot"),
    ("--loss_type exo_pair", "needs --label_smoothing above 0"),
    ("--loss_type sigmoid sft --loss_weights 1", "`loss_weights` must have the same length"),
    ("--f_divergence_type forward_kl --loss_type nca_pair", "is not defined for --loss_type nca_pair"),
    ("--use_weighting true", "WPO's weights need sums over the whole vocabulary"),
    ("--precompute_ref_log_probs", "TRL would take them over the whole vocabulary"),
    ("--disable_dropout false", "--disable_dropout false is not used"),
    ("--temperature 0", "--temperature must be above 0"),
    (f"{BEST} --metric_for_best_model eval_reward", "--metric_for_best_model eval_reward is not measured here"),
]
ROWS = [
    *(("idm", *row) for row in [*SFT_FLAGS, *MODEL_FLAGS]),
    *((method, *row) for row in EVALUATION_FLAGS for method in ("idm", "dpo", "grpo")),
    ("fdm", f"{BEST} --metric_for_best_model accuracy", "use one of eval_loss, eval_mean_token_accuracy"),
    ("fdm", f"{BEST} --with_idm true", "the best checkpoint of one role is not that of the other"),
    ("best_of_n", "--eval_strategy epoch", "train_best_of_n.py does not evaluate while it trains"),
    ("best_of_n", "--optim adamw_8bit", "bitsandbytes"),
    ("best_of_n", "--temperature 0", "--temperature must be above 0"),
    *(("grpo", *row) for row in GRPO_FLAGS),
    (
        "grpo",
        f"{BEST} --metric_for_best_model eval_rewards/idm_margin",
        "eval_rewards/idm_margin is not measured here: use one of",
    ),
    ("grpo", "--validation v.json --eval_strategy steps --metric_for_best_model accuracy", "accuracy is not measured"),
    *(("dpo", *row) for row in DPO_FLAGS),
]


@pytest.mark.parametrize(("method", "flags", "sentence"), ROWS, ids=[f"{row[0]} {row[1]}"[:60] for row in ROWS])
def test_what_would_be_ignored_or_fail_later_is_refused(method: str, flags: str, sentence: str, tmp_path: Path) -> None:
    """Before anything is opened: neither the models nor the triplets that are named exist."""
    given = ["--triplets", "none.json", "--output_dir", tmp_path / "out"]
    given += [] if method in ("idm", "fdm") else ["--fdm", "no-such-run"]
    with pytest.raises(RewindError) as refused:
        run(method, *given, *flags.split())
    assert sentence in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has it")
def test_what_only_a_gpu_has_is_refused_on_a_cpu() -> None:
    for settings, sentence in (({"fp16": True}, "--fp16 needs a GPU"), ({"activation_offloading": True}, "off a GPU")):
        with pytest.raises(RewindError, match=sentence):
            check_training(RoleConfig(output_dir="x", **settings), refusals.SFT)  # type: ignore[arg-type]


@pytest.mark.parametrize("script", ["train_idm", "train_grpo"])
def test_a_script_says_it_in_one_sentence(script: str, tmp_path: Path) -> None:
    wrong = {"train_idm": ["--packing"], "train_grpo": ["--fdm", "none", "--use_vllm"]}[script]
    done = start(f"scripts/{script}.py", "--triplets", "none.json", *wrong, "--output_dir", tmp_path / "out")
    assert (done.returncode, "Traceback" in done.stderr, (tmp_path / "out").exists()) == (2, False, False)
    assert [line.startswith("error: --") for line in done.stderr.splitlines() if "not used" in line] == [True]


def small_task(folder: Path, count: int = 3) -> list[object]:
    """Flags that name a tiny base and a file of triplets."""
    rng, entries = np.random.default_rng(0), []
    vlm = make_tiny()
    vlm.name = str(folder / "base")
    save_base(vlm, folder / "base", {"pretraining": {}})
    for number in range(count):
        for name in ("in", "out"):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}-{name}.png")
        entry = {"input": f"{number}-in.png", "output": f"{number}-out.png", "instruction": "move the red circle left"}
        entries.append(entry)
    (folder / "triplets.json").write_text(json.dumps(entries))
    return ["--base", folder / "base", "--triplets", folder / "triplets.json"]


def test_layers_that_are_not_there_are_said_before_the_folder_is_claimed(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    with pytest.raises(RewindError, match=r"no LoRA of this kind fits .*nothing_such"):
        run("idm", *task, "--lora_target_modules", "nothing_such", "mlp_such", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_honoured_does_something(tmp_path: Path) -> None:
    """DoRA and rank-stabilised LoRA open again; NEFTune's noise reaches the loss."""
    task = [*small_task(tmp_path), "--max_steps", 2, "--report_to", "none", "--save_strategy", "no"]
    kinds: list[list[object]] = [[], ["--use_dora", "true"], ["--use_rslora", "true", "--lora_r", 4]]
    picture, drawn = np.zeros((32, 32, 3), np.uint8), []
    for number, kind in enumerate(kinds):
        folder = run("fdm", *task, *kind, "--learning_rate", 0.05, "--output_dir", tmp_path / str(number))
        settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert (settings["use_dora"], settings["use_rslora"]) == (number == 1, number == 2)
        drawn.append(load_fdm(folder).log_probs(picture, [picture], "move the red circle left")[0])
    assert not np.allclose(drawn[0], drawn[1])
    losses = []
    for noise in (None, 50.0):
        set_seed(0)
        vlm = make_tiny()
        add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS))
        losses.append(sft_trainer(vlm, tmp_path, "fdm", False, neftune_noise_alpha=noise).train().training_loss)
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def test_scale_rewards_is_read_on_the_command_line_as_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text("scale_rewards: true\n")
    flags = [["--scale_rewards", "true"], ["--config", str(tmp_path / "grpo.yaml")], ["--scale_rewards", "False"], []]
    found = [parse((RewindGRPOConfig,), ["--output_dir", "x", *given])[0].scale_rewards for given in flags]
    assert found == ["group", "group", "none", "none"]
