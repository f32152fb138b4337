"""Sheets of pictures for people: rows of equal pictures with a caption under each."""

from __future__ import annotations

import logging
import string
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rl.pictures import Picture, to_image
from rl.triplets import Scored, Triplet

_logger = logging.getLogger("rl")
_said: set[str] = set()
"""Escapes that were told of, once a process."""


def sheet(rows: Sequence[Sequence[tuple[Picture, str]]], cell: int = 128) -> Image.Image:
    """Rows of (picture, caption) as one image; each is scaled to `cell` pixels a side, small ones unsmoothed.

    A character that no font here has, as of Chinese or most emoji, is drawn as its escape (`\\u732b`), which is logged.
    """
    font, lacks = _font(max(10, cell // 11), (caption for row in rows for _, caption in row))
    line = int(font.getbbox("Ag")[3]) + 2
    characters = max(8, int(cell / font.getlength("n")))
    captions = [[textwrap.wrap(caption.translate(lacks), characters) or [""] for _, caption in row] for row in rows]
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
            scale = cell / max(image.size)
            wide, high = (max(1, round(side * scale)) for side in image.size)
            page.paste(image.resize((wide, high), smooth), (left + (cell - wide) // 2, top + (cell - high) // 2))
            for number, text in enumerate(words):
                pen.text((left, top + cell + 2 + number * line), text, fill="black", font=font)
        top += height
    return page


def _font(size: int, captions: Iterable[str]) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, dict[int, str]]:
    """A font for captions, and what it lacks of their characters -> their escapes."""
    used = set().union(*captions)
    if all(" " <= character <= "~" or character.isspace() for character in used):
        return ImageFont.load_default(size=size), {}
    import matplotlib
    from matplotlib.ft2font import FT2Font

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # more alphabets than Pillow's own
    known = FT2Font(str(file)).get_charmap()
    # What is no character to print, such as the end of a paragraph, an untrained model says too; no layout draws it.
    missing = sorted(c for c in used if c not in string.whitespace and (ord(c) not in known or not c.isprintable()))
    lacks = {ord(character): character.encode("unicode_escape").decode() for character in missing}
    if lacks and not _said:
        _said.update(lacks.values())
        some = ", ".join([*lacks.values()][:5])
        _logger.warning("the font of sheets lacks characters of the captions, which are drawn as %s", some)
    return ImageFont.truetype(str(file), size), lacks


def candidate_row(triplet: Triplet, scored: Sequence[Scored]) -> list[tuple[Picture, str]]:
    """A row for `sheet`: source, true target if there is one, candidates from best to worst with their totals."""
    row: list[tuple[Picture, str]] = [(triplet.source, triplet.action)]
    if triplet.target is not None:
        row.append((triplet.target, "true target"))
    ranked = sorted(scored, key=lambda s: -np.inf if s.total is None else s.total, reverse=True)
    return row + [(s.candidate.image, "no score" if s.total is None else f"{s.total:.2f}") for s in ranked]
