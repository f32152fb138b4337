"""Sheets of pictures for people: rows of equal pictures with a caption under each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rl.pictures import Picture, to_image
from rl.triplets import Scored, Triplet


def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], cell: int = 128) -> Image.Image:
    """Rows of (picture, caption) as one image; each is scaled to `cell` pixels, small ones unsmoothed."""
    font = ImageFont.load_default(size=max(10, cell // 11))
    line = int(font.getbbox("Ag")[3]) + 2
    characters = max(8, int(cell / font.getlength("n")))
    captions = [[textwrap.wrap(caption, characters) or [""] for _, caption in row] for row in rows]
    heights = [cell + line * max(map(len, lines)) + 6 for lines in captions]
    width = max(len(row) for row in rows) * (cell + 6) + 6
    page = Image.new("RGB", (width, sum(heights) + 6), "white")
    pen = ImageDraw.Draw(page)
    top = 6
    for row, lines, height in zip(rows, captions, heights, strict=True):
        for column, ((picture, _), words) in enumerate(zip(row, lines, strict=True)):
            left = 6 + column * (cell + 6)
            image = to_image(picture)
            smooth = Image.Resampling.LANCZOS if max(image.size) > cell else Image.Resampling.NEAREST
            page.paste(image.resize((cell, cell), smooth), (left, top))
            for number, text in enumerate(words):
                pen.text((left, top + cell + 2 + number * line), text, fill="black", font=font)
        top += height
    return page


def candidate_row(triplet: Triplet, scored: Sequence[Scored]) -> list[tuple[Picture, str]]:
    """A row for `sheet`: source, true target if there is one, candidates from best to worst with their totals."""
    row: list[tuple[Picture, str]] = [(triplet.source, triplet.action)]
    if triplet.target is not None:
        row.append((triplet.target, "true target"))
    ranked = sorted(scored, key=lambda s: -np.inf if s.total is None else s.total, reverse=True)
    return row + [(s.candidate.image, "no score" if s.total is None else f"{s.total:.2f}") for s in ranked]
