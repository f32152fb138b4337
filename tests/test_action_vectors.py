"""Actions that are vectors: in files, in bins, as tokens of each family, under every role, method and reward."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opened_families import opened, pictures, trainable
from PIL import Image
from script_runs import start

from rl import RewindError, load_fdm, load_idm, rerank
from rl.actions import ActionBins, vector_of
from rl.data.action_vectors import ranges_of
from rl.data.labels.labelling import label_pairs
from rl.data.left_out import LeftOut
from rl.data.triplet_files import read_triplets, write_triplets
from rl.models.export import save_merged
from rl.models.opening import load_base
from rl.models.roles import ForwardDynamics, InverseDynamics
from rl.models.saving import save_base
from rl.triplets import Triplet
from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role

LOW, HIGH = (-1.0, -0.5, 0.0), (1.0, 0.5, 0.0)  # the third never changes
BINS = ActionBins(LOW, HIGH)
QUIET: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
WITH_VECTORS = ["chameleon", "lumina", "liquid", "univla"]


pytestmark = pytest.mark.usefixtures("one_thread")


def with_vectors(name: str, training: bool = False) -> Any:
    """A family's tiny base that takes vectors of three numbers."""
    vlm = trainable(opened(name)) if training else copy.copy(opened(name))
    vlm.use_actions(BINS)
    return vlm


def drawn_vectors(count: int) -> list[tuple[float, ...]]:
    return [tuple(row) for row in np.random.default_rng(3).uniform(LOW, HIGH, (count, 3)).tolist()]


def triplets_of(vlm: Any, count: int = 2) -> list[Triplet]:
    images = pictures(vlm, 2 * count)
    rows = zip(images[:count], drawn_vectors(count), images[count:], strict=True)
    return [Triplet(a, vector, b) for a, vector, b in rows]  # type: ignore[arg-type]


# ---- bins


def test_bins_are_those_of_rynnvla() -> None:
    """By their formula: least and greatest to -1..1, `digitize` at 256 edges, centres of the 255 intervals."""
    values = np.array([*drawn_vectors(50), LOW, HIGH, (-3.0, 3.0, 1.0)])
    low, high = np.array(LOW), np.array(HIGH)
    edges = np.linspace(-1, 1, 256)
    shares = (2 * (values - low) / (high - low + 1e-8) - 1)[:, :2].clip(-1, 1)
    found = np.array([BINS.bins(row) for row in values.tolist()])
    assert np.abs(found[:, :2] - (np.digitize(shares + 1e-7, edges) - 1)).max() <= 0
    assert found.min() == 0
    assert found.max() == 255
    centres = (edges[:-1] + edges[1:]) / 2
    back = np.array([BINS.values(row) for row in found.tolist()])
    wanted = low[:2] + (centres[found[:, :2].clip(0, 254)] + 1) / 2 * (high - low)[:2]
    np.testing.assert_allclose(back[:, :2], wanted, atol=1e-9)
    assert (back[:, 2] == 0.0).all()
    inside = values[:50]
    assert np.abs(back[:50] - inside).max() <= (high - low).max() / 510 + 1e-9
    assert BINS.likeness(LOW, LOW) == 1.0
    assert BINS.likeness(LOW, HIGH) == pytest.approx(1 / 3)
    with pytest.raises(RewindError, match="has 3 numbers here, not 2"):
        BINS.bins((0.0, 0.0))


def test_ranges(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    given = [Triplet(image, vector) for vector in ((0.0, 2.0), (-1.0, 3.0))]  # type: ignore[arg-type]
    assert ranges_of(given) == ActionBins((-1.0, 2.0), (0.0, 3.0))
    file = tmp_path / "ranges.json"
    for names in (("low", "high"), ("min", "max"), ("q01", "q99")):
        file.write_text(json.dumps(dict(zip(names, ([-2, -2], [2.5, 2]), strict=True))))
        assert ranges_of(given, file) == ActionBins((-2.0, -2.0), (2.5, 2.0))
    file.write_text('{"low": [1, 1], "high": [0, 2]}')
    with pytest.raises(RewindError, match=r"number 0 of an action is upside down: 1\.0 to"):
        ranges_of(given, file)
    file.write_text('{"mean": [1]}')
    with pytest.raises(RewindError, match=r"--action_ranges .*need 'low' and 'high'"):
        ranges_of(given, file)
    file.write_text('{"low": [-2, -2], "high": [2, 2], "steps": true}')
    with pytest.raises(RewindError, match="whole number of steps, at least 1, not True"):
        ranges_of(given, file)
    words = Triplet(image, "lift the cup")
    assert ranges_of([words]) is None
    with pytest.raises(RewindError, match="these are words: leave it out"):
        ranges_of([words], file)
    with pytest.raises(RewindError, match="triplet 2 has the action 'lift the cup', and others are vectors of 2 num"):
        ranges_of([*given, words])
    with pytest.raises(RewindError, match=r"triplet 1 has the action .*vectors of 1 numbers"):
        ranges_of([Triplet(image, (1.0,)), given[0]])  # type: ignore[arg-type]


# ---- files


def test_vectors_in_files(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    entries = [
        {"action": [0.1, -2], "input": "a.png", "output": "a.png"},
        {"action": [0.5, 1e-7], "instruction": "lift the cup", "input": "a.png"},
        {"instruction": [0.25, 3.0], "input": "a.png"},
        {"instruction": ["lift the cup", "raise it"], "action": "a word", "input": "a.png"},
        {"action": [0.1, "x"], "input": "a.png"},
        {"action": [0.1, float("nan")], "instruction": "words are no way out", "input": "a.png"},
    ]
    (tmp_path / "t.json").write_text(json.dumps(entries))
    left: list[LeftOut] = []
    found = read_triplets(tmp_path / "t.json", left_out=left)
    assert [t.action for t in found] == ["[0.1, -2.0]", "[0.5, 1e-07]", "[0.25, 3.0]", "lift the cup"]
    assert [t.task for t in found] == [None, "lift the cup", None, None]
    assert found[0].more == {}
    assert found[3].more == {"action": "a word"}
    assert [(one.entry, one.reason) for one in left] == [(4, "wrong 'action'"), (5, "wrong 'action'")]
    again = read_triplets(write_triplets(found, tmp_path / "again"))
    assert [(t.action, t.task, t.more) for t in again] == [(t.action, t.task, t.more) for t in found]
    assert json.loads((tmp_path / "again" / "triplets.json").read_text())[0]["action"] == [0.1, -2.0]
    assert Triplet(found[0].source, np.float32([0.5, 1.0])).action == "[0.5, 1.0]"  # type: ignore[arg-type]
    assert vector_of("[move the cup]") is None


# ---- tokens


def test_vectors_as_tokens_of_each_family() -> None:
    """RynnVLA's and UniVLA's published ids; the last words elsewhere."""
    wanted = {  # (bin 0, bin 255, begin, end)
        "lumina": (10006, 10261, [10004], [15004]),
        "univla": (151641, 151386, [151844], [151845]),
        "emu3": (151641, 151386, [151844], [151845]),
    }
    for name, (first, last, begin, end) in wanted.items():
        tokens = opened(name).bin_tokens()
        assert (tokens.ids[0], tokens.ids[255], list(tokens.begin), list(tokens.end)) == (first, last, begin, end)
    for name in ("chameleon", "liquid"):
        layout, tokens = opened(name).layout, opened(name).bin_tokens()
        words = [i for i in layout.text_ids_V.tolist() if i != layout.end_text]
        assert list(tokens.ids) == words[::-1][:256]
        assert tokens.begin == tokens.end == ()


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_where_a_vector_stands_in_prompts(name: str) -> None:
    vlm, source = with_vectors(name), pictures(opened(name))[0]
    ids, vector = vlm.encode([source])[0].tolist(), "[1.0, -0.5, 0.0]"
    tokens, header = vlm.actions.tokens, list(vlm.layout.grammar.header)
    segment = [*tokens.begin, tokens.ids[255], tokens.ids[0], tokens.ids[0], *tokens.end]
    prompt = vlm.fdm_prompt(ids, vector)
    places = [i for i in range(len(prompt)) if prompt[i : i + len(segment)] == segment]
    assert len(places) == 1
    picture = vlm.image_span(ids)
    wanted = {
        "chameleon": [vlm.layout.begin_text, *segment, *picture, *header],
        "univla": [vlm.layout.begin_text, *picture, *segment, *header],  # a frame, its action, the next frame
    }
    assert prompt == wanted.get(name, prompt)
    assert vlm.idm_prompt(ids, ids)[-len(tokens.begin) :] == list(tokens.begin) or not tokens.begin
    assert vlm.action_ids(vector) == [tokens.ids[255], tokens.ids[0], tokens.ids[0]]
    assert vlm.fdm_prompt(ids, "lift the cup") == opened(name).fdm_prompt(ids, "lift the cup")  # words are still words
    with pytest.raises(RewindError, match=r"vectors of 3 numbers here, \[0.1, ...\], not words"):
        vlm.action_ids("lift the cup")
    if name == "univla":
        with pytest.raises(RewindError, match="guidance is for sampling alone"):
            vlm.without_words(torch.ones(1, 40, dtype=torch.long))


# ---- roles


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_both_roles_take_vectors(name: str) -> None:
    """Drawing, scoring and naming: a token a number, from the bins alone; text and numbers are one thing."""
    vlm = with_vectors(name)
    fdm, idm, source = ForwardDynamics(vlm), InverseDynamics(vlm), pictures(opened(name))[0]
    vector = drawn_vectors(1)[0]
    drawn = fdm.sample(source, vector, 2, seed=1)  # type: ignore[call-overload]
    same = fdm.sample([source], [json.dumps(vector)], 2, seed=1)[0]
    assert [c.ids.tolist() for c in drawn] == [c.ids.tolist() for c in same]
    scores = idm.log_probs(source, drawn, vector)  # type: ignore[arg-type]
    assert [x.shape for x in scores] == [(3,)] * 2
    ids = vlm.encode([source])[0].tolist()
    prompt, bins = vlm.idm_prompt(ids, drawn[0].ids.tolist()), vlm.action_ids(json.dumps(vector))
    for t, token in enumerate(bins):
        with torch.no_grad():
            inputs = torch.tensor([[*prompt, *bins[:t]]])
            hidden = vlm.hidden_states(inputs, use_cache=False).last_hidden_state[0, -1].double()
            found = torch.log_softmax(vlm.head_weight().double()[list(vlm.actions.tokens.ids)] @ hidden, -1)
        assert float(scores[0][t]) == pytest.approx(float(found[vlm.actions.tokens.ids.index(token)]), abs=1e-3)
    said = idm.describe([source] * 2, drawn, max_tokens=1, temperature=1.0)
    found_values = [vector_of(text) for text in said]
    assert all(values is not None and len(values) == 3 for values in found_values)
    assert all(BINS.values(BINS.bins(values)) == pytest.approx(values) for values in found_values if values)
    pairs = [Triplet(source, "", pictures(vlm)[1])]
    (labelled,) = label_pairs(idm, pairs)
    assert labelled.action == idm.describe(source, pictures(vlm)[1])
    assert labelled.score == pytest.approx(float(idm.log_probs(source, [pictures(vlm)[1]], labelled.action)[0].sum()))
    best = rerank(fdm, idm, source, json.dumps(vector), 2, seed=1)
    assert best.best.score == pytest.approx(max(float(x.mean()) for x in scores), abs=1e-3)


def test_a_base_without_ranges_says_so(tmp_path: Path) -> None:
    Image.fromarray(pictures(opened("chameleon"))[0]).save(tmp_path / "a.png")
    asked = ["--source", tmp_path / "a.png", "--action", "[0.5, 0.1]", "--output", tmp_path / "out"]
    done = start("scripts/sample.py", "--fdm", "tabletop-chameleon", *asked)
    assert "error: tabletop-chameleon knows no ranges for the numbers of an action" in done.stderr
    assert not (tmp_path / "out").exists()  # nothing is begun
    vlm, source = opened("lumina"), pictures(opened("lumina"))[0]
    for ask in (
        lambda: ForwardDynamics(vlm).sample(source, "[0.5, 0.1]", 1),
        lambda: InverseDynamics(vlm).score(source, [source], "[0.5, 0.1]"),
    ):
        with pytest.raises(RewindError, match=r"knows no ranges for the numbers of an action \(\[0.5, 0.1\]\)"):
            ask()


# ---- training


def test_a_run_keeps_its_ranges(tmp_path: Path) -> None:
    """Trained on vectors of a file, both roles open with their ranges; so do an export and a saved base."""
    base = opened("chameleon")
    save_base(base, tmp_path / "base", {})
    file = write_triplets(triplets_of(base, 4), tmp_path / "data")
    arguments = FDMArguments(base=str(tmp_path / "base"), triplets=[str(file)], with_idm=True)
    config = RoleConfig(output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4, **QUIET)
    run = train_role("fdm", arguments, config, LoraModelConfig(lora_r=2))
    spans = np.array([vector_of(t.action) for t in read_triplets(file)])
    fdm = load_fdm(run)
    assert fdm.backbone.actions is not None
    assert fdm.backbone.actions.bins == ActionBins(tuple(spans.min(0)), tuple(spans.max(0)))
    idm = load_idm(run / "idm", fdm.backbone)
    picture = pictures(base)[0]
    assert vector_of(idm.describe(picture, picture)) is not None
    card = json.loads((run / "idm" / "adapter" / "rewind.json").read_text())
    assert card["role"] == "idm"
    assert card["actions"]["kind"] == "bins"
    for changed, sentence in (
        ({"actions": {**card["actions"], "low": [-9.0] * 3}}, "has its actions in other ranges or tokens already"),
        ({"actions": {"kind": "flow"}}, "states actions of an unknown kind: 'bins' and 'fast' are known"),
        ({"actions": None}, "takes words as actions and the one on the same base vectors"),
    ):
        (run / "idm" / "adapter" / "rewind.json").write_text(json.dumps(card | changed))
        with pytest.raises(RewindError, match=sentence):
            load_idm(run / "idm", fdm.backbone, "other")
    bins = fdm.backbone.actions.bins
    save_merged(fdm.backbone, "default", tmp_path / "merged", {})
    merged = load_base(tmp_path / "merged")
    assert merged.actions is not None
    assert merged.actions.bins == bins


# ---- rewards
