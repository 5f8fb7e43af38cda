"""Zero-shot accuracies on the page: each task, run by run, with what needs no model beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from patchtrain.report.formats import NONE, accuracy, is_number, part_of
from patchtrain.report.summary import RunSummary
from patchtrain.report.tables import table

_HEAD = (
    "task",
    "run",
    "accuracy, %",
    "by length, %",
    "chance, %",
    "longest answer, %",
    "documents",
    "shots",
    "data",
)
_NOTE = (
    "Accuracy ± standard error; an answer tied with others counts its share. By length: answers "
    "compared by likelihood per character. Longest answer: what always choosing it scores. A model "
    "that does not beat both baselines has shown nothing on that task."
)


def tasks_section(runs: Sequence[RunSummary]) -> str:
    """A table of the tasks measured, and one of the parts of each that has parts."""
    names = list(dict.fromkeys(name for run in runs for name in run.measured("tasks")))
    rows = [
        _row(name, run.name, run.measured("tasks")[name])
        for name in names
        for run in runs
        if name in run.measured("tasks")
    ]
    if not rows:
        return ""
    parts = "".join(_parts(name, runs) for name in names)
    return (
        f'<div class="last"><h3>Zero-shot tasks</h3>{table(_HEAD, rows, "Zero-shot tasks")}'
        f'</div><p class="note">{html.escape(_NOTE)}</p>{parts}'
    )


def _row(name: str, run: str, values: dict[str, Any]) -> list[str]:
    metric = values.get("metric")
    shots = values.get("shots")
    return [
        name if metric in ("acc", None) else f"{name} ({metric})",
        run,
        accuracy(values.get("score"), values.get("score_stderr")),
        accuracy(values.get("by_length"), values.get("by_length_stderr")),
        accuracy(values.get("chance")),
        accuracy(values.get("longest_answer")),
        part_of(values.get("documents"), values.get("documents_available")),
        str(shots) if is_number(shots) else NONE,
        _data(values),
    ]


def _data(values: dict[str, Any]) -> str:
    data = values.get("data")
    where = "local files" if isinstance(data, list) else str(data or NONE)
    source = values.get("source")
    return f"{source} ({where})" if source else where


def _parts(name: str, runs: Sequence[RunSummary]) -> str:
    """Accuracy on each part of a group, a column a run, folded away."""
    measured = [(run.name, _subtasks(run, name)) for run in runs]
    columns = [(run, parts) for run, parts in measured if parts]
    if not columns:
        return ""
    tasks = list(dict.fromkeys(task for _, parts in columns for task in parts))
    rows = []
    for task in tasks:
        found = [parts.get(task, {}) for _, parts in columns]
        baselines = next(values for values in found if values)
        cells = [accuracy(values.get("score"), values.get("score_stderr")) for values in found]
        rows.append(
            [task, *cells, *(accuracy(baselines.get(key)) for key in ("chance", "longest_answer"))]
        )
    head = ["task", *(f"{run}, %" for run, _ in columns), "chance, %", "longest answer, %"]
    return (
        f"<details><summary>The {len(tasks)} tasks of {html.escape(name)}</summary>"
        f"{table(head, rows, f'Tasks of {name}')}</details>"
    )


def _subtasks(run: RunSummary, name: str) -> dict[str, dict[str, Any]]:
    found = run.measured("tasks").get(name, {}).get("subtasks")
    parts = found if isinstance(found, dict) else {}
    return {task: values for task, values in parts.items() if isinstance(values, dict)}
