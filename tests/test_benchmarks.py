"""Every benchmark runs, at a size that takes seconds, and its result becomes a table."""

import contextlib
import io
import json
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchtrain.products import prefers_onednn
from tests.evaluation.chatty import PROMPTS, save_chatty_run, write_lines
from tests.evaluation.task_folder import write_task_folder
from tests.evaluation.tiny import save_tiny_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TABLES = ("loss", "stages", "overhead", "loader", "advice", "boundaries", "instructions")
MODEL = ["--vocabulary", "256", "--width", "64", "--layers", "1", "--context-length", "32",
         "--rows", "2", "--threads", "1"]  # fmt: skip


@dataclass
class Done:
    """How a script ended."""

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *options: str) -> Done:
    """A script as `python benchmarks/NAME.py` runs it, but here: torch is imported already."""
    file, out, err = BENCHMARKS / f"{name}.py", io.StringIO(), io.StringIO()
    threads, code = torch.get_num_threads(), 0
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", [str(file), *options])
        patch.syspath_prepend(str(BENCHMARKS))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(file), run_name="__main__")
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
                if isinstance(error.code, str):
                    print(error.code, file=sys.stderr)
    torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())


def result(name: str, out: Path, *options: str) -> dict[str, Any]:
    done = run(name, *options, "--out", str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["benchmark"] == name
    assert found["command"].startswith("python ")
    assert {"patchtrain", "torch", "transformers", "python"} <= found["versions"].keys()
    assert found["machine"]["cores"] >= 1
    assert found["held_equal"]
    assert found["rows"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small results of all, as the tables want them."""
    return tmp_path_factory.mktemp("results")


def test_loss(folder: Path) -> None:
    found = result("loss", folder / "loss.json", "--vocabularies", "600", "--patch-sizes", "2",
                   "--rows", "64", "--width", "32", "--repeats", "1")  # fmt: skip
    methods = {row["method"] for row in found["rows"]}
    with_mm = {"chunked-mm"} if prefers_onednn() else set()
    assert methods == {"papers", "passes", "chunked", "torch", "plain"} | with_mm
    assert all(row["seconds"] > 0 and row["ratio_seconds"] > 0 for row in found["rows"])
    losses = [row["loss"] for row in found["rows"]]
    assert losses == pytest.approx([losses[0]] * len(methods), rel=1e-4)


def test_stages(folder: Path) -> None:
    found = result("stages", folder / "stages.json", *MODEL, "--repeats", "1",
                   "--patch-sizes", "1", "4")  # fmt: skip
    token, patch = found["rows"]
    assert token["speedup"] == 1
    speed = 4 * token["seconds"] / patch["seconds"]
    assert patch["speedup"] == pytest.approx(speed)
    assert patch["share_of_limit"] == pytest.approx(speed / 4)
    assert run("stages", "--patch-sizes", "4").returncode == 2


def test_stages_in_rows_of_as_many_tokens(folder: Path) -> None:
    options = [*MODEL, "--repeats", "1", "--as-many", "tokens", "--patch-sizes", "1", "4"]
    found = result("stages", folder / "rows.json", *options)
    assert found["settings"]["as_many"] == "tokens"
    token, patch = (row["tokens_per_s"] * row["seconds"] for row in found["rows"])
    assert patch == pytest.approx(4 * token)
    refused = run("stages", *options, "8", "--context-length", "12")
    assert refused.returncode == 2
    assert "that each of --patch-sizes divides" in refused.stderr


def test_overhead(folder: Path) -> None:
    options = [*MODEL, "--steps", "6", "--skip", "2", "--rounds", "1", "--text", str(BENCHMARKS)]
    options[options.index("--vocabulary") + 1] = "300"
    found = result("overhead", folder / "overhead.json", *options)
    assert [row["loop"] for row in found["rows"]] == ["bare", "trainer", "patchtrain"]
    first = found["rows"][0]["last_losses"]
    for row in found["rows"]:
        assert row["last_losses"] == pytest.approx(first, rel=1e-4)


def test_loader(folder: Path) -> None:
    found = result("loader", folder / "loader.json", *MODEL, "--repeats", "1", "--batches", "5",
                   "--tokens", "200000", "--documents", "3000")  # fmt: skip
    kinds = [(row["documents"], row["kind"]) for row in found["rows"]]
    assert kinds == [(3000, "mixed"), (3000, "separate")]
    assert all(row["cold_batches_per_s"] > 0 for row in found["rows"])


def test_cost(folder: Path) -> None:
    found = result("cost", folder / "cost.json", "--models", "llama", "mixtral")
    assert [row["patch_size"] for row in found["rows"]] == [1, 4, 1, 4]
    assert all(row["ratio"] == pytest.approx(1, abs=0.01) for row in found["rows"])
    assert all(0.05 < row["utilisation"] < 0.7 for row in found["published"])


def test_scaling(folder: Path) -> None:
    small = ["--width", "64", "--layers", "1", "--context-length", "16", "--vocabulary", "128",
             "--rows", "4", "--steps", "2", "--corpus-tokens", "100000"]  # fmt: skip
    found = result("scaling", folder / "scaling.json", "--only", "processes", "--most", "2",
                   *small)  # fmt: skip
    assert [row["value"] for row in found["rows"]] == [1, 2]
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert found["exponents"].keys() == {"processes"}


def test_advice(folder: Path) -> None:
    found = result("advice", folder / "advice.json")
    kept = json.loads((BENCHMARKS.parent / "results" / "advice.json").read_text())
    for key in (
        "rows",
        "fits",
        "predictions",
        "advised",
    ):  # what is committed is what the code says now
        assert approximately(found[key], kept[key]), f"{key}: run python benchmarks/advice.py"


def approximately(found: Any, kept: Any) -> bool:
    """Equal but for the rounding of floats, at any depth."""
    if isinstance(found, dict):
        same = found.keys() == kept.keys()
        return same and all(approximately(found[key], kept[key]) for key in found)
    if isinstance(found, list):
        return len(found) == len(kept) and all(map(approximately, found, kept))
    if isinstance(found, float):
        return bool(found == pytest.approx(kept, rel=1e-6, abs=1e-9))
    return bool(found == kept)


def test_memory(folder: Path) -> None:
    found = result("memory", folder / "memory.json", "--models", "5M", "--cases", "1",
                   "--threads", "1")  # fmt: skip
    (row,) = found["rows"]
    assert row["ratio"] == pytest.approx(row["estimate"]["peak"] / row["measured_bytes"])
    assert row["ratio"] == pytest.approx(1, abs=0.25)


def test_traces(folder: Path) -> None:
    found = result("traces", folder / "traces.json", "--models", "tiny", "--ranks", "8",
                   "--sequences", "1")  # fmt: skip
    assert [row["patch_size"] for row in found["rows"]] == [4, 1]
    for row in found["rows"]:
        assert row["parts_as_expected"]
        assert row["ratio"] == pytest.approx(1, abs=0.1)


def test_zero_shot(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    data, model = write_task_folder(tmp_path / "data"), save_tiny_model(tmp_path / "model")
    with pytest.MonkeyPatch.context() as patch:  # loading local data changes the environment
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        # A process of lm-eval's own takes ten seconds: tests/evaluation compares with it.
        found = result("zero_shot", folder / "zero_shot.json", "--model", str(model),
                       "--task-data", str(data), "--tasks", "sciq,blimp", "--blimp-limit", "3",
                       "--check-limit", "0", "--threads", "1", "--start-token", "a",
                       "--bos-limit", "1")  # fmt: skip
    sciq, blimp, bos = found["rows"]
    assert (sciq["documents"], blimp["documents"], bos["documents"]) == (2, 67 * 3, 67)
    assert (blimp["start_token"], bos["start_token"]) == ("a", "<|end|>")
    assert blimp["seconds"] > 0
    assert run("tables", "--results", str(folder)).returncode == 0
    assert "| blimp, begun with `<\\|end\\|>` | " in (folder / "zero_shot.md").read_text()


def test_boundaries(folder: Path) -> None:
    found = result("boundaries", folder / "boundaries.json", "--text", str(BENCHMARKS), "--tokens",
                   "9000", "--held-out", "6000", "--vocabulary", "300", "--steps", "12", "6",
                   "--seeds", "0", "1", "--width", "32", "--layers", "1", "--rows", "4",
                   "--context-length", "32")  # fmt: skip
    assert [(row["seed"], row["arm"]) for row in found["rows"]] == [
        (seed, arm) for seed in (0, 1) for arm in ("fixed", "random")
    ]
    for row in found["rows"]:
        assert row["explained_by_both"] >= row["explained_by_tokens"] >= 0
        assert len(row["loss_by_phase"]) == 4
        # Each token of the text is seen once in each place.
        assert row["patch_loss"] == pytest.approx(sum(row["loss_by_phase"]) / 4)
        assert row["places"]["cut"]["low"] < row["places"]["cut"]["high"]
    assert found["across_seeds"]["random_phase_token_loss"]["low"] is not None


def test_least_squares_finds_what_was_put_in() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        script = runpy.run_path(str(BENCHMARKS / "boundaries.py"))
    rng = np.random.default_rng(0)
    x = (rng.random((20_000, 2)) < 0.3).astype(float)
    clusters = np.repeat(np.arange(500), 40)
    y = 2 + 0.5 * x[:, 0] + rng.normal(size=20_000) + rng.normal(size=500)[clusters]
    one, none = script["fit"](y, x, clusters)["estimates"]
    assert one["low"] < 0.5 < one["high"]
    assert none["low"] < 0 < none["high"]
    assert one["high"] - one["low"] < 0.2
    # Tokens with a loss of their own, which patches that hold hard ones seem to raise.
    own = rng.normal(size=2400) * 3
    phases = [np.arange(phase, 2396 + phase).reshape(1, -1, 4) for phase in range(4)]
    places = np.concatenate(phases)
    feature = rng.random(places.shape[:2]) < 0.3 + 0.2 * (own[places].mean(-1) > 0)
    losses = own[places] + np.array([0, 1, 2, 3]) + 0.5 * feature[..., None]
    losses += 0.1 * rng.normal(size=losses.shape)
    columns, stretches = feature.reshape(-1, 1).astype(float), np.tile(np.arange(599) // 20, 4)
    (seeming,) = script["fit"](losses.mean(-1).ravel(), columns, stretches)["estimates"]
    assert seeming["value"] > 0.8
    (same,) = script["same_tokens"](losses, places, columns, stretches)
    assert same["value"] == pytest.approx(0.5, abs=0.02)
    assert 0 < same["high"] - same["low"] < 0.05
    # A token costs 1 at the first place and 2 at the others; one that goes on with a word 0.25
    # more than that at the first place.
    goes_on = rng.random((60, 30, 4)) < 0.4
    losses = np.full(goes_on.shape, 2.0)
    losses[..., 0] = 1 + 0.25 * goes_on[..., 0]
    found = script["place_effects"](losses, goes_on, np.arange(60))
    assert found["cut"]["value"] == pytest.approx(0.25)
    assert found["begins"] == [1, 2, 2, 2]


def test_instructions(folder: Path, tmp_path: Path) -> None:
    model = save_chatty_run(tmp_path / "run") / "model"
    prompts = write_lines(tmp_path / "prompts.jsonl", PROMPTS)
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20)]
    data = write_lines(tmp_path / "data.jsonl", rows)
    found = result("instructions", folder / "instructions.json", "--model", str(model),
                   "--data", str(data), "--prompts", str(prompts), "--steps", "3", "--first", "3",
                   "--learning-rate", "0.01", "--tokens-per-step", "256", "--context-length", "128",
                   "--max-new-tokens", "4")  # fmt: skip
    before, after = found["rows"]
    assert after["answers"]["loss"] < before["answers"]["loss"]
    assert after["answers"]["targets"] == before["answers"]["targets"]
    assert after["ifeval"]["prompts"] == 3
    assert found["settings"]["model"] == "model"


def test_tables(folder: Path, tmp_path: Path) -> None:
    done = run("tables", "--results", str(folder))
    assert done.returncode == 0, done.stderr
    for name in TABLES:
        text = (folder / f"{name}.md").read_text()
        assert text.startswith("| ")
        assert f"From `results/{name}.json`: `python " in text
        assert "held equal" in text
    missing = run("tables", "--results", str(tmp_path))
    assert missing.returncode == 1
    assert "loss.json is missing; python benchmarks/loss.py writes it" in missing.stderr
    assert "no result in" in missing.stderr


def test_a_verdict_follows_the_numbers(folder: Path, tmp_path: Path) -> None:
    for share, word in ((0.96, "0.96, reached"), (0.94, "0.94, **not reached**")):
        for name in TABLES:
            found = json.loads((folder / f"{name}.json").read_text())
            if name == "stages":
                found["rows"][1]["share_of_limit"] = share
            (tmp_path / f"{name}.json").write_text(json.dumps(found))
        assert run("tables", "--results", str(tmp_path)).returncode == 0
        assert word in (tmp_path / "stages.md").read_text()


@pytest.mark.parametrize(
    "name", [*TABLES, "tables", "copying", "collect_points", "zero_shot", "study"]
)
def test_help_says_what_is_measured(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 8
