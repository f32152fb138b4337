"""Videos without labels -> pairs of key frames between which something happens, by optical flow.

python scripts/mine_videos.py --videos my_videos/ --output runs/pairs
python scripts/mine_videos.py --videos runs/world/videos --rule settled --image_size 64 --output runs/pairs
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--videos", nargs="+", type=Path, required=True, help="folders or files; class = parent folder")
    p.add_argument(
        "--rule",
        default="flow_peak",
        choices=["flow_peak", "settled"],
        help="frames with most motion (arXiv 2506.06006), or the quiet frames around each burst of motion",
    )
    p.add_argument("--num_frames", type=int, default=6, help="key frames a video at most (K_f)")
    p.add_argument("--min_gap", type=int, default=20, help="frames between key frames at least (I_f, flow_peak)")
    p.add_argument("--quiet", type=float, default=0.02, help="share of the strongest motion that is still (settled)")
    p.add_argument("--image_size", type=int, default=256, help="pixels along one side of the pictures written")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from tqdm.auto import tqdm

    from rl import RewindError, Triplet
    from rl.data.frames import find_media
    from rl.data.keyframes import Mining
    from rl.data.mining import mine
    from rl.data.triplet_files import write_triplets
    from rl.pictures import Picture
    from rl.report.grids import sheet
    from rl.running.run_folder import claim

    if arguments.image_size < 16:
        raise RewindError(f"--image_size must be at least 16, not {arguments.image_size}")
    mining = Mining(arguments.rule, arguments.num_frames, arguments.min_gap, arguments.quiet)
    _, files = find_media(arguments.videos)
    if not files:
        raise RewindError(f"{', '.join(map(str, arguments.videos))} holds pictures but no video")
    output = claim(
        arguments.output,
        "mine_videos.py",
        plain(vars(arguments)),
        inputs=arguments.videos,
        overwrite=arguments.overwrite,
    )
    pairs: list[Triplet] = []
    rows: list[list[tuple[Picture, str]]] = []
    for file in tqdm(files, desc="videos"):
        try:
            found = mine(file, mining, arguments.image_size)
        except RewindError as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        pairs += [Triplet(p.before, "", p.after, label=file.parent.name, provenance=file.name) for p in found]
        if found and len(rows) < 12:
            cells: list[tuple[Picture, str]] = [(found[0].before, f"{file.name}, frame {found[0].start}")]
            rows.append(cells + [(p.after, f"frame {p.end}, motion {p.motion:.1f}") for p in found])
    if not pairs:
        raise RewindError(f"no pair was found in {len(files)} videos: lower --min_gap, or use --rule settled")
    write_triplets(pairs, output, "pairs.json")
    sheet(rows).save(output / "sheet.png")
    print(f"{len(pairs)} pairs of {len(files)} videos in {output / 'pairs.json'}; look at {output / 'sheet.png'}")


if __name__ == "__main__":
    run(main)
