"""Zero-shot accuracies on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchtrain.evaluation.record import record
from patchtrain.report.formats import NONE, accuracy, part_of
from patchtrain.report.page import write_page
from patchtrain.report.summary import RunSummary
from patchtrain.report.tasks_section import tasks_section
from tests.report.fake_runs import write_run


def scores(score: float, **values: Any) -> dict[str, Any]:
    return {
        "metric": "acc",
        "score": score,
        "score_stderr": 0.004,
        "by_length": None,
        "by_length_stderr": None,
        "chance": 0.5,
        "longest_answer": 0.541,
        "documents": 6700,
        "documents_available": 67000,
        "shots": 0,
        "data": ["data"],
    } | values


def test_tasks_side_by_side(tmp_path: Path) -> None:
    runs = []
    for name, score in (("token", 0.6543), ("patch", 0.7)):
        run = write_run(tmp_path / name, ((1, 20),))
        parts = {"blimp_wh_island": scores(score / 2, source="wh_island, train split")}
        record(run.evaluation_file, "tasks", "blimp", scores(score, subtasks=parts))
        runs.append(run)
    words = scores(0.25, metric="exact_match", chance=None, longest_answer=None, data="the Hub")
    record(runs[1].evaluation_file, "tasks", "drop-3-shot", words | {"shots": 3, "source": "drop"})
    page = tasks_section([RunSummary.read(run) for run in runs])
    for row in (
        '<th scope="row">blimp</th><td>token</td><td>65.4 ± 0.4</td>'
        f"<td>{NONE}</td><td>50.0</td><td>54.1</td><td>6,700 of 67,000</td>"
        "<td>0</td><td>local files</td>",
        '<th scope="row">blimp</th><td>patch</td><td>70.0 ± 0.4</td>',
        '<th scope="row">drop-3-shot (exact_match)</th><td>patch</td><td>25.0 ± 0.4</td>',
        "<td>3</td><td>drop (the Hub)</td>",
        '<th scope="row">blimp_wh_island</th><td>32.7 ± 0.4</td><td>35.0 ± 0.4</td><td>50.0</td>',
    ):
        assert row in page
    assert page.count("<details>") == 1
    assert "Zero-shot tasks" in write_page(runs, tmp_path / "page.html").read_text("utf-8")


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert tasks_section([RunSummary.read(write_run(tmp_path / "run", ((1, 20),)))]) == ""


def test_how_accuracies_read() -> None:
    assert accuracy(0.79123, 0.0049) == "79.1 ± 0.5"
    assert accuracy(1.0) == "100.0"
    assert accuracy(None, 0.1) == NONE
    assert accuracy(0.5, None) == "50.0"
    assert part_of(1000, 1000) == "1,000"
    assert part_of(200, 1000) == "200 of 1,000"
    assert part_of(200, None) == "200"
