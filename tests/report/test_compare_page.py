"""The page of a comparison: what it says first, that it is whole, and that a phone can read it."""

from pathlib import Path
from typing import Any

import pytest

from patchtrain.analysis.studies import comparison
from patchtrain.analysis.studies.comparison import run_comparison
from patchtrain.analysis.studies.question import compared
from patchtrain.analysis.studies.study import Arm
from patchtrain.analysis.studies.sweep import grid, swept
from patchtrain.report.compare_page import render
from patchtrain.report.compare_words import LOSS_HEAD, contender_rows, loss_rows, verdict
from tests.analysis.studies.pretend import Pretend, recipe
from tests.report.browser import find_browser
from tests.report.test_browser import look


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return pretended(tmp_path, monkeypatch)


def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **asked: Any) -> dict[str, Any]:
    def end(arm: Arm, seed: int) -> float:
        name, budget = arm.notes["contender"], arm.notes["budget"]
        if name == "token":
            return 2.0 - 0.3 * (budget - 1) + 0.01 * seed + arm.notes["learning_rate"]
        return {"recipe": 1.9, "paper": 2.0, "<b>": 0.0}[name] + 0.02 * seed * (-1) ** seed

    monkeypatch.setattr(comparison, "train_runs", Pretend(end))
    question = compared(
        recipe(), ["recipe", "paper"], rates=(1e-3, 2e-3), budgets=(0.5, 2.0),
        about={"corpus": "<script>alert(1)</script>"}, **asked,
    )  # fmt: skip
    return run_comparison(question, tmp_path / "c", 1, say=lambda line: None, quiet=True)


def test_the_verdict_comes_first_and_names_what_is_held_equal(results: dict[str, Any]) -> None:
    first, second = verdict(results)
    assert first.startswith("recipe ended 0.1")
    assert "bits per byte below token (interval " in first
    assert "of the compute that token level needs" in first
    assert "the interval holds zero, so this is no evidence" in second
    page = render(results)
    assert page.index(first.split(" (")[0]) < page.index("Held equal: compute")
    assert "Seeds: 0, 1, 2" in page
    assert "At the edge of the rates tried" in page
    assert "<script>alert" not in page
    assert "token-rate-0.002, seed 0" in page  # the rate that lost


def test_the_page_says_at_which_rate_the_other_budgets_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = render(pretended(tmp_path / "1", monkeypatch))
    assert "at the rate that was its best at full length" in page
    page = render(pretended(tmp_path / "2", monkeypatch, budget_rate=3e-3))
    assert "at the rate that was its best at full length" not in page
    assert "each a whole run with its own schedule, at the rate 0.003;" in page


def test_a_bound_is_said_as_one(results: dict[str, Any]) -> None:
    """An arm that ended below token level's longest runs has no ratio, and saves most."""
    first = next(item for item in results["contenders"] if item["name"] == "recipe")
    first["equal_loss"]["compute"].update(mean=None, interval=None, bound={"below": 0.5})
    assert "For the same loss it took less than 0.50 of the compute that" in verdict(results)[0]
    first["equal_loss"]["compute"].update(bound={"above": 2.0})
    assert "For the same loss it took more than 2.00 of the compute that" in verdict(results)[0]
    first["equal_loss"]["compute"].update(bound=None)
    assert "For the same loss" not in verdict(results)[0]


def test_rows_fit_their_heads(results: dict[str, Any]) -> None:
    assert [row[0] for row in contender_rows(results)] == ["recipe", "paper", "token"]
    rows = loss_rows(results)
    assert all(len(row) == len(LOSS_HEAD) for row in rows)
    assert [row[-1] for row in rows] == ["3 of 3", "3 of 3"]


@pytest.mark.parametrize("width", [1200, 390])
def test_the_figures_are_drawn_and_the_page_fits(
    width: int, results: dict[str, Any], tmp_path: Path
) -> None:
    find_browser()
    seen = look(tmp_path / "c" / "report.html", tmp_path, width)
    assert (seen["errors"], seen["refused"], seen["loaded"]) == ([], [], [])
    assert seen["width"] <= width
    assert [plot["id"] for plot in seen["plots"]] == ["compute-needed", "against-compute"]
    assert [len(plot["lines"]) for plot in seen["plots"]] == [3, 3 * 3]


def test_a_sweeps_heat_map_is_drawn_on_a_phone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_browser()
    monkeypatch.setattr(comparison, "train_runs", Pretend(lambda arm, seed: 1.0 + len(arm.name)))
    sweep = swept(recipe(), ["K=2,4", "r=0.25,0.5"])
    run_comparison(grid(sweep), tmp_path / "s", 1, say=lambda line: None, quiet=True)
    seen = look(tmp_path / "s" / "report.html", tmp_path, 390)
    assert (seen["errors"], seen["refused"]) == ([], [])
    assert seen["width"] <= 390
    assert [plot["id"] for plot in seen["plots"]] == ["heat-map", "against-compute"]
