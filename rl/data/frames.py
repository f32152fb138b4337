"""Pictures and videos of any folder as material for pretraining."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rl.data.pools import PretrainingPool
from rl.data.video.video_files import frame_rate, frames_of
from rl.errors import RewindError
from rl.paths import as_written, expanded
from rl.pictures import load_image, to_array

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"}
PAIR_SECONDS = 0.5
"""Two frames of a pair are this far apart."""

_logger = logging.getLogger("rl")


def find_media(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Image files and video files under the given folders or files, in order of their names.

    Links to folders are followed, but no folder is gone through twice, and none that the link itself stands in. The
    `._` files that macOS writes beside every file are no media.

    Raises:
        RewindError: a path is missing, or there is neither a picture nor a video.
    """
    files: list[Path] = []
    for path in map(expanded, paths):
        if not path.exists():
            raise RewindError(f"there is no {path}: give folders or files of pictures or videos")
        files += _files_below(path) if path.is_dir() else [path]
    images = [f for f in files if f.suffix.lower() in IMAGE_SUFFIXES]
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES]
    if not images and not videos:
        listed = ", ".join(map(str, paths))
        raise RewindError(f"{listed} holds no picture ({' '.join(sorted(IMAGE_SUFFIXES))}) and no video")
    return images, videos


def _files_below(folder: Path) -> list[Path]:
    """Files in a folder and all below it, in order of their names; true folders keep theirs where a link leads, too."""
    found: list[Path] = []
    gone_through: set[Path] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        is_link = not folders
        current = links.pop(0) if is_link else folders.pop()
        real = current.resolve()
        if real in gone_through or (is_link and current.parent.resolve().is_relative_to(real)):
            continue
        gone_through.add(real)
        try:
            inside = sorted(current.iterdir())
        except OSError as error:
            _logger.warning("the folder %s cannot be read (%s) and is left out", current, error.strerror)
            continue
        for path in inside:
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.is_file() and not path.name.startswith("._"):
                found.append(path)
    return sorted(found)


def video_frames(path: Path, size: int, max_frames: int) -> tuple[np.ndarray, float]:
    """At most `max_frames` frames of a video, evenly spread, as uint8 [T, size, size, 3], and frames a second.

    A video that breaks off gives what could be read, and a warning; one without a readable frame gives none.
    """
    frames: list[np.ndarray] = []
    try:
        for frame in frames_of(path):
            frames.append(to_array(frame, size))
    except RewindError as error:
        _logger.warning("%s: %d frames are used, the rest is left out", error, len(frames))
    rate = frame_rate(path)
    if not frames:
        return np.zeros((0, size, size, 3), np.uint8), rate
    keep = np.unique(np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int))
    return np.stack([frames[i] for i in keep]), rate * len(keep) / len(frames)


def read_texts(paths: Sequence[Path]) -> list[str]:
    """Sentences from text files (one a line) or AURORA's JSON lists (their `instruction`s)."""
    texts: list[str] = []
    for path in map(expanded, paths):
        try:
            content = path.read_text(encoding="utf-8-sig")
            if path.suffix == ".json":
                texts += [entry["instruction"] for entry in json.loads(content)]
            else:
                texts += content.splitlines()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RewindError(f"{path} is neither lines of text nor a list in AURORA's JSON ({error!r})") from error
    return [text.strip() for text in texts if text.strip()]


def read_captions(path: Path) -> dict[Path, list[str]]:
    """Captions by image file (its full path as written, links not followed) from a JSON list of {"image", "caption"}.

    Paths are relative to the file; as they are written they stay in its folder.
    """
    path = expanded(path)
    try:
        entries = [(entry["image"], entry["caption"]) for entry in json.loads(path.read_text(encoding="utf-8-sig"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RewindError(f'{path} is no JSON list of {{"image": path, "caption": words}} ({error!r})') from error
    found: dict[Path, list[str]] = {}
    root = as_written(path).parent
    for image, caption in entries:
        file = as_written(root / image)
        if not file.is_relative_to(root):
            raise RewindError(f"{path} names {image}, which lies outside its folder: keep the pictures beside the file")
        found.setdefault(file, []).append(caption)
    return found


def pool_from_frames(
    paths: Sequence[Path],
    size: int,
    max_frames: int,
    captions: dict[Path, list[str]] | None = None,
    texts: Sequence[str] = (),
) -> PretrainingPool:
    """A pool from folders of pictures and videos.

    Videos share what `max_frames` leaves beside the pictures; two of their frames half a second apart are a pair. A
    picture that cannot be read is left out, and a warning counts such pictures and names the first.
    """
    image_files, video_files = find_media(paths)
    captions_of = _captions_of(image_files, captions or {})
    images: list[np.ndarray] = []
    words: list[list[str]] = []
    broken: list[str] = []
    for file in image_files[:max_frames]:
        try:
            images.append(to_array(load_image(file), size))
            words.append(captions_of.get(file, []))
        except RewindError as error:
            broken.append(str(error))
    if broken:
        _logger.warning("%d of %d pictures are left out; the first: %s", len(broken), len(image_files), broken[0])
    pairs: list[tuple[int, int]] = []
    share = max(2, (max_frames - len(images)) // max(1, len(video_files)))
    for file in video_files:
        frames, rate = video_frames(file, size, share)
        gap, first = max(1, round(rate * PAIR_SECONDS)), len(images)
        pairs += [(first + t, first + t + gap) for t in range(len(frames) - gap)]
        images += list(frames)
        words += [[] for _ in frames]
    if not images:
        raise RewindError(f"no picture could be read from {', '.join(map(str, paths))}")
    return PretrainingPool(np.stack(images), words, np.array(pairs).reshape(-1, 2), [[] for _ in pairs], list(texts))


def _captions_of(image_files: Sequence[Path], captions: dict[Path, list[str]]) -> dict[Path, list[str]]:
    """The captions of each file that has some: of the path as it is written or, if that has none, of where it leads."""
    real = {path.resolve(): path for path in captions}
    found: dict[Path, list[str]] = {}
    known: set[Path] = set()
    for file in image_files:
        written = as_written(file)
        key = written if written in captions else real.get(file.resolve())
        if key is not None:
            found[file] = captions[key]
            known.add(key)
    unknown = sorted(set(captions) - known)
    if unknown:
        raise RewindError(f"{unknown[0]} has a caption but is not among the pictures of --frames")
    return found
