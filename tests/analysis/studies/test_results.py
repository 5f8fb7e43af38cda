"""Counting what came out, and the page that shows it."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.analysis.studies.results import collect, compute_to_match
from patchtrain.analysis.studies.study import Arm, Equality, Study, run_folder
from patchtrain.files import write_json
from patchtrain.report.study_page import arm_rows, difference_rows, lead, render, write_study_page
from tests.analysis.studies.tiny import write_finished
from tests.report.browser import find_browser
from tests.report.test_browser import look


def curve(*values: float) -> list[dict[str, float]]:
    return [{"flops": 10.0 * (i + 1), "bits_per_byte": value} for i, value in enumerate(values)]


def test_compute_to_match_is_where_the_curve_crosses_the_others_end() -> None:
    other = curve(4, 3, 2)
    assert compute_to_match(other, other) == 1
    assert compute_to_match(curve(3, 1), other) == pytest.approx(15 / 30)
    assert compute_to_match(curve(2, 1), other) == pytest.approx(10 / 30)
    assert compute_to_match(curve(4, 3, 2.5), other) is None
    assert compute_to_match([], other) is None


@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=8), st.floats(1e-3, 2))
def test_a_curve_below_another_never_needs_more_compute(values: list[float], gap: float) -> None:
    other = curve(*sorted(values, reverse=True))
    lower = [{**row, "bits_per_byte": row["bits_per_byte"] - gap} for row in other]
    share = compute_to_match(lower, other)
    assert share is not None
    assert share <= 1 + 1e-12


LOSSES = {"tokens": {0: 2.0, 1: 2.2, 2: 2.1}, "patches": {0: 1.9, 1: 2.05, 2: 2.03}}


def made(folder: Path, losses: dict[str, dict[int, float]] = LOSSES) -> Study:
    """A study whose runs are written by hand."""
    names = list(LOSSES)
    arms = tuple(
        Arm(name, f"words of <i>{name}</i>", {}, tuple(names[:1]) if name != names[0] else ())
        for name in names
    )
    equality = {name: Equality(1e12, 1.001e12) for name in names}
    study = Study("made", "<script>alert(1)</script>", {"plan": {}}, arms, (0, 1, 2), "compute",
                  {"corpus": "<b>text</b>"}, equality)  # fmt: skip
    for arm in arms:
        for seed, loss in losses[arm.name].items():
            values = {
                "flops": 1e12,
                "plan": {"total_tokens": 1000, "total_positions": 800, "total_steps": 10,
                         "epochs": 0.5},
                "model": {"parameters": 10, "body_parameters": 5, "vocab_size": 3},
            }  # fmt: skip
            write_finished(run_folder(folder, arm, seed), loss, values)
    return study


def test_means_differences_and_bands_are_those_of_the_runs(tmp_path: Path) -> None:
    found = collect(made(tmp_path), tmp_path, {})
    tokens, patches = found["arms"]
    assert found["complete"]
    assert tokens["bits_per_byte"]["mean"] == pytest.approx(2.1)
    assert tokens["bits_per_byte"]["standard_deviation"] == pytest.approx(0.1)
    difference = patches["differences"]["tokens"]
    assert difference["values"] == pytest.approx([-0.1, -0.15, -0.07])
    assert difference["mean"] == pytest.approx(-0.32 / 3)
    error = 0.0404145 / math.sqrt(3)
    assert difference["interval"] == pytest.approx(
        [-0.32 / 3 - 4.30265 * error, -0.32 / 3 + 4.30265 * error], abs=1e-5
    )
    assert 0.9 < difference["compute_to_match"] < 1
    assert [point["least"] for point in tokens["curve"]] == pytest.approx([3.0, 2.0])
    assert [point["most"] for point in tokens["curve"]] == pytest.approx([3.2, 2.2])


def test_what_is_not_finished_is_missing_and_told(tmp_path: Path) -> None:
    losses = {"tokens": {0: 2.0, 1: 2.2}, "patches": {1: 2.1, 2: 2.0}}
    study = made(tmp_path, losses)
    unfinished = run_folder(tmp_path, study.arms[0], 2)
    unfinished.path.mkdir()
    write_json(unfinished.info_file, {"status": "interrupted", "result": None})
    found = collect(study, tmp_path, {"patches-seed-0": "no <memory>"})
    assert not found["complete"]
    assert found["arms"][1]["differences"]["tokens"]["seeds"] == [1]
    assert found["arms"][1]["differences"]["tokens"]["interval"] is None
    page = render(found)
    assert "4 of 6 runs are finished" in page
    assert "patches-seed-0 failed: no &lt;memory&gt;" in page


def test_a_study_without_any_result_has_a_page_too(tmp_path: Path) -> None:
    found = collect(made(tmp_path, {"tokens": {}, "patches": {}}), tmp_path, {})
    page = render(found)
    assert "0 of 6 runs are finished" in page
    assert 'class="plot"' not in page


def test_the_page_holds_the_numbers_and_escapes_what_came_from_outside(tmp_path: Path) -> None:
    found = collect(made(tmp_path), tmp_path, {})
    page = render(found)
    for hostile in ("<script>alert", "<i>tokens", "<b>text"):
        assert hostile not in page
    assert "2.1000" in page
    assert "-0.1067" in page
    rows = {row[0]: row for row in arm_rows(found)}
    assert rows["tokens"][-1] == "+0.10%"
    assert difference_rows(found)[0][:3] == ["patches", "tokens", "-0.1067"]
    assert "95% interval" in " ".join(lead(found))
    one: dict[str, Any] = {**found, "seeds": [0]}
    assert "no difference here has an interval" in " ".join(lead(one))


def test_the_curves_are_drawn_and_nothing_is_fetched(tmp_path: Path) -> None:
    find_browser()
    found = collect(made(tmp_path), tmp_path, {})
    seen = look(write_study_page(found, tmp_path / "report.html"), tmp_path, 1000)
    assert seen["errors"] == []
    assert seen["refused"] == []
    (plot,) = seen["plots"]
    assert len([line for line in plot["lines"] if line > 10]) >= 2


def test_the_docs_table_has_every_arm_and_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "tables.py"
    monkeypatch.syspath_prepend(str(script.parent))  # as it is where the script is started
    found = collect(made(tmp_path), tmp_path, {"patches-seed-9": "no memory"})
    lines = runpy.run_path(str(script))["study"](found)
    assert any(line.startswith("| tokens | words") and "| 2.1000 |" in line for line in lines)
    assert any(line.startswith("| patches | tokens | -0.1067 |") for line in lines)
    assert lines[-1] == "- Failed: patches-seed-9: no memory"
