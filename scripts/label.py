"""Pairs of pictures -> triplets named by an inverse dynamics model, with its confidence as score.

python scripts/label.py --idm runs/idm --pairs runs/pairs/pairs.json --output runs/labelled
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.data_flags import add_cache_flag, add_data_flags, reading
from rl.running.files import json_lines
from rl.running.model_flags import add_model_flags, opening

WORDS_FILE = "words.jsonl"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--idm", required=True, help="a run folder of train_idm.py, or a base")
    p.add_argument("--pairs", type=Path, required=True, help="a JSON list of mine_videos.py; 'instruction' is ignored")
    p.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest words; 1: sampled, as in the paper")
    p.add_argument("--chunk_size", type=int, default=256, help="pairs labelled between two progress steps")
    p.add_argument("--seed", type=int, default=0)
    add_data_flags(p)
    add_cache_flag(p)
    add_model_flags(p)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--resume", action="store_true", help="go on where an interrupted run of the same command stopped")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from tqdm.auto import tqdm

    from rl import RewindError, load_idm
    from rl.data.encoding import read_from
    from rl.data.labelling import labelled, name_pairs
    from rl.data.left_out import LeftOut, for_resume, list_left_out
    from rl.data.triplet_files import read_triplets, write_triplets
    from rl.models.fingerprint import for_resume as base_for_resume
    from rl.running.run_folder import claim

    if arguments.chunk_size < 1 or arguments.temperature < 0:
        raise RewindError("--chunk_size must be at least 1 and --temperature 0 or more")
    left_out: list[LeftOut] = []
    pairs = read_triplets(arguments.pairs, named=False, with_targets=True, **reading(arguments), left_out=left_out)
    idm = load_idm(arguments.idm, **opening(arguments))
    output = claim(
        arguments.output,
        "label.py",
        plain(vars(arguments)) | for_resume(left_out, [arguments.pairs]) | base_for_resume(idm.backbone.fingerprint),
        inputs=[arguments.idm, arguments.pairs],
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
    list_left_out(output, left_out)
    read_from(arguments.token_cache, [idm.backbone], pairs)
    words = words_so_far(output / WORDS_FILE)
    with (output / WORDS_FILE).open("a", encoding="utf-8") as file, tqdm(total=len(pairs), desc="label") as bar:
        bar.update(len(words))
        for start in range(len(words), len(pairs), arguments.chunk_size):
            part = pairs[start : start + arguments.chunk_size]
            named = name_pairs(idm, part, temperature=arguments.temperature, seed=arguments.seed)
            file.write(json.dumps(named) + "\n")
            file.flush()
            words += named
            bar.update(len(part))
    found = labelled(pairs, words)
    if not found:
        raise RewindError(f"the model {arguments.idm} had no words for any of {len(pairs)} pairs")
    print(f"{len(found)} of {len(pairs)} pairs labelled in {write_triplets(found, output)}")


def words_so_far(file: Path) -> list[tuple[str, float]]:
    """What an interrupted run has named: a line a chunk; a torn last line is cut off."""
    return [(words, score) for chunk in json_lines(file) for words, score in chunk]


if __name__ == "__main__":
    run(main)
