"""Write a world's triplets (AURORA's format) and unlabelled videos to a folder.

python scripts/make_world.py --world tabletop --output runs/world --num_triplets 100 --num_videos 20
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run
from rl.running.files import write_whole


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--world", default="tabletop", help="a world's name, or file.py:Class")
    p.add_argument("--split", default="train", help="a split of the world, if it has any")
    p.add_argument("--num_triplets", type=int, default=100)
    p.add_argument("--num_videos", type=int, default=0)
    p.add_argument("--num_chains", type=int, default=0, help="triplets that follow one another, in OUTPUT/chains")
    p.add_argument("--chain_length", type=int, default=3, help="actions of a chain")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    import numpy as np

    from rl.data.triplet_files import write_triplets
    from rl.data.video.video_files import write_video
    from rl.errors import RewindError
    from rl.evaluation.action_chains import sample_chains
    from rl.evaluation.oracle import sample_tasks
    from rl.report.grids import sheet
    from rl.running.run_folder import claim
    from rl.triplets import Triplet
    from rl.worlds import load_split

    amounts = (arguments.num_triplets, arguments.num_videos, arguments.num_chains)
    if min(amounts) < 0 or not any(amounts):
        raise RewindError("nothing to write: give --num_triplets, --num_videos or --num_chains above 0")
    if arguments.chain_length < 1:
        raise RewindError(f"--chain_length must be at least 1, not {arguments.chain_length}")
    world = load_split(arguments.world, arguments.split)
    film = getattr(world, "video", None)
    if arguments.num_videos and film is None:
        raise RewindError(f"the world {arguments.world} has no video(rng): leave out --num_videos")
    output = claim(arguments.output, "make_world.py", plain(vars(arguments)), overwrite=arguments.overwrite)
    if arguments.num_triplets:
        family = getattr(world, "family", lambda action: None)
        triplets = [
            Triplet(task.source, task.action, task.target, task=family(task.action), provenance="world")
            for task in sample_tasks(world, arguments.num_triplets, arguments.seed)
        ]
        pairs = [[(t.source, "source"), (t.target, t.action)] for t in triplets[:12] if t.target is not None]
        sheet([[cell for pair in pairs[i : i + 3] for cell in pair] for i in range(0, len(pairs), 3)]).save(
            output / "sheet.png"
        )
        print(f"{len(triplets)} triplets in {write_triplets(triplets, output)}")
    if arguments.num_chains:
        rng = np.random.default_rng((arguments.seed, 2))
        chains = sample_chains(world, arguments.num_chains, arguments.chain_length, (arguments.seed, 2))
        rows = [chain.triplets(world, rng) for chain in chains]
        file = write_triplets([triplet for row in rows for triplet in row], output / "chains")
        print(f"{len(rows)} chains of {arguments.chain_length} actions in {file}")
    if film is not None and arguments.num_videos:
        rng = np.random.default_rng((arguments.seed, 1))
        truth = {}
        for number in range(arguments.num_videos):
            video = film(rng)
            file = output / "videos" / video.label / f"{number:05d}.mkv"
            write_video(video.frames_THWC, file)
            truth[str(file.relative_to(output))] = [
                {"start": s.start, "end": s.end, "action": s.action} for s in video.truth
            ]
        # Kept apart from the videos: for checking only.
        write_whole(output / "videos-truth.json", json.dumps(truth, indent=1) + "\n")
        print(f"{arguments.num_videos} videos in {output / 'videos'}")


if __name__ == "__main__":
    run(main)
