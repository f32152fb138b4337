"""Triplets on disk: data sets in the forms of `rl.data.formats` to `Triplets`, and a list in AURORA's form back."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rl.actions import vector_of
from rl.data.columns import plain_columns
from rl.data.entry import KNOWN, Entry, EntryError, entry_of
from rl.data.formats.names import parse_columns
from rl.data.formats.table import TRIED, Options, open_entries
from rl.data.left_out import LeftOut, check
from rl.data.linked import link_pictures
from rl.data.mixture import is_mixture, read_mixture
from rl.data.places import roots_of
from rl.data.triplet_table import Part, Triplets
from rl.errors import RewindError
from rl.paths import expanded
from rl.pictures import PictureFile, Views, pixels, to_image
from rl.running.files import write_whole
from rl.stored import StoredPicture
from rl.triplets import Triplet

FEW = 4096
"""Of so many entries, each picture is decoded."""
AT_ONCE = 512
"""Entries that are looked at between two progress steps: what is made of them is held at once."""
CHECKS = ("decode", "ends")
"""What `--check_pictures` names: all of a picture is decoded, or a file's two ends are looked at."""


def read_triplets(
    path: str | Path,
    limit: int | None = None,
    *,
    named: bool = True,
    with_targets: bool = False,
    image_root: str | Path | None = None,
    strict: bool = False,
    left_out: list[LeftOut] | None = None,
    format: str | None = None,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    split: str | None = None,
    check_pictures: str | None = None,
) -> Triplets:
    """Read the triplets of a data set, or of its first `limit` entries; each is made when it is asked for.

    `path` is a JSON list (or one under "data", or JSON lines), a CSV file, a folder of InstructPix2Pix, a Parquet file,
    a folder of `datasets`, a Hub id, `file.py:function`, or a mixture of those (`rl.data.mixture`): what it is, is
    found out (`rl.data.formats.table`).

    An entry has `instruction` (or `prompt`; of a list of them, the first) or `action`, a list of numbers; `input`, and
    optionally `output`, `task`, `class`, `score` and `source` (provenance); what else it holds is kept as it stands
    (`Triplet.more`), for rewards that ask for it by name. Words beside a vector are its task. A list of pictures is
    one scene through several cameras (`rl.pictures.Views`). Pictures stay where they are and are decoded when somebody
    looks (`rl.stored.StoredPicture`). Before, it is seen that each is there and whole: of up to `FEW` entries by
    decoding it, at a reduced size where its format allows, of more by the two ends of its file.

    Image paths are relative to the file's folder or, if the first entries' pictures are not there, to one of the three
    folders above it in which one of them is, which is said; or to `image_root`. A path may lead through links; as it is
    written it must end in the folder that it is relative to, in the file's folder or in `image_root`.

    An entry that cannot be used is left out, with a warning that counts them by reason.

    Args:
        path: the data set.
        limit: of the entries, those that are left out included; all if None.
        named: if not, the file holds pairs: `instruction` may be absent, and the action is then the empty text.
        with_targets: leave out entries without `output`, whose target would be unknown (None).
        image_root: the folder that image paths start from.
        strict: refuse a data set with an entry that would be left out.
        left_out: a list to which those are added.
        format: what the data set is, where that cannot be found out: one of `rl.data.formats.table.FORMATS`.
        columns: `["input=before", "output=after"]` or that as a mapping, for other names of columns.
        split: of a table with several.
        check_pictures: one of `CHECKS`; None decides by the number of entries.

    Raises:
        RewindError: the data cannot be read, more than half of its entries would be left out, or any with `strict`; it
            names the first entry and what is wrong with it.
    """
    if limit is not None and limit < 1:
        raise RewindError(f"the limit of triplets must be at least 1, not {limit}")
    if check_pictures not in (None, *CHECKS):
        raise RewindError(f"--check_pictures is one of {', '.join(CHECKS)}, not '{check_pictures}'")
    how: dict[str, Any] = {"named": named, "with_targets": with_targets, "strict": strict, "left_out": left_out}
    how |= {"check_pictures": check_pictures}
    options = Options(format, parse_columns(columns), split, image_root)
    if is_mixture(path):
        found = read_mixture(path, options, lambda given, opts: _read(given, opts, None, **how))
        return found if limit is None else found[:limit]
    return _read(str(path), options, limit, **how)


def _read(
    given: str,
    options: Options,
    limit: int | None,
    *,
    named: bool,
    with_targets: bool,
    strict: bool,
    left_out: list[LeftOut] | None,
    check_pictures: str | None,
) -> Triplets:
    """The triplets of one data set."""
    rows, folder = open_entries(given, options, limit)
    file = expanded(given)
    roots = roots_of(file, folder, options.image_root, _names(rows[:TRIED]))
    reader = _Reader(rows, roots, named, with_targets)
    reader.look(check_pictures == "decode" if check_pictures else len(rows) <= FEW)
    faults = sorted(reader.faults.items())
    left = [LeftOut(str(file), n, one.key, one.reason, f"{file}, triplet {n}: {one}") for n, one in faults]
    check(file, len(rows), left, strict)
    if left_out is not None:
        left_out += left
    return Triplets.of(Part(reader.triplet, tuple(reader.columns)), reader.good)


class _Reader:
    """Makes triplets of entries, and sees which of them can be used.

    `good` are the numbers of those, `faults` what is wrong with the others, `columns` the names of further columns.
    """

    def __init__(self, rows: Sequence[Any], roots: Sequence[Path], named: bool, with_targets: bool) -> None:
        self._rows, self._roots, self._named, self._with_targets = rows, roots, named, with_targets
        self.good = array("q")
        self.faults: dict[int, EntryError] = {}
        self.columns: dict[str, None] = {}

    def triplet(self, row: int) -> Triplet:
        """The triplet of an entry that can be used."""
        return self._entry(row).triplet()

    def _entry(self, row: int) -> Entry:
        return entry_of(self._rows[row], self._roots, self._named, self._with_targets)

    def look(self, decode: bool) -> None:
        """Look at every entry and its pictures; decoders and disks work outside Python's lock, so threads help."""
        total = len(self._rows)
        with (
            ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool,
            tqdm(total=total, desc="triplets", disable=total <= FEW) as bar,
        ):
            for start in range(0, total, AT_ONCE):
                numbers = range(start, min(start + AT_ONCE, total))
                self._look_at(numbers, pool, decode)
                bar.update(len(numbers))

    def _look_at(self, numbers: range, pool: ThreadPoolExecutor, decode: bool) -> None:
        entries: dict[int, Entry] = {}
        for number in numbers:
            try:
                entries[number] = self._entry(number)
            except EntryError as fault:
                self.faults[number] = fault

        def wrong(picture: Any) -> RewindError | None:
            try:
                picture.check(decode) if isinstance(picture, StoredPicture) else pixels(picture)
            except RewindError as error:
                return error
            return None

        # A file that several entries name is looked at once; arrays cannot be told apart by value.
        pictures = {_key(one): one for entry in entries.values() for one in (*entry.source, *entry.target)}
        found = dict(zip(pictures, pool.map(wrong, pictures.values()), strict=True))
        for number, entry in entries.items():
            try:
                for key, several in (("input", entry.source), ("output", entry.target)):
                    _check(key, several, found)
                entry.check_views()
            except EntryError as fault:
                self.faults[number] = fault
            else:
                self.good.append(number)
                self.columns |= dict.fromkeys(entry.words["more"])


def _check(key: str, pictures: Sequence[Any], found: Mapping[Any, RewindError | None]) -> None:
    """Raise an `EntryError` about the first picture with which something is wrong."""
    for one in pictures:
        if (error := found[_key(one)]) is not None:
            missing = isinstance(one, StoredPicture) and one.is_missing
            raise EntryError(key, "missing picture" if missing else "unreadable picture", f"'{key}': {error}")


def _key(picture: Any) -> Any:
    return picture if isinstance(picture, StoredPicture) else id(picture)


def _names(entries: Sequence[Any]) -> Iterator[str]:
    """The paths of the source pictures of a few entries."""
    for entry in entries:
        given = entry.get("input") if isinstance(entry, Mapping) else None
        given = given[0] if isinstance(given, list) and given else given
        if isinstance(given, Mapping):
            given = given.get("video") or given.get("path")
        if isinstance(given, str):
            yield given


def write_triplets(
    triplets: Sequence[Triplet], folder: Path, name: str = "triplets.json", *, link: bool = False
) -> Path:
    """Write triplets as PNG pictures under `folder/images` and a JSON list beside; returns the list's path.

    With `link`, pictures that lie in files are referred to in place of copies (`rl.data.linked`).
    """
    written = Written(triplets, folder, link)
    path = folder / name
    write_whole(path, json.dumps([written.write(number) for number in range(len(triplets))], indent=1) + "\n")
    return path


class Written:
    """Triplets as entries of a file in `folder`, and their pictures there: PNG in `images`, or links with `link`."""

    def __init__(self, triplets: Sequence[Triplet], folder: Path, link: bool) -> None:
        self._triplets, self._folder = triplets, folder
        self._linked = link_pictures(triplets, folder) if link else {}
        self._width = len(str(len(triplets)))
        (folder / "images").mkdir(parents=True, exist_ok=True)

    def write(self, number: int, only_missing: bool = False) -> dict[str, Any]:
        """The entry of a triplet, after its pictures are written, or those of them that are not there."""
        for _, names, views in self._pictures(number):
            for name, view in zip(names, views, strict=True):
                file = self._folder / name
                if self._link_of(view) is None and not (only_missing and file.is_file() and file.stat().st_size):
                    to_image(view).save(file)
        return self.entry(number)

    def entry(self, number: int) -> dict[str, Any]:
        """The entry of a triplet; no picture is looked at."""
        triplet = self._triplets[number]
        entry: dict[str, Any] = {"instruction": triplet.action} if triplet.action else {}
        if (vector := vector_of(triplet.action)) is not None:
            entry = {"action": list(vector)}
        entry |= {key: names if len(names) > 1 else names[0] for key, names, _ in self._pictures(number)}
        optional = {
            "task": triplet.task,
            "class": triplet.label,
            "score": triplet.score,
            "source": triplet.provenance,
        }
        entry |= {key: value for key, value in optional.items() if value is not None}
        return {**entry, **{k: v for k, v in plain_columns(triplet.more).items() if k not in KNOWN}}

    def _pictures(self, number: int) -> Iterator[tuple[str, list[str], Sequence[Any]]]:
        """For source and target: the key, and the file names and pictures of its views."""
        triplet = self._triplets[number]
        for key, picture in (("input", triplet.source), ("output", triplet.target)):
            if picture is not None:
                views = picture.pictures if isinstance(picture, Views) else (picture,)
                begin = f"images/{number:0{self._width}d}-{key}"
                copies = [f"{begin}{f'-{n}' if n else ''}.png" for n in range(len(views))]
                yield key, [self._link_of(one) or copy for one, copy in zip(views, copies, strict=True)], views

    def _link_of(self, view: Any) -> str | None:
        return self._linked.get(view.path) if isinstance(view, PictureFile) else None
