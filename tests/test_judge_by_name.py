"""The judge by its name, with the environment's key, beside other rewards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from judge_server import ACTION, Handler, Server, judge_of, marks, picture_in, status

from rewards import Batch, Reward, load_rewards, score
from rl import rerank
from rl.errors import RewindError
from rl.models.roles import ForwardDynamics
from rl.models.unified import UnifiedVLM
from rl.triplets import Candidate


def test_by_name_with_the_environment_and_beside_another_reward(
    server: Server, tiny: UnifiedVLM, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REWIND_JUDGE_URL", server.url)
    monkeypatch.setenv("REWIND_JUDGE_MODEL", "eye-1")
    flat = Reward.of(lambda prompts: [1.0] * len(prompts), "flat")
    rewards = load_rewards(["judge=0.5", flat])
    candidates = [Candidate(np.array(ids), np.zeros(4, np.float32), tiny) for ids in first_codes(tiny)]
    server.script = [marks(3, 10)]
    assert len({c.image.tobytes() for c in candidates}) == 2
    metrics: dict[str, float] = {}
    batch = Batch([ACTION] * 3, candidates, [picture] * 3, log_metric=metrics.__setitem__)
    rewards[0].function.concurrency = 1
    found = score(rewards, batch)
    assert [s.scores["judge"] for s in found] == [0.3, 0.65, 0.3]  # the first and the last are one picture
    assert [s.total for s in found] == pytest.approx([1.15, 1.325, 1.15])
    assert metrics["judge/requests"] == 2
    assert len(list((tmp_path / ".cache" / "rewind" / "judge").rglob("*.json"))) == 2
    server.usual = status(500)
    rewards[0].function.endpoint.retries = 0
    with pytest.raises(RewindError, match="the judge at"):
        score(rewards, Batch(["jump"], candidates[:1], [picture]))


def first_codes(vlm: UnifiedVLM) -> list[list[int]]:
    dark, light = vlm.encode([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)]).cpu().tolist()
    return [dark, light, dark]


def test_rerank_takes_the_picture_that_the_judge_likes(server: Server, shipped: UnifiedVLM) -> None:
    """End to end on the shipped base: this judge likes light pictures."""

    def likes_light(h: Handler) -> None:
        array = picture_in(json.loads(h.body)["messages"][0]["content"][3])
        marks(10, float(array.mean()) / 25.5)(h)

    server.usual = likes_light
    source = np.full((64, 64, 3), 200, np.uint8)
    judge = judge_of(server)
    found = rerank(ForwardDynamics(shipped), None, source, ACTION, 4, rewards=[judge])
    brightness = [np.asarray(s.image).mean() / 255 for s in found.candidates]
    assert found.best.score == pytest.approx(max(brightness))
    assert [s.score for s in found.candidates] == pytest.approx(sorted(brightness, reverse=True))
    assert len(server.seen) == len({s.image.tobytes() for s in found.candidates})
    server.usual = status(503)
    with pytest.raises(RewindError, match="503"):
        rerank(ForwardDynamics(shipped), None, source, ACTION, 4, rewards=[judge])
