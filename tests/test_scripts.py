"""Every script as a user starts it: help without torch, a small run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from script_runs import start, succeed

from rl.data.candidates.store import CandidateStore

SCRIPTS = sorted(p.name for p in (ROOT / "scripts").glob("*.py"))
TRAINING = sorted(name for name in SCRIPTS if name.startswith("train_"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_does_not_wait_for_torch(script: str, tmp_path: Path) -> None:
    for heavy in ("torch", "transformers", "trl"):
        (tmp_path / f"{heavy}.py").write_text(f"raise SystemExit('imported {heavy}')\n")
    done = start(f"scripts/{script}", "--help", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 0, done.stderr
    training = ("--triplets", "--output_dir", "--learning_rate", "--resume")
    for flag in training if script in TRAINING else ("--output", "--config"):
        assert flag in done.stdout


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "out"
    succeed("scripts/make_world.py", "--output", folder, "--num_triplets", 3, "--num_videos", 1, "--split", "test")
    return folder


def test_make_world(world_folder: Path) -> None:
    triplets = json.loads((world_folder / "triplets.json").read_text())
    assert [sorted(t) for t in triplets] == [["input", "instruction", "output", "source", "task"]] * 3
    assert (world_folder / "sheet.png").is_file()
    assert len(list(world_folder.glob("videos/*/*.mkv"))) == 1
    truth = json.loads((world_folder / "videos-truth.json").read_text())
    assert all((world_folder / name).is_file() for name in truth)


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    small = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)); "
    small += "runpy.run_path('scripts/make_world.py', run_name='__main__')"
    done = start("-c", small, "--output", tmp_path / "out", "--num_triplets", 3, "--num_videos", 1, OMP_NUM_THREADS="1")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: a file could not be written (File too large")


def test_sample_on_the_world(world_folder: Path, tmp_path: Path) -> None:
    command = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--source", world_folder / "images" / "0-input.png"]
    command += ["--action", "move the red circle left", "--num_samples", 2, "--output", tmp_path / "out"]
    succeed(*command)
    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == ["000-000.png", "000-001.png"]
    assert [len(row["ids"]) for row in rows] == [16, 16]
    assert all(Image.open(tmp_path / "out" / row["image"]).size == (64, 64) for row in rows)
    assert Image.open(tmp_path / "out" / "sheet.png").width > 4 * 64
    again = start(*command)
    assert again.returncode == 2
    assert "exists: use --overwrite or another" in again.stderr
    succeed(*command, "--overwrite")
    assert [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()] == rows


def test_rerank_shards_and_resume(world_folder: Path, tmp_path: Path) -> None:
    base = ["--fdm", "tabletop-chameleon", "--idm", "tabletop-chameleon", "--num_candidates", 4, "--max_rows", 8]
    command = ["scripts/rerank.py", *base, "--triplets", world_folder / "triplets.json", "--shard", "0/2"]
    said = succeed(*command, "--good_enough", -99, "--output", tmp_path / "out")
    assert "2 candidates for 2 sources, 6 saved by stopping early" in said
    passes, accepted, drafted = map(int, re.findall(r"(\d+) passes .*, (\d+) of (\d+) guesses", said)[0])
    assert passes <= 2 * 15  # one a token, but for the first
    assert accepted <= drafted
    folder = tmp_path / "out" / "shard-0-of-2"
    whole = (folder / "candidates.jsonl").read_bytes()
    assert [json.loads(line)["triplet"] for line in whole.splitlines()] == [0, 2]
    assert Image.open(folder / "0002-grid.png").width > 64
    (folder / "candidates.jsonl").write_bytes(whole[:-30])
    succeed(*command, "--good_enough", -99, "--output", tmp_path / "out", "--resume")
    assert (folder / "candidates.jsonl").read_bytes() == whole


def test_a_mix_is_fitted_and_used_by_name(tmp_path: Path) -> None:
    succeed("scripts/make_world.py", "--num_triplets", 40, "--num_videos", 0, "--output", tmp_path / "world")
    triplets = tmp_path / "world" / "triplets.json"
    models = ["--fdm", "tabletop-chameleon", "--idm", "tabletop-chameleon", "--num_candidates", 4]
    command = ["scripts/fit_reward.py", *models, "--triplets", triplets, "--output", tmp_path / "fit"]
    wrong = start(*command, "--rewards", "idm_margin=1", "keep_unchanged")
    assert wrong.returncode == 2
    assert "'idm_margin=1' has a weight: name two or more rewards without '='" in wrong.stderr
    assert "| fdm_confidence alone |" in succeed(*command)
    mix = tmp_path / "fit" / "reward.json"
    rerank = ["scripts/rerank.py", *models, "--triplets", triplets, "--limit", 2, "--output", tmp_path / "out"]
    missing = start(*rerank, "--rewards", "fitted")
    assert missing.returncode == 2
    assert "fit one with scripts/fit_reward.py" in missing.stderr
    succeed(*rerank, "--rewards", mix)
    rows = [json.loads(line) for line in (tmp_path / "out" / "candidates.jsonl").read_text().splitlines()]
    assert [name.rpartition("=")[0] for name in json.loads(mix.read_text())["rewards"]] == list(rows[0]["scores"])


def test_rerank_normalises_and_takes_targets_only_if_told(world_folder: Path, tmp_path: Path) -> None:
    command = ["scripts/rerank.py", "--fdm", "tabletop-chameleon", "--idm", "tabletop-chameleon", "--limit", 2]
    command += ["--triplets", world_folder / "triplets.json", "--num_candidates", 4, "--rewards", "target_distance"]
    blind = start(*command, "--output", tmp_path / "blind")
    assert blind.returncode == 0, blind.stderr
    assert "the reward 'target_distance' asks for the true target, which is not handed on" in blind.stderr
    assert "abstained on 2" in blind.stdout
    told = ["idm_likelihood", "--use_targets", "--normalise_rewards", "--output", tmp_path / "told"]
    done = start(*command, *told)
    assert done.returncode == 0, done.stderr
    assert "not handed on" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "told" / "candidates.jsonl").read_text().splitlines()]
    assert all(-1 <= row["scores"]["target_distance"] <= 0 for row in rows)
    assert sum(row["total"] for row in rows[:4]) == pytest.approx(0.0, abs=1e-6)  # of one source
    stores = [CandidateStore(tmp_path / name / "candidates", "tabletop-chameleon") for name in ("blind", "told")]
    assert [len(store.known_scores()) > 0 for store in stores] == [False, True]  # None is not what training would give
    for flags, sentence in (
        (["--normalise_rewards", "--good_enough", 1], "leave out good_enough, or the normalisation"),
        (["--use_targets"], "--use_targets needs --triplets with true targets"),
    ):
        one = ["--source", world_folder / "images" / "0-input.png", "--action", "move it", "--output", tmp_path / "x"]
        wrong = start("scripts/rerank.py", "--fdm", "tabletop-chameleon", *one, *flags)
        assert wrong.returncode == 2
        assert sentence in wrong.stderr
        assert not (tmp_path / "x").exists()


def test_sample_a_file_of_triplets(world_folder: Path, tmp_path: Path) -> None:
    command = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--triplets", world_folder / "triplets.json"]
    succeed(*command, "--limit", 2, "--num_samples", 3, "--output", tmp_path / "out")
    assert len((tmp_path / "out" / "candidates.jsonl").read_text().splitlines()) == 6


def test_evaluate(tmp_path: Path) -> None:
    base = ["--fdm", "tabletop-chameleon", "--idm", "tabletop-chameleon", "--num_scenes", 4, "--num_ceiling", 6]
    succeed("scripts/evaluate.py", *base, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["ceiling"]["n"] == 6
    assert results["fdm"]["n"] == results["captions"]["n"] == 4
    kinds = {"random_action", "counterfactual_action", "random_target", "copy", "swapped"}
    assert set(results["idm_prefers_truth"]["all"]) == set(results["fdm_prefers_truth"]["all"]) == kinds
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_evaluate_with_rewards_on_triplets(world_folder: Path, tmp_path: Path) -> None:
    base = ["--fdm", "tabletop-chameleon", "--idm", "tabletop-chameleon", "--triplets", world_folder / "triplets.json"]
    command = ["scripts/evaluate.py", *base]
    succeed(*command, "--output", tmp_path / "plain")
    rewards = ["--rewards", "idm_margin=1.0", "idm_likelihood", "keep_unchanged"]
    succeed(*command, *rewards, "--reward_arguments", '{"idm_margin": {"num_rivals": 2}}', "--output", tmp_path / "out")
    plain, found = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "out"))
    for key in ("tasks", "copy", "truth"):
        for task, entry in found[key].items():
            said = entry.pop("rewards")
            assert entry == plain[key][task]
            assert list(said) == ["idm_margin", "idm_likelihood", "keep_unchanged"]
            assert said["idm_margin"]["n"] == entry["n"]
    assert said["idm_likelihood"]["mean"] == pytest.approx(entry["idm_likelihood"], abs=0.1)  # picture or its tokens
    wrong = start(*command, "--reward_arguments", '{"idm_margin": {}}', "--output", tmp_path / "other")
    assert (wrong.returncode, (tmp_path / "other").exists()) == (2, False)
    assert "name the rewards" in wrong.stderr


def test_pretrain_on_any_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(6):
        picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.jpg")
    (tmp_path / "words.txt").write_text("lift the cup\nopen the door\n")
    small = ["--tokenizer_steps", 2, "--tokenizer_batch_size", 2, "--steps", 2, "--batch_size", 2, "--num_codes", 16]
    small += ["--hidden_size", 32, "--num_layers", 1, "--num_heads", 2, "--image_size", 32, "--text_vocabulary", 300]
    source = ["--frames", tmp_path / "photos", "--text", tmp_path / "words.txt"]
    succeed("scripts/pretrain_base.py", *source, *small, "--output", tmp_path / "base")
    command = ["scripts/sample.py", "--fdm", tmp_path / "base", "--source", tmp_path / "photos" / "0.jpg"]
    done = start(*command, "--action", "lift the cup", "--num_samples", 2, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the centre square is cut out and scaled to 32x32" in done.stderr
    assert (tmp_path / "base" / "training" / "language" / "metrics.jsonl").is_file()
    assert list((tmp_path / "base" / "training" / "tokenizer" / "tensorboard").glob("events*"))


def test_pretrain_and_mine_on_real_pictures(real_data: Path, tmp_path: Path) -> None:
    """The commands of docs/findings/real-data.md at a tiny budget."""
    small = ["--image_size", 64, "--max_frames", 90, "--num_codes", 32, "--tokenizer_steps", 2, "--steps", 2]
    small += ["--tokenizer_batch_size", 4, "--batch_size", 2, "--hidden_size", 32, "--num_layers", 1]
    aurora = real_data / "aurora-bench-sample"
    frames = ["--frames", aurora / "images", real_data / "videos" / "flipping_a_pancake.mkv"]
    text = ["--text", aurora / "test.json"]
    config = ["--config", "configs/pretrain_real.yaml"]
    succeed("scripts/pretrain_base.py", *config, *frames, *text, *small, "--output", tmp_path / "base")
    draw = ["--triplets", aurora / "test.json", "--limit", 2, "--num_samples", 1]
    succeed("scripts/sample.py", "--fdm", tmp_path / "base", *draw, "--output", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "000-000.png").size == (64, 64)
    clips = ["--videos", real_data / "videos" / "corrupted.mp4", real_data / "videos" / "arm_wrestling.mp4"]
    done = start("scripts/mine_videos.py", *clips, "--image_size", 96, "--output", tmp_path / "pairs")
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr
    assert "corrupted.mp4 breaks off" in done.stderr
    pairs = json.loads((tmp_path / "pairs" / "pairs.json").read_text())
    assert 1 <= len(pairs) <= 5
    assert {entry["source"] for entry in pairs} == {"arm_wrestling.mp4"}

    pictures, small = ["--triplets", aurora / "test.json"], ["--per_device_train_batch_size", 4, "--lora_r", 2]
    for role in ("idm", "fdm"):
        role_of = ["--base", tmp_path / "base", "--max_steps", 2, "--output_dir", tmp_path / role]
        succeed(f"scripts/train_{role}.py", *pictures, *small, *role_of)
    models = ["--fdm", tmp_path / "fdm", "--idm", tmp_path / "idm"]
    named = ["--pairs", tmp_path / "pairs" / "pairs.json", "--output", tmp_path / "named"]
    succeed("scripts/label.py", "--idm", tmp_path / "idm", *named)
    assert len(json.loads((tmp_path / "named" / "triplets.json").read_text())) == len(pairs)
    rewards = ["--rewards", "idm_likelihood", "--num_generations", 2, "--max_steps", 1]
    batch = ["--per_device_train_batch_size", 4, "--output_dir", tmp_path / "grpo"]
    succeed("scripts/train_grpo.py", *models, *pictures, *rewards, *batch)
    few = ["--limit", 2, "--num_candidates", 2, "--output", tmp_path / "best"]
    succeed("scripts/rerank.py", *models, *pictures, *few)
    grpo = ["--fdm", tmp_path / "grpo", "--idm", tmp_path / "idm"]
    succeed("scripts/evaluate.py", *grpo, *pictures, "--limit", 12, "--output", tmp_path / "figures")
    found = json.loads((tmp_path / "figures" / "results.json").read_text())
    assert found["copy"]["average"] | {"n": 12, "copy_rate": 1.0, "near_copy_rate": 1.0} == found["copy"]["average"]
    assert list(found["tasks"])[-1] == "average"


def test_real_photograph(real_data: Path, tmp_path: Path) -> None:
    """The shipped base has never seen a photograph; it must still take one, say how, and draw something."""
    photo = sorted((real_data / "aurora-bench-sample" / "images").glob("whatsup*input.jpg"))[0]
    command = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--action", "move it", "--source", photo]
    done = start(*command, "--num_samples", 1, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "scaled to 64x64" in done.stderr
    assert (tmp_path / "out" / "000-000.png").is_file()
