"""What patches hold, as tables, figures and coloured text: for the page and for the terminal."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go

from patchtrain.report.figures import COLOURS, GRID, dress
from patchtrain.report.formats import (
    NONE,
    count,
    is_number,
    number,
    percent,
    significant,
    with_error,
)

Line = tuple[str, Sequence[float], Sequence[Any]]
"""The name of a curve, its x and its y; where y is no number there is a gap."""

STYLE = """
.patches { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .9rem;
  line-height: 1.9; white-space: pre-wrap; overflow-wrap: anywhere; }
.patches span { padding: .12em 0; border-radius: .2em; }
.patches .even { background: rgba(47,127,193,.22); } .patches .odd { background: rgba(213,100,28,.22); }
"""  # noqa: E501 - one rule a line


def shares_rows(patches: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what the patches of each size split."""
    head = ["K", "patches", "end inside a word", "words cut", "hold two sentences",
            "hold two documents", "words a patch"]  # fmt: skip
    rows = [
        [
            str(entry["patch_size"]), count(entry["patches"]), percent(entry["end_in_word"]),
            percent(entry["words_cut"]), percent(entry["two_sentences"]),
            percent(entry["two_documents"]), number(entry["words_per_patch"], 2),
        ]
        for entry in patches
    ]  # fmt: skip
    return head, rows


def coherence_rows(
    patches: Iterable[dict[str, Any]], far: int
) -> tuple[list[str], list[list[str]]]:
    """Head and rows: how much the tokens of a patch have to do with each other."""
    head = ["K", "mutual information inside (nats)", "cosine inside", "with the next patch",
            f"with the one {far} on", "of random tokens"]  # fmt: skip
    names = ("inside", "next_patch", "far_patch", "random")
    rows = []
    for entry in patches:
        cosines = entry["cosines"] or {}
        row = [str(entry["patch_size"]), number(entry["information_inside"], 4)]
        rows.append(row + [_mean(cosines.get(name)) for name in names])
    if all(row[2] == NONE for row in rows):  # without a model
        return head[:2], [row[:2] for row in rows]
    return head, rows


def distance_rows(distances: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what two tokens tell of each other, by distance."""
    head = ["distance", "pairs", "mutual information (nats)", "noise", "counted", "shuffled",
            "cosine"]  # fmt: skip
    rows = [
        [
            f"{entry['distance']:,}", count(entry["pairs"]), number(entry["nats"], 4),
            significant(entry["noise"], 2), number(entry["counted"], 4),
            number(entry["shuffled"], 4), _mean(entry["cosine"]),
        ]
        for entry in distances
    ]  # fmt: skip
    return head, rows


def _mean(mean: dict[str, Any] | None) -> str:
    return with_error(mean.get("value"), mean.get("error"), 4) if mean else NONE


def shares_figure(patches: Sequence[dict[str, Any]]) -> go.Figure:
    """The shares against K."""
    sizes = [entry["patch_size"] for entry in patches]
    names = {
        "end_in_word": "patches that end inside a word",
        "words_cut": "words cut",
        "two_sentences": "patches with two sentences",
        "two_documents": "patches with two documents",
    }
    lines = [(text, sizes, [entry[name] for entry in patches]) for name, text in names.items()]
    return lines_figure(lines, "patch size K", "share")


def cosine_figure(patches: Sequence[dict[str, Any]], far: int) -> go.Figure:
    """The cosines against K."""
    known = [entry for entry in patches if entry["cosines"]]
    sizes = [entry["patch_size"] for entry in known]
    names = {
        "inside": "inside a patch",
        "next_patch": "with the next patch",
        "far_patch": f"with the patch {far} on",
        "random": "random tokens",
    }
    lines = [
        (text, sizes, [entry["cosines"][name]["value"] for entry in known])
        for name, text in names.items()
    ]
    return lines_figure(lines, "patch size K", "mean cosine of two tokens")


def information_figure(distances: Sequence[dict[str, Any]]) -> go.Figure:
    """Mutual information against distance, both on logarithmic axes, down to its noise."""
    shown = [entry for entry in distances if entry["nats"] > 0]
    x = [entry["distance"] for entry in shown]
    lines: list[Line] = [
        ("mutual information", x, [entry["nats"] for entry in shown]),
        ("noise of the shuffled counts", x, [entry["noise"] for entry in shown]),
    ]
    figure = lines_figure(lines, "distance (tokens)", "nats")
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1, rangemode="normal")
    return figure


def lines_figure(
    lines: Sequence[Line], x: str, y: str, dashes: Sequence[str] | None = None
) -> go.Figure:
    """Some curves in the look of the page; ``dashes`` are plotly's names, one a curve."""
    figure = go.Figure()
    for index, (name, xs, ys) in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        figure.add_trace(
            go.Scatter(
                x=list(xs),
                y=[value if is_number(value) else None for value in ys],
                mode="lines+markers",
                name=html.escape(name),
                line={"color": colour, "width": 2, "dash": dashes[index] if dashes else "solid"},
                marker={"size": 6, "color": colour},
                hovertemplate=f"{html.escape(name)}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
            )
        )
    dress(figure, showlegend=True)
    figure.update_xaxes(title={"text": x, "standoff": 8}, **GRID)
    figure.update_yaxes(title={"text": y, "standoff": 6}, rangemode="tozero", **GRID)
    return figure


def coloured(patches: Sequence[str]) -> str:
    """Patches of text as HTML, each in another colour than its neighbours."""
    spans = (
        f'<span class="{"odd" if index % 2 else "even"}">{html.escape(visible(patch))}</span>'
        for index, patch in enumerate(patches)
    )
    return f'<p class="patches">{"".join(spans)}</p>'


def visible(patch: str) -> str:
    """A patch's text on one line, with nothing in it that a terminal would obey."""
    text = patch.replace("\r", "").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
