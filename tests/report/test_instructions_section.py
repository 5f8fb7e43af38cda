"""Following instructions on the page, side by side and escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patchtrain.evaluation.record import record
from patchtrain.report.formats import NONE
from patchtrain.report.instructions_section import instructions_section
from patchtrain.report.page import write_page
from patchtrain.report.summary import RunSummary
from patchtrain.runs import RunFolder
from tests.report.fake_runs import write_run

ANSWERS = {"measure": "answers", "loss": 1.61234, "loss_stderr": 0.03, "targets": 12345,
           "scored": "50 answers of held_out.jsonl", "before": {"loss": 2.5}}  # fmt: skip
IFEVAL = {
    "measure": "ifeval", "prompt_strict": 0.25, "prompt_strict_stderr": 0.019,
    "prompt_loose": 0.3, "prompt_loose_stderr": 0.02, "instruction_strict": 0.4,
    "instruction_strict_stderr": 0.018, "instruction_loose": 0.45,
    "instruction_loose_stderr": 0.018, "prompts": 541, "not_ended": 7,
    "by_group": {"keywords": {"strict": 0.5, "loose": 0.75, "instructions": 163}},
}  # fmt: skip
RATED = {"score": 6.125, "score_stderr": 0.21, "rated": 159, "unrated": 1}
MT_BENCH = {
    "measure": "mt_bench", **RATED, "judge": {"model": "strict-1"},
    "turns": {"1": {"score": 6.5, "score_stderr": 0.2}, "2": {"score": None}},
    "categories": {"math": {"score": 2.0, "score_stderr": None, "rated": 20}},
}  # fmt: skip


def run_with(folder: Path, **results: dict[str, Any]) -> RunFolder:
    run = write_run(folder, ((1, 20),))
    for name, result in results.items():
        record(run.evaluation_file, "instructions", name, result)
    return run


def test_all_three_side_by_side(tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / "base", ifeval={**IFEVAL, "prompt_strict": 0.1}),
        run_with(tmp_path / "tuned", held=ANSWERS, ifeval=IFEVAL, judged=MT_BENCH),
    ]
    page = instructions_section([RunSummary.read(run) for run in runs])
    for row in (
        '<th scope="row">tuned</th><td>held</td><td>1.6123 ± 0.0300</td><td>2.5000</td>'
        "<td>12,345</td><td>50 answers of held_out.jsonl</td>",
        '<th scope="row">base</th><td>ifeval</td><td>10.0 ± 1.9</td><td>30.0 ± 2.0</td>',
        '<th scope="row">tuned</th><td>ifeval</td><td>25.0 ± 1.9</td><td>30.0 ± 2.0</td>'
        "<td>40.0 ± 1.8</td><td>45.0 ± 1.8</td><td>541</td><td>7</td>",
        '<th scope="row">tuned</th><td>keywords</td><td>50.0</td><td>75.0</td><td>163</td>',
        '<th scope="row">tuned</th><td>judged</td><td>6.12 ± 0.21</td><td>6.50 ± 0.20</td>'
        f"<td>{NONE}</td><td>159</td><td>1</td><td>strict-1</td>",
        '<th scope="row">tuned</th><td>math</td><td>2.00</td><td>20</td>',
    ):
        assert row in page
    assert "MT-Bench" in write_page(runs, tmp_path / "page.html").read_text("utf-8")


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert instructions_section([RunSummary.read(write_run(tmp_path / "run", ((1, 20),)))]) == ""


@pytest.mark.parametrize("value", ["<script>x", None, [1], {"loss": "<b>"}, 7])
def test_other_values_are_escaped_or_left_out(value: Any, tmp_path: Path) -> None:
    odd = {
        name: dict.fromkeys(result, value) | {"measure": result["measure"]}
        for name, result in (("a", ANSWERS), ("b", IFEVAL), ("<i>", MT_BENCH))
    }
    page = instructions_section([RunSummary.read(run_with(tmp_path / "run", **odd))])
    assert "<script>x" not in page
    assert "<b>" not in page
    assert "<i>" not in page
