"""Fresh prompts: a proposer that is trained without outcomes, and what it says of pictures that is new."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_tiny
from peft import LoraConfig
from PIL import Image

from rl import load_fdm, load_idm
from rl.data.labels.proposals import Frame, frames_of, new_actions, some_frames
from rl.data.triplet_files import read_triplets
from rl.data.triplet_table import joined, without_outcomes
from rl.errors import RewindError
from rl.models.drawing import Said
from rl.models.known import LINEAR_LAYERS
from rl.models.proposer import load_proposer
from rl.models.run_role import role_of
from rl.models.saving import save_base
from rl.pictures import to_image
from rl.triplets import Triplet
from trainers.common.adapters import add_adapter, save_adapter
from trainers.common.arguments import parse
from trainers.sft.arguments import IDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role
from trainers.studies.demo.improvement import grpo_prompts
from trainers.studies.demo.proposals import propose_prompts
from trainers.studies.demo.story import Budget

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ["move the red circle left", "remove all rings", "lift the cup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a proposer on it, and five triplets, of which the second goes on where the first ends."""
    made = tmp_path_factory.mktemp("proposals")
    vlm = make_tiny()
    vlm.name = str(made / "base")
    save_base(vlm, made / "base", {"pretraining": {}})
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False), "proposer")
    save_adapter(vlm, made / "proposer", "proposer", role="proposer")
    pictures = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(made / f"{number}.png")
    pairs = [(0, 1), (1, 2), (3, 4), (5, 6), (7, 8)]
    entries = [
        {"input": f"{a}.png", "output": f"{b}.png", "instruction": WORDS[n % 3]} for n, (a, b) in enumerate(pairs)
    ]
    (made / "triplets.json").write_text(json.dumps(entries))
    return made


def script(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["propose_actions.py", *map(str, arguments)])
        runpy.run_path(str(ROOT / "scripts" / "propose_actions.py"))["main"]()


def test_every_picture_comes_once_with_what_is_known_of_it(folder: Path) -> None:
    frames = frames_of(read_triplets(folder / "triplets.json"))
    names = [Path(str(frame.picture.path)).name for frame in frames]  # type: ignore[union-attr]
    assert names == [f"{n}.png" for n in (0, 1, 3, 5, 7, 2, 4, 6, 8)]
    assert frames[1].known == {("remove", "all", "rings")}  # picture 1 is a target, and a source
    assert frames[5].known == set()
    assert some_frames(frames, None, 0) == some_frames(frames, 99, 0) == frames
    some = some_frames(frames, 4, 3)
    assert len({id(frame) for frame in some}) == 4
    assert [frames.index(frame) for frame in some] == sorted(frames.index(frame) for frame in some)


def test_only_what_is_new_is_proposed() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    said = [Said("Lift the cup.", -1.0), Said("", 0.0), Said("open it", -2.0), Said("Open it!", -2.5), Said("go", -3.0)]
    frame = Frame(picture, {("lift", "the", "cup")})
    assert [(one.action, one.score) for one in new_actions(frame, said, 2)] == [("open it", -2.0), ("go", -3.0)]
    (one,) = new_actions(frame, said)
    assert (one.target, one.provenance, one.source is picture) == (None, "proposed", True)


def test_a_proposer_is_trained_without_seeing_outcomes(folder: Path, tmp_path: Path) -> None:
    """Its weights do not depend on the targets, and it is opened as nothing else."""
    small = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--report_to", "none", "--learning_rate", "0.01"]
    small += ["--save_strategy", "steps", "--save_steps", "1", "--base", str(folder / "base"), "--propose", "true"]
    entries = json.loads((folder / "triplets.json").read_text())
    (folder / "others.json").write_text(json.dumps([{**entry, "output": entry["input"]} for entry in entries]))
    made = []
    for name in ("triplets", "others"):
        given = [*small, "--triplets", str(folder / f"{name}.json"), "--output_dir", str(tmp_path / name)]
        made.append(train_role("idm", *parse((IDMArguments, RoleConfig, LoraModelConfig), given)))
    a, b = ((run / "adapter" / "adapter_model.safetensors").read_bytes() for run in made)
    assert a == b
    assert load_proposer(made[0]).propose([np.zeros((32, 32, 3), np.uint8)], 2)[0][1].text is not None
    for load in (load_idm, load_fdm):
        with pytest.raises(RewindError, match=r"trained as a proposer of actions .* asked for as an? "):
            load(made[0])
    checkpoint = made[0] / "checkpoint-2"
    assert role_of(checkpoint) == "proposer"  # which has no card
    exported = tmp_path / "exported"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["export.py", "--run", str(made[0]), "--output", str(exported)])
        runpy.run_path(str(ROOT / "scripts" / "export.py"))["main"]()
    assert load_proposer(exported).propose([np.zeros((32, 32, 3), np.uint8)], 1)
    triplets = [Triplet(np.full((32, 32, 3), n, np.uint8), "go", np.full((32, 32, 3), 9, np.uint8)) for n in range(3)]
    table = without_outcomes(joined([triplets]))
    assert all(one.target is one.source for one in table[1:])


def test_prompts_are_the_same_from_several_processes_and_after_a_stop(folder: Path, tmp_path: Path) -> None:
    flags = ["--proposer", folder / "proposer", "--triplets", folder / "triplets.json", "--chunk_size", 2]
    flags += ["--num_actions", 2, "--num_samples", 4, "--temperature", 1.0]
    script(*flags, "--output", tmp_path / "one")
    whole = (tmp_path / "one" / "triplets.json").read_text()
    prompts = json.loads(whole)
    assert all("output" not in one and one["instruction"] for one in prompts)
    totals = json.loads((tmp_path / "one" / "totals.json").read_text())
    assert (totals["pictures"], totals["prompts"]) == (9, len(prompts))
    for shard in ("1/2", "0/2"):
        script(*flags, "--shard", shard, "--output", tmp_path / "two")
    assert (tmp_path / "two" / "triplets.json").read_text() == whole
    words = tmp_path / "one" / "words.jsonl"
    words.write_text("".join(words.read_text().splitlines(keepends=True)[:2]))
    (tmp_path / "one" / "triplets.json").unlink()
    script(*flags, "--resume", "--output", tmp_path / "one")
    assert (tmp_path / "one" / "triplets.json").read_text() == whole
    known = {one.action for one in read_triplets(folder / "triplets.json")}
    assert known.isdisjoint(one["instruction"] for one in prompts[:2])
    assert all(one.target is None for one in read_triplets(tmp_path / "one" / "triplets.json"))


def test_the_main_job_tries_what_was_proposed(tmp_path: Path) -> None:
    """One action for each of as many pictures as GRPO takes, more where there are fewer; without a proposer, known
    ones.
    """
    vlm = make_tiny()
    add_adapter(vlm, LoraConfig(r=2, target_modules=LINEAR_LAYERS, init_lora_weights=False), "proposer")
    pictures = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    labelled = [Triplet(a, "go", b) for a, b in zip(pictures[:4], pictures[4:], strict=True)]
    budget = Budget(grpo_steps=2, grpo_prompts=3, proposer_steps=1)
    known: dict[str, Any] = {"labelled": labelled, "synthetic": [], "tried": [], "seed": 0, "data": {}}
    story: Any = SimpleNamespace(vlm=vlm, budget=budget, world=SimpleNamespace(), output=tmp_path, **known)
    propose_prompts(story)
    prompts = grpo_prompts(story)
    assert len(prompts) == story.data["grpo_prompts"] == 6
    assert all(one.target is None and one.action != "go" for one in prompts)
    assert len({np.asarray(to_image(one.source)).tobytes() for one in prompts}) == 6
    story.budget = Budget(grpo_steps=5, grpo_prompts=3, proposer_steps=1)
    propose_prompts(story)
    assert 8 < len(grpo_prompts(story)) <= 15
    story.budget = Budget(grpo_steps=2, grpo_prompts=3)
    assert {one.action for one in grpo_prompts(story)} == {"go"}
    assert "proposer_steps" not in story.budget.told()
    assert {"proposer", "proposed"} == budget.expected().keys() - story.budget.expected().keys()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num_actions", 4], r"--num_actions 4 new ones cannot come of --num_samples 3"),
        (["--temperature", 0], "--temperature must be above 0"),
        (["--num_frames", 0], "--num_frames"),
        (["--proposer", "tabletop-nothing"], "tabletop-nothing"),
    ],
)
def test_what_cannot_be_proposed(folder: Path, tmp_path: Path, flags: list[object], sentence: str) -> None:
    usual = ["--proposer", folder / "proposer", "--triplets", folder / "triplets.json", "--output", tmp_path / "out"]
    with pytest.raises(RewindError, match=sentence):
        script(*usual, *flags)
    assert not (tmp_path / "out").exists()
