"""Videos without labels -> pairs of key frames between which something happens, by optical flow.

python scripts/mine_videos.py --videos my_videos/ --output runs/pairs
python scripts/mine_videos.py --videos runs/world/videos --rule settled --image_size 64 --output runs/pairs
torchrun --standalone --nproc_per_node 8 scripts/mine_videos.py --videos my_videos/ --output runs/pairs
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainers  # noqa: F401  (says so if another package named 'rl' hides ours)
from rl.running.command_line import parse_with_config, plain, run

if TYPE_CHECKING:
    from rl.data.video.keyframes import Mining


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--videos", nargs="+", type=Path, required=True, help="folders or files")
    p.add_argument(
        "--classes",
        type=Path,
        help="the videos' classes: JSON {file: class}, or CSV with columns file, class; else: name of the folder",
    )
    p.add_argument(
        "--rule",
        default="flow_peak",
        choices=["flow_peak", "settled"],
        help="frames with most motion (arXiv 2506.06006), or the quiet frames around each burst of motion",
    )
    p.add_argument("--num_frames", type=int, default=6, help="key frames a video, or window, at most (K_f)")
    p.add_argument("--per_seconds", type=float, help="apply the rule to each window of so many seconds by itself")
    p.add_argument("--min_gap", type=int, help="flow_peak: frames between key frames at least (I_f; default: 20)")
    p.add_argument("--quiet", type=float, help="settled: share of the strongest motion that is still (default: 0.02)")
    p.add_argument(
        "--flow",
        default="farneback",
        choices=["farneback", "dis"],
        help="optical flow; dis is faster, its pairs differ",
    )
    p.add_argument("--image_size", type=int, default=256, help="pixels along one side of the pictures written")
    p.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes of this shard that mine a video each; the result stays the same",
    )
    p.add_argument("--shard", help="I/N (from 0/N): every N-th video; the last shard to end merges all of them")
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--resume", action="store_true", help="go on where an interrupted run of the same command stopped")
    p.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return p


def main() -> None:
    arguments = parse_with_config(parser())
    from tqdm.auto import tqdm

    from rl import RewindError
    from rl.data.frames import find_media
    from rl.data.video.clips import CLIPS_FILE, Miner, classes_of, mine_clips
    from rl.data.video.shards import HARMLESS, Shards
    from rl.running.run_folder import claim
    from rl.running.shards import shard_of

    mining = checked_rule(arguments)
    shards = Shards(arguments.output, shard_of(arguments.shard))
    _, files = find_media(arguments.videos)
    if not files:
        raise RewindError(f"{', '.join(map(str, arguments.videos))} holds pictures but no video")
    classes, lacking = classes_of(files, arguments.classes)
    config = {name: value for name, value in plain(vars(arguments)).items() if name != "shard"}
    inputs = [*arguments.videos, arguments.classes]
    shards.make_room(arguments.resume, arguments.overwrite, inputs)
    claim(
        shards.folder,
        shards.script,
        config,
        inputs=inputs,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        each_process=shards.mine is not None,
        harmless=HARMLESS,
    )
    if lacking:
        print(f"{lacking} of {len(files)} videos are not in {arguments.classes}: class = folder", file=sys.stderr)
    miner = Miner(shards.folder, mining, arguments.image_size, arguments.per_seconds)
    lines = mine_clips(miner, files, classes, arguments.workers, shards.share)
    for line in tqdm(lines, desc="videos", total=len(range(len(files))[shards.share[0] :: shards.share[1]])):
        if line["fault"]:
            kept = f"{line['fault']}: {len(line['pairs'])} pairs from before are kept"
            tqdm.write(kept if line["pairs"] else f"left out: {line['fault']}", file=sys.stderr)
    if shards.last_to_end({CLIPS_FILE: len(files)}, config):
        shards.merge(files, classes)
        finish(arguments.output, len(files))


def checked_rule(arguments: argparse.Namespace) -> Mining:
    """How to choose key frames; sets the flags that are left out of it to their usual values."""
    from rl import RewindError
    from rl.data.video.keyframes import Mining

    if arguments.image_size < 16:
        raise RewindError(f"--image_size must be at least 16, not {arguments.image_size}")
    if arguments.workers < 1 or (arguments.per_seconds is not None and arguments.per_seconds <= 0):
        raise RewindError("--workers must be at least 1, and --per_seconds more than 0")
    for flag, rule, usual in (("min_gap", "flow_peak", Mining.min_gap), ("quiet", "settled", Mining.quiet)):
        if getattr(arguments, flag) is None:
            setattr(arguments, flag, usual)
        elif arguments.rule != rule:
            raise RewindError(f"--{flag} is of --rule {rule} alone: leave it out, or choose that rule")
    return Mining(arguments.rule, arguments.num_frames, arguments.min_gap, arguments.quiet, arguments.flow)


def finish(output: Path, videos: int) -> None:
    """`pairs.json`, the list of what is left out, and some pairs to look at, of a whole `clips.jsonl`."""
    from rl import RewindError
    from rl.data.left_out import LeftOut, list_left_out
    from rl.data.video.clips import CLIPS_FILE, PAIRS_FILE, write_pairs

    left_out: list[LeftOut] = []
    shown: list[tuple[int, dict[str, Any]]] = []
    found = 0
    with (output / CLIPS_FILE).open(encoding="utf-8") as lines:
        for number, line in enumerate(map(json.loads, lines)):
            found += len(line["pairs"])
            if line["pairs"] and len(shown) < 12:
                shown.append((number, line))
            if line["fault"] and not line["pairs"]:
                left_out.append(LeftOut(line["file"], number, None, "unreadable video", line["fault"]))
    list_left_out(output, left_out)
    if not found:
        raise RewindError(f"no pair was found in {videos} videos: lower --min_gap, or use --rule settled")
    write_pairs(output)
    write_sheet(output, shown)
    print(f"{found} pairs of {videos} videos in {output / PAIRS_FILE}; look at {output / 'sheet.png'}")


def write_sheet(output: Path, shown: list[tuple[int, dict[str, Any]]]) -> None:
    """The first key frames of some clips, to look at."""
    from rl.data.video.clips import picture_name
    from rl.pictures import Picture, load_image
    from rl.report.grids import sheet

    rows: list[list[tuple[Picture, str]]] = []
    for number, line in shown:
        first = line["pairs"][0][0]
        cells = [(first, f"{Path(line['file']).name}, frame {first}")]
        cells += [(b, f"frame {b}, motion {motion:.1f}") for _, b, motion in line["pairs"][:8]]
        rows.append([(load_image(output / picture_name(number, frame)), words) for frame, words in cells])
    sheet(rows).save(output / "sheet.png")


if __name__ == "__main__":
    run(main)
