"""The page a person looks at: one HTML file about one run, or about several side by side.

The file is complete: plotly's script is inside it, nothing is fetched (a content security policy
forbids it), and it opens from a disk without a server. Whatever came from a run's files (names,
prompts, samples, recipes) is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from patchtrain.errors import UsageError
from patchtrain.files import check_place
from patchtrain.report import curve, evaluations, figures, speed_section, tables, words
from patchtrain.report.summary import RunSummary
from patchtrain.report.template import note, page, paragraphs, write
from patchtrain.runs import RunFolder, of_expected_form


def write_page(runs: Sequence[RunFolder], out: Path, title: str | None = None) -> Path:
    """Write the page about ``runs`` to ``out`` (replaced whole) and return its path.

    Works for unfinished runs and for runs with missing pieces, and says what is missing.
    ``UsageError``: no run, or no folder to write to. ``PatchtrainError``: a run's file is broken.
    """
    if not runs:
        raise UsageError("a report needs at least one run folder")
    out = Path(out)
    check_place(out, "the report")
    with of_expected_form(*runs):
        text = render([RunSummary.read(run) for run in runs], title)
    return write(text, out)


def render(runs: Sequence[RunSummary], title: str | None = None) -> str:
    """The page as text."""
    runs = _distinct(runs)
    title = title or " against ".join(run.name for run in runs)
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="lead">{paragraphs(words.headline(runs))}</div>',
        _missing(runs),
        _curves(runs),
        _section("Results", _results(runs)),
        _section("Stages", _stages(runs)),
        _section("Evaluations", _evaluations(runs)),
        _section("Samples", _samples(runs)),
        _section("Recipe", _recipes(runs)),
        _section("Versions and machine", f'<div class="wide">{tables.machine_table(runs)}</div>'),
    ]
    return page(title, parts)


def _distinct(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """Runs with names that tell them apart."""
    import dataclasses

    names = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=f"{run.name} #{index + 1}")
        if names.count(run.name) > 1
        else run
        for index, run in enumerate(runs)
    ]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _missing(runs: Sequence[RunSummary]) -> str:
    notes = [run.gaps for run in runs if run.gaps]
    return f'<div class="missing">{paragraphs(notes)}</div>' if notes else ""


def _curves(runs: Sequence[RunSummary]) -> str:
    if not any(figures.kinds_drawn(run) for run in runs):
        return _section("Loss", note("There are no losses to draw yet."))
    plots = [
        ("against-compute", "Loss against compute", figures.compute_axis(runs)),
        ("against-time", "Loss against training time", figures.time_axis(runs)),
    ]
    parts = []
    for name, heading, axis in plots:
        figure = figures.to_html(figures.loss_figure(runs, axis), name)
        parts.append(f"<h3>{heading}</h3>{figure}")
    return _section("Loss", _legend(runs) + "".join(parts) + _curve_notes(runs))


def _curve_notes(runs: Sequence[RunSummary]) -> str:
    notes = ["Validation reads held-out text token by token in every stage."]
    if any(not run.token_level for run in runs):
        notes.append(
            "Patch loss (dotted) is the loss of the K tokens of the next patch, all predicted from "
            "one position: it cannot be compared with token loss, nor between patch sizes."
        )
    if any(curve.marks(run) for run in runs):
        notes.append(
            "Marks: a triangle up is a spike of the training loss, a cross a step left out, a "
            "triangle to the left a rollback; each says more where the pointer rests on it."
        )
    notes.append("Training time leaves out evaluation.")
    if (size := figures.averaging(runs)) > 1:
        notes.append(f"Long training curves are averaged over up to {size} logged steps a point.")
    notes.append(
        "The steep fall of the first steps may lie above the figure: double-click to see all of "
        "it. A click on a line's name hides it."
    )
    return note(" ".join(notes))


def _legend(runs: Sequence[RunSummary]) -> str:
    styles = {
        "patch": 'stroke-width="2" stroke-dasharray="2 3"',
        "token": 'stroke-width="1.4" opacity=".7"',
        "validation": 'stroke-width="3"',
    }
    buttons = []
    for number, run in enumerate(runs):
        colour = figures.COLOURS[number % len(figures.COLOURS)]
        for kind in figures.kinds_drawn(run):
            dot = f'<circle cx="14" cy="6" r="4" fill="{colour}"/>' if kind == "validation" else ""
            name = f"{run.name}: {figures.KINDS[kind]}" if len(runs) > 1 else figures.KINDS[kind]
            buttons.append(
                f'<button type="button" aria-pressed="true" data-key="{number}-{kind}">'
                '<svg width="28" height="12" aria-hidden="true"><line x1="0" x2="28" y1="6" y2="6" '
                f'stroke="{colour}" {styles[kind]}/>{dot}</svg>{html.escape(name)}</button>'
            )
    return f'<div class="legend">{"".join(buttons)}</div>'


def _results(runs: Sequence[RunSummary]) -> str:
    return tables.results_table(runs) + note(
        "Bits per byte compares across tokenizers; loss and perplexity only with the same one. "
        "Positions are what the transformer computes: a patch of K tokens is one position."
    )


def _stages(runs: Sequence[RunSummary]) -> str:
    parts = []
    for number, run in enumerate(runs):
        heading = tables.run_heading(run, number) if len(runs) > 1 else ""
        if not run.stages:
            parts.append(heading + note("There is no plan in this run's run.json."))
            continue
        parts.append(
            heading + tables.stages_table(run) + "<h3>Speed</h3>" + speed_section.speed(run)
        )
    return "".join(parts)


def _evaluations(runs: Sequence[RunSummary]) -> str:
    return evaluations.evaluations(runs) or note(
        "There is no separate evaluation yet: patchtrain eval makes one."
    )


def _samples(runs: Sequence[RunSummary]) -> str:
    if not any(run.samples for run in runs):
        return ""
    return note("What the final models write after a prompt (bold).") + tables.samples_grid(runs)


def _recipes(runs: Sequence[RunSummary]) -> str:
    return "".join(
        f"<details><summary>{html.escape(run.name)}, as resolved</summary>"
        f"<pre>{html.escape(run.recipe)}</pre></details>"
        for run in runs
        if run.recipe is not None
    )
