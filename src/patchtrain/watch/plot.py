"""Curves of characters: a braille cell is two dots wide and four high.

Its own, and not a plotting library's, because it is all that is needed of one: a few lines of
dots over an axis, in the colours and the width of the terminal's view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from patchtrain.report.formats import loss_range, significant

# The bit of each dot of a cell in Unicode's braille block, by row and column.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800
_LABEL = 8  # columns of the loss axis


@dataclass(frozen=True)
class Curve:
    """Points to draw, ordered by x and joined to a line."""

    points: Sequence[tuple[float, float]]
    style: str


@dataclass
class _Cell:
    bits: int = 0
    style: str = ""


def plot(
    curves: Sequence[Curve],
    width: int,
    height: int,
    x_label: str,
    marks: Sequence[float] = (),
    ascii_only: bool = False,
) -> Text:
    """Curves over a common axis, ``width`` by ``height`` characters, as one text.

    Later curves lie over earlier ones. A dashed line stands at each of the ``marks``. The steep
    fall of the first steps may lie above the plot.
    """
    points = [point for curve in curves for point in curve.points]
    columns, rows = max(width - _LABEL - 2, 8), max(height - 2, 3)
    if not points:
        return Text("no losses yet", style="dim")
    right = max(x for x, _ in points) or 1.0
    low, high = loss_range([points])
    cells = [[_Cell() for _ in range(columns)] for _ in range(rows)]

    def place(x: float, y: float) -> tuple[int, int]:
        column = round(x / right * (2 * columns - 1))
        row = round((high - y) / (high - low) * (4 * rows - 1))
        return column, row

    def dot(column: int, row: int, style: str) -> None:
        if 0 <= column < 2 * columns and 0 <= row < 4 * rows:
            cell = cells[row // 4][column // 2]
            cell.bits |= _DOTS[row % 4][column % 2]
            cell.style = style

    for mark in marks:
        if 0 < mark <= right:
            column, _ = place(mark, low)
            for row in range(0, 4 * rows, 2):
                dot(column, row, "dim")
    for curve in curves:
        before = None
        for x, y in curve.points:
            here = place(x, y)
            for column, row in _line(before, here) if before else [here]:
                dot(column, row, curve.style)
            before = here
    return _text(cells, low, high, x_label, ascii_only)


def _line(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from one to the other."""
    steps = min(max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1), 4000)
    return [
        (
            round(start[0] + (end[0] - start[0]) * i / steps),
            round(start[1] + (end[1] - start[1]) * i / steps),
        )
        for i in range(steps + 1)
    ]


def _text(
    cells: list[list[_Cell]], low: float, high: float, x_label: str, ascii_only: bool
) -> Text:
    text = Text(no_wrap=True, overflow="crop")
    corner, side, floor = ("+", "|", "-") if ascii_only else ("└", "│", "─")
    labelled = {0, len(cells) // 2, len(cells) - 1}
    for number, row in enumerate(cells):
        value = high - (high - low) * (number + 0.5) / len(cells)
        label = significant(value) if number in labelled else ""
        text.append(f"{label:>{_LABEL}} {side}", style="dim")
        for cell in row:
            if not cell.bits:
                text.append(" ")
            elif ascii_only:
                text.append("*" if cell.style != "dim" else ":", style=cell.style)
            else:
                text.append(chr(_BLANK | cell.bits), style=cell.style)
        text.append("\n")
    width = len(cells[0])
    text.append(f"{'':>{_LABEL}} {corner}{floor * width}\n", style="dim")
    text.append(f"{'':>{_LABEL}} 0{x_label.rjust(width)[-width:]}", style="dim")
    return text
