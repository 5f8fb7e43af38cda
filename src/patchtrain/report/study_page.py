"""The page of a study: what was held equal, how each arm ended and by how much arms differ.

One self-contained HTML file, made from the study's results alone; it can be made while runs are
still missing, and says so.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from patchtrain.report.figures import COLOURS, GRID, dress, legend_name, to_html
from patchtrain.report.formats import NONE, count, duration, flops, number, percent, scale
from patchtrain.report.tables import table
from patchtrain.report.template import note, page, paragraphs, write

Row = Mapping[str, Any]
_DASHES = ("solid", "dash", "dot", "dashdot")
_FIRST_SHOWN = 0.1  # share of a curve that falls too steeply to tell anything of the rest


def write_study_page(results: Row, out: Path) -> Path:
    """Write the page of ``results`` (``analysis.studies.results.collect``) to ``out``."""
    return write(render(results), out)


def render(results: Row) -> str:
    """The page as text."""
    body = [
        f"<h1>{html.escape(results['title'])}</h1>",
        f'<div class="lead">{paragraphs(lead(results))}</div>',
        _missing(results),
        "<h2>Arms</h2>",
        table(ARM_HEAD, arm_rows(results), "Arms"),
        note(
            "Bits per byte on all of the held-out text, at token level; lower is better. Mean over "
            "the seeds, and their standard deviation. Off: the compute beyond the baseline's, "
            "which whole steps leave."
        ),
        *_differences(results),
        *_curves(results),
        "<h2>Runs</h2>",
        table(RUN_HEAD, run_rows(results), "Runs"),
        "<h2>Recipe</h2>",
        recipe_parts(results),
    ]
    return page(results["title"], body)


def lead(results: Row) -> list[str]:
    """What was done, and what may be read from it, in sentences."""
    arms, seeds = results["arms"], results["seeds"]
    runs = [run for arm in arms for run in arm["runs"]]
    size = sorted({run["body_parameters"] for run in runs})
    sentences = [
        f"{len(arms)} arms, each with {len(seeds)} seed{'s' * (len(seeds) != 1)}, at equal "
        f"{results['held_equal']}"
        + (f" of {flops(arms[0]['target'])} a run." if "target" in arms[0] else ".")
    ]
    if size:
        sentences[0] += f" The models have {count(size[-1])} parameters without embeddings."
    if corpus := results["about"].get("corpus"):
        sentences.append(f"Text: {corpus}.")
    if len(seeds) < 2:
        sentences.append("One seed says nothing of the spread: no difference here has an interval.")
    else:
        sentences.append(
            f"Differences are paired by seed, with a {results['confidence']:.0%} interval of "
            f"Student's t; one that holds zero is no evidence of a difference. The intervals are "
            f"of each comparison alone, and there are several."
        )
    return sentences


ARM_HEAD = ("arm", "what it is", "bits per byte", "deviation", "steps", "tokens read", "off")


def arm_rows(results: Row) -> list[list[str]]:
    """A row for each arm; the cells of ``ARM_HEAD``."""
    rows = []
    for arm in results["arms"]:
        found, run = arm["bits_per_byte"] or {}, arm["runs"][0] if arm["runs"] else {}
        rows.append(
            [
                arm["name"],
                arm["words"],
                number(found.get("mean"), 4),
                number(found.get("standard_deviation"), 4),
                count(run.get("total_steps")),
                count(run.get("total_tokens")),
                f"{arm['off']:+.2%}" if "off" in arm else NONE,
            ]
        )
    return rows


DIFFERENCE_HEAD = ("arm", "less", "difference", "interval", "seeds", "compute to match")


def difference_rows(results: Row) -> list[list[str]]:
    """A row for each comparison; the cells of ``DIFFERENCE_HEAD``."""
    return [
        [
            arm["name"],
            other,
            f"{found['mean']:+z.4f}",
            interval(found),
            str(found["count"]),
            percent(found["compute_to_match"]),
        ]
        for arm in results["arms"]
        for other, found in arm["differences"].items()
    ]


def interval(found: Row) -> str:
    """``-0.0312 to +0.0014``, or a dash of one seed."""
    if found["interval"] is None:
        return NONE
    low, high = found["interval"]
    return f"{low:+z.4f} to {high:+z.4f}"


def _differences(results: Row) -> list[str]:
    rows = difference_rows(results)
    if not rows:
        return []
    return [
        "<h2>Differences</h2>",
        table(DIFFERENCE_HEAD, rows, "Differences"),
        note(
            "In bits per byte; below zero the first arm ended lower. Compute to match is the "
            "comparison at equal loss: the share of the other arm's compute after which this one "
            "had come down to the other's last loss; a dash where it never did."
        ),
    ]


def _missing(results: Row) -> str:
    notes = [f"{name} failed: {reason}" for name, reason in results["failed"].items()]
    wanted = len(results["arms"]) * len(results["seeds"])
    there = sum(len(arm["runs"]) for arm in results["arms"])
    if there < wanted:
        notes.insert(0, f"{there} of {wanted} runs are finished; the rest is missing here.")
    return f'<div class="missing">{paragraphs(notes)}</div>' if notes else ""


def _curves(results: Row) -> list[str]:
    if not any(arm["curve"] for arm in results["arms"]):
        return []
    return [
        "<h2>Against compute</h2>",
        to_html(curves_figure(results), "against-compute"),
        note(
            "Validation text read token by token in every stage; the lines are means over the "
            "seeds, the bands reach from the least to the most. A click on a name hides it."
        ),
    ]


def curves_figure(results: Row) -> go.Figure:
    """Bits per byte against compute: of each arm with a curve a mean line and a band."""
    figure = go.Figure()
    arms = [arm for arm in results["arms"] if arm["curve"]]
    divisor, letter = scale(max(point["flops"] for arm in arms for point in arm["curve"]))
    shown: list[float] = []
    for index, arm in enumerate(arms):
        colour = COLOURS[index % len(COLOURS)]
        x = [point["flops"] / divisor for point in arm["curve"]]
        group = f"arm-{index}"
        if any(point["most"] > point["least"] for point in arm["curve"]):
            edge = {
                "mode": "lines", "line": {"width": 0}, "legendgroup": group, "showlegend": False,
                "hoverinfo": "skip",
            }  # fmt: skip
            figure.add_trace(go.Scatter(x=x, y=[p["least"] for p in arm["curve"]], **edge))
            figure.add_trace(
                go.Scatter(x=x, y=[p["most"] for p in arm["curve"]], fill="tonexty",
                           fillcolor=_faint(colour), **edge)
            )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=x,
                y=[point["mean"] for point in arm["curve"]],
                mode="lines",
                name=legend_name(arm["name"]),
                legendgroup=group,
                line={"color": colour, "width": 2,
                      "dash": _DASHES[index // len(COLOURS) % len(_DASHES)]},
                hovertemplate=f"{html.escape(arm['name'])}: %{{y:.4f}}<extra></extra>",
            )
        )  # fmt: skip
        last = arm["curve"][-1]["flops"]
        shown += [
            value
            for point in arm["curve"]
            if point["flops"] >= _FIRST_SHOWN * last
            for value in (point["least"], point["most"])
        ]
    dress(figure)
    figure.update_xaxes(title={"text": f"compute ({letter}FLOP)"}, rangemode="tozero", **GRID)
    space = 0.05 * ((max(shown) - min(shown)) or 1.0) if shown else 0.0
    limits = {"range": [min(shown) - space, max(shown) + space]} if shown else {}
    figure.update_yaxes(title={"text": "bits per byte"}, **limits, **GRID)
    return figure


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[begin : begin + 2], 16) for begin in (1, 3, 5))
    return f"rgba({red},{green},{blue},.14)"


RUN_HEAD = ("run", "bits per byte", "loss", "steps", "tokens", "epochs", "compute", "time")


def run_rows(results: Row) -> list[list[str]]:
    """A row for each finished run; the cells of ``RUN_HEAD``."""
    return [
        [
            f"{arm['name']}, seed {run['seed']}",
            number(run["bits_per_byte"], 4),
            number(run["loss"], 4),
            count(run["total_steps"]),
            count(run["total_tokens"]),
            number(run["epochs"], 2),
            flops(run["flops"]),
            duration(run["seconds"]),
        ]
        for arm in results["arms"]
        for run in arm["runs"]
    ]


def recipe_parts(results: Row) -> str:
    """The shared recipe and what each arm replaces, folded."""
    import yaml

    parts = [("shared by all arms", results["recipe"])]
    parts += [(arm["name"], arm["recipe"]) for arm in results["arms"]]
    return "".join(
        f"<details><summary>{html.escape(name)}</summary><pre>"
        f"{html.escape(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True))}"
        "</pre></details>"
        for name, values in parts
    )
