"""Every script of the pipeline on what the one before wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image
from script_runs import start, succeed


def test_from_video_to_the_best_of_n(tmp_path: Path) -> None:
    """Every script of the pipeline on what the one before wrote; two steps of training each."""
    run = lambda name, *rest: succeed(f"scripts/{name}.py", *rest)  # noqa: E731
    small = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--lora_r", 4, "--save_steps", 2]
    run("make_world", "--num_triplets", 8, "--num_videos", 3, "--num_chains", 4, "--output", tmp_path / "world")
    triplets = ["--triplets", tmp_path / "world" / "triplets.json"]
    run("train_idm", "--config", "configs/idm_tabletop.yaml", *triplets, *small, "--output_dir", tmp_path / "idm")
    weights = tmp_path / "idm" / "adapter" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    longer = ["--config", "configs/idm_tabletop.yaml", *triplets, *small, "--save_steps", 1]
    run("train_idm", *longer, "--output_dir", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-2")  # as if it had been cut off after the first step
    shutil.rmtree(tmp_path / "resumed" / "adapter")
    harmless = ["--triplets", tmp_path / "world" / ".." / "world" / "triplets.json", "--logging_steps", 1]
    run("train_idm", *longer, *harmless, "--output_dir", tmp_path / "resumed", "--resume", "true")
    resumed = tmp_path / "resumed" / "adapter" / "adapter_model.safetensors"
    assert resumed.read_bytes() == before
    weights.write_bytes(before)
    settled = ["--rule", "settled", "--image_size", 64]
    run("mine_videos", "--videos", tmp_path / "world" / "videos", *settled, "--output", tmp_path / "pairs")
    pairs = tmp_path / "pairs" / "pairs.json"
    label = ["--idm", "tabletop-chameleon", "--pairs", pairs, "--chunk_size", 2, "--output", tmp_path / "labelled"]
    run("label", *label)
    labelled, words = tmp_path / "labelled" / "triplets.json", tmp_path / "labelled" / "words.jsonl"
    whole = [labelled.read_bytes(), words.read_bytes()]
    labelled.unlink()
    words.write_bytes(whole[1][: whole[1].index(b"\n") + 9])  # as if it had been killed in its second chunk
    run("label", *label, "--resume")
    assert [labelled.read_bytes(), words.read_bytes()] == whole
    run("select_triplets", "--triplets", labelled, "--k", 4, "--output", tmp_path / "selected")
    chosen = json.loads((tmp_path / "selected" / "triplets.json").read_text())
    assert {entry["source"] for entry in chosen} == {"idm"}
    assert all(entry["score"] <= 0 for entry in chosen)
    synthetic = ["--synthetic", tmp_path / "selected" / "triplets.json", "--token_weights", "true"]
    fdm = ["--config", "configs/fdm_tabletop.yaml", *triplets, *synthetic, *small, "--output_dir", tmp_path / "fdm"]
    run("train_fdm", *fdm)
    assert (tmp_path / "fdm" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "fdm" / "checkpoint-2").is_dir()
    losses = [json.loads(line) for line in (tmp_path / "fdm" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 2
    assert list((tmp_path / "fdm" / "tensorboard").rglob("events*"))
    again = start("scripts/train_fdm.py", *fdm)
    assert again.returncode == 2
    assert "exists: use --resume" in again.stderr
    models = ["--fdm", tmp_path / "fdm", "--idm", tmp_path / "idm"]
    rewards = ["--rewards", "idm_margin=1.0", "keep_unchanged=0.25"]
    best = [*triplets, "--limit", 2, "--num_candidates", 3, *rewards]
    run("rerank", *models, *best, "--output", tmp_path / "best")
    rows = [json.loads(line) for line in (tmp_path / "best" / "candidates.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in rows] == [0, 1, 2] * 2
    assert rows[0]["total"] >= rows[1]["total"] >= rows[2]["total"]
    assert Image.open(tmp_path / "best" / "0001-best.png").size == (64, 64)
    improve = [*models, *triplets, "--limit", 2, "--max_steps", 1, *rewards]
    grpo = ["--config", "configs/grpo_tabletop.yaml", "--per_device_train_batch_size", 8]
    grpo += ["--validation", tmp_path / "world" / "triplets.json", "--eval_strategy", "steps", "--eval_steps", 1]
    run("train_grpo", *grpo, *improve, "--profile", "true", "--output_dir", tmp_path / "grpo")
    metrics = (tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()
    assert any("eval_reward" in json.loads(line) for line in metrics)
    assert {"profile/draw", "profile/reward/idm_margin", "profile/backward"} <= set(json.loads(metrics[0]))
    chained = [*models, *rewards, "--triplets", tmp_path / "world" / "chains" / "triplets.json", "--max_steps", 1]
    two_steps = ["--rollout_steps", 2, "--num_generations", 8, "--per_device_train_batch_size", 64, "--monitors", "all"]
    run("train_grpo", *two_steps, *chained, "--output_dir", tmp_path / "trajectories")
    (row,) = [json.loads(line) for line in (tmp_path / "trajectories" / "metrics.jsonl").read_text().splitlines()][:1]
    assert {"reward", "reward_step_1", "reward_step_2", "monitors/copy_rate"} <= set(row)
    kept = (tmp_path / "trajectories" / "adapter" / "adapter_model.safetensors").read_bytes()
    wrong = [*two_steps, *chained, "--spread_floor", -1, "--overwrite", "true"]
    refused = start("scripts/train_grpo.py", *wrong, "--output_dir", tmp_path / "trajectories")
    assert (refused.returncode, "--spread_floor must be above 0" in refused.stderr) == (2, True)
    assert (tmp_path / "trajectories" / "adapter" / "adapter_model.safetensors").read_bytes() == kept
    best_config = ["--config", "configs/best_of_n_tabletop.yaml", "--min_lead", 0, "--num_candidates", 4]
    run("train_best_of_n", *best_config, *improve, "--output_dir", tmp_path / "best_of_n")
    dpo = ["--config", "configs/dpo_tabletop.yaml", "--min_gap", 0, "--num_candidates", 4, "--rounds", 2]
    run("train_dpo", *dpo, *improve, "--output_dir", tmp_path / "dpo")
    assert not (tmp_path / "dpo" / "adapter" / "ref").exists()
    for name in ("best", "grpo", "trajectories", "best_of_n", "dpo"):
        assert list((tmp_path / name / "candidates").glob("part-*.parquet")), name
    stored = [
        *models,
        "--candidates",
        tmp_path / "dpo",
        tmp_path / "grpo",
        "--rewards",
        "idm_margin",
        "keep_unchanged",
        "--max_steps",
        1,
    ]
    run("train_best_of_n", *best_config, *stored, "--output_dir", tmp_path / "from-candidates")
    for name in ("grpo", "trajectories", "best_of_n", "dpo"):
        command = ["--fdm", tmp_path / name, *triplets, "--limit", 1, "--num_samples", 1]
        run("sample", *command, "--output", tmp_path / f"from-{name}")
    few = ["--num_scenes", 3, "--num_ceiling", 3, "--best_of", 2, "--rewards", "idm_margin", "copy_penalty=0.5"]
    few += ["--reward_arguments", '{"idm_margin": {"num_rivals": 2}, "copy_penalty": {"least": 2}}']
    run("evaluate", *models, *few, "--output", tmp_path / "evaluation")
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert set(results["best_of_n"]["by_score"]) == {"1", "2"}
    assert 0 <= results["idm"]["exact_match"] <= 1
