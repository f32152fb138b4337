"""The report is one file that needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from rl.report import markdown
from rl.report.html import curves, page, paragraph, picture, table


def test_a_page_is_self_contained_and_escaped() -> None:
    image = picture(np.zeros((8, 8, 3), np.uint8), 'a "quoted" <scene>')
    line = curves({"reward": [(0, 1.0), (5, 2.0)], "flat": [(0, 1.0)], "none": []}, "step", "reward")
    text = page("A <title>", [("One & two", [paragraph("1 < 2"), image, line, table(["a", "b"], [["<x>", "1"]])])])
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "&lt;x&gt;" in text
    assert 'alt="reward by step: reward, flat"' in text
    stack: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in ("img", "meta"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag

    Balanced().feed(text)
    assert stack == []


def test_a_text_that_is_no_part_is_escaped() -> None:
    assert "<h2>a</h2>\n&lt;b&gt;" in page("", [("a", ["<b>"])])


def test_a_table_in_markdown() -> None:
    assert markdown.table(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"


def test_curves_without_points() -> None:
    assert "Nothing to draw" in curves({"a": []}, "step", "reward")
    assert "<img" in curves({"a": [(1.0, 2.0)]}, "step", "reward")
