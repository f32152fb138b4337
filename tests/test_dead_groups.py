"""Groups of GRPO whose rewards are all alike: replaced, stored, never trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from test_grpo import low_tokens, trainer

from rewards import Reward
from rl.data.candidates.store import CandidateStore


def of_source(predicted_ids: list[list[int]], source_ids: list[list[int]], **_: Any) -> list[float]:
    """Alike for all candidates of half of the sources."""
    alive = [sum(source) % 2 for source in source_ids]
    return [share if live else 0.5 for share, live in zip(low_tokens(predicted_ids), alive, strict=True)]


def test_dead_groups_are_replaced_and_never_trained_on(tmp_path: Path) -> None:
    rows = [{"prompt": str(number)} for number in range(8) for _ in range(4)]
    seen = {}
    for retries in (0, 4):
        reward = Reward.of(of_source)
        run = trainer(tmp_path, [reward], extra={"dead_group_retries": retries}, per_device_train_batch_size=32)
        output = run._generate_and_score_completions(rows)
        by_group = np.array([scored.total for scored in run.last_scored]).reshape(8, 4)
        dead = np.ptp(by_group, axis=1) == 0
        assert (output["completion_mask"].sum(1) == 0).tolist() == dead.repeat(4).tolist()
        numbers = [row.number for row in run.last_rows]
        prompts = [row.prompt_ids() for row in run.last_rows]
        for ids, mask, prompt in zip(output["prompt_ids"], output["prompt_mask"], prompts, strict=True):
            assert ids[mask.bool()].tolist() == prompt
        seen[retries] = (int(dead.sum()), numbers, run._pending_metrics["dead_groups"])
    assert seen[0][1] == [number for number in range(8) for _ in range(4)]
    assert seen[0][0] > seen[4][0]
    assert seen[0][2] == seen[4][2]  # the share before anything is replaced is what is logged


def test_replaced_groups_are_stored_too(tmp_path: Path) -> None:
    rows, asked = [{"prompt": str(number)} for number in range(8) for _ in range(4)], []

    def watched(predicted_ids: list[list[int]], source_ids: list[list[int]]) -> list[float]:
        found = of_source(predicted_ids, source_ids)
        asked.extend(zip(map(tuple, source_ids), map(tuple, predicted_ids), found, strict=True))
        return found

    store = CandidateStore(tmp_path / "candidates")
    extra = {"dead_group_retries": 4, "store": store}
    run = trainer(tmp_path, [Reward.of(watched)], extra=extra, per_device_train_batch_size=32)
    run._generate_and_score_completions(rows)
    trained_on = {row.number for row in run.last_rows}
    assert trained_on != set(range(8))  # some were replaced, by others of the eight
    kept = store.groups(run.vlm)
    assert [len(group) for _, group in kept] == [4] * 8
    found = [
        (tuple(run.vlm.encode([triplet.source])[0].tolist()), tuple(s.candidate.ids.tolist()), s.total)
        for triplet, group in kept
        for s in group
    ]
    assert set(found) == set(asked)  # all that was scored, and nothing under another's key
