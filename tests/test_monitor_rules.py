"""The usual rules of the monitors: each is set off by a rollout made by hand, alone, and by no healthy run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_grpo import low_tokens, trainer

from rewards import Reward
from rl.codes import Codes, Grid
from rl.triplets import Candidate, Scored, Triplet
from trainers.grpo.monitors import RULES, Monitors, rules_of

GREYS = (40, 80, 120, 160)
TINTS = ((20, 0, -20), (0, -20, 20), (-20, 20, 0))
"""Three sets of four codes that differ in hue alone: equally bright, saturated and sharp."""
LOOKS = {
    "plain": lambda grey, part: grey + part,
    "alias": lambda grey, part: grey + part,  # looks like the plain code, and is read as it
    "bright": lambda grey, part: grey + 50 + part,  # by 50 of 255
    "colourful": lambda grey, part: grey + 2 * part,  # 80 between channels instead of 40
    "flat": lambda grey, part: 100 + (grey - 100) // 5 + part,  # a fifth of the contrast around the mean of 100
}
COLOURS_V3 = np.array([[[look(g, part) for part in tint] for g in GREYS] for look in LOOKS.values() for tint in TINTS])
COLOURS_V3 = COLOURS_V3.reshape(-1, 3)
TURNED = ([0, 2, 1, 3], [3, 2, 1, 0], [1, 0, 3, 2])
"""Places of a picture's four tokens under symmetries of the square, which change no measure of the picture."""
GROUP = len(TURNED)


class Blocks:
    """A backbone whose picture is 2x2 blocks of one colour a token, so that every measure can be told by hand."""

    device, layout = torch.device("cpu"), SimpleNamespace(grammar=SimpleNamespace(grid=Grid(2, 2)))

    def decode(self, ids_BK: np.ndarray, grid: Grid | None = None) -> np.ndarray:
        blocks = COLOURS_V3[np.asarray(ids_BK)].reshape(-1, 2, 2, 3)
        return blocks.repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)

    def features_pixels(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        return images_BHWC[:, ::2, ::2].reshape(-1, 4, 3)

    def quantise(self, features_BK3: torch.Tensor) -> torch.Tensor:
        wrong = (features_BK3.long()[:, :, None] - torch.from_numpy(COLOURS_V3)).abs().sum(-1)
        return wrong.argmin(-1)  # the first of equal colours

    def codes(self, images: Sequence[Any]) -> list[Codes]:
        found = self.quantise(self.features_pixels(torch.from_numpy(np.stack(images))))
        return [Codes(ids, Grid(2, 2)) for ids in found.tolist()]

    def to_array(self, picture: np.ndarray, like: Grid | None = None) -> np.ndarray:
        return picture

    def changed(self, ids_K: np.ndarray, other_K: np.ndarray) -> np.ndarray:
        return ids_K != other_K  # type: ignore[no-any-return]


class Judge:
    """Says one thing of every picture."""

    says = -0.5

    def score(self, sources: list[Any], targets: list[Any], actions: list[str]) -> list[float]:
        return [self.says] * len(targets)


VLM = Blocks()


def rollout(look: str = "plain", hues: Sequence[int] = (0, 1, 2), turned: Any = TURNED, logprob: float = -0.5) -> Any:
    """A group on each of three sources, one a hue; usually each is its source, turned in three ways."""
    rows, scored = [], []
    for source, hue in enumerate(hues):
        picture = VLM.decode(np.arange(4)[None] + 4 * source)[0]
        for places in turned:
            ids = np.array(places) + 4 * (len(TINTS) * list(LOOKS).index(look) + hue)
            rows.append(Triplet(picture, "wait"))
            scored.append(Scored(Candidate(ids, np.full(4, logprob, np.float32), VLM), {}, 0.0))  # type: ignore[arg-type]
    return rows, scored


MOVED: dict[str, dict[str, Any]] = {
    "copy_rate": {"turned": ([0, 1, 2, 3], *TURNED[1:])},  # one in three
    "duplicates": {"turned": (TURNED[0],) * 3},  # two in three
    "entropy": {"logprob": -1.5},
    "code_usage": {"hues": (0, 0, 0)},  # a third of the sources' codes
    "brightness": {"look": "bright"},
    "sharpness": {"look": "flat"},
    "colour": {"look": "colourful"},
    "survival": {"look": "alias"},
    "judge_idm": {},
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_set_off_by_its_own_measure_alone(name: str, caplog: pytest.LogCaptureFixture) -> None:
    judge = Judge()
    monitors = Monitors(RULES, judge=judge)  # type: ignore[arg-type]
    for step in range(4):
        with caplog.at_level(logging.WARNING, logger="rl"):
            rows, scored = rollout(**(MOVED[name] if step >= 2 else {}))
            monitors.observe(rows * 8, scored * 8, GROUP, lambda *_: None, step)
        if step == 1:
            judge.says = -2.5 if name == "judge_idm" else judge.says
            assert not caplog.records  # the same again warns nobody
        assert (monitors.stopped is not None) == (step == 3)  # twice in a row
    assert [record.args[0].split("'")[1] for record in caplog.records] == [name]  # type: ignore[index, union-attr]
    assert monitors.stopped is not None
    assert monitors.stopped.count(" at the start to ") == 1
    assert monitors.stopped.startswith(f"'{name}' went from ")


def test_the_usual_rules_let_a_healthy_run_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A reward that can be learned, at the usual rate of the tiny set-up, whose rollouts are of two sources."""
    monitors = Monitors(rules_of(["all"]))
    run = trainer(tmp_path, [Reward.of(low_tokens)], extra={"monitors": monitors}, max_steps=32)
    with caplog.at_level(logging.WARNING, logger="rl"):
        run.train()
    assert run.state.global_step == 32
    assert monitors.stopped is None
    logged = [row["step"] for row in run.state.log_history if "monitors/copy_rate" in row]
    assert logged == [8, 16, 24, 32]  # 8 rollouts of 8 are enough to tell
    assert not [record for record in caplog.records if record.getMessage().startswith("monitor:")]
