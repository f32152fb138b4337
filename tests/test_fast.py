"""FAST tokens (arXiv 2501.09747): the codec by its formula, and UniVLA with it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from opened_families import opened, pictures, trainable
from test_action_vectors import BINS, HIGH, LOW, drawn_vectors
from tokenizers import ByteLevelBPETokenizer

from rl import RewindError
from rl.actions import ActionBins, vector_of
from rl.models.cards import take
from rl.models.fast import FastCodec
from rl.models.roles import ForwardDynamics, InverseDynamics
from trainers.common.adapters import save_adapter


def fast_codec(folder: Path) -> Path:
    """A codec in the published files: byte pairs over letters that stand for coefficients, and its numbers."""
    folder.mkdir(parents=True)
    least, rng = -40, np.random.default_rng(0)
    pairs = ByteLevelBPETokenizer()
    letters = [[chr(x) for x in rng.integers(0, 90, 12)] for _ in range(200)]
    pairs.train_from_iterator(["".join(row) for row in letters] * 2, 300, min_frequency=2)
    pairs.save(str(folder / "tokenizer.json"))
    about = {"scale": 10, "min_token": least, "vocab_size": 300, "processor_class": "UniversalActionProcessor"}
    about["auto_map"] = {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"}  # type: ignore[assignment]
    (folder / "processor_config.json").write_text(json.dumps(about | {"action_dim": None, "time_horizon": None}))
    return folder


def test_fast_is_a_cosine_transform_in_byte_pairs(tmp_path: Path) -> None:
    """By the formula of the transform; what is rounded away is less than half a coefficient's step."""
    codec = FastCodec.open(fast_codec(tmp_path / "fast"))
    values = np.random.default_rng(1).uniform(-1, 1, (4, 3))
    tokens = codec.encode(values)
    text = codec._pairs.decode(tokens)
    rounded = np.array([ord(letter) - 40 for letter in text]).reshape(4, 3)
    for k in range(4):
        norm = np.sqrt((1 if k == 0 else 2) / 4)
        wanted = norm * sum(values[t] * np.cos(np.pi * k * (2 * t + 1) / 8) for t in range(4))
        assert rounded[k].tolist() == np.around(10 * wanted).tolist()
    assert np.abs(codec.decode(tokens, 4, 3) - values).max() <= 0.05 * 4**0.5
    assert codec.decode([], 4, 3).tolist() == [[0.0] * 3] * 4  # nothing said is no motion
    assert codec.decode(tokens * 2, 4, 3).tolist() == codec.decode(tokens, 4, 3).tolist()
    with pytest.raises(RewindError, match=r"holds no FAST codec: processor_config.json and tokenizer.json are missing"):
        FastCodec.open(tmp_path)


def test_univla_in_fast_tokens(tmp_path: Path) -> None:
    """Its published ids, of any number up to the end; drawn, scored, and the other families refuse them."""
    codec = FastCodec.open(fast_codec(tmp_path / "fast"))
    vlm, source = trainable(opened("univla")), pictures(opened("univla"))[0]
    vlm.use_actions(ActionBins(LOW, HIGH, steps=4), codec)
    vector = json.dumps([x for row in drawn_vectors(4) for x in row])
    ids, tokens = vlm.action_ids(vector), codec.encode(2 * vlm.actions.bins.shares(vector_of(vector)) - 1)
    assert ids == [*(151642 - token for token in tokens), 151845]
    assert vlm.actions.segment(vector) == [151844, *ids]
    assert set(vlm.action_vocabulary.tolist()) == {*range(151642 - codec.size + 1, 151643), 151845}
    back, width = vector_of(vlm.action([*ids, vlm.layout.pad])), np.array(HIGH) - LOW
    assert (np.abs(np.array(back) - vector_of(vector)).reshape(4, 3) <= width * 0.1 + 1e-9).all()
    fdm, idm = ForwardDynamics(vlm, "default"), InverseDynamics(vlm, "default")
    drawn = fdm.sample(source, vector, 2)
    assert [x.shape for x in idm.log_probs(source, drawn, vector)] == [(len(ids),)] * 2
    said = idm.describe([source] * 2, drawn, temperature=1.0, seed=1)
    assert all(len(vector_of(text) or ()) == 12 for text in said)
    folder = save_adapter(vlm, tmp_path / "run", role="idm")
    again = copy.copy(opened("univla"))
    take(again, json.loads((folder / "rewind.json").read_text()), folder)
    assert again.actions == vlm.actions
    with pytest.raises(RewindError, match=r"has no ids for FAST tokens, which are UniVLA's"):
        copy.copy(opened("lumina")).use_actions(BINS, codec)
