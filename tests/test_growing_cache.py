"""A run's own token cache where none was given: nothing is encoded before it is looked at, and then once."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from conftest import make_tiny
from peft import LoraConfig
from test_token_cache import ACTION, written

from rewards import Reward
from rl.data.formats.arrow import CellPicture
from rl.data.tokens import growing
from rl.data.tokens.cache import TokenCache
from rl.data.tokens.encoding import encode_missing
from rl.data.tokens.growing import GrowingCache
from rl.data.tokens.shards import Shards
from rl.data.triplet_files import read_triplets
from rl.data.video.video_files import write_video
from rl.data.video.video_frames import VideoFrame
from rl.models.families.chameleon import ChameleonVLM
from rl.models.saving import save_base
from rl.picture_keys import content_key
from rl.pictures import EncodedPicture
from trainers.best_of_n.arguments import BestOfNArguments
from trainers.best_of_n.recipe import train_best_of_n
from trainers.common.adapters import add_adapter
from trainers.grpo.arguments import GRPOArguments, RewindGRPOConfig
from trainers.grpo.recipe import train_grpo
from trainers.grpo.trainer import WorldModelGRPOTrainer
from trainers.sft.arguments import FDMArguments, LoraModelConfig, RoleConfig
from trainers.sft.recipe import train_role

PLAIN: dict[str, Any] = {"max_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures were encoded, each time that some were."""
    found: list[int] = []
    features = ChameleonVLM.features_pixels
    monkeypatch.setattr(
        ChameleonVLM, "features_pixels", lambda self, images: found.append(len(images)) or features(self, images)
    )
    return found


def test_it_learns_what_is_looked_at_and_writes_it_a_shard_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    monkeypatch.setattr(growing, "BLOCK", 3)
    vlm, triplets = make_tiny(), written(tmp_path / "data", 5)
    pictures: list[Any] = [triplet.source for triplet in triplets]
    plain = make_tiny().codes(pictures)

    def opened() -> GrowingCache:
        vlm.cache, vlm._seen = GrowingCache(tmp_path / "tokens", vlm), None
        encoded.clear()
        return vlm.cache

    cache = opened()
    assert vlm.codes(pictures[:2]) == plain[:2]
    assert len(cache.codes) == 0  # too few for a shard
    vlm._seen = None
    assert vlm.codes(pictures[:3]) == plain[:3]
    assert (encoded, len(cache.codes)) == ([2, 1], 3)
    vlm._seen = None
    assert vlm.codes(pictures[:4]) == plain[:4]
    assert vlm.codes([np.asarray(pictures[0])]) == plain[:1]  # a picture in memory is nobody's to keep
    copy = pickle.loads(pickle.dumps(cache))  # what waits is written by one
    assert (len(copy.codes), len(copy._waiting), len(cache._waiting)) == (3, 0, 1)
    assert len(opened().codes) == 3  # as after a kill
    assert vlm.codes(pictures) == plain
    assert encoded == [2]
    assert not vlm.features(pictures[:1]).isnan().any()  # features are not kept here, and add nothing
    assert len(opened().codes) == 3


def test_cells_of_tables_and_frames_of_videos_are_read_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, files = make_tiny(), written(tmp_path / "data", 3)
    paths = [str(tmp_path / "data" / f"{number}.png") for number in range(4)]
    cells_of = [[{"bytes": Path(path).read_bytes(), "path": None} for path in some] for some in (paths[:3], paths[1:])]
    rows = {"input": cells_of[0], "output": cells_of[1], "instruction": ["go"] * 3}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "table.parquet")
    film = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    write_video(film, tmp_path / "film.mkv")
    frames = [{"video": "film.mkv", "at": "first"}, {"video": "film.mkv", "at": "last"}]
    words = [{"instruction": "go", "input": frames[0], "output": frames[1]}]
    (tmp_path / "film.json").write_text(json.dumps(words))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    cells, frame = (read_triplets(tmp_path / name, with_targets=True) for name in ("table.parquet", "film.json"))
    assert isinstance(cells[0].source, CellPicture)
    assert isinstance(frame[0].target, VideoFrame)
    triplets = [*cells, *frame]
    cache = TokenCache(tmp_path / "tokens", vlm)
    encode_missing(vlm, cache, files)
    assert encode_missing(vlm, cache, triplets).encoded == 2  # the bytes in a cell are those of the file
    plain = make_tiny().codes([triplet.source for triplet in triplets])
    again = read_triplets(tmp_path / "table.parquet", with_targets=True)
    assert content_key(EncodedPicture(Path(paths[0]).read_bytes())) == content_key(files[0].source)

    def looked(_: Any) -> Any:
        raise AssertionError("looked at")

    for kind in (CellPicture, VideoFrame, EncodedPicture):
        monkeypatch.setattr(kind, "image", property(looked))
    monkeypatch.setattr(CellPicture, "_bytes", looked)
    vlm.cache, vlm._seen = TokenCache(tmp_path / "tokens", vlm), None
    assert vlm.codes([triplet.source for triplet in triplets]) == plain
    assert encode_missing(vlm, vlm.cache, [*again, *frame]).known == 6


def test_keys_with_equal_beginnings_are_told_apart(tmp_path: Path) -> None:
    field = pa.field("number", pa.int32())
    keys = [bytes([first] * 8 + [second] + [0] * 7) for first in (200, 7) for second in range(5)]
    for part in (keys[:4], keys[4:]):
        numbers = pa.array([keys.index(key) for key in part], pa.int32())
        Shards(tmp_path, "some", [field]).append(part, {"number": numbers})
    shards = Shards(tmp_path, "some", [field])
    asked = [*reversed(keys), bytes([7] * 8 + [9] + [0] * 7), bytes(16)]
    found = shards.find(asked)
    assert shards.numbers(found[:-2], "number").tolist() == [*reversed(range(10))]
    assert found[-2:].tolist() == [-1, -1]


def test_grpo_begins_without_encoding_its_data(tmp_path: Path, encoded: list[int]) -> None:
    vlm, triplets = make_tiny(), written(tmp_path / "data", 6)
    add_adapter(vlm, LoraConfig(r=2, target_modules=["q_proj"]))
    for role, parameter in (("fdm", "predicted_ids"), ("idm", "completion_ids")):
        config = RewindGRPOConfig(output_dir=str(tmp_path / role), max_steps=1, report_to="none")
        given: dict[str, Any] = {"role": role}
        reward = Reward("nothing", 1.0, lambda **_: [], (parameter,))
        WorldModelGRPOTrainer(vlm, triplets, [reward], config, **given)
        assert not encoded


def test_a_run_encodes_what_it_sees_once_and_leaves_no_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    monkeypatch.setattr(growing, "BLOCK", 1)
    save_base(make_tiny(), tmp_path / "base", {})
    rows = [{"instruction": ACTION, "input": f"{n}.png", "output": f"{n + 1}.png"} for n in range(6)]
    written(tmp_path / "data", 6)
    (tmp_path / "data" / "triplets.json").write_text(json.dumps(rows))
    data = [str(tmp_path / "data" / "triplets.json")]
    asked = FDMArguments(base=str(tmp_path / "base"), triplets=data)
    fdm = train_role("fdm", asked, RoleConfig(output_dir=str(tmp_path / "fdm"), **PLAIN), LoraModelConfig())
    shards: list[int] = []
    append = GrowingCache.append
    monkeypatch.setattr(GrowingCache, "append", lambda self, *a: shards.append(len(a[0])) or append(self, *a))
    reward = tmp_path / "reward.py"
    reward.write_text("def total(predicted_ids):\n    return [float(sum(ids)) for ids in predicted_ids]\n")
    common: dict[str, Any] = {"fdm": str(fdm), "triplets": data, "rewards": [f"{reward}:total=1.0"]}

    def finished(run: Path) -> list[int]:
        found, seen = encoded.copy(), shards.copy()
        encoded.clear()
        shards.clear()
        assert not (run / "tokens").exists()
        assert seen == found  # in the batches in which they were encoded
        return found

    encoded.clear()
    assert not (fdm / "tokens").exists()
    config = RewindGRPOConfig(
        output_dir=str(tmp_path / "grpo"), num_generations=2, per_device_train_batch_size=4, **PLAIN
    )
    assert finished(train_grpo(GRPOArguments(monitors=["none"], **common), config)) == [2]  # the groups of a step
    config = RoleConfig(output_dir=str(tmp_path / "best"), **PLAIN)
    best = BestOfNArguments(num_candidates=2, rounds=2, min_changed=0, **common)
    assert finished(train_best_of_n(best, config)) == [6]  # sources alone, in both rounds together
