"""The figures of a comparison: curves of the contenders, the compute needed, and a heat map."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from patchtrain.report.compare_words import first_difference, ranking
from patchtrain.report.figures import COLOURS, GRID, dress, legend_name
from patchtrain.report.formats import is_number, scale
from patchtrain.report.study_page import curves_figure

Row = Mapping[str, Any]
_ROOMY = 6  # columns of a heat map whose cells have room for all digits on a phone
MOST_CURVES = 6  # as many as there are colours
# Below token level blue, above it orange: apart for the colour-blind, and zero is in between.
_SCALE = [[0.0, "#2f7fc1"], [0.5, "#efeeea"], [1.0, "#d5641c"]]


def curves(results: Row) -> go.Figure | None:
    """The chosen variants against compute: the best of them, with their references."""
    rows = {arm["name"]: arm for arm in results["arms"]}
    ranked = [item for item in ranking(results) if item["chosen"]]
    best = ranked[:MOST_CURVES]
    best += [
        item for item in ranked if any(item["name"] == other["reference"] for other in best)
        and item not in best
    ]  # fmt: skip
    arms = [{**rows[item["chosen"]], "name": item["name"]} for item in best]
    if not any(arm["curve"] for arm in arms):
        return None
    return curves_figure({**results, "arms": arms})


def needed(results: Row) -> go.Figure | None:
    """The baseline's ends by compute, and each contender's end with the way to that curve."""
    rows = {arm["name"]: arm for arm in results["arms"]}
    ends = [
        rows[name] for name in results["budgets"].values() if name in rows and rows[name]["runs"]
    ]
    if len(ends) < 2:
        return None
    spent = [sum(run["flops"] for run in arm["runs"]) / len(arm["runs"]) for arm in ends]
    others = [item for item in ranking(results) if item["reference"] and item["difference"]]
    divisor, letter = scale(max([*spent, *(item["flops"] for item in others)]))
    baseline = results["contenders"][0]["name"]
    figure = go.Figure()
    figure.add_trace(
        go.Scatter(
            x=[value / divisor for value in spent],
            y=[arm["bits_per_byte"]["mean"] for arm in ends],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [
                    max(run["bits_per_byte"] for run in arm["runs"]) - arm["bits_per_byte"]["mean"]
                    for arm in ends
                ],
                "arrayminus": [
                    arm["bits_per_byte"]["mean"] - min(run["bits_per_byte"] for run in arm["runs"])
                    for arm in ends
                ],
                "thickness": 1,
            },
            mode="lines+markers",
            name=legend_name(f"{baseline}, whole runs"),
            line={"color": COLOURS[0], "width": 2},
            hovertemplate="%{y:.4f}<extra></extra>",
        )
    )
    for index, item in enumerate(others[: MOST_CURVES - 1], 1):
        end, at = item["bits_per_byte"]["mean"], item["flops"] / divisor
        ratio = ((item["equal_loss"] or {}).get("compute") or {}).get("mean")
        x, y = [at], [end]
        if ratio:
            x, y = [at, at / ratio], [end, end]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers",
                name=legend_name(item["name"]),
                line={"color": COLOURS[index], "width": 1.5, "dash": "dot"},
                marker={"size": 9, "symbol": ["circle", "line-ns-open"][: len(x)]},
                hovertemplate=f"{html.escape(item['name'])}: %{{y:.4f}}<extra></extra>",
            )
        )
    dress(figure)
    figure.update_xaxes(title={"text": f"compute ({letter}FLOP)"}, type="log", nticks=6, **GRID)
    figure.update_yaxes(title={"text": "bits per byte at the end"}, **GRID)
    return figure


def heat_map(results: Row) -> tuple[go.Figure, str] | None:
    """The difference to token level on the tuning seeds over two axes, and the axes in words.

    The axes are patch size and fraction where both vary, else those with the most values. Of what
    varies besides, a cell shows the best. Points of a range are marks instead of cells. None where
    fewer than two axes vary.
    """
    cells = [
        (item["values"], value)
        for item in results["contenders"]
        if item["reference"] and (value := first_difference(results, item)) is not None
    ]
    values = {
        path: sorted({_key(at[path]) for at, _ in cells if path in at}, key=_order)
        for path in results["axes"]
    }
    values = {path: found for path, found in values.items() if len(found) > 1}
    if len(values) < 2:
        return None
    first, second = _two(values)
    best: dict[tuple[str, str], float] = {}
    for at, value in cells:
        place = (_key(at.get(first)), _key(at.get(second)))
        best[place] = min(value, best.get(place, value))
    xs, ys = values[first], values[second]
    limit = max(abs(value) for value in best.values()) or 1.0
    colour = {"colorscale": _SCALE, "cmin": -limit, "cmax": limit}
    figure = go.Figure()
    digits, size = (4, 12) if len(xs) <= _ROOMY else (3, 9)
    listed = [{_key(value) for value in results["axes"][path]} for path in (first, second)]
    if set(xs) <= listed[0] and set(ys) <= listed[1]:
        z = [[best.get((x, y)) for x in xs] for y in ys]
        text = [["" if value is None else f"{value:+.{digits}f}" for value in row] for row in z]
        figure.add_trace(
            go.Heatmap(
                x=xs, y=ys, z=z, text=text, texttemplate="%{text}", zmin=-limit, zmax=limit,
                colorscale=_SCALE, showscale=False, xgap=2, ygap=2,
                textfont={"color": "#1b1f24", "size": size},
                hovertemplate="%{x}, %{y}: %{z:+.4f}<extra></extra>",
            )
        )  # fmt: skip
        figure.update_xaxes(type="category")
        figure.update_yaxes(type="category")
    else:
        places = list(best)
        figure.add_trace(
            go.Scatter(
                x=[_value(x) for x, _ in places], y=[_value(y) for _, y in places],
                mode="markers+text", customdata=list(best.values()),
                text=[f"{value:+z.3f}" for value in best.values()], textposition="top center",
                textfont={"size": 9},
                marker={"size": 13, "color": list(best.values()),
                        "line": {"width": 1, "color": "#888"}, **colour},
                hovertemplate="%{x}, %{y}: %{customdata:+.4f}<extra></extra>",
            )
        )  # fmt: skip
    dress(figure)
    names = [_short(first), _short(second)]
    figure.update_xaxes(title={"text": names[0]})
    figure.update_yaxes(title={"text": names[1]}, automargin=True)
    return figure, f"{names[1]} against {names[0]}"


def _two(values: Mapping[str, list[str]]) -> tuple[str, str]:
    """Patch size and fraction if both vary; else the axes with the most values."""
    usual = [
        next((path for path in paths if path in values), None)
        for paths in (("plan.patch_size",), ("plan.step_fraction", "plan.patch_fraction"))
    ]
    if usual[0] and usual[1]:
        return usual[0], usual[1]
    most = sorted(values, key=lambda path: -len(values[path]))
    return most[0], most[1]


def _short(path: str) -> str:
    known = {"plan.patch_size": "K", "plan.step_fraction": "r", "plan.patch_fraction": "lambda"}
    return known.get(path, path.rpartition(".")[2].replace("_", " "))


def _key(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(key: str) -> Any:
    try:
        return json.loads(key)
    except ValueError:
        return key


def _order(key: str) -> tuple[bool, float, str]:
    value = _value(key)
    return (not is_number(value), float(value) if is_number(value) else 0.0, key)
