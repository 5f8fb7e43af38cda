"""What is in a patch, on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from patchtrain.report import patch_views as views
from patchtrain.report import terminal
from patchtrain.report.formats import count, number

_COLOURS = ("black on bright_cyan", "black on bright_yellow")
_SHOWN_DISTANCES = (1, 2, 4, 8, 16, 64, 256, 1024)


def print_patches(
    found: dict[str, Any], shown: dict[int, list[str]], patch_sizes: Sequence[int]
) -> None:
    """Tables for ``patch_sizes``, and the text with the borders of its patches.

    On a terminal patches are coloured in turn, elsewhere ``|`` stands between them.
    """
    console = terminal.console()
    documents = f"{found['documents']:,} document{'s' * (found['documents'] != 1)}"
    console.print(f"{found['tokens']:,} tokens of {documents} ({found['read']})", markup=False)
    if found["left_out"]:
        console.print(
            f"left out: {found['left_out']:,} documents that do not come back from their tokens"
        )
    for K, patches in shown.items():
        console.print(f"\nK = {K}")
        console.print(in_colours(patches) if colourful(console) else in_bars(patches),
                      soft_wrap=True)  # fmt: skip
    chosen = [entry for entry in found["patches"] if entry["patch_size"] in patch_sizes]
    terminal.print_table(*views.shares_rows(chosen))
    large = [entry for entry in chosen if entry["patch_size"] > 1]
    if large:
        terminal.print_table(*views.coherence_rows(large, found["far"]))
    by_distance = [
        f"{number(entry['nats'], 4)} at {entry['distance']:,}"
        for entry in found["distances"]
        if entry["distance"] in _SHOWN_DISTANCES
    ]
    console.print(
        f"  mutual information of two tokens (nats, over the {count(found['types'])} most frequent "
        f"kinds, shuffled counts subtracted):\n  {', '.join(by_distance)}"
    )


def colourful(console: Console) -> bool:
    """Whether colours are seen there: not in a file, nor with ``NO_COLOR``."""
    return console.is_terminal and not console.no_color and console.color_system is not None


def in_bars(patches: Sequence[str]) -> Text:
    """Patches with ``|`` between them."""
    return Text("|".join(views.visible(patch) for patch in patches))


def in_colours(patches: Sequence[str]) -> Text:
    """Patches in two colours, in turn."""
    text = Text()
    for index, patch in enumerate(patches):
        text.append(views.visible(patch), style=_COLOURS[index % 2])
    return text
