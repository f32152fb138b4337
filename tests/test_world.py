"""The tabletop world: words, outcomes, oracle, splits, videos."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from rl.errors import RewindError
from rl.world import World
from rl.worlds import load_world
from rl.worlds.tabletop import Scene, Tabletop, phrases
from rl.worlds.tabletop.operations import FAMILIES
from rl.worlds.tabletop.oracle import UNREADABLE
from rl.worlds.tabletop.render import enlarge
from rl.worlds.tabletop.scene import COLOURS, EMPTY, SHAPES, kind_of
from rl.worlds.tabletop.splits import SPLITS, belongs, kept_pairs

RED_CIRCLE, BLUE_STAR = kind_of("red", "circle"), kind_of("blue", "star")


def scene(**cells: int) -> Scene:
    """scene(a1=kind, ...) on a 4x4 table: columns a-d, rows 1-4."""
    found = [EMPTY] * 16
    for name, kind in cells.items():
        found[(int(name[1]) - 1) * 4 + ord(name[0]) - ord("a")] = kind
    return Scene(tuple(found))


@pytest.fixture(scope="module")
def world() -> Tabletop:
    return Tabletop()


def test_it_is_a_world(world: Tabletop) -> None:
    assert isinstance(world, World)
    assert len(SHAPES) >= 6
    assert len(COLOURS) >= 7


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("move the red circle left", scene(a2=RED_CIRCLE, c3=BLUE_STAR)),
        ("move the red circle two cells down", scene(b4=RED_CIRCLE, c3=BLUE_STAR)),
        ("paint the red circle green", scene(b2=kind_of("green", "circle"), c3=BLUE_STAR)),
        ("turn the blue star into a ring", scene(b2=RED_CIRCLE, c3=kind_of("blue", "ring"))),
        ("put the blue star under the red circle", scene(b2=RED_CIRCLE, b3=BLUE_STAR)),
        ("remove the red circle", scene(c3=BLUE_STAR)),
        ("add a white cross in the top left corner", scene(a1=kind_of("white", "cross"), b2=RED_CIRCLE, c3=BLUE_STAR)),
    ],
)
def test_one_outcome(world: Tabletop, action: str, expected: Scene) -> None:
    assert world.outcomes(scene(b2=RED_CIRCLE, c3=BLUE_STAR), action) == [expected]


def test_pushing_moves_what_stands_in_the_way(world: Tabletop) -> None:
    start = scene(b2=RED_CIRCLE, c2=BLUE_STAR)
    assert world.outcomes(start, "push the red circle right") == [scene(c2=RED_CIRCLE, d2=BLUE_STAR)]
    assert world.outcomes(start, "move the red circle right") == []
    assert world.outcomes(scene(c2=RED_CIRCLE, d2=BLUE_STAR), "push the red circle right") == []


def test_several_outcomes(world: Tabletop) -> None:
    start = scene(b2=RED_CIRCLE, c3=BLUE_STAR)
    assert len(world.outcomes(start, "add a white cross")) == 14
    assert len(world.outcomes(start, "add two white crosses")) == 14 * 13 // 2
    assert len(world.outcomes(start, "put the blue star next to the red circle")) == 4
    twins = scene(a1=RED_CIRCLE, d4=RED_CIRCLE, c3=BLUE_STAR)
    assert len(world.outcomes(twins, "remove one of the red circles")) == 2
    assert world.outcomes(twins, "remove all circles") == [scene(c3=BLUE_STAR)]


def test_what_cannot_be_done_has_no_outcome(world: Tabletop) -> None:
    start = scene(a1=RED_CIRCLE, c3=BLUE_STAR, d4=BLUE_STAR)
    for action in (
        "move the red circle left",  # off the table
        "paint the red circle red",  # changes nothing
        "move the blue star left",  # there are two
        "remove the white cross",  # not there
        "remove all circles",  # only one
        "fly to the moon",  # no sentence of this world
    ):
        assert world.outcomes(start, action) == [], action


def test_same_outcome(world: Tabletop) -> None:
    start = scene(b2=RED_CIRCLE, b4=BLUE_STAR)
    assert world.same_outcome(start, "move the red circle down", "put the red circle above the blue star")
    assert not world.same_outcome(start, "move the red circle down", "move the red circle up")
    assert not world.same_outcome(start, "fly to the moon", "fly to the moon")


@pytest.mark.parametrize("split", SPLITS)
def test_every_phrasing_is_read_back(split: str) -> None:
    world, rng = Tabletop(split), np.random.default_rng(1)
    families = Counter()
    for _ in range(300):
        start, action = world.sample_task(rng)
        outcomes = world.outcomes(start, action)
        assert outcomes
        assert start not in outcomes
        assert all(belongs(s, split) for s in (start, *outcomes))
        families[world.family(action)] += 1
    assert set(families) == set(FAMILIES)
    assert min(families.values()) > 45  # drawn evenly: 75 expected


def test_unseen_phrasings_are_new_sentences_of_seen_words() -> None:
    seen, unseen = phrases.all_templates(unseen=False), phrases.all_templates(unseen=True)
    assert not set(seen) & set(unseen)
    assert {word for t in unseen for word in t.split()} <= {word for t in seen for word in t.split()}


def test_splits_do_not_meet() -> None:
    pairs = kept_pairs()
    total = 42 * 41 // 2
    assert len(pairs["test"]) == round(0.15 * total)
    assert not pairs["test"] & pairs["validation"]
    rng = np.random.default_rng(2)
    scenes: dict[str, set[Scene]] = {}
    counts: dict[str, Counter[int]] = {}
    for split in SPLITS:
        world = Tabletop(split)
        scenes[split], counts[split] = set(), Counter()
        for _ in range(400):
            start, action = world.sample_task(rng)
            scenes[split] |= {start, *world.outcomes(start, action)}
            counts[split][len(start.occupied)] += 1
    for a in SPLITS:
        for b in SPLITS:
            if a != b and {a, b} != {"test", "test_phrasing"}:
                assert not scenes[a] & scenes[b], (a, b)
                assert not any(belongs(s, b) for s in scenes[a]), (a, b)
    for split in SPLITS:  # the number of objects is drawn first: about 80 each of 2..6
        assert all(45 < counts[split][n] < 125 for n in range(2, 7)), counts[split]


def test_oracle_reads_what_was_rendered(world: Tabletop) -> None:
    rng = np.random.default_rng(3)
    scenes = [world.sample_scene(rng) for _ in range(200)]
    readings = world.read(np.stack([world.render(s, rng) for s in scenes]))
    assert [r.scene for r in readings] == scenes


def test_truth_scores_ten_and_a_copy_no_editing(world: Tabletop) -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        start, action = world.sample_task(rng)
        outcomes = world.outcomes(start, action)
        truth = world.judge(start, action, world.render(outcomes[int(rng.integers(len(outcomes)))], rng))
        assert (truth.editing, truth.minimality, truth.success) == (10.0, 10.0, True)
        copy = world.judge(start, action, world.render(start, rng))
        assert (copy.editing, copy.minimality, copy.success) == (0.0, 10.0, False)


def test_damage_lowers_minimality_and_fails(world: Tabletop) -> None:
    start = scene(b2=RED_CIRCLE, c3=BLUE_STAR)
    damaged = scene(a2=RED_CIRCLE, c3=BLUE_STAR, d1=BLUE_STAR)
    found = world.judge(start, "move the red circle left", world.render(damaged, np.random.default_rng(0)))
    assert (found.editing, found.minimality, found.success) == (10.0, 7.5, False)
    elsewhere = Scene(scene(a2=RED_CIRCLE, c3=BLUE_STAR).cells, material="slate")
    found = world.judge(start, "move the red circle left", world.render(elsewhere, np.random.default_rng(0)))
    assert (found.minimality, found.success) == (0.0, False)


def test_what_fits_nothing_is_unreadable(world: Tabletop) -> None:
    start = scene(b2=RED_CIRCLE, c3=BLUE_STAR)
    clean = world.render(start, np.random.default_rng(0))
    smear = clean.copy()
    smear[16:32, 16:32] = np.random.default_rng(1).integers(0, 256, (16, 16, 3))
    reading = world.read(smear[None])[0]
    assert reading.cells[5] == UNREADABLE
    assert reading.scene is None
    half = clean.copy()  # half an object is no object
    half[16:32, 24:32] = clean[16:32, 56:64]
    assert world.read(half[None])[0].cells[5] == UNREADABLE
    blend = (clean.astype(int) + world.render(scene(b2=BLUE_STAR, c3=BLUE_STAR), None)).astype(int) // 2
    assert world.read(blend.astype(np.uint8)[None])[0].cells[5] == UNREADABLE
    bare = world.render(scene(a1=RED_CIRCLE, c3=BLUE_STAR), None)
    faded = (0.55 * clean + 0.45 * bare).astype(np.uint8)
    assert world.read(faded[None])[0].cells[5] == UNREADABLE


def test_captions_tell_scenes_apart(world: Tabletop) -> None:
    rng = np.random.default_rng(5)
    scenes = {world.sample_scene(rng) for _ in range(500)}
    assert len({world.caption(s, rng) for s in scenes}) == len(scenes)


def test_videos(world: Tabletop) -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        video = world.video(rng)
        frames = video.frames_THWC
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (64, 64, 3)
        assert 18 <= len(frames) <= 34
        assert video.label in FAMILIES
        assert video.truth
        for segment in video.truth:
            assert world.family(segment.action) == video.label
            assert segment.target in world.outcomes(segment.source, segment.action)
            assert belongs(segment.source, "train")
            assert belongs(segment.target, "train")
            readings = world.read(frames[[segment.start, segment.end]])
            assert [r.scene for r in readings] == [segment.source, segment.target]


def test_same_seed_same_world(world: Tabletop) -> None:
    draws = [(world.sample_task(rng), world.video(rng).frames_THWC.sum()) for rng in map(np.random.default_rng, (7, 7))]
    assert draws[0] == draws[1]


@pytest.mark.parametrize("size", [3, 5])
def test_other_sizes(size: int) -> None:
    world, rng = Tabletop(size=size), np.random.default_rng(8)
    start, action = world.sample_task(rng)
    image = world.render(world.outcomes(start, action)[0], rng)
    assert image.shape == (16 * size, 16 * size, 3)
    assert world.judge(start, action, image).success
    assert enlarge(image, 2).shape == (32 * size, 32 * size, 3)


def test_bad_input(world: Tabletop) -> None:
    with pytest.raises(RewindError, match=r"no split 'dev': choose one of train"):
        Tabletop("dev")
    with pytest.raises(RewindError, match="takes a size of 3 to 8 cells, not 2"):
        Tabletop(size=2)
    with pytest.raises(RewindError, match="reads uint8 pictures"):
        world.read(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(RewindError, match="cannot be carried out"):
        world.judge(scene(a1=RED_CIRCLE, b2=BLUE_STAR), "move the red circle left", np.zeros((64, 64, 3), np.uint8))


def test_a_world_of_ones_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "my_world.py"
    file.write_text("class Half:\n    name, image_size = 'half', 64\n    def sample_scene(self, rng): return 1\n")
    with pytest.raises(RewindError, match=r"lacks sample_action\(\), outcomes\(\), render\(\), judge\(\)"):
        load_world(f"{file}:Half")
    with pytest.raises(RewindError, match="has no 'Other'"):
        load_world(f"{file}:Other")
    with pytest.raises(RewindError, match="there is no world 'desk'"):
        load_world("desk")
    file.write_text("1 / 0")
    with pytest.raises(RewindError, match="does not import: ZeroDivisionError"):
        load_world(f"{file}:Half")
