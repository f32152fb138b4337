"""What the documentation shows is run as it stands there."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT

from rewards import BUILT_IN, load_rewards
from rewards.contract import COLUMNS
from rl import rerank
from rl.data.pools import pool_from_world
from rl.evaluation.oracle import judge_all, sample_tasks
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.worlds import load_split, load_world
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.dpo.arguments import DPOArguments, RewindDPOConfig
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.sft.arguments import FDMArguments, IDMArguments, LoraModelConfig, RoleConfig

KINDS = {
    "scripts/train_idm.py": (IDMArguments, RoleConfig, LoraModelConfig),
    "scripts/train_fdm.py": (FDMArguments, RoleConfig, LoraModelConfig),
    "scripts/train_grpo.py": (GRPOArguments, RewindGRPOConfig),
    "scripts/train_best_of_n.py": (BestOfNArguments, RoleConfig),
    "scripts/train_dpo.py": (DPOArguments, RewindDPOConfig),
}


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL)


def test_the_world_of_the_docs(tmp_path: Path) -> None:
    (code,) = blocks("docs/world.md", "python")
    file = tmp_path / "my_world.py"
    file.write_text(code)
    with pytest.warns(UserWarning, match="has no splits"):
        world = load_split(f"{file}:Switches", "test")
    pool = pool_from_world(world, 5, 0, np.random.default_rng(0))
    assert pool.images_NHWC.shape == (10, 32, 32, 3)

    tasks = sample_tasks(world, 20, 0)
    judged = judge_all(world, tasks, np.stack([t.target for t in tasks]))
    assert all(j.success and j.judge == 10 for j in judged)
    copied = judge_all(world, tasks, np.stack([t.source for t in tasks]))
    assert not any(j.success or j.judge for j in copied)
    assert all(world.outcomes(task.scene, words) == [] for task in tasks for words in ("", "turn lamp", "red 7"))


def test_the_python_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # e.g. words that the shipped base has never read
        exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("(64, 64) -")
    assert lines[1].count(",") == 3
    assert lines[2].startswith("Judgement(")


def test_the_python_of_the_search_page(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/search.md", "python")
    exec(compile(code, "docs/search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("(64, 64) {'idm_margin': ")
    assert lines[0].endswith(" 128")
    assert lines[1:] == ["1 drawn, 7 saved", "True", "[(64, 64), (64, 64)]"]


def test_the_reward_of_the_docs(tmp_path: Path, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    (code,) = blocks("docs/rewards.md", "python")
    assert len(code.strip().splitlines()) < 15
    (tmp_path / "my_rewards.py").write_text(code)
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    rewards = ["idm_likelihood", f"{tmp_path / 'my_rewards.py'}:bright=0.1"]
    found = rerank(fdm, idm, picture, "remove all rings", 4, rewards)
    for scored in found.candidates:
        bright = float(np.asarray(scored.image).mean()) / 255
        assert scored.scores["bright"] == pytest.approx(bright)
        assert scored.total == pytest.approx((scored.scores["idm_likelihood"] or 0.0) + 0.1 * bright)
    page = (ROOT / "docs" / "rewards.md").read_text()
    assert all(f"`{name}`" in page for name in [*BUILT_IN, *COLUMNS])


def test_the_yaml_of_the_rewards_page(tiny: ChameleonVLM) -> None:
    names = {field.name for field in dataclasses.fields(GRPOArguments)}
    found = [yaml.safe_load(block) for block in blocks("docs/rewards.md", "yaml")]
    assert len(found) == 3
    for config in found:
        assert set(config) <= names
        others = config["reward_arguments"].get("ensemble", {})
        if others:
            others["others"] = [InverseDynamics(tiny) for _ in others["others"]]  # the page's folders need a demo
        loaded = load_rewards(config["rewards"], InverseDynamics(tiny), arguments=config["reward_arguments"])
        assert {reward.name for reward in loaded} == set(config["reward_arguments"])


def test_commands_of_the_docs_name_real_flags() -> None:
    """Every flag of a `python scripts/...` command in the documentation exists in that script."""
    texts = [(ROOT / "README.md").read_text(), *((p).read_text() for p in (ROOT / "docs").glob("*.md"))]
    commands = [c for t in texts for c in re.findall(r"python (scripts/\w+\.py(?:[^`\n]|\\\n)*)", t)]
    assert len(commands) > 5
    for command in commands:
        script, *words = command.replace("\\\n", " ").split()
        source = (ROOT / script).read_text()
        if "base_parser" in source:
            source = (ROOT / "trainers" / "pretraining" / "arguments.py").read_text()
        for flag in [word for word in words if word.startswith("--")]:
            fields = {field.name for kind in KINDS.get(script, ()) for field in dataclasses.fields(kind)}
            known = flag.removeprefix("--") in fields if fields else f'"{flag}"' in source
            assert known or flag in ("--config", "--help"), command


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_small_worlds_are_loaded_by_name() -> None:
    assert load_world("tabletop", size=3).image_size == 48
