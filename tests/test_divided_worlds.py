"""A world without splits of its own: no case of one split in another, for every purpose and in every process."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from rl.errors import RewindError
from rl.evaluation.action_chains import sample_chains
from rl.evaluation.oracle import sample_tasks
from rl.world import World, draw_task
from rl.worlds import divided, load_split, load_splits, load_world
from rl.worlds.divided import SHARES, DividedWorld
from trainers.pretraining import recipe
from trainers.pretraining.arguments import base_parser
from trainers.studies.demo.job import splits_of

LAMPS = '''
import numpy as np
from rl.world import Judgement, Segment, Video

NAMES = ("hall", "attic", "cellar", "kitchen")

class Lamps:
    """The lamps of a house; a scene is the set of those that are on, whose repr differs from process to process."""
    name, image_size, lamps, actions_a_clip = "lamps", 32, 4, 2

    def sample_scene(self, rng):
        return frozenset(name for name in NAMES[:self.lamps] if rng.integers(2))

    def sample_action(self, scene, rng):
        name = NAMES[int(rng.integers(self.lamps))]
        return f"turn {'off' if name in scene else 'on'} the lamp in the {name}"

    def outcomes(self, scene, action):
        name, on = action.split()[-1], "turn on" in action
        return [scene ^ {name}] if name in NAMES and (name in scene) != on else []

    def render(self, scene, rng):
        lamps = np.array([name in scene for name in NAMES]).reshape(2, 2).repeat(16, 0).repeat(16, 1)
        return (40 + 180 * lamps[..., None] + rng.integers(0, 8, (32, 32, 3))).astype(np.uint8)

    def judge(self, scene, action, image):
        return Judgement(10.0, 10.0, True)

    def video(self, rng):
        scene, frames, truth = self.sample_scene(rng), [], []
        for number in range(self.actions_a_clip):
            action = self.sample_action(scene, rng)
            (after,) = self.outcomes(scene, action)
            frames += [self.render(scene, rng), self.render(after, rng)]
            truth.append(Segment(2 * number, 2 * number + 1, action, scene, after))
            scene = after
        return Video(np.stack(frames), "switch", tuple(truth))


class OneLamp(Lamps):
    lamps = 1


class LongClips(Lamps):
    actions_a_clip = 60


class Silent(Lamps):
    def video(self, rng):
        return Video(super().video(rng).frames_THWC, "switch")


class Flickering(Lamps):
    def render(self, scene, rng):
        return super().render(scene, np.random.default_rng())
'''
DIVIDED = r"has no splits: .* divided, 75% are train, 10% are validation, 15% are test, none is in two"
Case = tuple[Any, str]


@pytest.fixture
def lamps(tmp_path: Path) -> str:
    (tmp_path / "lamps.py").write_text(LAMPS)
    return f"{tmp_path / 'lamps.py'}:Lamps"


@pytest.fixture
def splits(lamps: str) -> Iterator[dict[str, World]]:
    with pytest.warns(UserWarning, match=DIVIDED):
        found = splits_of(lamps)  # as the demo and the studies draw
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the world 'lamps' has few cases")
        yield found


def cases(world: World, count: int, seed: Any = 0) -> set[Case]:
    return {(task.scene, task.action) for task in sample_tasks(world, count, seed)}


def shared(found: dict[str, set[Case]]) -> int:
    """Cases that are in more than one split."""
    return sum(map(len, found.values())) - len(set().union(*found.values()))


def test_no_case_of_one_split_in_another_by_count(lamps: str, splits: dict[str, World]) -> None:
    whole = load_world(lamps)
    before = {"train": cases(whole, 300), "test": cases(whole, 300)}  # one world and one seed for both
    assert shared(before) == len(before["test"]) > 50
    drawn = {name: cases(world, 300) for name, world in splits.items()}
    assert shared(drawn) == 0
    assert len(drawn["train"]) > len(drawn["test"]) > 2
    assert len(drawn["validation"]) > 2
    assert len(set().union(*drawn.values())) == 16 * 4  # nothing is lost


def test_for_every_purpose_and_seed(splits: dict[str, World]) -> None:
    drawn: dict[str, set[Case]] = {}
    for name, world in splits.items():
        drawn[name] = cases(world, 200, 1) | cases(world, 200, 1_000_003) | cases(world, 200, (0, 3))
        chains = sample_chains(world, 2 if name == "validation" else 4, 2, (0, 2))
        drawn[name] |= {(s, a) for c in chains for states, a in zip(c.states, c.actions, strict=True) for s in states}
        video, rng = world.video, np.random.default_rng((0, 1))  # type: ignore[attr-defined]
        drawn[name] |= {(part.source, part.action) for _ in range(10) for part in video(rng).truth}
    assert shared(drawn) == 0


def test_equal_generators_give_each_split_a_stream_of_its_own(splits: dict[str, World]) -> None:
    drawn = {name: [draw_task(world, np.random.default_rng(5)) for _ in range(2)] for name, world in splits.items()}
    assert all(first == second for first, second in drawn.values())
    streams = [world._stream(np.random.default_rng(5)).random() for world in splits.values()]  # type: ignore[attr-defined]
    assert len(set(streams)) == 3


def test_a_case_is_of_the_same_split_in_every_process(lamps: str, splits: dict[str, World]) -> None:
    code = (
        "import warnings, sys, numpy as np; warnings.simplefilter('ignore')\n"
        "from rl.worlds import load_split\n"
        f"world, rng = load_split({lamps!r}, 'test'), np.random.default_rng(7)\n"
        "for _ in range(40):\n"
        "    scene, action = world.sample_task(rng)\n"
        "    print(','.join(sorted(scene)), action, sep='|')"
    )
    seen = []
    for salt in ("1", "2"):  # of Python's hash of texts, by which sets are ordered
        environment = {**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        seen.append(done.stdout)
    assert seen[0] == seen[1]
    for line in seen[0].splitlines():
        on, action = line.split("|")
        scene = frozenset(on.split(",") if on else ())
        assert [name for name, world in splits.items() if world.holds(scene, action)] == ["test"]  # type: ignore[attr-defined]


def test_the_base_is_pretrained_on_the_training_split(
    lamps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(world: World, *_: Any) -> None:
        assert isinstance(world, DividedWorld)
        raise RewindError(f"pool of {world.split_name}")

    monkeypatch.setattr(recipe, "pool_from_world", stop)
    arguments = base_parser().parse_args(["--world", lamps, "--output", str(tmp_path / "base")])
    with pytest.warns(UserWarning, match=DIVIDED), pytest.raises(RewindError, match="pool of train"):
        recipe.make_base(arguments)


def test_too_few_distinct_cases_are_said(lamps: str, splits: dict[str, World]) -> None:
    number = len(cases(splits["test"], 300))
    with pytest.warns(UserWarning, match=rf"in its split 'test': {number} distinct ones were found, 300 asked for"):
        sample_tasks(splits["test"], 300, 0)
    one = lamps.replace(":Lamps", ":OneLamp")
    with (
        pytest.warns(UserWarning, match=DIVIDED),
        pytest.raises(RewindError, match="2 distinct ones were found"),
    ):
        load_split(one, "train")
    with pytest.raises(RewindError, match="has no split 'test_phrasing': it is divided into"):
        splits["test"].split("test_phrasing")  # type: ignore[attr-defined]


def test_looking_for_a_case_ends(lamps: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match=DIVIDED):
        world: Any = load_split(lamps.replace(":Lamps", ":LongClips"), "train")
    with monkeypatch.context() as few:
        few.setattr(divided, "TRIES", 20)
        with pytest.raises(RewindError, match="each of 20 videos of the world 'lamps' shows a case of another split"):
            world.video(np.random.default_rng(0))
    monkeypatch.setattr("rl.evaluation.action_chains.TRIES", 20)
    with pytest.raises(RewindError, match="too few chains of 40 actions: 0 were found, 3 asked for"):
        sample_chains(world.split("test"), 3, 40, 0)


def test_what_a_world_cannot_tell(lamps: str) -> None:
    with pytest.warns(UserWarning, match=DIVIDED):
        silent: Any = load_split(lamps.replace(":Lamps", ":Silent"), "train")
    with pytest.warns(UserWarning, match="do not tell what they show"):
        silent.video(np.random.default_rng(0))
    with (
        pytest.warns(UserWarning, match=DIVIDED),
        pytest.raises(RewindError, match="draws two pictures from equal generators"),
    ):
        load_split(lamps.replace(":Lamps", ":Flickering"), "train")


def test_a_world_with_splits_is_taken_as_it_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_splits("tabletop", list(SHARES))
    assert [world.split_name for world in found.values()] == list(SHARES)  # type: ignore[attr-defined]
    assert not any(isinstance(world, DividedWorld) for world in found.values())
