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
from trainers.bench.commands import COMMANDS
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs" / "guide").glob("*.md"))
SCRIPTS = sorted(p.name for p in (ROOT / "scripts").glob("*.py") if p.name != "__init__.py")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(path: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Scripts with their flags: of every line of a bash block and of every `code` in a sentence."""
    fenced = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", prose)]
    found = []
    for line in lines:
        script = re.search(r"(?:^|[ /])(\w+\.py)(?=\s|$)", line.partition(" # ")[0])
        if script is not None and script[1] in SCRIPTS:
            words = line[script.end() :].partition(" # ")[0]
            found.append((script[1], re.findall(r"(?<!\S)--\w+", words)))
    return found


def anchors(text: str) -> set[str]:
    """What the headings of a page are called in links to them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_world_of_the_docs(tmp_path: Path) -> None:
    (code,) = blocks("docs/guide/worlds.md", "python")
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
    (code,) = blocks("docs/guide/search.md", "python")
    exec(compile(code, "docs/guide/search.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("(64, 64) {'idm_margin': ")
    assert lines[0].endswith(" 128")
    assert lines[1:] == ["1 drawn, 7 saved", "True", "[(64, 64), (64, 64)]"]


def test_the_reward_of_the_docs(tmp_path: Path, tiny: ChameleonVLM, picture: np.ndarray) -> None:
    (code,) = blocks("docs/guide/rewards.md", "python")
    assert len(code.strip().splitlines()) < 15
    (tmp_path / "my_rewards.py").write_text(code)
    fdm, idm = ForwardDynamics(tiny), InverseDynamics(tiny)
    rewards = ["idm_likelihood", f"{tmp_path / 'my_rewards.py'}:bright=0.1"]
    found = rerank(fdm, idm, picture, "remove all rings", 4, rewards)
    for scored in found.candidates:
        bright = float(np.asarray(scored.image).mean()) / 255
        assert scored.scores["bright"] == pytest.approx(bright)
        assert scored.total == pytest.approx((scored.scores["idm_likelihood"] or 0.0) + 0.1 * bright)
    page = (ROOT / "docs" / "guide" / "rewards.md").read_text()
    assert all(f"`{name}`" in page for name in [*BUILT_IN, *COLUMNS])


def test_the_yaml_of_the_rewards_page(tiny: ChameleonVLM) -> None:
    names = {field.name for field in dataclasses.fields(GRPOArguments)}
    found = [yaml.safe_load(block) for block in blocks("docs/guide/rewards.md", "yaml")]
    assert len(found) == 3
    for config in found:
        assert set(config) <= names
        others = config["reward_arguments"].get("ensemble", {})
        if others:
            others["others"] = [InverseDynamics(tiny) for _ in others["others"]]  # the page's folders need a demo
        loaded = load_rewards(config["rewards"], InverseDynamics(tiny), arguments=config["reward_arguments"])
        assert {reward.name for reward in loaded} == set(config["reward_arguments"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_real_flags(page: Path) -> None:
    """Every flag of a script that the documentation shows exists in that script."""
    check_flags(page.read_text())


def test_the_commands_of_the_bench_name_real_flags() -> None:
    page = "\n".join(["```bash", *(f"python {command}" for command in COMMANDS.values()), "```"])
    assert len(commands(page)) == len(COMMANDS)
    check_flags(page)


def check_flags(text: str) -> None:
    for script, flags in commands(text):
        source = (ROOT / "scripts" / script).read_text()
        if "base_parser" in source:
            source = (ROOT / "trainers" / "pretraining" / "arguments.py").read_text()
        if "add_model_flags" in source:
            source += (ROOT / "rl" / "running" / "model_flags.py").read_text()
        fields = {field.name for kind in KINDS.get(f"scripts/{script}", ()) for field in dataclasses.fields(kind)}
        for flag in flags:
            known = flag.removeprefix("--") in fields if fields else f'"{flag}"' in source
            assert known or flag in ("--config", "--help"), (script, flag)


def test_commands_are_read_whole() -> None:
    """Continued lines, launchers, environments, code within a sentence."""
    text = """
```bash
X=1 python scripts/label.py --idm a \\
    --pairs b  # --no_flag
accelerate launch --num_processes 8 scripts/train_grpo.py --fdm a
```
and `train_dpo.py --beta 3
--rounds 1`, `label.py`, `other.py --no_flag`"""
    assert commands(text) == [
        ("label.py", ["--idm", "--pairs"]),
        ("train_grpo.py", ["--fdm"]),
        ("train_dpo.py", ["--beta", "--rounds"]),
        ("label.py", []),
    ]
    assert sum(len(flags) for page in PAGES for _, flags in commands(page.read_text())) > 200


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)\s]+))?\)", prose):
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_the_project_exist(page: Path) -> None:
    """Files of ours that a page names are there, under that name."""
    text = re.sub(r"`git [^`]*`", "", page.read_text())
    rooms = "rl|rewards|trainers|scripts|tests|configs"
    found = re.findall(rf"(?<![\w/.])((?:{rooms})/[a-z0-9_/]+\.(?:py|yaml|json))", text)
    assert [name for name in found if not (ROOT / name).is_file()] == []


def test_pages_are_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    assert GUIDES
    assert {name_of(p): n for p in GUIDES if (n := len(p.read_text().splitlines())) > 150} == {}


def test_every_script_and_every_finding_can_be_found() -> None:
    text = "\n".join(page.read_text() for page in [ROOT / "README.md", *GUIDES])
    assert [name for name in SCRIPTS if not re.search(rf"(?<!\w){re.escape(name)}", text)] == []
    findings = ROOT / "docs" / "findings"
    index = (findings / "README.md").read_text()
    assert [p.name for p in findings.glob("*.md") if p.name != "README.md" and f"]({p.name}" not in index] == []
    assert [p.name for p in GUIDES if f"](docs/guide/{p.name}" not in (ROOT / "README.md").read_text()] == []


def test_small_worlds_are_loaded_by_name() -> None:
    assert load_world("tabletop", size=3).image_size == 48
