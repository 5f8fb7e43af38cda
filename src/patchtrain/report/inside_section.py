"""The page's section on what goes on inside the models, and on what their patches hold."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from patchtrain.report import inside_views as views
from patchtrain.report import patch_views
from patchtrain.report.figures import to_html
from patchtrain.report.formats import number
from patchtrain.report.summary import Row, RunSummary
from patchtrain.report.tables import table
from patchtrain.report.template import note

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_Points = tuple[Sequence[Any], Sequence[Any]]


def inside_section(runs: Sequence[RunSummary]) -> str:
    """Figures and tables of each result of ``patchtrain eval --inside``."""
    parts: list[str] = []
    for run in runs:
        for name, result in run.measured("inside").items():
            title = f"Inside {run.name}" if len(runs) > 1 else "Inside the model"
            if name != "inside":
                title += f" ({name})"
            parts.append(f"<h3>{html.escape(title)}</h3>{_result(result, len(parts))}")
    return "".join(parts)


def _result(result: Row, key: int) -> str:
    models, content = result["models"], result["content"]
    parts = [note(f"Read: {result['read']}, in a context of {result['context_length']}.")]
    if any(model["levels"][0]["layers"] for model in models):
        threshold = number(result["threshold"], 2).rstrip("0").rstrip(".")
        parts.append(_heading("Activated neurons by layer"))
        parts.append(to_html(_neurons_figure(models), f"neurons-{key}"))
        parts.append(note(
            f"Share of feed-forward outputs with an absolute value above {threshold} (after "
            "arXiv:2407.12665); the root mean square says how that lies in the model's own scale."
        ))  # fmt: skip
        for model in models:
            if model["levels"][0]["layers"]:
                label = f"Activated neurons of {model['model']}"
                parts.append(_heading(model["model"]) + table(*views.neurons_rows(model), label))
    parts += [
        _heading("Loss by token of the next patch"),
        to_html(_slots_figure(models), f"slots-{key}"),
        table(*views.slots_rows(models), "Loss by token of the next patch"),
        _heading("Embeddings"),
        table(*views.embeddings_rows(models), "Embeddings"),
        table(*views.pooled_rows(models), "Length of pooled embeddings"),
    ]
    if result["drift"]:
        parts.append(table(*views.drift_rows(result["drift"]), "Embeddings at the switches"))
    large = [entry for entry in content["patches"] if entry["patch_size"] > 1]
    parts += [
        _heading("What the patches hold"),
        table(*patch_views.shares_rows(content["patches"]), "What patches split"),
    ]
    if large:
        rows = patch_views.coherence_rows(large, content["far"])
        parts.append(table(*rows, "Whether the tokens of a patch belong together"))
    return "".join(parts)


def _neurons_figure(models: Sequence[Row]) -> go.Figure:
    def points(level: Row) -> _Points:
        layers = level["layers"]
        return [row["layer"] for row in layers], [row["output_share"] for row in layers]

    return _levels_figure(models, points, "layer", "share above the threshold")


def _slots_figure(models: Sequence[Row]) -> go.Figure:
    def points(level: Row) -> _Points:
        return range(1, level["patch_size"] + 1), [slot["value"] for slot in level["slots"]]

    figure = _levels_figure(models, points, "token of the next patch", "loss (nats)")
    figure.update_yaxes(rangemode="normal")
    return figure


def _levels_figure(
    models: Sequence[Row], points: Callable[[Row], _Points], x: str, y: str
) -> go.Figure:
    """A line for each level of each model."""
    lines, dashes = [], []
    for index, model in enumerate(models):
        for level in model["levels"]:
            name = f"K = {level['patch_size']}"
            xs, ys = points(level)
            lines.append((f"{model['model']}, {name}" if len(models) > 1 else name, xs, ys))
            dashes.append(_DASHES[(len(models) - 1 - index) % len(_DASHES)])
    return patch_views.lines_figure(lines, x, y, dashes)


def _heading(text: str) -> str:
    return f"<h4>{html.escape(text)}</h4>"
