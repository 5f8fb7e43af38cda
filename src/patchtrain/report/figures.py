"""The curves: loss against compute and against time, drawn with plotly.

Three kinds of line, which a reader must not mix up:

* *patch loss*, training, dotted: K targets from one position. It is another quantity than the loss
  of a single next token, and the two are never compared;
* *token loss*, training, thin;
* *token loss*, validation, thick with dots: the held-out text read token by token, in every stage.

Colours tell the runs apart. A long training curve is averaged over neighbouring steps so that the
page stays small.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from patchtrain.report import curve
from patchtrain.report.formats import averaged, is_number, loss_range, neighbours, scale
from patchtrain.report.summary import Row, RunSummary
from patchtrain.stage import stage_name

# Readable on white and on near-black, and apart for the colour-blind (after Okabe and Ito).
COLOURS = ("#d5641c", "#2f7fc1", "#159a7a", "#b9599b", "#a38a1d", "#6f6fd0")
POINTS_PER_STAGE = 500
GRID: dict[str, Any] = {"zeroline": False, "gridcolor": "rgba(128,128,128,.18)"}
LOOK: dict[str, Any] = {
    "hovermode": "closest",
    "margin": {"l": 50, "r": 10, "t": 12, "b": 46},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#777"},
    "template": "none",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#999", "activecolor": "#666"},
}
_LABEL_LINES = 6
_LEGEND_LINE = 40  # letters

KINDS = {
    "patch": "patch loss, training",
    "token": "token loss, training",
    "validation": "token loss, validation",
}


@dataclass(frozen=True)
class Axis:
    """What the losses are drawn against, in the unit that suits the largest value."""

    counter: str
    title: str
    divisor: float


def compute_axis(runs: Sequence[RunSummary]) -> Axis:
    divisor, letter = scale(_largest(runs, "flops"))
    return Axis("flops", f"compute ({letter}FLOP)", divisor)


def time_axis(runs: Sequence[RunSummary]) -> Axis:
    largest = _largest(runs, "seconds")
    for divisor, unit in ((3600.0, "hours"), (60.0, "minutes")):
        if largest >= 2 * divisor:
            return Axis("seconds", f"training time ({unit})", divisor)
    return Axis("seconds", "training time (seconds)", 1.0)


def averaging(runs: Sequence[RunSummary]) -> int:
    """The largest number of logged steps that stand behind one drawn point."""
    lengths = [len(_drawable(run, "train", stage.index)) for run in runs for stage in run.stages]
    return neighbours(max(lengths, default=0), POINTS_PER_STAGE)


def kinds_drawn(run: RunSummary) -> list[str]:
    """The kinds of line this run has, in the order of ``KINDS``."""
    found = {"token" if row.get("patch_size", 1) == 1 else "patch" for row in _train(run)}
    if _drawable(run, "eval"):
        found.add("validation")
    return [kind for kind in KINDS if kind in found]


def loss_figure(runs: Sequence[RunSummary], axis: Axis) -> go.Figure:
    """Losses of all runs against one axis, with a line at every switch and what else befell."""
    traces: list[go.Scatter] = []
    shapes: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    shown = _shown_range(runs)
    for number, run in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        for stage in run.stages:
            if rows := _averaged(_drawable(run, "train", stage.index)):
                kind = "token" if stage.patch_size == 1 else "patch"
                traces.append(_trace(run, number, kind, stage.patch_size, rows, axis, colour))
        if rows := _drawable(run, "eval"):
            traces.append(_trace(run, number, "validation", 1, rows, axis, colour))
        for line, label in _switches(run, len(labels), axis, colour):
            shapes.append(line)
            labels.append(label)
        traces += _marks(run, number, axis, colour, shown)
    title = {"text": axis.title, "standoff": 8}
    loss = {"text": "loss (nats per token)", "standoff": 6}
    layout = {
        **LOOK,
        "showlegend": False,
        "margin": {**LOOK["margin"], "t": 12 + 17 * min(len(labels), _LABEL_LINES)},
        "shapes": shapes,
        "annotations": labels,
        "xaxis": {"title": title, "rangemode": "tozero", "nticks": 7, **GRID},
        "yaxis": {"title": loss, "range": shown, "nticks": 8, **GRID},
    }
    # At once: plotly takes far longer to change a layout than to make one.
    return go.Figure(traces, layout)


def dress(figure: go.Figure, **more: Any) -> None:
    """Give a figure the look that all have, on a page that is light or dark; and ``more``."""
    figure.update_layout(**LOOK, **more)


def legend_name(name: str) -> str:
    """A name for the legend, escaped, in lines that a phone has room for."""
    return "<br>".join(map(html.escape, textwrap.wrap(name, _LEGEND_LINE)))


def script() -> str:
    """Plotly's own script, which a page with figures holds once, before the first of them."""
    return f"<script>{get_plotlyjs()}</script>"


def to_html(figure: go.Figure, name: str, kind: str = "plot") -> str:
    """A figure as the element ``name`` of a page, which brings the script (``template.page``)."""
    text = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_width="100%",
        default_height="100%",
        config={"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage"]]},
    )
    return f'<div class="{kind}">{text}</div>'


def _trace(
    run: RunSummary,
    number: int,
    kind: str,
    patch_size: int,
    rows: list[Row],
    axis: Axis,
    colour: str,
) -> go.Scatter:
    lines = {
        "patch": {"color": colour, "width": 1.6, "dash": "dot"},
        "token": {"color": colour, "width": 1.1},
        "validation": {"color": colour, "width": 2.6},
    }
    label = KINDS[kind] + (f" (K={patch_size})" if kind == "patch" else "")
    return go.Scatter(
        x=[row[axis.counter] / axis.divisor for row in rows],
        y=[row["loss"] for row in rows],
        customdata=[[row["step"], _number(row.get("tokens"))] for row in rows],
        mode="lines+markers" if kind == "validation" else "lines",
        line=lines[kind],
        marker={"size": 6, "color": colour},
        opacity=0.6 if kind == "token" else 1.0,
        # The page's own legend shows and hides traces by this key.
        meta=f"{number}-{kind}",
        name=html.escape(f"{run.name}: {label}"),
        hovertemplate=(
            f"<b>{html.escape(run.name)}</b><br>{label}: %{{y:.3f}}<br>"
            "step %{customdata[0]:,}, %{customdata[1]:,} tokens<extra></extra>"
        ),
    )


def _marks(
    run: RunSummary, number: int, axis: Axis, colour: str, shown: list[float] | None
) -> list[go.Scatter]:
    """Spikes, steps left out and rollbacks as markers that go with the line they are on.

    One that is above the range shown is put at its top, so that it is seen.
    """
    found = [mark for mark in curve.marks(run) if is_number(mark.row.get(axis.counter))]
    traces = []
    for kind in ("patch", "token"):
        own = [m for m in found if (kind == "token") == (m.row.get("patch_size", 1) == 1)]
        if not own:
            continue
        traces.append(
            go.Scatter(
                x=[mark.row[axis.counter] / axis.divisor for mark in own],
                y=[min(mark.loss, shown[1]) if shown else mark.loss for mark in own],
                mode="markers",
                marker={
                    "symbol": [mark.symbol for mark in own],
                    "size": 10,
                    "color": colour,
                    "line": {"width": 1, "color": "#fff"},
                },
                cliponaxis=False,
                meta=f"{number}-{kind}",
                hovertext=[
                    f"<b>{html.escape(run.name)}</b><br>{html.escape(mark.text)}" for mark in own
                ],
                hovertemplate="%{hovertext}<extra></extra>",
            )
        )
    return traces


def _switches(
    run: RunSummary, label_line: int, axis: Axis, colour: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A dashed line at each switch, and its label above the plot.

    Every label has a line of its own, from ``label_line`` on, so that none hides another.
    """
    largest = run.total(axis.counter) or 1
    switches = [row for row in run.events("switch") if is_number(row.get(axis.counter))]
    for number, row in enumerate(switches, label_line):
        x = row[axis.counter] / axis.divisor
        line = {
            "type": "line",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"color": colour, "width": 1.4, "dash": "dash"},
        }
        label = {
            "x": x,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": 2 + 17 * (number % _LABEL_LINES),
            "xanchor": "right" if row[axis.counter] > 0.6 * largest else "left",
            "text": f"switch to {stage_name(int(row.get('patch_size', 1)))}",
            "showarrow": False,
            "font": {"color": colour, "size": 12},
        }
        yield line, label


def _shown_range(runs: Sequence[RunSummary]) -> list[float] | None:
    """The losses that the figure shows; None leaves it to plotly, where there are but two."""
    lines = [
        [(row["step"], row["loss"]) for row in _train(run) + _drawable(run, "eval")] for run in runs
    ]
    return list(loss_range(lines)) if sum(map(len, lines)) > 2 else None


def _averaged(rows: Sequence[Row]) -> list[Row]:
    points = averaged([(row, row["loss"]) for row in rows], POINTS_PER_STAGE)
    return [{**row, "loss": loss} for row, loss in points]


def _train(run: RunSummary) -> list[Row]:
    return _drawable(run, "train")


def _drawable(run: RunSummary, event: str, stage: int | None = None) -> list[Row]:
    """Rows that have a place in the figure: a finite loss and finite counters."""
    return [
        row
        for row in run.events(event)
        if (stage is None or row.get("stage") == stage)
        and all(is_number(row.get(key)) for key in ("loss", "flops", "seconds"))
    ]


def _number(value: object) -> float | None:
    return value if is_number(value) else None


def _largest(runs: Sequence[RunSummary], counter: str) -> float:
    return max((run.total(counter) or 0.0 for run in runs), default=0.0)
