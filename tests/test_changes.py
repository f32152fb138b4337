"""Which tokens show something else: equality where that tells, else a distance of code vectors found on pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny

from rewards import Batch, Reward
from rewards.copy_penalty import CopyPenalty
from rewards.keep_unchanged import KeepUnchanged
from rl import RewindError
from rl.evaluation.benchmark import compare
from rl.evaluation.oracle import sample_tasks
from rl.evaluation.rollout_measures import measure
from rl.models import changes
from rl.models.changes import calibrated
from rl.models.families.chameleon import ChameleonVLM
from rl.models.opening import load_base
from rl.models.saving import save_base, write_card
from rl.running.files import read_json
from rl.triplets import Candidate, Scored, Triplet
from rl.worlds import load_split
from trainers.best_of_n.keep import Keep
from trainers.grpo.trajectories import ScoredRow, changed_tokens

ACTION = "move the red circle left"


class DrawsThese:
    """A forward model that draws what it was given."""

    def __init__(self, vlm: ChameleonVLM, drawn: list[Candidate]) -> None:
        self.backbone, self.drawn = vlm, drawn

    def sample(self, *_: Any, **__: Any) -> list[list[Candidate]]:
        return [[one] for one in self.drawn]


@pytest.fixture
def crowded() -> ChameleonVLM:
    """A base whose codes come in pairs that show the same: code 2n + 1 has nearly the vector of code 2n."""
    vlm = make_tiny()
    with torch.no_grad():
        vectors = vlm.vqmodel.quantize.embedding.weight
        vectors.mul_(10)
        vectors[1::2] = vectors[::2] + 0.001
    return vlm


def ids(vlm: Any, *codes: int) -> np.ndarray:
    return vlm.layout.image_ids_V.numpy()[list(codes)]  # type: ignore[no-any-return]


def test_distances_by_hand(crowded: ChameleonVLM) -> None:
    one, other = ids(crowded, 0, 2, 4, 6), ids(crowded, 0, 3, 5, 0)
    vectors = crowded.vqmodel.quantize.embedding.weight.detach()
    expected = [float((vectors[a] - vectors[b]).pow(2).sum()) for a, b in ((0, 0), (2, 3), (4, 5), (6, 0))]
    assert crowded.code_distance(one, other) == pytest.approx(expected, rel=1e-5)
    assert crowded.changed(one, other).tolist() == [False, True, True, True]  # equality, where nothing is said
    crowded.same_below = 1e-3
    assert crowded.changed(one, other).tolist() == [False, False, False, True]


def test_rewards_and_measures_of_change_ask_it(crowded: ChameleonVLM, picture: np.ndarray) -> None:
    source = crowded.encode([picture]).numpy()[0]
    codes = [int(i) for i in source - int(crowded.layout.image_ids_V[0])]
    twins = ids(crowded, *(code ^ 1 for code in codes))  # another code everywhere that shows the same
    drawn = [Candidate(row, np.zeros(4, np.float32), crowded) for row in (source, twins, ids(crowded, 8, 10, 12, 14))]
    batch = Batch([ACTION] * 3, drawn, [picture] * 3)
    rewards = [Reward.of(KeepUnchanged(default=1)), Reward.of(CopyPenalty(2))]
    rows = [Triplet(picture, ACTION)] * 3
    scored = [Scored(one, {}, float(n)) for n, one in enumerate(drawn)]
    keep, triplet = Keep(num_candidates=2, min_changed=1), rows[0]
    assert rewards[0](batch)[1] == -3.0
    assert rewards[1](batch)[1] == 0.0
    assert keep.best(scored[:2], source) is scored[1]
    assert measure(rows, scored, 3)["copy_rate"] == pytest.approx(1 / 3)
    crowded.same_below = 1e-3
    batch = Batch([ACTION] * 3, drawn, [picture] * 3)
    assert rewards[0](batch)[:2] == [0.0, 0.0]  # a background in other codes is no change
    assert rewards[1](batch)[:2] == [-1.0, -1.0]  # a near-copy is a copy
    assert rewards[0](batch)[2] < 0
    assert keep.best(scored[:2], source) is None
    found = measure(rows, scored, 3)
    assert (found["copy_rate"], found["duplicates"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    (codes_of_source,) = crowded.codes([picture])
    row = ScoredRow(0, 0, 0, triplet, codes_of_source, drawn[1], scored[1])
    assert not changed_tokens(crowded, [row], true=False).any()


def test_near_copies_among_predictions(crowded: ChameleonVLM, picture: np.ndarray) -> None:
    """Of a copy, one in other codes that show the same, and something else: the monitors' share."""
    source = crowded.encode([picture]).numpy()[0]
    codes = [int(i) for i in source - int(crowded.layout.image_ids_V[0])]
    shown = (source, ids(crowded, *(code ^ 1 for code in codes)), ids(crowded, *(code ^ 2 for code in codes)))
    drawn = [Candidate(row, np.zeros(4, np.float32), crowded) for row in shown]
    triplets = [Triplet(picture, ACTION, 255 - picture)] * 3
    for near, share in ((0.0, 1 / 3), (1e-3, 2 / 3)):
        crowded.same_below = near
        table, _ = compare(DrawsThese(crowded, drawn), None, triplets)
        entry, copied = table["tasks"]["average"], table["copy"]["average"]
        assert (entry["copy_rate"], entry["near_copy_rate"]) == (pytest.approx(1 / 3), pytest.approx(share))
        assert copied["copy_rate"] == copied["near_copy_rate"] == 1
        scored = [Scored(one, {}, 0.0) for one in drawn]
        assert measure(triplets, scored, 3)["copy_rate"] == pytest.approx(entry["near_copy_rate"])


def test_a_threshold_is_found_on_pairs(crowded: ChameleonVLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes flicker between twins where the pixels stay; half of the cells change. Equality is wrong on half."""
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    after = before.copy()
    after[:, :16] = rng.integers(0, 256, (12, 16, 32, 3), dtype=np.uint8)
    known = {image.tobytes(): number for number, image in enumerate([*before, *after])}
    plain = crowded.codes

    def flickering(images: Any, like: Any = None, **_: Any) -> Any:
        found = plain(images, like)
        first = int(crowded.layout.image_ids_V[0])
        for image, codes in zip(images, found, strict=True):
            if known[np.asarray(image).tobytes()] >= 12:
                codes[2:] = [first + ((code - first) ^ 1) for code in codes[2:]]  # the lower half
        return found

    monkeypatch.setattr(crowded, "codes", flickering)
    found = calibrated(crowded, list(before), list(after))
    assert 1e-5 < found < 1
    assert calibrated(crowded, list(before), list(before)) == 0.0  # nothing changes, so nothing is learned
    monkeypatch.setattr(changes, "WORTH", 0.6)
    assert calibrated(crowded, list(before), list(after)) == 0.0  # not worth it


def test_on_the_tabletop_equality_stays(shipped: ChameleonVLM) -> None:
    """Unequal tokens are changes there, as they have been: every figure of rewards and monitors stays."""
    tasks = sample_tasks(load_split("tabletop", "train"), 64, 3)
    assert calibrated(shipped, [t.source for t in tasks], [t.target for t in tasks]) == 0.0


def test_it_is_kept(crowded: ChameleonVLM, tmp_path: Path) -> None:
    crowded.same_below = 0.25
    save_base(crowded, tmp_path / "base", {})
    assert load_base(tmp_path / "base").same_below == 0.25
    write_card(tmp_path / "base", read_json(tmp_path / "base" / "rewind.json") | {"same_below": "near"})
    with pytest.raises(RewindError, match="states no distance of codes, but same_below 'near'"):
        load_base(tmp_path / "base")
