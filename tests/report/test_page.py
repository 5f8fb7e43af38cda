"""What the page says: computed from the numbers, escaped, and honest about what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.record import record
from patchtrain.evaluation.throughput import rates
from patchtrain.report import figures, text_section, words
from patchtrain.report.formats import NONE
from patchtrain.report.page import write_page
from patchtrain.report.summary import RunSummary
from patchtrain.runs import RunFolder
from tests.report.fake_runs import PROMPTS, add_extras, write_run


def text_of(page: Path) -> str:
    """The page without plotly's script and without tags."""
    whole = page.read_text(encoding="utf-8")
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", whole, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without))


def summaries(*runs: RunFolder) -> list[RunSummary]:
    return [RunSummary.read(run) for run in runs]


def test_one_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "textbooks")
    add_extras(run)
    page = write_page([run], run.report_file)
    assert page == run.report_file
    text = text_of(page)
    assert "textbooks trained a model of 6.30M parameters on 24.6M tokens" in text
    assert "67% of them in patches of 4, then 33% of them one by one" in text
    assert "costs 50% of the compute of token-level training on the same tokens" in text
    assert "a step at patch level reads as many tokens as one at token level" in text
    assert "as resolved" in text
    assert "patch_size: 4" in text
    for prompt in PROMPTS:
        assert prompt in text
    assert "88.12" in text
    assert "transformers 5.23.0" in text
    assert "did not finish" not in text


def test_evaluations_say_what_the_last_stage_did(tmp_path: Path) -> None:
    run = write_run(tmp_path / "book")
    add_extras(run)
    text = text_of(write_page([run], run.report_file))
    assert f"after stage 1, patches of 4 2.2274 {NONE} 6.0200" in text
    assert "final 1.2617 -0.9657 3.4100" in text
    assert "Loss by tokens of context: validation" in text
    assert "Bits per byte by document" in text
    assert "book validation final 7 1.2617 1.0617 1.1617 1.2617 1.3617" in text
    assert "0.9617 (0) 1.5617 (6)" in text
    figure = text_section.position_figure(summaries(run), "validation")
    before, final = figure.data
    assert (before.line.dash, final.line.dash) == ("dot", "solid")
    assert before.name == "book, after stage 1, patches of 4"
    assert len(final.x) == 9
    assert final.x[0] == 1
    # One number, of a run that kept no model before its last.
    old = run.evaluation()["text"]["validation"]
    old = {key: value for key, value in old.items() if key in ("loss", "bits_per_byte", "scored")}
    record(run.evaluation_file, "text", "validation", old)
    text = text_of(write_page([run], run.report_file))
    assert "book validation 1.2617 3.4100" in text
    assert "change" not in text
    assert "by document" not in text


def test_a_page_without_losses_still_draws_its_evaluations(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    add_extras(run)
    run.metrics_file.unlink()
    page = write_page([run], run.report_file).read_text(encoding="utf-8")
    assert "There are no losses to draw yet" in page
    assert page.count("Plotly.newPlot(") > page.count('id="against-compute"') == 0
    assert page.count("plotly.js v") == 1
    assert page.index("plotly.js v") < page.index('id="by-position-0"')


def test_the_speed_of_each_stage(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    text = text_of(write_page([run], run.report_file))
    assert "patches of 4 500 1 min 55 s 142,470 35,617" in text
    assert "5.0%" in text
    assert "The peak of this device is not known: patchtrain eval --speed measures it" in text
    peak = {"peak": {"flop_per_s": 4e12, "source": "measured <here>"}}
    record(run.evaluation_file, "throughput", "training", peak)
    text = text_of(write_page([run], run.report_file))
    assert "898 GFLOP/s 22% 5.0%" in text
    assert "The peak is 4.00 TFLOP/s (measured &lt;here&gt;)" in text
    known = write_run(tmp_path / "gpu", machine={"device": "NVIDIA A100-SXM4-80GB"})
    assert "NVIDIA A100 SXM (80 GB), fp32" in text_of(write_page([known], known.report_file))
    rows = [{k: v for k, v in row.items() if k != "data_seconds"} for row in run.metrics()]
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "not recorded" in text_of(write_page([run], run.report_file))


def test_two_runs_are_compared_by_their_numbers(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", ((1, 3000),), floor=3.4)
    patch = write_run(tmp_path / "patch", ((4, 500), (1, 1000)), floor=3.3)
    # The order on the command line does not make the baseline.
    for order in ([base, patch], [patch, base]):
        said = " ".join(words.headline(summaries(*order)))
        assert "patch (patches of 4, then tokens) used 50% of the FLOPs" in said
        assert "of base (token-level); both read the same 24.6M tokens (equal data)" in said
        ours, theirs = (run.info()["result"]["bits_per_byte"] for run in (patch, base))
        assert f"{theirs - ours:.4f} better than the {theirs:.4f} of base" in said
        assert "another seed would move these numbers" in said


def test_a_run_that_lost_is_said_to_be_worse(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", ((1, 1500),), floor=3.3)
    patch = write_run(tmp_path / "patch", ((4, 500), (1, 1000)), floor=3.5)
    said = " ".join(words.headline(summaries(base, patch)))
    assert "worse than" in said
    assert (
        "both spent the same compute (equal compute, patch reading 2.00 times the tokens)" in said
    )
    assert "patch did not reach the loss base had at its last evaluation" in said


def test_unequal_runs_are_not_called_equal(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", ((1, 1000),))
    store = {"fingerprint": "another"}
    patch = write_run(tmp_path / "patch", ((4, 500), (1, 300)), store=store)
    said = " ".join(words.headline(summaries(base, patch)))
    assert "neither data nor compute is equal" in said
    assert "not use the same token store" in said


def test_repeated_runs_have_no_single_seed_caution(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"seed{n}", ((1, 200),)) for n in (1, 2)]
    assert "another seed" not in " ".join(words.headline(summaries(*runs)))


def test_stage_counters_and_rates(tmp_path: Path) -> None:
    (run,) = summaries(write_run(tmp_path / "run", ((4, 500), (1, 1000))))
    first, second = run.stages
    assert first.done is not None
    assert second.done is not None
    assert (first.done["step"], second.done["step"]) == (500, 1000)
    assert first.done["tokens"] == 4 * first.done["positions"] == 500 * 8192 * 4
    assert second.done["tokens"] == second.done["positions"] == 1000 * 8192
    assert rates(first.done, None)["tokens_per_s"] == pytest.approx(8192 * 4 / 0.23, rel=1e-3)
    assert first.done["flops"] + second.done["flops"] == pytest.approx(run.total("flops"))


def test_a_resumed_run_does_not_count_steps_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((1, 100),), log_every=10)
    lines = run.metrics_file.read_text("utf-8").splitlines(keepends=True)
    repeated = [line for line in lines if 50 < json.loads(line)["step"] <= 80]
    cut = [line for line in lines if json.loads(line)["step"] <= 80]
    rest = [line for line in lines if json.loads(line)["step"] > 50]
    assert repeated
    run.metrics_file.write_text("".join(cut + rest), encoding="utf-8")
    steps = [row["step"] for row in summaries(run)[0].events("train")]
    assert steps == list(range(10, 101, 10))


def test_user_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    run = write_run(tmp_path / "run", name=evil, command=evil)
    run.samples_file.write_text(json.dumps([{"prompt": evil, "completion": evil}]), "utf-8")
    run.recipe_file.write_text(evil, encoding="utf-8")
    other = write_run(tmp_path / "other")
    add_extras(run_with_eval := other)
    record(run_with_eval.evaluation_file, "text", evil, {"loss": 1.0, "scored": evil})
    page = write_page([run, other], tmp_path / "page.html", title=evil).read_text("utf-8")
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(") >= 6


def test_unfinished_and_bare_runs_say_what_is_missing(tmp_path: Path) -> None:
    running = write_run(tmp_path / "running", finished=False)
    text = text_of(write_page([running], tmp_path / "page.html"))
    assert "running is not finished (“running”, at step 1,500 of 1,500)" in text
    assert "no final validation result, no samples, no recipe" in text
    assert "There is no separate evaluation yet" in text

    bare = RunFolder(tmp_path / "bare")
    bare.path.mkdir()
    bare.write_info({"format_version": 1, "status": "failed"})
    text = text_of(write_page([bare], tmp_path / "page.html"))
    assert "bare did not finish (“failed”)" in text
    assert "There are no losses to draw yet" in text
    assert "There is no plan" in text
    write_page([running, bare], tmp_path / "page.html")


@pytest.mark.parametrize(
    "values",
    [
        {"plan": None, "result": None, "model": None, "store": None, "versions": None},
        {"result": {"loss": None, "bits_per_byte": None}},
        {"plan": {"stages": []}, "machine": {}},
    ],
)
def test_missing_pieces_of_run_json_are_no_error(tmp_path: Path, values: dict[str, Any]) -> None:
    odd = write_run(tmp_path / "odd", **values)
    base = write_run(tmp_path / "base", ((1, 300),))
    write_page([odd], tmp_path / "page.html")
    write_page([base, odd], tmp_path / "page.html")
    write_page([odd, base], tmp_path / "page.html")


def test_losses_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((1, 200),))
    with run.metrics_file.open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "step": 201, "stage": 0, "patch_size": 1, "loss": NaN, ')
        file.write('"flops": 1e12, "seconds": 60.0}\n{"event": "tr')
    (summary,) = summaries(run)
    figure = figures.loss_figure([summary], figures.compute_axis([summary]))
    assert len(figure.data[0].y) == 40
    page = write_page([run], tmp_path / "page.html").read_text("utf-8")
    assert "NaN" not in page.split("Plotly.newPlot")[-1]


def test_long_curves_are_averaged_and_keep_their_mean(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((4, 2500), (1, 2500)), log_every=1)
    (summary,) = summaries(run)
    rows = [row for row in summary.events("train") if row["stage"] == 0]
    drawn = figures.loss_figure([summary], figures.time_axis([summary])).data[0]
    assert len(drawn.y) == 500
    assert drawn.y[0] == pytest.approx(sum(row["loss"] for row in rows[:5]) / 5)
    assert drawn.customdata[-1][0] == rows[-1]["step"]
    page = write_page([run], tmp_path / "page.html")
    assert "averaged over up to 5 logged steps" in text_of(page)
    figure = figures.loss_figure([summary], figures.time_axis([summary]))
    assert sum(len(trace.y) for trace in figure.data) <= 1100
    assert page.stat().st_size < 6_000_000


def test_patch_loss_is_drawn_apart_from_token_loss(tmp_path: Path) -> None:
    (run,) = summaries(write_run(tmp_path / "run", ((4, 100), (1, 100))))
    patch, token, validation = figures.loss_figure([run], figures.compute_axis([run])).data
    assert patch.line.dash == "dot"
    assert "patch loss, training (K=4)" in patch.name
    assert token.line.dash is None
    assert validation.mode == "lines+markers"
    assert len({patch.meta, token.meta, validation.meta}) == 3


def test_pages_that_cannot_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((1, 50),))
    with pytest.raises(UsageError, match="at least one run"):
        write_page([], tmp_path / "page.html")
    with pytest.raises(UsageError, match="it is a folder"):
        write_page([run], tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        write_page([run], tmp_path / "none" / "page.html")
    run.samples_file.write_text('{"prompt": 1}', encoding="utf-8")
    with pytest.raises(PatchtrainError, match="unexpected form"):
        write_page([run], tmp_path / "page.html")
    run.samples_file.write_text("{", encoding="utf-8")
    with pytest.raises(PatchtrainError, match="not valid JSON"):
        write_page([run], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
