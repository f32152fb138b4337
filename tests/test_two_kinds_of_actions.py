"""Words and vectors: models of different kinds are not put together, and what cannot be named is not begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_tiny
from PIL import Image
from script_runs import start

from rewards import load_rewards
from rl import RewindError, load_fdm, load_idm
from rl.models.opening import load_idm_beside
from rl.models.saving import save_base
from rl.triplets import Triplet
from trainers.sft.arguments import FDMArguments, IDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role

QUIET: dict[str, Any] = {"report_to": [], "save_strategy": "no", "per_device_train_batch_size": 2, "max_steps": 1}
WORDS, VECTOR = "move the red circle left", "[0.5, -0.25]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forward and an inverse model of each kind on one base, and the inverse ones again on another."""
    from rl.data.triplet_files import write_triplets

    root, rng = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    for seed, base in enumerate(("base", "other")):
        save_base(make_tiny(seed), root / base, {})
    pictures = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    Image.fromarray(pictures[0]).save(root / "a.png")
    for kind, actions in (("words", [WORDS, "remove all rings"]), ("vectors", [VECTOR, "[0.0, 0.75]"])):
        triplets = [Triplet(pictures[i], action, pictures[i + 1]) for i, action in enumerate(actions)]
        data = [str(write_triplets(triplets, root / f"data-{kind}"))]
        runs: list[tuple[Any, Any, str]] = [("fdm", FDMArguments, "base"), ("idm", IDMArguments, "base")]
        for role, arguments, base in [*runs, ("idm", IDMArguments, "other")]:
            config = RoleConfig(output_dir=str(root / f"{role}-{kind}-{base}"), **QUIET)
            train_role(role, arguments(base=str(root / base), triplets=data), config, LoraModelConfig(lora_r=2))
    return root


@pytest.mark.parametrize(("fdm", "idm"), [("words", "vectors"), ("vectors", "words")])
@pytest.mark.parametrize("base", ["base", "other"])
def test_a_model_of_words_beside_one_of_vectors(folder: Path, fdm: str, idm: str, base: str) -> None:
    """On one backbone in either order, and on two."""
    sentence = f"takes {idm} as actions and .* {fdm}: train both roles on the same actions"
    model = load_fdm(folder / f"fdm-{fdm}-base")
    with pytest.raises(RewindError, match=sentence):
        load_idm_beside(folder / f"idm-{idm}-{base}", model.backbone)
    assert load_idm_beside(folder / f"idm-{fdm}-{base}", load_fdm(folder / f"fdm-{fdm}-base").backbone)
    if base == "base":
        inverse = load_idm(folder / f"idm-{idm}-base")
        with pytest.raises(RewindError, match=f"takes {fdm} as actions and .* {idm}"):
            load_fdm(folder / f"fdm-{fdm}-base", inverse.backbone)


def refused(*command: Any) -> str:
    """What a script says that ends with a sentence."""
    done = start(*command)
    assert done.returncode == 2, done.stderr[-2000:]
    return done.stderr


def scripts(folder: Path, fdm: str, idm: str, data: str) -> list[list[Any]]:
    """Every script that takes both roles."""
    models = ["--fdm", folder / f"fdm-{fdm}-base", "--idm", folder / f"idm-{idm}-base"]
    given = [*models, "--triplets", folder / f"data-{data}/triplets.json"]
    training = [["scripts/train_grpo.py", *given, "--num_generations", 2, "--per_device_train_batch_size", 2]]
    training += [[f"scripts/train_{name}.py", *given] for name in ("best_of_n", "dpo")]
    return [
        *([*command, "--output_dir", folder / "out"] for command in training),
        ["scripts/rerank.py", *given, "--output", folder / "out"],
        ["scripts/evaluate.py", *given, "--output", folder / "out"],
        ["scripts/audit_reward.py", *given, "--rewards", "idm_likelihood", "--output", folder / "out"],
    ]


@pytest.mark.parametrize("number", range(6))
def test_every_script_refuses_two_kinds_and_words_for_vectors(folder: Path, number: int) -> None:
    said = refused(*scripts(folder, "words", "vectors", "words")[number])
    assert "takes vectors as actions and the one on the same base words" in said
    said = refused(*scripts(folder, "vectors", "vectors", "words")[number])
    assert "actions are vectors of 2 numbers here, [0.1, ...], not words" in said
    assert not (folder / "out").exists()


def test_a_word_reward_on_vectors_is_refused_before_anything_is_begun(folder: Path) -> None:
    models = ["--fdm", folder / "fdm-vectors-base", "--idm", folder / "idm-vectors-base"]
    asked = [*models, "--source", folder / "a.png", "--output", folder / "out"]
    said = refused("scripts/rerank.py", *asked, "--action", VECTOR, "--rewards", "idm_token_f1")
    assert "idm_token_f1 compares words, and these actions are vectors: take idm_match" in said
    said = refused("scripts/rerank.py", *asked, "--action", WORDS)
    assert "not words: 'move the red circle left'" in said
    assert not (folder / "out").exists()
    with pytest.raises(RewindError, match="take idm_match"):
        load_rewards(["idm_token_f1"], load_idm(folder / "idm-vectors-base"), [json.dumps([0.5, 0.1])])
