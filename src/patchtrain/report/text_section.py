"""How well the models predict text: a table, before and after the last stages, and by position."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import plotly.graph_objects as go

from patchtrain.report import figures
from patchtrain.report.figures import GRID, dress
from patchtrain.report.formats import NONE, count, is_number, number, significant
from patchtrain.report.summary import Row, RunSummary
from patchtrain.report.tables import table, window

_MOST_FIGURES = 4  # evaluations that are drawn; the table has all


def text_section(runs: Sequence[RunSummary]) -> str:
    """Loss, perplexity and bits per byte of each evaluation, and where in the text they come from.

    Empty where no run has one.
    """
    if not any(run.measured("text") for run in runs):
        return ""
    return "".join(
        [
            f'<div class="last">{evals_table(runs)}</div>',
            _stages_note(runs),
            *_position_figures(runs),
            documents_table(runs),
        ]
    )


def evals_table(runs: Sequence[RunSummary]) -> str:
    """Results of ``patchtrain eval``, a row each; the models of earlier stages above the last."""
    before = any(_earlier(values) for _, _, values in _results(runs))
    rows = []
    for run, name, values in _results(runs):
        for stage in _earlier(values):
            rows.append(_eval_row(run, name, {**values, **stage}, _stage_title(stage), NONE))
        change = _change(values) if _earlier(values) else NONE
        rows.append(_eval_row(run, name, values, "final", change))
    head = ["run", "evaluation", "model", "bits per byte", "change", "loss"]
    head += ["perplexity per token", "per word", "tokens scored", "window and stride"]
    head += ["what was scored"]
    if not before:
        left_out = (2, 4)
        head, *rows = (
            [cell for i, cell in enumerate(row) if i not in left_out] for row in (head, *rows)
        )
    return table(head, rows, "Evaluations")


def documents_table(runs: Sequence[RunSummary]) -> str:
    """Bits per byte of single documents; empty where no evaluation had more than one."""
    rows = []
    for run, name, values in _results(runs):
        for stage in (*_earlier(values), values):
            found = stage.get("by_document")
            if not isinstance(found, dict) or not is_number(many := found.get("documents")):
                continue
            if many < 2:
                continue
            quantiles = found["quantiles"]
            title = _stage_title(stage) if stage is not values else "final"
            row = [run.name, name, title, count(many), number(found["mean"], 4)]
            row += [number(quantiles[q], 4) for q in ("0.05", "0.25", "0.5", "0.75", "0.95")]
            rows.append([*row, _named(found["best"]), _named(found["worst"])])
    if not rows:
        return ""
    head = ["run", "evaluation", "model", "documents", "mean", "5%", "25%", "50%", "75%", "95%"]
    head += ["best", "worst"]
    note = (
        "Each document counts the same, whatever its length; the percentages are quantiles over "
        "documents. In brackets, which document of the text, from 0."
    )
    return (
        "<h3>Bits per byte by document</h3>"
        + table(head, rows, "Bits per byte by document")
        + f'<p class="note">{note}</p>'
    )


def position_figure(runs: Sequence[RunSummary], name: str) -> go.Figure:
    """Loss of the evaluation ``name`` against the tokens of context, a line for each model."""
    figure = go.Figure()
    for index, run in enumerate(runs):
        values = run.measured("text").get(name)
        if values is None:
            continue
        colour = figures.COLOURS[index % len(figures.COLOURS)]
        for stage in (*_earlier(values), values):
            bins = _bins(stage)
            final = stage is values
            title = f"{run.name}, {'final' if final else _stage_title(stage)}"
            figure.add_trace(
                go.Scatter(
                    # The middle of a bin on the logarithmic axis.
                    x=[(b["from"] * b["to"]) ** 0.5 for b in bins],
                    y=[b["loss"] for b in bins],
                    customdata=[[f"{b['from']:,} to {b['to']:,}", b["targets"]] for b in bins],
                    mode="lines+markers",
                    line={"color": colour, "width": 2.2, "dash": "solid" if final else "dot"},
                    marker={"size": 6, "color": colour},
                    name=html.escape(title),
                    hovertemplate=f"<b>{html.escape(title)}</b><br>%{{y:.3f}} nats per token<br>"
                    "%{customdata[0]} tokens of context, %{customdata[1]:,} scored<extra></extra>",
                )
            )
    dress(figure, showlegend=len(figure.data) > 1)
    figure.update_xaxes(
        title={"text": "tokens of context", "standoff": 8}, type="log", dtick="D2", **GRID
    )
    figure.update_yaxes(title={"text": "loss (nats per token)", "standoff": 6}, **GRID)
    return figure


def _position_figures(runs: Sequence[RunSummary]) -> Iterator[str]:
    names = dict.fromkeys(name for _, name, values in _results(runs) if len(_bins(values)) > 1)
    for index, name in enumerate(list(names)[:_MOST_FIGURES]):
        figure = position_figure(runs, name)
        yield f"<h3>Loss by tokens of context: {html.escape(name)}</h3>"
        yield figures.to_html(figure, f"by-position-{index}", "plot small")


def _stages_note(runs: Sequence[RunSummary]) -> str:
    if not any(_earlier(values) for _, _, values in _results(runs)):
        return ""
    return (
        '<p class="note">The models at the ends of the earlier stages read the same text token by '
        "token, in the same windows. Change is from the stage before the last to the end: what the "
        "last stage did.</p>"
    )


def _results(runs: Sequence[RunSummary]) -> Iterator[tuple[RunSummary, str, Row]]:
    for run in runs:
        for name, values in run.measured("text").items():
            yield run, name, values


def _earlier(values: Row) -> list[Row]:
    """The results of the models of earlier stages, in order."""
    stages = values.get("stages")
    return [s for s in stages if isinstance(s, dict)] if isinstance(stages, list) else []


def _bins(values: Row) -> list[dict[str, Any]]:
    bins = values.get("by_position")
    keys = ("from", "to", "loss", "targets")
    return [
        b
        for b in (bins if isinstance(bins, list) else [])
        if isinstance(b, dict) and all(is_number(b.get(key)) for key in keys) and b["from"] >= 1
    ]


def _stage_title(stage: Row) -> str:
    size = stage.get("patch_size")
    patches = f", patches of {size}" if is_number(size) and size > 1 else ""
    return f"after stage {stage.get('stage')}{patches}"


def _change(values: Row) -> str:
    before, now = _earlier(values)[-1].get("bits_per_byte"), values.get("bits_per_byte")
    if not (is_number(before) and is_number(now)):
        return NONE
    return f"{now - before:+z.4f}"


def _eval_row(run: RunSummary, name: str, values: Row, model: str, change: str) -> list[str]:
    return [
        run.name,
        name,
        model,
        number(values.get("bits_per_byte"), 4),
        change,
        number(values.get("loss"), 4),
        number(values.get("perplexity"), 2),
        significant(values.get("word_perplexity"), 4),
        count(values.get("targets")),
        window(values),
        str(values.get("scored") or NONE),
    ]


def _named(documents: list[dict[str, Any]]) -> str:
    first = documents[0]
    return f"{number(first['bits_per_byte'], 4)} ({first['document']})"
