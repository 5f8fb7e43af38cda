"""Tables on the terminal: as wide as it is, or as wide as they need in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_IN_A_FILE = 150
# What stands in these columns is words, to be read from the left.
_WORDS = ("stage", "run", "arm", "what it is", "less", "name", "device", "source")


def console(width_in_a_file: int = _WIDTH_IN_A_FILE) -> Console:
    """Where results go: stdout, in colour only on a terminal and not with ``NO_COLOR``."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else width_in_a_file)


def table(head: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> Table:
    """Columns of numbers to the right, of words to the left."""
    made = Table(box=box.SIMPLE_HEAD)
    for name in head:
        made.add_column(name, justify="left" if name in _WORDS else "right")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A whole table on stdout."""
    console().print(table(head, rows))
