"""The picture of a plan: what patches save, against the patch fraction, for several patch sizes.

One self-contained HTML file, like the page of a run: compute at equal data, data at equal compute,
and where the plan stands in both.
"""

from __future__ import annotations

import html
from pathlib import Path

import plotly.graph_objects as go

from patchtrain.cost import Bill, ModelSize
from patchtrain.files import check_place
from patchtrain.plan import PlanSpec
from patchtrain.report.figures import COLOURS, GRID, dress, to_html
from patchtrain.report.formats import count, duration, flops, number, percent, significant
from patchtrain.report.tables import table
from patchtrain.report.template import page, write
from patchtrain.stage import rows_fit

PATCH_SIZES = (2, 4, 8, 16)
_POINTS = 101


def write_plan_page(bill: Bill, out: Path, title: str) -> Path:
    """Write the picture of ``bill`` to ``out`` (replaced whole) and return its path.

    ``UsageError``: there is no folder to write to.
    """
    check_place(out, "the picture")
    return write(render(bill, title), out)


def ratio(size: ModelSize, spec: PlanSpec, patch_size: int, fraction: float) -> float:
    """Compute against token-level training on the same tokens, ``fraction`` of them in patches.

    In rows as the plan has them, where patches of that size fit.
    """
    T = spec.context_length
    shorter = spec.rows == "tokens" and rows_fit(T, patch_size)
    one = size.flops_per_position(T).total
    patch = size.flops_per_position(T // patch_size if shorter else T, patch_size).total
    return fraction * patch / (one * patch_size) + 1 - fraction


def render(bill: Bill, title: str) -> str:
    """The page as text."""
    plots = [
        ("compute", "Compute at equal data", "compute, token level is 1", False),
        ("data", "Data at equal compute", "tokens read, token level is 1", True),
    ]
    body = [f"<h1>{html.escape(title)}</h1>", _lead(bill)]
    for name, heading, axis, inverse in plots:
        body.append(f"<h2>{heading}</h2>{to_html(_figure(bill, axis, inverse), name)}")
    return page(title, [*body, "<h2>Stages</h2>", _stages(bill)])


def _lead(bill: Bill) -> str:
    plan = bill.plan
    sentences = [
        f"{count(bill.size.parameters)} parameters on {count(plan.total_tokens)} tokens: "
        f"{flops(bill.flops.total)}, {bill.ratio_at_equal_data:.3f} of token-level training on "
        f"the same tokens.",
        f"At the same cost, token-level training would read "
        f"{count(bill.tokens_at_equal_compute)} tokens.",
    ]
    if bill.device_hours is not None:
        sentences.append(f"It takes {bill.device_hours:,.4g} device-hours.")
    return f'<div class="lead"><p>{html.escape(" ".join(sentences))}</p></div>'


def _figure(bill: Bill, axis: str, inverse: bool) -> go.Figure:
    figure = go.Figure()
    size, spec = bill.size, bill.plan.spec
    own = sorted({stage.patch_size for stage in bill.plan.stages if stage.patch_size > 1})
    for index, K in enumerate(sorted({*PATCH_SIZES, *own})):
        fractions = [point / (_POINTS - 1) for point in range(_POINTS)]
        values = [ratio(size, spec, K, fraction) for fraction in fractions]
        figure.add_trace(
            go.Scatter(
                x=fractions,
                y=[1 / value for value in values] if inverse else values,
                mode="lines",
                name=f"K = {K}",
                line={"color": COLOURS[index % len(COLOURS)], "width": 2},
                hovertemplate=f"K = {K}, lambda %{{x:.2f}}: %{{y:.3f}}<extra></extra>",
            )
        )
    patched = sum(stage.tokens for stage in bill.plan.stages if stage.patch_size > 1)
    y = bill.ratio_at_equal_data
    figure.add_trace(
        go.Scatter(
            x=[patched / bill.plan.total_tokens],
            y=[1 / y if inverse else y],
            mode="markers",
            name="this plan",
            marker={"size": 12, "symbol": "diamond", "color": COLOURS[0],
                    "line": {"width": 1.5, "color": "#fff"}},
            hovertemplate="this plan: %{y:.3f}<extra></extra>",
        )
    )  # fmt: skip
    dress(figure)
    figure.update_xaxes(title={"text": "patch fraction (lambda)"}, range=[0, 1], **GRID)
    # At lambda = 1 nothing is learned of single tokens: the last tenth would hide all the rest.
    scale = {"type": "log", "dtick": "D2"} if inverse else {"rangemode": "tozero"}
    figure.update_yaxes(title={"text": axis}, **scale, **GRID)
    return figure


def _stages(bill: Bill) -> str:
    total = bill.flops.total
    rows = [
        [
            f"{cost.stage.index + 1} {cost.stage.name}",
            f"{cost.stage.steps:,}",
            count(cost.stage.tokens),
            count(cost.stage.positions),
            flops(cost.flops.total),
            percent(cost.flops.total / total),
            duration(cost.seconds),
        ]
        for cost in bill.stages
    ]
    head = ["stage", "steps", "tokens", "positions", "compute", "share", "time"]
    costs = [
        ("device-hours", significant(bill.device_hours, 4)),
        ("money", number(bill.money, 2)),
        ("energy (kWh)", significant(bill.kwh, 4)),
    ]
    return table(head, rows, "stages") + table(["", "in all"], costs, "costs")
