"""Best-of-N training and DPO in rounds: what each logs, also when a run is cut off and goes on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_export import make_run

from rl.data.triplet_files import write_triplets
from rl.models.drafting import Counts
from rl.triplets import Triplet
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.best_of_n.recipe import train_best_of_n
from trainers.common.runs import ROUNDS_FILE
from trainers.dpo.arguments import DPOArguments, RewindDPOConfig
from trainers.dpo.recipe import train_dpo
from trainers.sft.arguments import RoleConfig

REWARD = "def first(predicted_ids):\n    return [float(ids[0]) for ids in predicted_ids]\n"
STEPS = 3


def loss_steps(folder: Path) -> list[int]:
    """The steps of the loss as TensorBoard shows them, with what it hides left out."""
    events = EventAccumulator(str(folder)).Reload()
    return [event.step for event in events.Scalars("train/loss")]


@pytest.mark.parametrize("method", ["best_of_n", "dpo"])
def test_each_round_has_events_of_its_own(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # which the recipe sets
    monkeypatch.setattr("trainers.common.candidates.MANY", 1)
    run, output, told = make_run(tmp_path), tmp_path / "out", list[Counts]()
    since = Counts.since
    monkeypatch.setattr(Counts, "since", lambda *both: told.append(since(*both)) or told[-1])
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    write_triplets([Triplet(Image.fromarray(p), "move the red circle left") for p in pictures], tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)

    def train(resume: bool) -> None:
        given: dict[str, Any] = {"fdm": str(run), "triplets": [str(tmp_path / "triplets.json")], "num_candidates": 4}
        given |= {"rewards": [f"{tmp_path / 'mine.py'}:first"], "rounds": 2, "resume": resume}
        training: dict[str, Any] = {"output_dir": str(output), "max_steps": STEPS, "save_steps": 1, "logging_steps": 1}
        training |= {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "disable_tqdm": True}
        if method == "dpo":
            train_dpo(DPOArguments(min_gap=0.0, **given), RewindDPOConfig(**training))
        else:
            train_best_of_n(BestOfNArguments(**given), RoleConfig(**training))

    train(resume=False)
    (part,) = (output / "candidates").glob("part-*")  # each round began one, and at the end they are joined
    assert len(pq.read_table(part)) == 2 * 4 * 4
    events = output / "tensorboard"
    assert not list(events.glob("events*"))
    for number in range(2):
        assert loss_steps(events / f"round-{number}") == [1, 2, 3]
    kept = [json.loads(line) for line in (output / ROUNDS_FILE).read_text().splitlines()]
    found = EventAccumulator(str(events / "rounds")).Reload()
    for name in ("passes", "drafted", "accepted", "sampled_total"):
        assert [event.value for event in found.Scalars(f"rounds/{name}")] == pytest.approx([one[name] for one in kept])
    assert [(one["passes"], one["drafted"]) for one in kept] == [(one.passes, one.drafted) for one in told]
    assert all(one["drafted"] > 0 for one in kept)
    assert [one["accepted"] for one in kept] == [one.accepted / one.drafted for one in told]  # a share, by one round
    assert kept[1]["passes"] <= 3  # four tokens a picture, one of them behind the prompt's pass

    log = output / ROUNDS_FILE  # as if it had been killed in its second round, after the checkpoint of step 1
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    for step in (2, 3):
        shutil.rmtree(output / "round-1" / f"checkpoint-{step}")
    time.sleep(1.1)  # the names of event files, by which they are read in order, tell seconds
    train(resume=True)
    for number in range(2):
        assert loss_steps(events / f"round-{number}") == [1, 2, 3]  # nothing of the first is hidden, nothing doubled
