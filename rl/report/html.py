"""A report as one self-contained HTML file: pictures inline, no script, nothing fetched.

How it looks stands in `page.html.j2`. Every part is made by a function here; a text among the parts that is made by
none is shown as it is, escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from rl.pictures import Picture, to_image

_environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
_environment.tests["numeric"] = lambda text: text.lstrip("+-")[:1].isdigit()
_parts: Any = _environment.get_template("page.html.j2").module


def picture(image: Picture, alt: str) -> str:
    """An `<img>` with the picture inside."""
    stream = io.BytesIO()
    to_image(image).save(stream, "PNG", optimize=True)
    return _parts.picture(alt, base64.b64encode(stream.getvalue()).decode())


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph of plain text."""
    return _parts.paragraph(text, note)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; what begins with a number is aligned on the right."""
    return _parts.table(head, rows)


def curves(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Lines of (x, y) points; a series without points is left out."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return paragraph("Nothing to draw yet.", note=True)
    from matplotlib.figure import Figure  # without pyplot, which keeps every figure alive

    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.subplots()
    for name, points in drawn.items():
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    axes.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return picture(Image.open(stream), f"{y_label} by {x_label}: {', '.join(drawn)}")


def page(title: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A whole page from (heading, parts) sections; parts are what the functions above make."""
    return str(_parts.page(title, sections))
