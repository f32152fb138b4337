"""The draws of a store as groups of candidates, each read from its files when somebody looks at it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rl.codes import Grid
from rl.data.candidates.stored import Draw, Index, Parts, row_of
from rl.data.lazy import Lazy
from rl.errors import RewindError
from rl.pictures import Picture, PictureFile, Views
from rl.triplets import Candidate, Scored, Triplet

if TYPE_CHECKING:
    from rl.models.unified import UnifiedVLM

Group = tuple[Triplet, list[Scored]]
_OF_TRIPLETS = ("prompt", "source", "target", "action", "task", "more", "grid")


class StoredGroups(Lazy[Group]):
    """The candidates of each draw (seed, step, prompt) as candidates of a backbone, in the order of first appearance.

    Each draw has a source of its own, so that rewards which compare the candidates of a source never mix two draws.

    Args:
        folder: of the store, for messages and pictures.
        parts: its files.
        backbone: whose candidates they must be.

    Raises:
        RewindError: candidates of another base or size, here or when a group is looked at.
    """

    def __init__(self, folder: Path, parts: Parts, backbone: UnifiedVLM) -> None:
        self.folder, self.parts, self.backbone = folder, parts, backbone
        for _, _, table in parts.scan(("base", "fingerprint")):
            for row in table.group_by(["base", "fingerprint"]).aggregate([]).to_pylist():
                if not _same_base(row, backbone):
                    raise RewindError(
                        f"{folder} holds candidates of {row['base']}, whose tokens are not those of {backbone.name}"
                    )
        self.found = Index(parts)
        if self.draws:
            self[0]  # so that another size is said at once

    @property
    def draws(self) -> list[Draw]:
        """Seed, step and prompt of each."""
        return self.found.draws

    def __len__(self) -> int:
        return len(self.draws)

    def make(self, number: int) -> Group:
        rows = self.rows(number)
        triplet, group = triplet_of(rows[0], self.folder), [_scored(row, self.backbone) for row in rows]
        grid, asked = group[0].candidate.codes.grid, self.backbone.grid_of(triplet.source)
        if grid != asked:
            raise RewindError(
                f"{self.folder} holds candidates of {grid.rows}x{grid.columns} tokens where image_size "
                f"{self.backbone.image_size} asks for {asked.rows}x{asked.columns}: give the one that they were drawn "
                "at"
            )
        return triplet, group

    def columns(self) -> list[str]:
        """Names of the further columns, those that any triplet has."""
        texts: dict[str, None] = {}
        for _, _, table in self.parts.scan(("more",)):
            texts |= dict.fromkeys(table.column("more").drop_null().unique().to_pylist())
        return list(dict.fromkeys(name for text in texts for name in json.loads(text)))

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The rows of a draw, in the order of its candidates."""
        return [row_of(self.parts.cached(part, group), row) for part, group, row in self.found.of(number)]


class StoredTriplets(Lazy[Triplet]):
    """Each source and action of a store once, with the true target where it is known, made when looked at."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.folder, found = folder, dict[str, dict[str, Any]]()
        for _, _, table in parts.scan(_OF_TRIPLETS):
            prompts = table.column("prompt").to_pylist()
            for row in {prompt: number for number, prompt in enumerate(prompts)}.values():
                found[prompts[row]] = {name: table.column(name)[row].as_py() for name in _OF_TRIPLETS[1:]}
        self._rows = [tuple(row.values()) for row in found.values()]

    def __len__(self) -> int:
        return len(self._rows)

    def make(self, number: int) -> Triplet:
        return triplet_of(dict(zip(_OF_TRIPLETS[1:], self._rows[number], strict=True)), self.folder)


@dataclass(frozen=True, slots=True)
class PictureOfStore(PictureFile):
    """A picture of a store, whose key is known."""

    key: str = ""


def picture_file(folder: Path, key: str) -> Path:
    """Where a store keeps a picture."""
    return folder / "pictures" / f"{key}.png"


def triplet_of(row: dict[str, Any], folder: Path) -> Triplet:
    """The triplet of a row, with pictures of its own."""
    views = Grid(*row["grid"]).views if row["grid"] else 1

    def whole(key: str) -> Picture:
        picture = _stored_picture(picture_file(folder, key), key)
        return picture if views == 1 else Views.of_stack(np.asarray(picture), views)

    target = None if row["target"] is None else whole(row["target"])
    more = json.loads(row["more"]) if row["more"] else {}
    return Triplet(whole(row["source"]), row["action"], target, row["task"], more=more)


def _stored_picture(file: Path, key: str) -> PictureFile:
    """A PNG that the store has written whole: only its size is read."""
    try:
        with Image.open(file) as image:
            return PictureOfStore(file, image.size, key)
    except OSError:
        return PictureFile.of(file)  # says what is wrong


def _scored(row: dict[str, Any], backbone: UnifiedVLM) -> Scored:
    scores = dict(zip(row["rewards"], row["scores"], strict=True))
    grid = None if row["grid"] is None else Grid(*row["grid"])
    return Scored(Candidate(row["ids"], row["logprobs"], backbone, grid), scores, row["total"])


def _same_base(row: dict[str, Any], backbone: UnifiedVLM) -> bool:
    """Whether a candidate was drawn on a backbone's base: by its weights, or by name where one of them has no word."""
    if row["fingerprint"] is not None and backbone.fingerprint is not None:
        return bool(row["fingerprint"] == backbone.fingerprint.sha256)
    return same_name(row["base"], backbone.name)


def same_name(first: str, second: str) -> bool:
    """Whether two names are one: the same word, or the same folder."""
    return first == second or Path(first).resolve() == Path(second).resolve()
