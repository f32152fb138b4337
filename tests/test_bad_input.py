"""Bad input to a script: one sentence, a non-zero exit, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from script_runs import start

SAMPLE = ["scripts/sample.py", "--fdm", "tabletop-chameleon", "--action", "move it", "--source"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*SAMPLE, "none.png", "--output", "OUT"], "there is no image none.png"),
        ([*SAMPLE, "README.md", "--output", "OUT"], "README.md cannot be read as an image"),
        (
            ["scripts/sample.py", "--fdm", "nobody", "--action", "x", "--source", "PICTURE", "--output", "OUT"],
            "no base",
        ),
        ([*SAMPLE, "PICTURE", "--action", " ", "--output", "OUT"], "the action is empty"),
        (
            [*SAMPLE, "PICTURE", "--triplets", "x.json", "--output", "OUT"],
            "either --source and --action, or --triplets",
        ),
        ([*SAMPLE, "PICTURE", "--temperature", "-1", "--output", "OUT"], "the temperature must be 0 or more"),
        (["scripts/make_world.py", "--world", "desk", "--output", "OUT"], "there is no world 'desk'"),
        (["scripts/make_world.py", "--split", "dev", "--output", "OUT"], "has no split 'dev'"),
        (["scripts/make_world.py", "--num_triplets", "0", "--output", "OUT"], "nothing to write"),
        (["scripts/make_world.py", "--chain_length", "0", "--output", "OUT"], "--chain_length must be at least 1"),
        (["scripts/make_world.py", "--config", "CONFIG", "--output", "OUT"], "unknown key 'num_triplet'"),
        (["scripts/make_world.py", "--output", "docs"], "holds no run of this script"),
        (["scripts/pretrain_base.py", "--output", "OUT"], "give either --world or --frames"),
        (["scripts/pretrain_base.py", "--frames", "EMPTY", "--output", "OUT"], "holds no picture"),
        (
            ["scripts/pretrain_base.py", "--world", "tabletop", "--tokenizer_from", "EMPTY", "--output", "OUT"],
            "--tokenizer_from: there is no",
        ),
        (["scripts/train_idm.py", "--output_dir", "OUT"], "give at least one file of triplets"),
        (
            ["scripts/train_fdm.py", "--triplets", "none.json", "--output_dir", "OUT"],
            "cannot read the triplets none.json",
        ),
        (["scripts/train_fdm.py", "--config", "CONFIG", "--output_dir", "OUT"], "num_triplet"),
        (["scripts/train_grpo.py", "--output_dir", "OUT"], "give the model to improve"),
        (["scripts/train_grpo.py", "--rollout_steps", 3, "--output_dir", "OUT"], "8 predictions do not divide into"),
        (["scripts/train_best_of_n.py", "--output_dir", "OUT"], "give the model to improve"),
        (["scripts/train_dpo.py", "--output_dir", "OUT"], "give the model to improve"),
        (["scripts/mine_videos.py", "--videos", "EMPTY", "--output", "OUT"], "holds no picture"),
        (
            ["scripts/mine_videos.py", "--videos", "EMPTY", "--quiet", "0.2", "--output", "OUT"],
            "is of --rule settled alone",
        ),
        (
            ["scripts/label.py", "--idm", "nobody", "--pairs", "none.json", "--output", "OUT"],
            "cannot read the triplets",
        ),
        (
            ["scripts/rerank.py", "--fdm", "tabletop-chameleon", *SAMPLE[3:], "PICTURE", "--output", "OUT"],
            "'idm_likelihood' needs an inverse model",
        ),
        (
            [
                "scripts/rerank.py",
                "--fdm",
                "tabletop-chameleon",
                *SAMPLE[3:],
                "PICTURE",
                "--output",
                "OUT",
                "--shard",
                "2/2",
            ],
            "--shard takes I/N",
        ),
        (["scripts/evaluate.py", "--fdm", "tabletop-chameleon", "--num_scenes", "1", "--output", "OUT"], "at least 2"),
        (
            ["scripts/rerank.py", *SAMPLE[1:], "PICTURE", "--reward_arguments", "least=2", "--output", "OUT"],
            "'least=2' is not JSON",
        ),
    ],
)
def test_bad_input(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    (tmp_path / "config.yaml").write_text("num_triplet: 3\n")
    (tmp_path / "empty").mkdir()
    names = {"OUT": "out", "PICTURE": "picture.png", "CONFIG": "config.yaml", "EMPTY": "empty"}
    done = start(*[tmp_path / names[a] if a in names else a for a in arguments])
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert not (tmp_path / "out").exists()
