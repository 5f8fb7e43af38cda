"""The page of a comparison or sweep: the verdict in words first, then tables and figures.

One self-contained HTML file, made from the results alone; it can be made while runs are still
missing, and says so. Runs that lost or failed are on it.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchtrain.report import compare_figures
from patchtrain.report.compare_words import (
    CONTENDER_HEAD,
    LOSS_HEAD,
    budget_rows,
    contender_rows,
    held,
    loss_rows,
    lost_notes,
    rate_rows,
    tuned_on,
    verdict,
)
from patchtrain.report.figures import to_html
from patchtrain.report.formats import count, exact
from patchtrain.report.study_page import RUN_HEAD, recipe_parts, run_rows
from patchtrain.report.tables import table
from patchtrain.report.template import note, page, paragraphs, write

Row = Mapping[str, Any]


def write_compare_page(results: Row, out: Path) -> Path:
    """Write the page of ``results`` (``comparison_results.summarise``) to ``out``."""
    return write(render(results), out)


def render(results: Row) -> str:
    """The page as text."""
    body = [
        f"<h1>{html.escape(results['title'])}</h1>",
        f'<div class="lead">{paragraphs(verdict(results))}</div>',
        "".join(note(sentence) for sentence in held(results)),
        _models(results),
        _missing(results),
        "<h2>Arms</h2>",
        table(CONTENDER_HEAD, contender_rows(results), "Arms"),
        note(
            "Bits per byte on all of the held-out text, at token level; lower is better. Mean over "
            "the seeds and their standard deviation. The difference is to token level, seed by "
            "seed; below zero the arm ended lower."
        ),
        _words(results),
        *_equal_loss(results),
        *_heat_map(results),
        *_curves(results),
        *_rates(results),
        *_trials(results),
        "<h2>All runs</h2>",
        f'<div class="named">{table(RUN_HEAD, run_rows(results), "All runs")}</div>',
        "<h2>Recipe</h2>",
        recipe_parts(results),
    ]
    return page(results["title"], body)


def _models(results: Row) -> str:
    sizes = sorted({run["body_parameters"] for arm in results["arms"] for run in arm["runs"]})
    words = []
    if sizes:
        shown = count(sizes[0]) + (f" to {count(sizes[-1])}" if len(sizes) > 1 else "")
        words.append(f"Models of {shown} parameters without embeddings.")
    if corpus := results["about"].get("corpus"):
        words.append(f"Text: {corpus}.")
    return note(" ".join(words)) if words else ""


def _missing(results: Row) -> str:
    notes = lost_notes(results)
    return f'<div class="missing">{paragraphs(notes)}</div>' if notes else ""


def _words(results: Row) -> str:
    rows = [[item["name"], item["words"]] for item in results["contenders"]]
    listed = table(("arm", "what it is"), rows, "What the arms are")
    return f'<details class="wide"><summary>What the arms are</summary>{listed}</details>'


def _equal_loss(results: Row) -> list[str]:
    rows = loss_rows(results)
    if not rows:
        return []
    budgets, given = ", ".join(results["budgets"]), results.get("budget_rate")
    rate = "the rate that was its best at full length"
    if given is not None:
        rate = f"the rate {exact(given)}"
    figure = compare_figures.needed(results)
    return [
        "<h2>At equal loss</h2>",
        table(LOSS_HEAD, rows, "At equal loss"),
        note(
            f"An arm's compute over what token level needs for the arm's loss; below 1 saves. "
            f"Token level was trained anew at {budgets} of the compute, each a whole run with its "
            f"own schedule, at {rate}; in between it is read off straight in log compute, with "
            f"neighbours pooled where noise made more compute end higher. Never beyond: where an "
            f"arm ended outside, there is only a bound. Geometric mean over the seeds. Time is "
            f"what each run took, with whatever else the machine did meanwhile."
        ),
        table(*budget_rows(results), "Less token level with other shares of its compute"),
        note(
            "Bits per byte less token level's with that share of the compute, and the interval "
            "over the seeds that both have."
        ),
        "" if figure is None else to_html(figure, "compute-needed"),
    ]


def _heat_map(results: Row) -> list[str]:
    found = compare_figures.heat_map(results)
    if found is None:
        return []
    figure, words = found
    return [
        f"<h2>{html.escape(words)}</h2>",
        to_html(figure, "heat-map"),
        note(
            f"Bits per byte less token level's with {tuned_on(results)}, each point at its own "
            f"best learning rate, and at the best of what varies besides; blue ended lower."
        ),
    ]


def _curves(results: Row) -> list[str]:
    figure = compare_figures.curves(results)
    if figure is None:
        return []
    ended = sum(item["bits_per_byte"] is not None for item in results["contenders"])
    most = compare_figures.MOST_CURVES
    shown = f"The best {most} of {ended}, with what they are compared with. " * (ended > most)
    return [
        "<h2>Against compute</h2>",
        to_html(figure, "against-compute"),
        note(
            f"{shown}"
            "Validation text read token by token in every stage; lines are means over the seeds, "
            "bands reach from the least to the most. A click on a name hides it."
        ),
    ]


def _rates(results: Row) -> list[str]:
    head, rows = rate_rows(results)
    if len(head) < 3:
        return []
    return [
        "<h2>Learning rates</h2>",
        table(head, rows, "Learning rates"),
        note(f"Bits per byte with {tuned_on(results)}; * is the one that was taken."),
    ]


def _trials(results: Row) -> list[str]:
    if not results["trials"]:
        return []
    rows = [
        [
            str(number),
            trial["contender"],
            "" if trial["learning_rate"] is None else f"{trial['learning_rate']:.3g}",
            "failed" if trial["value"] is None else f"{trial['value']:.4f}",
        ]
        for number, trial in enumerate(results["trials"], 1)
    ]
    return ["<h2>Trials</h2>", table(("trial", "point", "rate", "bits per byte"), rows, "Trials")]
