"""What the page tells of the curve: marks where they belong, words only where there is a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchtrain.report import curve, figures, words
from patchtrain.report.page import write_page
from patchtrain.report.summary import RunSummary
from patchtrain.runs import RunFolder
from tests.report.fake_runs import write_run
from tests.report.test_page import text_of


def change(run: RunFolder, edit: Callable[[list[dict[str, Any]]], object]) -> RunSummary:
    """The run with its metrics edited in place."""
    rows = run.metrics()
    edit(rows)
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return RunSummary.read(run)


def lift(rows: list[dict[str, Any]], first: int, last: int, by: float) -> None:
    """Raise the training losses of some steps."""
    for row in rows:
        if row["event"] == "train" and first <= row["step"] <= last:
            row["loss"] += by


def insert(rows: list[dict[str, Any]], step: int, event: str, **values: Any) -> None:
    """An event at a step that has a row."""
    index, row = next((i, row) for i, row in enumerate(rows) if row["step"] == step)
    kept = {key: value for key, value in row.items() if key not in ("loss", "learning_rate")}
    rows.insert(index, {**kept, "event": event, **values})


def marker_traces(run: RunSummary) -> list[Any]:
    figure = figures.loss_figure([run], figures.compute_axis([run]))
    return [trace for trace in figure.data if trace.mode == "markers"]


def test_a_quiet_run_is_told_without_a_word(tmp_path: Path) -> None:
    run = RunSummary.read(write_run(tmp_path / "run", ((1, 600),)))
    assert curve.sentences(run) == curve.marks(run) == marker_traces(run) == []
    assert "Marks:" not in text_of(write_page([RunFolder(tmp_path / "run")], tmp_path / "p.html"))


@pytest.mark.parametrize(("beyond", "said"), [(0.43, "0.430 nats a token below"),
                                              (-0.02, "0.020 nats a token above")])  # fmt: skip
def test_what_patches_learned_beyond_token_frequencies(
    beyond: float, said: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", ((8, 50), (2, 50), (1, 100)), unigram_entropy=6.0)

    def learn(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["event"] == "train" and row["patch_size"] > 1:
                row["loss"] = 6.0 - beyond
                row["beyond_unigram"] = beyond

    told = curve.sentences(change(run, learn))
    for K in (8, 2):
        (sentence,) = (text for text in told if text.startswith(f"Patches of {K} "))
        assert f"{said} the 6.000 that token frequencies alone give" in sentence
    assert not any("Patches of 1" in text for text in told)


def test_a_finished_run_says_how_soon_it_made_up_for_the_switch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((4, 500), (1, 1000)))
    (switch,) = RunSummary.read(run).switches
    said = (
        f"The token level came under the last patch loss ({switch.goal:.3f}) after "
        f"{switch.recovered_after} of its 1,000 steps"
    )
    said += f", from {switch.rise:.2f} nats above it." if switch.rise >= 0.005 else "."
    assert curve.sentences(RunSummary.read(run)) == [said]
    assert curve.warnings(RunSummary.read(run)) == []
    assert said in text_of(write_page([run], tmp_path / "page.html"))


def test_a_token_level_stage_that_is_too_short_is_warned_of(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ((4, 500), (1, 100)))
    never = change(folder, lambda rows: lift(rows, 501, 600, 3.0))
    (sentence,) = curve.sentences(never)
    assert "token-level stage never came under the last loss of patches of 4 (" in sentence
    assert "too short to make up for the switch" in sentence
    late = change(folder, lambda rows: lift(rows, 580, 600, -6.0))
    (sentence,) = curve.sentences(late)
    assert sentence == curve.warnings(late)[0]
    assert ") only after 80 of its 100 steps, so it is short: give it more" in sentence


def test_spikes_are_marked_and_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ((4, 500), (1, 1000)))

    def edit(rows: list[dict[str, Any]]) -> None:
        lift(rows, 400, 410, 2.0)
        lift(rows, 1200, 1205, 30.0)

    run = change(folder, edit)
    assert [spike.first_step for spike in run.spikes] == [400, 1200]
    _, told = curve.sentences(run)
    assert told.startswith("The training loss spiked 2 times; the highest: +30")
    assert told.endswith(f"at step {run.spikes[1].step:,}, back after 10 steps.")
    patch, token = marker_traces(run)
    assert (patch.meta, token.meta) == ("0-patch", "0-token")  # they go with their lines
    assert patch.hovertext[0].startswith("<b>run</b><br>spike: +2")
    assert "at step 4" in patch.hovertext[0]
    assert patch.y[0] == run.spikes[0].row["loss"]
    figure = figures.loss_figure([run], figures.compute_axis([run]))
    assert token.y[0] == figure.layout.yaxis.range[1] < run.spikes[1].row["loss"]
    page = write_page([folder], tmp_path / "page.html")
    assert "a triangle up is a spike" in text_of(page)
    assert "switch to tokens" in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("finished", "end"), [(True, "not back by the end of its stage"), (False, "not back yet")]
)
def test_a_spike_that_is_not_over(tmp_path: Path, finished: bool, end: str) -> None:
    folder = write_run(tmp_path / "run", ((1, 600),), finished=finished)
    run = change(folder, lambda rows: lift(rows, 590, 600, 2.0))
    (told,) = curve.warnings(run)
    assert told.endswith(f"{end}.")


def test_steps_left_out_and_rollbacks_are_marked_and_told(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    folder = write_run(tmp_path / "run", ((1, 600),))

    def edit(rows: list[dict[str, Any]]) -> None:
        for step in (100, 200):
            insert(rows, step, "nonfinite", what=evil, action="skip")
        insert(rows, 400, "rollback", what="loss became nan at step 400", to_step=360)

    run = change(folder, edit)
    skipped, back = curve.warnings(run)
    assert skipped == (
        "2 steps were left out, as a loss or gradient was nan or infinite (steps 100, 200)."
    )
    assert back == "The run was rolled back once: from step 400 to checkpoint-360."
    (trace,) = marker_traces(run)
    assert trace.marker.symbol == ("x", "x", "triangle-left")
    assert "rolled back to checkpoint-360: loss became nan" in trace.hovertext[2]
    last = next(row for row in run.events("train") if row["step"] == 95)
    assert trace.y[0] == last["loss"]
    page = write_page([folder], tmp_path / "page.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "step left out: &lt;script&gt;" in page.replace("\\u0026", "&").replace("&amp;", "&")


def test_on_a_page_of_several_runs_each_is_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", ((1, 600),))
    two = write_run(tmp_path / "two", ((4, 300), (1, 600)))
    first = change(one, lambda rows: lift(rows, 300, 310, 2.0))
    second = change(two, lambda rows: insert(rows, 50, "nonfinite", what="loss became nan"))
    said = words.headline([first, second])
    assert any(line.startswith("one: The training loss spiked: +1.") for line in said)
    assert any(line.startswith("two: 1 step was left out") for line in said)
    assert any(line.startswith("two: The token level came under") for line in said)
    figure = figures.loss_figure([first, second], figures.time_axis([first, second]))
    metas = [trace.meta for trace in figure.data if trace.mode == "markers"]
    assert metas == ["0-token", "1-patch"]
    write_page([one, two], tmp_path / "page.html")


def test_events_of_a_run_that_has_no_loss_yet_are_told_but_not_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ((1, 50),), finished=False)

    def edit(rows: list[dict[str, Any]]) -> None:
        insert(rows, 5, "nonfinite", what="loss became nan at step 1", action="skip")
        rows[:] = [row for row in rows if row["event"] == "nonfinite"]

    run = change(folder, edit)
    assert len(curve.warnings(run)) == 1
    assert curve.marks(run) == []
    write_page([folder], tmp_path / "page.html")
