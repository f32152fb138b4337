"""Best-of-N training: which candidates are kept, by hand; their own tokens are what is learned."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rewards import Reward
from rl.errors import RewindError
from rl.models.families.chameleon import ChameleonVLM
from rl.models.roles import ForwardDynamics
from rl.models.streams import Stream
from rl.triplets import Candidate, Scored, Triplet
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.best_of_n.keep import Keep, Kept, keep_best, kept_rows
from trainers.common.candidates import groups_of_round, scored_groups

SOURCE = [1, 1, 1, 1]
EQUALITY: Any = SimpleNamespace(changed=lambda ids, other: np.asarray(ids) != np.asarray(other))
"""A backbone that tells changes as the tabletop's does."""


def scored(ids: list[int], total: float | None) -> Scored:
    return Scored(Candidate(np.array(ids), np.zeros(4, np.float32), EQUALITY), {}, total)


def test_what_is_kept() -> None:
    group = [scored([1, 1, 1, 2], 1.0), scored([1, 1, 2, 2], 4.0), scored([2, 2, 2, 2], None)]
    assert Keep(3).best(group, SOURCE) is group[1]
    assert Keep(3, min_lead=1.5).best(group, SOURCE) is group[1]  # 4 leads the mean of 2.5
    assert Keep(3, min_lead=1.6).best(group, SOURCE) is None
    assert Keep(3, min_changed=2).best(group, SOURCE) is group[1]
    assert Keep(3, min_changed=3).best(group, SOURCE) is None
    assert Keep(3).best(group[2:], SOURCE) is None
    assert Keep(2).best([scored(SOURCE, 9.0), group[0]], SOURCE) is None  # the best is a copy
    for wrong in ({"num_candidates": 1}, {"min_lead": -1.0}, {"min_changed": -1}):
        with pytest.raises(RewindError):
            Keep(**wrong)  # type: ignore[arg-type]


def test_the_top_of_a_group_by_reward() -> None:
    """Totals 1, 4, 3, 3 (the same picture as the best), 0: the mean is 2.2, three above it, two of them different."""
    pictures = [[1, 1, 1, 2], [1, 1, 2, 2], [2, 1, 1, 1], [1, 1, 2, 2], [1, 2, 1, 1]]
    group = [scored(ids, total) for ids, total in zip(pictures, [1.0, 4.0, 3.0, 3.0, 0.0], strict=True)]
    assert Keep(5).chosen(group, SOURCE) == [(group[1], 1.0)]
    assert Keep(5, top=4).chosen(group, SOURCE) == [(group[1], 1.0), (group[2], 1.0)]
    weighted = Keep(5, top=4, reward_temperature=2.0).chosen(group, SOURCE)
    by_hand = [2 / (1 + np.exp(-0.5)), 2 * np.exp(-0.5) / (1 + np.exp(-0.5))]
    assert [weight for _, weight in weighted] == pytest.approx(by_hand)
    assert Keep(5, top=4, min_changed=2).chosen(group, SOURCE) == [(group[1], 1.0)]
    assert Keep(5, top=4, min_lead=2.0).chosen(group, SOURCE) == []
    for wrong in ({"top": 0}, {"top": 9}, {"reward_temperature": 0.0}):
        with pytest.raises(RewindError):
            Keep(8, **wrong)  # type: ignore[arg-type]


def test_weights_reach_the_kept_tokens(tiny: ChameleonVLM) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    made = [Candidate(np.array([tiny.layout.image_ids_V[n]] * 4), np.zeros(4, np.float32), tiny) for n in (0, 1)]
    kept = [
        Kept(Triplet(p, "remove all rings"), Scored(c, {}, 1.0), w)
        for p, c, w in zip(pictures, made, (0.5, 1.5), strict=True)
    ]
    rows = kept_rows(tiny, kept)
    for row, weight in zip(rows, (0.5, 1.5), strict=True):
        assert row["weights"].tolist() == [0.0 if label == -100 else weight for label in row["labels"]]
    assert "weights" not in kept_rows(tiny, [Kept(one.triplet, one.scored, 1.0) for one in kept]).column_names


def test_the_best_candidates_own_tokens_are_learned(tiny: ChameleonVLM) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    triplets = [Triplet(picture, "remove all rings", task="count") for picture in pictures]
    first = Reward.of(lambda predicted_ids: [float(ids[0]) for ids in predicted_ids], "first")
    groups = scored_groups(ForwardDynamics(tiny), [first], triplets, 6, seed=3, chunk_size=2)
    kept, totals = keep_best(tiny, groups, Keep(6))
    assert len(totals) == 30
    assert kept
    for one in kept:
        group = ForwardDynamics(tiny).sample(one.triplet.source, one.triplet.action, 6, seed=3)
        assert one.scored.total == max(c.ids[0] for c in group)
    assert [row["labels"][-4:].tolist() for row in kept_rows(tiny, kept)] == [
        one.scored.candidate.ids.tolist() for one in kept
    ]


def test_max_rows_bounds_what_is_drawn_at_once(
    tiny: ChameleonVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 7B candidate has a cache of a GiB: the sampler holds `max_rows` of them, and draws the same ones."""
    pictures = [np.full((32, 32, 3), value, np.uint8) for value in (0, 90, 180)]
    triplets = [Triplet(picture, "remove all rings") for picture in pictures]
    first = Reward.of(lambda predicted_ids: [float(ids[0]) for ids in predicted_ids], "first")
    rows, original = [], Stream.drafted_rows

    def counted(stream: Stream, times: int, tokens: int, window: int) -> Any:
        rows.append(times * len(stream.mask))
        return original(stream, times, tokens, window)

    monkeypatch.setattr(Stream, "drafted_rows", counted)
    found = []
    for number, most in enumerate((512, 5)):
        rows.clear()
        arguments = BestOfNArguments(num_candidates=4, max_rows=most)
        groups = list(
            groups_of_round(arguments, ForwardDynamics(tiny), [first], triplets, 0, 0, tmp_path / str(number))
        )
        found.append([[s.candidate.ids.tolist() for s in group] for _, group in groups])
        assert max(rows) == min(most, 12) // 4 * 4
    assert found[0] == found[1]
