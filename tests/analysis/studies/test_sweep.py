"""Sweeps: axes from words, points with their references, what fails is kept, searches resume."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchtrain.analysis.studies import comparison
from patchtrain.analysis.studies.comparison import run_comparison
from patchtrain.analysis.studies.study import Arm
from patchtrain.analysis.studies.sweep import Range, axis_from_words, grid, searched, swept
from patchtrain.errors import UsageError
from patchtrain.report.compare_figures import heat_map
from patchtrain.report.compare_words import verdict
from tests.analysis.studies.pretend import Pretend, recipe


def run(question: Any, folder: Path, **more: Any) -> dict[str, Any]:
    return run_comparison(question, folder, 2, say=lambda line: None, quiet=True, **more)


def test_axes_in_words() -> None:
    assert axis_from_words("K=2,3,4") == ("plan.patch_size", [2, 3, 4])
    assert axis_from_words("rate=2e-3,0.004") == ("training.learning_rate", [0.002, 0.004])
    assert axis_from_words("optimizer_at_switch=carry,reset")[1] == ["carry", "reset"]
    stages = axis_from_words("stages=[[8,.2],[1,.8]],[[4,.3],[1,.7]]")[1]
    assert stages == [[[8, 0.2], [1, 0.8]], [[4, 0.3], [1, 0.7]]]
    assert axis_from_words("K=2..8") == ("plan.patch_size", Range(2, 8))
    rates = axis_from_words("rate=1e-3..1e-2")[1]
    assert isinstance(rates, Range)
    assert (rates.log, rates.whole) == (True, False)
    assert axis_from_words("K=2..3") == ("plan.patch_size", Range(2, 3))
    for words in ("r=0..1", "lambda=0..2", "patch_rate=1..2"):
        between = axis_from_words(words)[1]
        assert isinstance(between, Range)
        assert not between.whole, words  # what lies between, not the ends alone


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["K"], "not PATH=values"),
        (["K=2,2"], "there twice"),
        (["r=0.1..1e999"], "1e999 is no number"),
        (["K=2", "patch_size=4"], "there twice"),
        (["rate=1e-3,2e-3"], "goes over something"),
        (["rate=0,1e-3", "K=2"], "above 0"),
        (["K=8..2"], "from less to more"),
        (["steps=10,20", "tokens=1000,2000"], "one length"),
        (["patchsize=2"], "no entry of a recipe"),
    ],
)
def test_a_wrong_axis_is_said(over: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        swept(recipe(), over)


def test_a_grid_has_every_point_at_the_baselines_compute() -> None:
    question = grid(swept(recipe(), ["K=2,4", "r=0.25,0.5", "rate=1e-3,2e-3"]))
    assert [item.name for item in question.contenders] == [
        "token", "K2-r0.25", "K2-r0.5", "K4-r0.25", "K4-r0.5",
    ]  # fmt: skip
    assert question.rates == (0.001, 0.002)
    targets = {item.equality.target for item in question.contenders if item.equality}
    assert len(targets) == 1
    assert all(abs(item.equality.off) < 0.02 for item in question.contenders if item.equality)


def test_a_point_of_separate_documents_has_no_data_to_hold_equal() -> None:
    question = grid(swept(recipe(), ["documents=mixed,separate"], held_equal="data"))
    assert [item.name for item in question.contenders] == [
        "token-documentsmixed", "documentsmixed",
    ]  # fmt: skip
    assert "padding between separate documents" in question.unfit["documentsseparate"]


def test_an_axis_inside_a_value_is_said() -> None:
    with pytest.raises(UsageError, match=r"no point .*: hidden_size is a value, not a section"):
        grid(swept(recipe(), ["model.config.hidden_size.x=1,2"]))


def test_what_token_level_depends_on_has_references_of_its_own() -> None:
    over = ["model.config.hidden_size=16,32", "optimizer_at_switch=carry,reset"]
    question = grid(swept(recipe(), over))
    against = {item.name: item.reference for item in question.contenders}
    assert against == {
        "token-hidden_size16": None,
        "token-hidden_size32": None,
        "optimizer_at_switchcarry-hidden_size16": "token-hidden_size16",
        "optimizer_at_switchreset-hidden_size16": "token-hidden_size16",
        "optimizer_at_switchcarry-hidden_size32": "token-hidden_size32",
        "optimizer_at_switchreset-hidden_size32": "token-hidden_size32",
    }
    # All have the compute of the recipe's own model, so the larger one trains for fewer steps.
    steps = {item.name: item.recipe["plan.steps"] for item in question.contenders}
    assert steps["token-hidden_size16"] == 200
    assert steps["token-hidden_size32"] < 150


def test_an_axis_over_the_length_changes_the_compute() -> None:
    question = grid(swept(recipe(), ["steps=100,200", "K=2,4"]))
    actual = {item.name: item.equality.actual for item in question.contenders if item.equality}
    assert actual["token-steps200"] == pytest.approx(2 * actual["token-steps100"])
    assert actual["K4-steps100"] == pytest.approx(actual["token-steps100"], rel=0.03)


@pytest.mark.parametrize(
    ("axis", "references"),
    [
        ("stages=[[8,.1],[4,.1],[2,.1],[1,.7]],[[4,.3],[1,.7]]", 1),
        ("slot_weights=uniform,power", 1),
        ("schedule_scope=run,stage", 1),
        ("schedule=cosine,wsd", 2),
        ("tokens_per_step=128,256", 2),
        ("context_length=16,32", 2),
        ("tokens=1M,2M", 2),
        ("training.weight_decay=0,0.1", 2),
    ],
)
def test_any_entry_is_an_axis_at_equal_compute(axis: str, references: int) -> None:
    question = grid(swept(recipe(tokens_per_step=256), [axis]))
    assert question.unfit == {}
    against = {item.name: item.reference for item in question.contenders}
    assert sum(reference is None for reference in against.values()) == references
    assert len(against) == references + 2
    for item in question.contenders:
        assert item.equality is not None
        assert abs(item.equality.off) < 0.02


def test_a_point_that_cannot_be_trained_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(arm: Arm, seed: int) -> float | None:
        return None if "K4" in arm.name else 2.0

    monkeypatch.setattr(comparison, "train_runs", Pretend(end))
    found = run(grid(swept(recipe(), ["K=2,4,0"])), tmp_path / "s")
    assert "patch_size must be" in found["unfit"]["K0"]
    assert found["failed"] == {"K4-seed-0": "it fell over"}
    page = (tmp_path / "s" / "report.html").read_text()
    assert "K0 was not trained: " in page
    assert "K4-seed-0 failed" in page


def test_a_sweep_of_which_nothing_fits_is_an_error() -> None:
    with pytest.raises(UsageError, match="no point of the sweep can be trained"):
        grid(swept(recipe(), ["K=0"]))


def test_only_the_best_are_repeated_and_the_heat_map_shows_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = {"token": 2.0, "K2-r0.25": 1.9, "K2-r0.5": 2.1, "K4-r0.25": 1.8, "K4-r0.5": 2.3}
    trainer = Pretend(lambda arm, seed: ends[arm.notes["contender"]])
    monkeypatch.setattr(comparison, "train_runs", trainer)
    sweep = swept(recipe(), ["K=2,4", "r=0.25,0.5"], seeds=(0, 1), confirm=1)
    found = run(grid(sweep), tmp_path / "s")
    assert [name for name, seed in trainer.trained if seed == 1] == ["token", "K4-r0.25"]
    shown = heat_map(found)
    assert shown is not None
    figure, words = shown
    assert words == "r against K"
    (cells,) = figure.data
    assert list(cells.x) == ["2", "4"]
    assert list(cells.y) == ["0.25", "0.5"]
    assert cells.z[0] == pytest.approx([-0.1, -0.2])
    assert cells.z[1] == pytest.approx([0.1, 0.3])
    assert "K4-r0.25 ended 0.2000 bits per byte below token" in (
        tmp_path / "s" / "report.html"
    ).read_text().replace("&#x27;", "'")


@pytest.mark.parametrize("kind", ["random", "bayes"])
def test_a_search_that_was_cut_goes_on_to_the_same_trials(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from patchtrain.analysis.studies.search import Search

    def end(arm: Arm, seed: int) -> float | None:
        K = arm.recipe["plan.patch_size"]
        return None if K == 8 else 2.0 - 0.1 * (K == 4) + arm.notes["learning_rate"]

    over = ["K=2,4,8", "r=0.1..0.6", "rate=1e-3..1e-2", "optimizer_at_switch=carry,reset"]

    def go(folder: Path) -> dict[str, Any]:
        sweep = swept(recipe(), over, confirm=2)
        return run(searched(sweep), folder, search=Search(sweep, kind, 10))

    trainer = Pretend(end)
    monkeypatch.setattr(comparison, "train_runs", trainer)
    whole = go(tmp_path / "whole")
    assert len(whole["trials"]) == 10
    assert all(trial["failed"] == (trial["values"]["plan.patch_size"] == 8)
               for trial in whole["trials"])  # fmt: skip
    # Token level is tuned too: over the same range of rates.
    token = next(item for item in whole["contenders"] if item["name"] == "token")
    rates = [tried["learning_rate"] for tried in token["tried"]]
    assert rates == pytest.approx([1e-3, 2.154e-3, 4.642e-3, 1e-2])
    assert token["learning_rate"] == 1e-3
    assert (tmp_path / "whole" / "report.html").is_file()
    shown = heat_map(whole)
    assert shown is not None
    (marks,) = shown[0].data
    assert marks.type == "scatter"  # r is a range
    assert {str(x) for x in marks.x} == {"2", "4"}

    trainer.trained.clear()
    trainer.stop_after = 9
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "cut")
    trainer.stop_after = None
    again = go(tmp_path / "cut")
    assert again["trials"] == whole["trials"]
    known = json.loads((tmp_path / "cut" / "trials.json").read_text())
    assert len(known["trials"]) == 10


def test_a_random_search_is_uniform_however_it_is_cut_in_batches() -> None:
    pytest.importorskip("optuna")
    from patchtrain.analysis.studies.search import Search

    search = Search(swept(recipe(), ["K=2,4", "r=0.1..0.5"]), "random", 200)
    done: list[dict[str, Any]] = []
    while len(done) < 200:
        done += [search._trial(values) for values in search.suggest(done, 1)]
    shares = np.sort([trial["values"]["plan.step_fraction"] for trial in done])
    steps = np.arange(201) / 200
    far = np.abs((shares - 0.1) / 0.4 - np.stack([steps[:-1], steps[1:]])).max()
    assert far < 1.63 / math.sqrt(200)  # Kolmogorov and Smirnov, 1 %
    twos = sum(trial["values"]["plan.patch_size"] == 2 for trial in done)
    assert 80 <= twos <= 120


def test_another_search_does_not_go_on_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from patchtrain.analysis.studies.search import Search

    monkeypatch.setattr(comparison, "train_runs", Pretend(lambda arm, seed: 2.0))
    for kind in ("random", "bayes"):
        sweep = swept(recipe(), ["K=2,4"])
        search = Search(sweep, kind, 2)
        if kind == "random":
            run(searched(sweep), tmp_path / "s", search=search)
            before = [
                (tmp_path / "s" / name).read_text() for name in ("results.json", "report.html")
            ]
        else:
            with pytest.raises(UsageError, match="another search"):
                run(searched(sweep), tmp_path / "s", search=search)
    after = [(tmp_path / "s" / name).read_text() for name in ("results.json", "report.html")]
    assert after == before
    assert json.loads(after[0])["trials"]


@pytest.mark.filterwarnings("error")
def test_a_search_gives_no_warnings_of_its_packages() -> None:
    pytest.importorskip("optuna")
    from patchtrain.analysis.studies.search import Search

    search = Search(swept(recipe(), ["K=2,4", "r=0.1..0.5"]), "bayes", 20)
    done = [{**search._trial(values), "value": 1.0} for values in search.suggest([], 10)]
    assert len(search.suggest(done, 2)) == 2


def test_the_points_that_gained_most_are_repeated_not_the_largest_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(arm: Arm, seed: int) -> float:
        wide = arm.recipe["model.config.hidden_size"] == 32
        patches = arm.notes["contender"].startswith("K")
        return 2.0 - 0.5 * wide - 0.1 * (patches and not wide) + 0.01 * seed

    trainer = Pretend(end)
    monkeypatch.setattr(comparison, "train_runs", trainer)
    asked = swept(recipe(), ["K=2", "model.config.hidden_size=16,32"], seeds=(0, 1), confirm=1)
    found = run(grid(asked), tmp_path / "s")
    repeated = {name for name, seed in trainer.trained if seed == 1}
    assert repeated == {"K2-hidden_size16", "token-hidden_size16"}
    assert verdict(found)[0].startswith("K2-hidden_size16 ended 0.1000 bits per byte below")
