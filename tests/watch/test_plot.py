"""Curves of characters: every point has its dot, in its place."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from patchtrain.report.formats import loss_range
from patchtrain.watch.plot import Curve, plot


def cells(text: str) -> list[str]:
    """The rows of the drawing, without axis and labels."""
    return [line[10:] for line in text.split("\n")[:-2]]


def dots(text: str) -> set[tuple[int, int]]:
    """Columns and rows of all dots, from the braille characters' own definition."""
    bits = {0: (0, 0), 1: (0, 1), 2: (0, 2), 3: (1, 0), 4: (1, 1), 5: (1, 2), 6: (0, 3), 7: (1, 3)}
    return {
        (2 * x + bits[bit][0], 4 * y + bits[bit][1])
        for y, row in enumerate(cells(text))
        for x, char in enumerate(row)
        for bit in bits
        if char != " " and (ord(char) - 0x2800) >> bit & 1
    }


def test_points_stand_where_they_belong() -> None:
    rng = random.Random(0)
    points = sorted((rng.uniform(1, 10), rng.uniform(2, 3)) for _ in range(30))
    low, high = loss_range([points])
    width, height = 50, 14
    found = dots(plot([Curve([point], "") for point in points], width + 10, height + 2, "x").plain)
    expected = {
        (round(x / points[-1][0] * (2 * width - 1)),
         round((high - y) / (high - low) * (4 * height - 1)))
        for x, y in points
    }  # fmt: skip
    assert found == {(x, y) for x, y in expected if 0 <= y < 4 * height}


def test_joined_points_leave_no_gap() -> None:
    text = plot([Curve([(0, 2), (4, 1), (10, 2)], "")], 60, 16, "x").plain
    assert {x for x, _ in dots(text)} == set(range(100))


def test_a_mark_is_a_line_from_top_to_bottom() -> None:
    text = plot([Curve([(0, 2)], ""), Curve([(10, 2)], "")], 60, 12, "x", marks=[5]).plain
    column = 50  # the middle of 100
    assert {y for x, y in dots(text) if abs(x - column) <= 1} >= set(range(0, 40, 2))


def test_every_line_has_the_width_asked_for() -> None:
    text = plot([Curve([(1, 2), (2, 1)], "red")], 70, 12, "compute: 3 TFLOP").plain
    assert {len(line) for line in text.split("\n")} == {70}
    assert len(text.split("\n")) == 12
    assert text.endswith("compute: 3 TFLOP")


@pytest.mark.parametrize("points", [[], [(0.0, 0.0)], [(1e30, 5.0)], [(1.0, 2.0)] * 3])
def test_few_and_equal_points(points: list[tuple[float, float]]) -> None:
    assert plot([Curve(points, "")], 40, 10, "x").plain


def test_ascii_alone_where_the_terminal_has_no_more() -> None:
    text = plot([Curve([(1, 2), (2, 1)], "blue")], 40, 10, "x", marks=[1], ascii_only=True)
    console = Console(file=io.StringIO(), width=40)
    console.print(text)
    assert text.plain.isascii()
    assert "*" in text.plain
    assert ":" in text.plain
