"""The two stages of a base: the codebook, the sequences, the loss, exact resumption."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from rl.data.pools import PretrainingPool, pool_from_world
from rl.errors import RewindError
from rl.models.families.chameleon import TINY_DECODER, ChameleonVLM, tiny_vq_config
from rl.worlds.tabletop import Tabletop
from trainers.common.log_probs import IGNORED
from trainers.common.metrics import MetricsFile
from trainers.pretraining.language import MIXTURE, Collator, LanguageTrainer, Sequences, parse_mixture
from trainers.pretraining.recipe import make_base
from trainers.pretraining.vq_model import VQTrainingModel, kmeans


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    close = 0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        vectors = centres.repeat(50, 1) + 0.1 * torch.randn(150, 2, generator=generator)
        found = kmeans(vectors, 3, 20, generator)
        close += float(torch.cdist(centres, found).min(1).values.max()) < 0.2
    assert close >= 5  # from random starts two centres may share a cluster


def test_the_tokenizer_learns_and_its_codebook_follows() -> None:
    torch.manual_seed(0)
    world, rng = Tabletop(size=3), np.random.default_rng(0)
    images = torch.from_numpy(np.stack([world.render(world.sample_scene(rng), rng) for _ in range(16)]))
    model = VQTrainingModel(tiny_vq_config(48, 32), TINY_DECODER, warmup=10).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(40):
        loss = model(images)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:3])
    model.eval()
    assert int((model.usage_V > 0.1).sum()) > 1
    before = model.vqmodel.quantize.embedding.weight.clone()
    assert torch.isfinite(before).all()
    decoded = model.reconstruct(images)
    assert decoded.shape == images.shape
    assert torch.equal(before, model.vqmodel.quantize.embedding.weight)  # evaluation moves nothing


def test_dead_codes_move_to_badly_coded_vectors() -> None:
    model = VQTrainingModel(tiny_vq_config(32, 4), TINY_DECODER, warmup=0)
    model.vqmodel.quantize.embedding.weight.data.zero_()
    model.vqmodel.quantize.embedding.weight.data[0] = 1.0
    model.usage_V.copy_(torch.tensor([100.0, 0.0, 0.0, 0.0]))
    model.sums_VD.copy_(model.vqmodel.quantize.embedding.weight * 100)
    model.step.fill_(model.REVIVE_EVERY)
    vectors = torch.ones(64, 16)
    vectors[0] = 5.0  # one vector is coded badly
    with torch.no_grad():
        model._move_codebook(vectors)
    assert torch.allclose(model.vqmodel.quantize.embedding.weight[1:], torch.full((3, 16), 5.0))


@pytest.fixture(scope="module")
def pool() -> PretrainingPool:
    return pool_from_world(Tabletop(size=3), 30, 2, np.random.default_rng(0))


def test_sequences_are_laid_out_as_promised(tiny: ChameleonVLM, pool: PretrainingPool) -> None:
    ids_NK = tiny.encode(list(pool.images_NHWC))
    data = Sequences(tiny, pool, ids_NK, 400, seed=1)
    assert data[7] == Sequences(tiny, pool, ids_NK, 400, seed=1)[7]
    assert data[7] != Sequences(tiny, pool, ids_NK, 400, seed=2)[7]
    begin, end = tiny.layout.begin_image, tiny.layout.end_image
    kinds = dict.fromkeys(MIXTURE, 0)
    for i in range(400):
        row = data[i]
        ids, labels = row["input_ids"], row["labels"]
        assert ids[0] == tiny.layout.begin_text
        learned = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
        assert learned == [label for label in labels if label != IGNORED] == ids[len(ids) - len(learned) :]
        pictures = ids.count(begin)
        assert pictures == ids.count(end)
        if pictures == 0:
            kinds["text"] += 1
            assert tiny.text(learned) in pool.texts
        elif learned[0] == begin:
            words = ids[1] != begin
            kinds[("illustrate" if words else "continue") if pictures == 2 else "draw"] += 1
            assert len(learned) == 6
        else:
            kinds["compare" if pictures == 2 else "describe"] += 1
            assert learned[-1] == tiny.layout.end_text
    for kind, share in MIXTURE.items():
        assert kinds[kind] == pytest.approx(400 * share, abs=45), kinds


def test_a_mixture_of_ones_own(tiny: ChameleonVLM, pool: PretrainingPool) -> None:
    mixture = parse_mixture(["compare=3", "text=1"])
    data = Sequences(tiny, pool, tiny.encode(list(pool.images_NHWC)), 200, seed=1, mixture=mixture)
    pictures = [row["input_ids"].count(tiny.layout.begin_image) for row in map(data.__getitem__, range(200))]
    assert set(pictures) == {0, 2}
    assert np.mean([count == 2 for count in pictures]) == pytest.approx(0.75, abs=0.1)
    assert parse_mixture(None) == MIXTURE
    for wrong in ("move=1", "text", "text=0", "text=nan", "text=inf"):
        with pytest.raises(RewindError, match="--mixture takes KIND=SHARE"):
            parse_mixture([wrong])


def test_pictures_alone_are_learned_alone(tiny: ChameleonVLM, pool: PretrainingPool) -> None:
    bare = PretrainingPool(pool.images_NHWC[:3], [[], [], []], np.zeros((0, 2), int), [], [])
    row = Sequences(tiny, bare, tiny.encode(list(bare.images_NHWC)), 5, seed=0)[0]
    assert row["labels"][0] == IGNORED
    assert len(row["labels"]) == 7


def test_the_loss_is_the_mean_over_learned_tokens(tiny: ChameleonVLM, pool: PretrainingPool) -> None:
    """Against one sequence at a time without padding; the split into short and long rows must not show."""
    data = Sequences(tiny, pool, tiny.encode(list(pool.images_NHWC)), 7, seed=3)
    rows = [data[i] for i in range(7)]
    batch = Collator(tiny.layout.pad)(rows)
    trainer = object.__new__(LanguageTrainer)
    trainer.vlm = tiny
    with torch.no_grad():
        found = float(trainer.compute_loss(tiny.model, batch))
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row["input_ids"]])
            hidden = tiny.hidden_states(ids, use_cache=False).last_hidden_state[0]
            log_probs = (hidden @ tiny.head_weight().T).log_softmax(-1)
            for t, label in enumerate(row["labels"]):
                if label != IGNORED:
                    total -= float(log_probs[t - 1, label])
                    count += 1
    assert found == pytest.approx(total / count, rel=1e-5)


def arguments(output: Path, **changes: object) -> argparse.Namespace:
    spec = importlib.util.spec_from_file_location("pretrain_base", ROOT / "scripts" / "pretrain_base.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {
        "world": "tabletop",
        "num_pairs": 12,
        "num_videos": 1,
        "hidden_size": 32,
        "num_layers": 1,
        "num_heads": 2,
        "text_vocabulary": 300,
        "num_codes": 32,
        "tokenizer_steps": 4,
        "tokenizer_batch_size": 4,
        "steps": 8,
        "batch_size": 4,
        "output": output,
    }
    found = module.parser().parse_args(["--output", str(output)])
    for key, value in {**small, **changes}.items():
        assert hasattr(found, key)
        setattr(found, key, value)
    return found


@pytest.mark.parametrize(("stage", "step"), [("tokenizer", 3), ("language", 5)])
def test_an_interrupted_run_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    torch.set_num_threads(1)
    settings = {"tokenizer_steps": 8, "tokenizer_warmup": 4}  # a checkpoint every two steps; k-means after four
    make_base(arguments(tmp_path / "whole", **settings))

    class StoppedError(Exception):
        pass

    log = MetricsFile.on_log

    def stop(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]
        log(self, args, state, control, logs, **kwargs)
        if stage in str(self.path) and state.global_step == step:
            raise StoppedError

    monkeypatch.setattr(MetricsFile, "on_log", stop)
    with pytest.raises(StoppedError):
        make_base(arguments(tmp_path / "broken", **settings))
    monkeypatch.setattr(MetricsFile, "on_log", log)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    with pytest.raises(RewindError, match="exists: use --resume"):
        make_base(arguments(tmp_path / "broken", **settings))
    with pytest.raises(RewindError, match="begun with other values of steps"):
        make_base(arguments(tmp_path / "broken", resume=True, steps=9, **settings))
    (tmp_path / "broken" / "training" / stage / "checkpoint-7").mkdir()  # as a kill while saving leaves it
    make_base(arguments(tmp_path / "broken", resume=True, **settings))
    for name in ("model.safetensors", "decoder.safetensors"):
        a, b = (load_file(tmp_path / run / name) for run in ("whole", "broken"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    lines = (tmp_path / "broken" / "training" / "language" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == list(range(1, 9))  # no step twice


def test_a_torn_log_is_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    log, state, control = MetricsFile(file), TrainerState(global_step=1), TrainerControl()
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    log.on_train_begin(arguments, state, control)  # from a checkpoint of step 1
    log.on_log(arguments, state, control, {"loss": 2.5})
    assert file.read_text() == '{"step": 1, "loss": 3.0}\n{"step": 1, "loss": 2.5}\n'


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(RewindError, match=r"diverged: .* weights are not finite"):
        make_base(arguments(tmp_path / "out", tokenizer_learning_rate=float("inf")))
    assert not (tmp_path / "out" / "training" / "tokenizer.safetensors").exists()


def test_pretraining_is_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RewindError, match="runs in one process"):
        make_base(arguments(tmp_path / "out"))


def test_a_tokenizer_can_be_taken_over(tmp_path: Path) -> None:
    make_base(arguments(tmp_path / "first"))
    make_base(arguments(tmp_path / "second", tokenizer_from=tmp_path / "first", tokenizer_steps=1, seed=1))
    with pytest.raises(RewindError, match="tokenizer_from: there is no"):
        make_base(arguments(tmp_path / "third", tokenizer_from=tmp_path / "none"))
    with pytest.raises(RewindError, match="has other sizes"):
        make_base(arguments(tmp_path / "fourth", tokenizer_from=tmp_path / "first", num_codes=16))


def test_training_goes_on_from_a_base(tmp_path: Path) -> None:
    make_base(arguments(tmp_path / "first"))
    make_base(arguments(tmp_path / "second", base=str(tmp_path / "first"), seed=1, mixture=["compare=1"]))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    changed = {key for key in first if not torch.equal(first[key], second[key])}
    assert changed
    assert not any("vqmodel" in key for key in changed)  # the tokenizer stays
    assert (tmp_path / "first" / "tokenizer.json").read_bytes() == (tmp_path / "second" / "tokenizer.json").read_bytes()
    with pytest.raises(RewindError, match="--base brings its tokenizer"):
        make_base(arguments(tmp_path / "third", base=str(tmp_path / "first"), tokenizer_from=tmp_path / "first"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"world": None}, "either --world or --frames"),
        ({"frames": [Path("x")]}, "either --world or --frames"),
        ({"world": None, "frames": [Path("none")]}, "there is no none"),
        ({"world": None, "frames": [Path("x")], "image_size": 50}, "multiple of 16"),
        ({"text_vocabulary": 100}, "at least 262"),
        ({"hidden_size": 33}, "must be a multiple of"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(RewindError, match=sentence):
        make_base(arguments(tmp_path / "out", **changes))


@pytest.mark.parametrize("name", ["pretrain_tabletop", "pretrain_tabletop_2", "pretrain_tabletop_3"])
def test_shipped_config_is_read(name: str) -> None:
    import yaml

    values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    known = vars(arguments(Path("x")))
    assert set(values) <= set(known)
    assert known["family"] is None  # Chameleon, or the family of --base
