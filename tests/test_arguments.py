"""Arguments of the training scripts: flags over YAML, a text as a list of one, what an unknown word meant."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from rewards import load_rewards
from rl.errors import RewindError
from rl.models.bases import is_base
from rl.models.known import SHIPPED
from rl.running.command_line import parse_with_config
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.common import sharding
from trainers.common.arguments import parse
from trainers.dpo.arguments import RewindDPOConfig
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.monitors import RULES, rules_of
from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleConfig


def grpo(folder: Path, text: str, *flags: str) -> Any:
    (folder / "c.yaml").write_text(text)
    return parse((GRPOArguments, RewindGRPOConfig), ["--config", str(folder / "c.yaml"), *flags])


def test_a_text_is_a_list_of_one(tmp_path: Path) -> None:
    text = "triplets: a.json\nrewards: idm_likelihood\nmonitors: none\nvalidation: v.json\nreward_weights: 0.5\n"
    found, config = grpo(tmp_path, text)
    assert (found.triplets, found.rewards, found.validation) == (["a.json"], ["idm_likelihood"], ["v.json"])
    assert (rules_of(found.monitors), config.reward_weights) == ({}, [0.5])
    found, _ = grpo(tmp_path, text, "--triplets", "b", "c")
    assert found.triplets == ["b", "c"]
    (tmp_path / "c.yaml").write_text("triplets: a.json\nsynthetic: s.json\n")
    found, _, _ = parse((FDMArguments, RoleConfig, LoraModelConfig), ["--config", str(tmp_path / "c.yaml")])
    assert (found.triplets, found.synthetic) == (["a.json"], ["s.json"])
    made = BestOfNArguments(triplets="a.json", rewards="copy_penalty", candidates="runs/x")  # type: ignore[arg-type]
    assert (made.triplets, made.rewards, made.candidates) == (["a.json"], ["copy_penalty"], ["runs/x"])
    assert [reward.name for reward in load_rewards("copy_penalty=2")] == ["copy_penalty"]
    assert (rules_of("none"), list(rules_of("copy_rate"))) == ({}, ["copy_rate"])


def test_an_empty_list_of_a_config_is_the_default_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWIND_TEST", raising=False)
    found, config = grpo(tmp_path, "triplets:\nrewards: ~\nlearning_rate: 1e-4\nenv: {REWIND_TEST: 3}\n")
    assert (found.triplets, found.rewards) == ([], ["idm_margin=1.0", "keep_unchanged=0.25"])
    assert (config.learning_rate, os.environ["REWIND_TEST"]) == (1e-4, "3")


@pytest.mark.parametrize(
    ("text", "flags", "sentence"),
    [
        ("tripletts: a", [], "c.yaml: unknown key 'tripletts': did you mean 'triplets'?"),
        ("zzzz: a", [], "c.yaml: unknown key 'zzzz'; --help shows all"),
        ("", ["--tripletts", "a"], "there is no flag '--tripletts': did you mean '--triplets'?"),
        ("", ["--reward", "a"], "there is no flag '--reward': did you mean '--rewards'?"),
        ("", ["--zzzz"], "there is no flag '--zzzz': --help shows all"),
        ("", ["a.yaml"], "no flag takes 'a.yaml'"),
        ("", ["--max_steps", "many"], "invalid int value: 'many'"),
        ("rewards: {idm_margin: 1}", [], "c.yaml: 'rewards' is a list of values, with NAME=VALUE where"),
        ("rewards: [{idm_margin: 1}]", [], "c.yaml: 'rewards' is a list of values, with NAME=VALUE where"),
        ("a: [", [], "is not valid YAML"),
        ("- a", [], "must hold 'key: value' lines"),
        ("env: 3", [], "'env' must be a mapping"),
    ],
)
def test_what_does_not_fit_is_one_sentence(text: str, flags: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RewindError, match=re.escape(sentence)):
        grpo(tmp_path, text, *flags)


def test_words_that_were_meant() -> None:
    for name, sentence in (
        ("copy_rates", "there is no monitor 'copy_rates', did you mean 'copy_rate': there are"),
        ("non", "there is no monitor 'non', did you mean 'none': there are"),
    ):
        with pytest.raises(RewindError, match=sentence):
            rules_of([name])
    assert "copy_rate" in RULES
    for names, arguments, sentence in (
        (["keep_unchange"], {}, "there is no reward 'keep_unchange', did you mean 'keep_unchanged': "),
        (["copy_penalty"], {"copy_penalty": {"leest": 1}}, "has no argument 'leest', did you mean 'least': it has"),
        (["copy_penalty"], {"copy_penality": {}}, r"no such reward among \['copy_penalty'\], did you mean 'copy_pen"),
    ):
        with pytest.raises(RewindError, match=sentence):
            load_rewards(names, arguments=arguments)


def test_a_path_at_home_in_a_config_and_behind_a_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text("output: ~/runs/a\n")
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    assert parse_with_config(parser, ["--config", str(tmp_path / "c.yaml")]).output == tmp_path / "runs" / "a"
    assert str(RoleConfig(output_dir="~/runs/b").output_dir) == str(tmp_path / "runs" / "b")
    shutil.copytree(SHIPPED["tabletop-chameleon"], tmp_path / "base")
    assert is_base("~/base")


@pytest.mark.parametrize("kind", [RoleConfig, RewindGRPOConfig, RewindDPOConfig])
def test_a_plain_start_beside_several_gpus_uses_one(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And no DataParallel: a batch is that of one GPU; said once, with what to type for all."""
    AcceleratorState._reset_state(reset_partial_state=True)
    for name, value in (("is_available", True), ("device_count", 3), ("set_device", None), ("is_bf16_supported", True)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    sharding._say_one_gpu.cache_clear()
    try:
        with caplog.at_level("WARNING", "rl"):
            configs = [kind(output_dir=str(tmp_path), per_device_train_batch_size=8, bf16=False) for _ in range(2)]
        for config in configs:
            assert (config.n_gpu, config.train_batch_size, config.device.type) == (1, 8, "cuda")
            assert config.parallel_mode == ParallelMode.NOT_PARALLEL
        plain = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=8)
        assert (plain.n_gpu, plain.train_batch_size) == (3, 24)  # what it would be
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    told = [record.getMessage() for record in caplog.records if record.name == "rl"]
    assert len(told) == 1
    assert "one of 3 GPUs is used" in told[0]
    assert "accelerate launch --config_file configs/accelerate/zero2.yaml --num_processes 3" in told[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("importance_advantages: groups", r"'importance_advantages' is one of none, target, group, own, not 'groups'"),
        ("save_strategy: sometimes", "'save_strategy' is one of no, steps, epoch, best, not 'sometimes'"),
        ("dead_group_retries: 1.5", r"'dead_group_retries' is a whole number, not 1\.5"),
        ("spread_floor: yes", "'spread_floor' is a number, not True"),
        ("learning_rate: [1]", r"'learning_rate' is a number, not \[1\]"),
        ("learning_rate: {a: 1}", r"'learning_rate' is a number, not \{'a': 1\}"),
        ("save_strategy: {a: 1}", r"'save_strategy' is one of no, steps, epoch, best, not \{'a': 1\}"),
        ("fdm: [a, b]", r"'fdm' takes one value, not \['a', 'b'\]"),
        ("fdm: {a: b}", r"'fdm' takes one value, not \{'a': 'b'\}"),
    ],
)
def test_a_file_is_held_to_what_flags_are(tmp_path: Path, text: str, sentence: str) -> None:
    """argparse itself looks at defaults only where they are texts."""
    with pytest.raises(RewindError, match=sentence):
        grpo(tmp_path, text)


def test_a_file_may_list_where_transformers_takes_a_list(tmp_path: Path) -> None:
    assert grpo(tmp_path, "report_to: []\n")[1].report_to == []
    with pytest.raises(RewindError, match="takes one value"):
        grpo(tmp_path, "run_name: [a]\n")


def test_a_file_may_spell_numbers_as_yaml_does(tmp_path: Path) -> None:
    text = "learning_rate: 1e-3\nmax_steps: '12'\nimportance_correction: 2\nlr_scheduler_type: cosine\nspread_floor:\n"
    arguments, config = grpo(tmp_path, text)
    assert (config.learning_rate, config.max_steps, arguments.importance_correction) == (1e-3, 12, 2)
    assert (config.lr_scheduler_type.value, arguments.spread_floor) == ("cosine", None)


def test_an_older_name_in_a_file_is_read_and_given_once(tmp_path: Path) -> None:
    def parsed(text: str) -> bool:
        (tmp_path / "c.yaml").write_text(text)
        parser = argparse.ArgumentParser()
        parser.add_argument("--new", "--old", action=argparse.BooleanOptionalAction, default=True)
        return bool(parse_with_config(parser, ["--config", str(tmp_path / "c.yaml")]).new)

    assert [parsed("old: false"), parsed("new: false"), parsed("{}")] == [False, False, True]
    with pytest.raises(RewindError, match="'old' and 'new' are one argument: give it once"):
        parsed("old: false\nnew: true")
