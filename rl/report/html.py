"""A report as one self-contained HTML file: pictures inline, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from rl.pictures import Picture, to_image

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;text-align:left}
td.n{text-align:right;white-space:nowrap}img{max-width:100%}.note{color:#555}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td,th{border-color:#444}.note{color:#aaa}}
"""


def picture(image: Picture, alt: str) -> str:
    """An `<img>` with the picture inside."""
    stream = io.BytesIO()
    to_image(image).save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>'


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph of plain text."""
    return f'<p class="note">{escape(text)}</p>' if note else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; what begins with a number is aligned on the right."""
    cells = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(_cell(text) for text in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _cell(text: str) -> str:
    number = text.lstrip("+-")[:1].isdigit()
    return f'<td class="n">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"


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
    """A whole page from (heading, parts) sections; parts are the strings that the functions above make."""
    body = "".join(f"<h2>{escape(heading)}</h2>{''.join(parts)}" for heading, parts in sections)
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head = f"<head>{meta}<title>{escape(title)}</title><style>{STYLE}</style></head>"
    return f'<!doctype html><html lang="en">{head}<body><h1>{escape(title)}</h1>{body}</body></html>'
