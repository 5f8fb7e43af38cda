"""Tables on the terminal: as wide as it is, or as wide as they need in a file.

Where a table is wider than the terminal, its columns go on in a further table below, with the first
column again: no number is cut or broken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_IN_A_FILE = 150
# What stands in these columns is words, to be read from the left.
_WORDS = ("stage", "run", "arm", "what it is", "less", "name", "device", "source")
_WORDS_NEED = 30  # cells of a column of words, which may be broken into lines
_PADDING = 3  # cells beside every column


def console(width_in_a_file: int = _WIDTH_IN_A_FILE) -> Console:
    """Where results go: stdout, in colour only on a terminal and not with ``NO_COLOR``."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else width_in_a_file)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Columns of numbers to the right, of words to the left."""
    made = Table(box=box.SIMPLE_HEAD)
    for name in head:
        words = name in _WORDS
        made.add_column(
            name, justify="left" if words else "right", no_wrap=not words, overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A whole table on stdout, in as many parts as a terminal is too narrow for."""
    columns = [[name, *(row[number] for row in rows)] for number, name in enumerate(head)]
    whole = sum(map(_least, columns)) + 1
    screen = console(max(_WIDTH_IN_A_FILE, whole))
    for part in [columns] if whole <= screen.width else _parts(columns, screen.width):
        cells = zip(*(column[1:] for column in part), strict=True)
        screen.print(_table([column[0] for column in part], list(cells)))


def _least(column: Sequence[str]) -> int:
    """Cells that a column needs: all of its numbers, or some for its words."""
    longest = max(map(cell_len, column))
    return (min(longest, _WORDS_NEED) if column[0] in _WORDS else longest) + _PADDING


def _parts(columns: Sequence[Sequence[str]], width: int) -> list[list[Sequence[str]]]:
    """The columns that have room beside each other in ``width`` cells, the first in each part."""
    parts = [[columns[0]]]
    for column in columns[1:]:
        if sum(map(_least, [*parts[-1], column])) >= width and len(parts[-1]) > 1:
            parts.append([columns[0]])
        parts[-1].append(column)
    return parts
