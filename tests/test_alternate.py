"""`scripts/alternate.py`: rounds of naming and of GRPO of both roles, stopped anywhere; a judge that never trains."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_tiny
from peft import LoraConfig
from PIL import Image

from rl import load_fdm, load_idm
from rl.data.tokens.cache import TokenCache
from rl.errors import RewindError
from rl.models.known import LINEAR_LAYERS
from rl.models.saving import save_base
from rl.pictures import from_path
from rl.triplets import Triplet
from trainers.alternate import rounds
from trainers.alternate.report import page_of
from trainers.alternate.rounds import _entry, alternate, run_command
from trainers.alternate.settings import Settings
from trainers.common.adapters import add_adapter, save_adapter

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ["move the red circle left", "remove all rings"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, runs `fdm`, `idm` and `judge` on it, eight pairs without words, four labelled triplets, a config."""
    folder = tmp_path_factory.mktemp("world")
    vlm = make_tiny()
    vlm.name = str(folder / "base")
    save_base(vlm, folder / "base", {"pretraining": {}})
    for name in ("fdm", "idm", "judge"):
        add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False), name)
        save_adapter(vlm, folder / name, name, role="fdm" if name == "fdm" else "idm")
    rows = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    for number, row in enumerate(rows):
        Image.fromarray(row).save(folder / f"{number}.png")
    entries = [{"input": f"{2 * n}.png", "output": f"{2 * n + 1}.png"} for n in range(12)]
    (folder / "pairs.json").write_text(json.dumps(entries[:8]))
    named = [{**entry, "instruction": WORDS[n % 2]} for n, entry in enumerate(entries[8:])]
    (folder / "held-out.json").write_text(json.dumps(named))
    small = {"per_device_train_batch_size": 8, "num_generations": 4, "save_steps": 1, "learning_rate": 0.01}
    small |= {"report_to": "none", "logging_steps": 1, "monitors": "none"}
    (folder / "fdm.yaml").write_text(json.dumps(small))
    (folder / "idm.yaml").write_text(json.dumps({**small, "max_sentence_tokens": 5}))
    return folder


def settings(world: Path, output: Path, **changed: Any) -> Settings:
    usual = Settings(
        str(world / "fdm"),
        str(world / "idm"),
        world / "pairs.json",
        output,
        rounds=2,
        fdm_steps=2,
        idm_steps=2,
        fdm_config=world / "fdm.yaml",
        idm_config=world / "idm.yaml",
        judge_idm=str(world / "judge"),
        validation=world / "held-out.json",
        judge_fall=float("inf"),
    )
    return replace(usual, **changed)


class Here:
    """Runs the scripts in this process, and keeps what it ran; `end` may end a command before it begins or after."""

    def __init__(self, end: Callable[[int, str], None] = lambda number, when: None) -> None:
        self.ran: list[str] = []
        self.end = end

    def __call__(self, command: Sequence[str], launch: Sequence[str] = ()) -> None:
        folder = Path(command[command.index("--output" if command[0] == "label.py" else "--output_dir") + 1])
        self.end(len(self.ran), "before")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", [command[0], *command[1:]])
            runpy.run_path(str(ROOT / "scripts" / command[0]), run_name="alternated")["main"]()
        self.ran.append(f"{folder.parent.name}/{folder.name}")


STAGES = [f"round-{number}/{stage}" for number in (1, 2) for stage in ("label", "fdm", "idm")]


class KilledError(Exception):
    """In the place of a kill."""


def test_a_run_that_is_stopped_anywhere_ends_with_the_same_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainers.grpo.recipe as recipe

    tokens = tmp_path / "tokens"
    whole, ran = settings(world, tmp_path / "whole", token_cache=tokens), Here()  # the other run has none
    report = alternate(whole, ran)
    vlm = load_fdm(world / "fdm").backbone
    pictures = [from_path(world / f"{number}.png") for number in range(24)]  # of the pairs and of what is measured
    assert None not in TokenCache(tokens, vlm).known(pictures, lambda number: vlm.grid_of(pictures[number]))
    assert ran.ran == STAGES
    cut = settings(world, tmp_path / "cut")

    def before_the_fifth(number: int, when: str) -> None:
        if number == 4:
            raise KilledError

    first = Here(before_the_fifth)
    with pytest.raises(KilledError):
        alternate(cut, first)
    assert first.ran == STAGES[:4]
    save, left = recipe.save_adapter, []

    def once(*arguments: Any, **named: Any) -> Path:
        if not left:
            left.append(1)
            raise KilledError
        return save(*arguments, **named)

    monkeypatch.setattr(recipe, "save_adapter", once)
    second = Here()
    with pytest.raises(KilledError):  # in the second round's FDM, its last checkpoint written
        alternate(cut, second)
    shutil.rmtree(tmp_path / "cut" / "round-2" / "fdm" / "checkpoint-2")
    third = Here()
    again = alternate(cut, third)
    assert (second.ran, third.ran) == ([], STAGES[4:])
    for stage in STAGES:
        for file in ("adapter/adapter_model.safetensors", "triplets.json"):
            one, other = tmp_path / "whole" / stage / file, tmp_path / "cut" / stage / file
            assert one.exists() == other.exists()
            assert not one.exists() or one.read_bytes() == other.read_bytes(), (stage, file)

    def plain(found: dict[str, Any]) -> Any:
        told = json.dumps(found).replace(str(tmp_path / "cut"), str(tmp_path / "whole"))
        return [{k: v for k, v in one.items() if "seconds" not in k} for one in json.loads(told)["rounds"]]

    assert plain(again) == plain(report)
    done = Here()
    alternate(whole, done)
    assert done.ran == []  # nothing is repeated
    load_fdm(tmp_path / "whole" / "round-2" / "fdm")
    load_idm(tmp_path / "whole" / "round-2" / "idm")
    _what_a_round_reads(tmp_path / "whole", world)
    page = (tmp_path / "whole" / "report.md").read_text()
    assert page == page_of(json.loads((tmp_path / "whole" / "report.json").read_text()))
    assert page.count("\n| ") >= 3
    assert "judge of its pictures" in page


def _what_a_round_reads(output: Path, world: Path) -> None:
    """The second round goes on from the first one's models, on pairs of its own, under noise of its own."""
    config = [json.loads((output / stage / "run.json").read_text())["config"] for stage in (*STAGES[1:3], *STAGES[4:6])]
    fdm, idm = [str(output / stage) for stage in STAGES[1:3]]
    assert [(one["role"], one["fdm"], one["idm"]) for one in config] == [
        ("fdm", str(world / "fdm"), str(world / "idm")),
        ("idm", fdm, str(world / "idm")),
        ("fdm", fdm, idm),
        ("idm", str(output / STAGES[4]), idm),
    ]
    assert [one["training"]["seed"] for one in config] == [1, 1, 2, 2]
    assert [one["rewards"] for one in config[:2]] == [["idm_margin=1.0", "keep_unchanged=1.0"], ["fdm_likelihood=1.0"]]
    shards = [json.loads((output / "shards" / f"shard-{n}" / "pairs.json").read_text()) for n in (1, 2)]
    assert sorted(Path(pair["input"]).name for shard in shards for pair in shard) == sorted(
        f"{2 * n}.png" for n in range(8)
    )
    assert [len(shard) for shard in shards] == [4, 4]


def test_rounds_end_where_the_judge_finds_them_worse(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([-2.0, -1.5, -1.8, -1.0])
    monkeypatch.setattr(rounds, "measure", lambda *_: {"judge": next(scores), "judge_by_case": []})
    ran: list[str] = []

    def pretend(command: Sequence[str], launch: Sequence[str]) -> None:
        ran.append(f"{command[0]} {' '.join(launch)}".strip())
        folder = Path(command[-1 if command[0] == "label.py" else command.index("--output_dir") + 1])
        folder = Path(command[command.index("--output") + 1]) if command[0] == "label.py" else folder
        file = folder / ("triplets.json" if command[0] == "label.py" else "adapter/adapter_config.json")
        file.parent.mkdir(parents=True)
        file.write_text("[]")

    asked = settings(world, tmp_path / "run", rounds=3, judge_fall=0.2, launch=("accelerate", "launch"))
    report = alternate(asked, pretend)
    assert report["stopped"] == (
        "round 2 ends the run: the judge gives its pictures -1.800 nats a token, 0.300 less than those of round 1 "
        "(--judge_fall 0.2)"
    )
    assert report["kept"]["round"] == 1
    assert report["kept"]["fdm"] == str(tmp_path / "run" / "round-1" / "fdm")
    assert len(report["rounds"]) == 3
    assert ran == ["label.py accelerate launch", *["train_grpo.py accelerate launch"] * 2] * 2


def test_naming_begun_by_several_processes_is_begun_anew_by_one(world: Path, tmp_path: Path) -> None:
    asked = settings(world, tmp_path / "run", rounds=1, judge_idm=None, validation=None)
    half = tmp_path / "run" / "round-1" / "label" / "shard-0-of-2"
    half.mkdir(parents=True)
    (half / "words.jsonl").write_text("")

    class EndedError(Exception):
        pass

    def after_the_naming(number: int, when: str) -> None:
        if number == 1:
            raise EndedError

    with pytest.raises(EndedError):
        alternate(asked, Here(after_the_naming))
    assert not half.exists()
    named = json.loads((half.parent / "triplets.json").read_text())
    assert named
    assert {entry["input"].split("/")[0] for entry in named} == {"pictures"}  # where they are, no copies
    assert not (half.parent / "images").is_dir() or not any((half.parent / "images").iterdir())


def test_columns_that_json_cannot_hold_end_no_round(world: Path, tmp_path: Path) -> None:
    file = from_path(world / "0.png")
    pair = Triplet(file, "", file, more={"mask": np.ones(2), "when": object(), "camera": 3})
    entry = json.loads(json.dumps(_entry(pair)))
    assert (entry["mask"], entry["camera"], "when" in entry) == ([1.0, 1.0], 3, False)


@pytest.mark.parametrize("control", ["relabel_only", "fdm_only"])
def test_controls_train_the_forward_model_alone(world: Path, tmp_path: Path, control: str) -> None:
    ran: list[list[str]] = []

    def pretend(command: Sequence[str], launch: Sequence[str]) -> None:
        ran.append(list(command))
        is_label = command[0] == "label.py"
        folder = Path(command[command.index("--output" if is_label else "--output_dir") + 1])
        file = folder / ("triplets.json" if is_label else "adapter/adapter_config.json")
        file.parent.mkdir(parents=True)
        file.write_text("[]")

    tokens = tmp_path / "tokens"
    how: dict[str, Any] = {"control": control, "reward": "swirl", "judge_idm": None, "validation": None}
    asked = settings(world, tmp_path / "run", **how, token_cache=tokens)
    report = alternate(asked, pretend)
    assert {one["idm"] for one in report["rounds"]} == {str(world / "idm")}
    assert report["kept"]["round"] == 2
    assert [one[one.index("--token_cache") + 1] for one in ran] == [str(tokens)] * len(ran)
    labels = [command for command in ran if command[0] == "label.py"]
    pairs = [len(json.loads(Path(one[one.index("--pairs") + 1]).read_text())) for one in labels]
    assert pairs == ([4, 4] if control == "relabel_only" else [8])
    trained = [command for command in ran if command[0] == "train_grpo.py"]
    assert [one[one.index("--role") + 1] for one in trained] == ["fdm", "fdm"]
    assert all(one[one.index("--rewards") + 1] == "idm_likelihood=1.0" for one in trained)
    assert all("--scale_rewards" in one for one in trained)


def test_what_cannot_be_done_is_said(world: Path, tmp_path: Path) -> None:
    (tmp_path / "fitted.yaml").write_text("rewards: [fitted=2]")
    for changed, sentence in (
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"judge_idm": None}, "give both --judge_idm"),
        ({"judge_fall": -1.0}, "--judge_fall is how far"),
        ({"judge_idm": str(world / "idm")}, "is the very model that names and rewards"),
        ({"temperature": -0.5}, "--temperature must be 0 or more"),
        ({"reward": "config", "fdm_config": None}, "--reward config takes the rewards of --fdm_config"),
        ({"idm_config": tmp_path / "none.yaml"}, "there is no file"),
        ({"judge_idm": None, "validation": None, "judge_fall": 0.5}, "--judge_fall is about what a judge reads"),
        ({"control": "fdm_only"}, "--idm_steps is about training the inverse model, and --fdm_only trains none"),
        ({"control": "relabel_only", "idm_steps": 32}, "--idm_config is about training the inverse model"),
        ({"launch": ("accelerate-of-nobody", "launch")}, "there is no program 'accelerate-of-nobody'"),
        ({"reward": "config", "fdm_config": tmp_path / "fitted.yaml"}, "from the second round on the runs are new"),
    ):
        with pytest.raises(RewindError, match=sentence):
            settings(world, tmp_path, **changed).check()
    with pytest.raises(RewindError, match="has 8 pairs for 9 rounds"):
        alternate(settings(world, tmp_path / "few", rounds=9, judge_idm=None, validation=None))
    with pytest.raises(RewindError, match=r"label.py ended with 2, what it said stands above"):
        run_command(["label.py", "--pairs"])


def test_what_configs_say_is_done_refused_or_told(world: Path, tmp_path: Path) -> None:
    own = {"rewards": ["mine.py:bright=0.5"], "beta": 0.04, "max_steps": 384, "save_steps": 7}
    (tmp_path / "mine.yaml").write_text(json.dumps(own))
    mine = settings(world, tmp_path / "run", idm_config=tmp_path / "mine.yaml")
    with pytest.raises(RewindError, match=r"mine.yaml says rewards, and rewards are those of --reward elbo: take it"):
        mine.check()
    replace(mine, reward="config").check()
    assert replace(mine, reward="config").overruled() == [
        f"--idm_steps takes max_steps 2, not the 384 of {mine.idm_config}"
    ]
    assert (
        f"--reward swirl takes beta 0.1, not the 0.04 of {mine.idm_config}" in replace(mine, reward="swirl").overruled()
    )
    assert settings(world, tmp_path, reward="swirl").overruled() == []
    (tmp_path / "same.yaml").write_text("rewards: [fdm_likelihood=1.0]\nbeta: 1\nscale_rewards: none")
    same = settings(world, tmp_path / "run", idm_config=tmp_path / "same.yaml", idm_steps=10)
    same.check()
    assert same.overruled() == []
    commands = [one.train("idm", 1, "f", "i", tmp_path / "no.json", tmp_path) for one in (mine, same)]
    assert "--save_steps" not in commands[0]  # its config says when
    assert commands[1][commands[1].index("--save_steps") + 1] == "3"


def test_configs_may_not_change_between_rounds(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trainers.alternate.rounds as rounds

    def killed(asked: Settings) -> dict[str, Any]:
        (asked.output / "round-1").mkdir(exist_ok=True)
        (asked.output / "round-1" / "measured.json").write_text("{}")
        raise KilledError

    monkeypatch.setattr(rounds, "alternate", killed)
    config = tmp_path / "fdm.yaml"
    flags = ["--fdm", world / "fdm", "--idm", world / "idm", "--pairs", world / "pairs.json", "--fdm_config", config]
    argv = ["alternate.py", *map(str, [*flags, "--output", tmp_path / "run", "--resume"])]
    monkeypatch.setattr(sys, "argv", argv)

    def begin(**told: Any) -> None:
        config.write_text(json.dumps(told))
        runpy.run_path(str(ROOT / "scripts" / "alternate.py"), run_name="alternated")["main"]()

    for told in ({"learning_rate": 0.001}, {"learning_rate": 0.001, "save_steps": 5}):
        with pytest.raises(KilledError):
            begin(**told)
    with pytest.raises(RewindError, match=r"fdm_config.learning_rate \(begun with 0.001, now 0.01\)"):
        begin(learning_rate=0.01)
