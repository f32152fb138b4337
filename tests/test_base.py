"""The shipped base: what its card says of it, measured again on other scenes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from rl import load_idm
from rl.evaluation import oracle
from rl.evaluation.probes import fakes, prefers_truth
from rl.models.captions import continue_captions
from rl.models.known import JUDGES, SHIPPED, SHIPPED_RUNS
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.unified import UnifiedVLM
from rl.words import words_of
from rl.worlds.tabletop import Tabletop, phrases

FOLDER = SHIPPED["tabletop-chameleon"]


@pytest.fixture(scope="module")
def tasks() -> list[oracle.Task]:
    return oracle.sample_tasks(Tabletop("test"), 200, seed=99)


def test_it_is_small_and_safe() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 15e6
    assert {p.suffix for p in files} <= {".json", ".jsonl", ".safetensors", ".md", ".png"}


def test_it_has_read_every_word_of_the_actions(shipped: UnifiedVLM) -> None:
    templates = phrases.all_templates(unseen=False) + phrases.all_templates(unseen=True)
    fixed = {word for t in templates for word in words_of(re.sub(r"\{\w+\}", " ", t))}
    filled = {word for words in phrases.SLOTS.values() for phrase in words for word in phrase.split()}
    assert shipped.known_words is not None
    assert fixed | filled <= shipped.known_words
    assert all(len(shipped.text_ids(word)) == 1 for word in sorted(fixed | filled))  # each word is one token


def test_its_tokenizer_keeps_the_scene(shipped: UnifiedVLM, tasks: list[oracle.Task]) -> None:
    found = oracle.tokenizer_ceiling(shipped, Tabletop("test"), tasks)
    assert found["success"] >= 0.98


def test_tokens_change_where_the_scene_does(shipped: UnifiedVLM, tasks: list[oracle.Task]) -> None:
    before = shipped.encode([t.source for t in tasks])
    after = shipped.encode([t.target for t in tasks])
    changed = np.array([[a != b for a, b in zip(t.scene.cells, t.outcome.cells, strict=True)] for t in tasks])
    tokens = (before != after).numpy()
    assert tokens[changed].mean() > 0.99
    assert tokens[~changed].mean() < 0.03


def test_it_knows_pictures_and_words(shipped: UnifiedVLM, tasks: list[oracle.Task]) -> None:
    found = oracle.caption_accuracy(
        lambda pictures, begins: continue_captions(shipped, pictures, begins), Tabletop("test"), tasks
    )
    card = json.loads((FOLDER / "figures.json").read_text())["captions"]
    assert found["words"] == pytest.approx(card["words"], abs=0.03)
    assert found["words"] > 0.9


def test_it_does_not_know_dynamics(shipped: UnifiedVLM, tasks: list[oracle.Task]) -> None:
    found, images = oracle.fdm_outcomes(ForwardDynamics(shipped), Tabletop("test"), tasks)
    assert images.shape == (oracle.SHOWN, 64, 64, 3)
    assert found["success"] < 0.10
    greedy, _ = oracle.fdm_outcomes(ForwardDynamics(shipped), Tabletop("test"), tasks, temperature=0.0)
    assert greedy["success"] < 0.10


def test_probes_tell_the_truth_from_fakes_only_if_the_model_can(shipped: UnifiedVLM, tasks: list[oracle.Task]) -> None:
    world = Tabletop("test")

    def oracle_score(sources, targets, actions):  # type: ignore[no-untyped-def]
        return [
            float(world.outcomes(reading.scene, action).count(target.scene))
            for reading, target, action in zip(
                world.read(np.stack(sources)), world.read(np.stack(targets)), actions, strict=True
            )
        ]

    perfect = prefers_truth(oracle_score, world, tasks)
    assert all(share == 1.0 for share in perfect["all"].values())
    blind = prefers_truth(lambda s, t, a: [0.0] * len(a), world, tasks)
    assert all(share == 0.0 for share in blind["all"].values())
    found = prefers_truth(InverseDynamics(shipped).score, world, tasks)["all"]
    assert set(found) == set(fakes(world, tasks[:20]))
    card = json.loads((FOLDER / "figures.json").read_text())["idm_prefers_truth"]["all"]
    for kind, share in found.items():
        assert share == pytest.approx(card[kind], abs=0.12), kind  # 3 standard errors at n = 200


def test_the_log_of_its_training_is_beside_it() -> None:
    ends = {}
    for name in ("tokenizer", "language", "language-2", "language-3", "language-4"):
        rows = [json.loads(line) for line in (FOLDER / "log" / f"{name}-metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if "loss" in row]
        ends[name] = losses[-1] / losses[0]
    assert max(ends["tokenizer"], ends["language"]) < 0.5
    assert max(ends.values()) < 0.9
    for name in ("run-1.json", "run-2.json", "run-3.json"):
        assert "git_revision" in json.loads((FOLDER / "log" / name).read_text())
    assert "git_revision" in json.loads((FOLDER / "run.json").read_text())
    assert (FOLDER / "README.md").is_file()


def test_the_card_shows_its_figures() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    card = (FOLDER / "README.md").read_text()
    for value in (figures["ceiling"]["success"], figures["captions"]["exact"], figures["fdm"]["success"]):
        assert f"{100 * value:.1f} %" in card


def test_the_judge_is_another_model_than_any_that_rewards(shipped: UnifiedVLM, tasks: list[oracle.Task]) -> None:
    folder = SHIPPED_RUNS[JUDGES["tabletop-chameleon"]]
    card = json.loads((folder / "figures.json").read_text())["idm"]
    idm = load_idm("tabletop-chameleon-judge")
    assert idm.backbone.name == "tabletop-chameleon"
    found = oracle.idm_descriptions(idm, Tabletop("test"), tasks)
    assert found["exact_match"] == pytest.approx(card["exact_match"], abs=0.12)  # 3 standard errors at n = 200
    config = json.loads((folder / "run.json").read_text())["config"]
    assert config["training"]["seed"] == 1_000_003
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 5e6
