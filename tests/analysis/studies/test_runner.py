"""A study from start to end: killed and gone on with, failing in part, and the same numbers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchtrain.analysis.studies import runner
from patchtrain.analysis.studies.equal import at_data
from patchtrain.analysis.studies.runner import flops_so_far, is_finished, run_study
from patchtrain.analysis.studies.study import Study
from patchtrain.data.prepare import prepare
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.runs import RunFolder
from tests.analysis.studies.tiny import Here, Pretended, failing, tiny_study
from tests.cli.corpus import write_corpus


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    corpus = write_corpus(folder / "text.txt", sentences=4000)
    return prepare([corpus], folder / "store", train_tokenizer="bpe", vocab_size=300).path


def measured(found: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    return {
        arm["name"]: [(run["seed"], run["bits_per_byte"]) for run in arm["runs"]]
        for arm in found["arms"]
    }


def test_a_study_leaves_its_folder_and_is_done_only_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_popen", Here)
    study, folder, said = tiny_study(store), tmp_path / "study", list[str]()
    found = run_study(study, folder, 2, say=said.append)
    assert json.loads((folder / "results.json").read_text()) == found
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    kept = json.loads((folder / "study.json").read_text())
    assert {key: kept[key] for key in study.to_dict()} == study.to_dict()
    assert found["complete"]
    assert [len(arm["runs"]) for arm in found["arms"]] == [2, 2]
    for arm in found["arms"]:
        for run in arm["runs"]:
            info = RunFolder(folder / "runs" / f"{arm['name']}-seed-{run['seed']}").info()
            assert run["bits_per_byte"] == info["result"]["bits_per_byte"]
            assert run["flops"] == pytest.approx(arm["actual"])
    own = dict(measured(found)["patches"])
    other = dict(measured(found)["tokens"])
    difference = found["arms"][1]["differences"]["tokens"]
    assert difference["values"] == [own[seed] - other[seed] for seed in (0, 1)]
    assert not list(folder.glob("runs/*/checkpoint-*"))
    assert "4 of 4 runs, 100%" in said[-1]

    def never(command: list[str], log: Any, place: Any) -> Any:
        raise AssertionError(f"trained again: {command}")

    monkeypatch.setattr(runner, "_popen", never)
    again = run_study(study, folder, say=said.append)
    assert measured(again) == measured(found)
    assert said[-1] == "4 of 4 runs are there already"
    # Another seed is more of the same study.
    monkeypatch.setattr(runner, "_popen", Here)
    more = run_study(replace(study, seeds=(0, 1, 2)), folder, say=said.append)
    assert measured(more)["tokens"][:2] == measured(found)["tokens"]
    assert len(more["arms"][1]["differences"]["tokens"]["values"]) == 3


def test_at_equal_data_progress_is_of_what_each_run_costs(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_popen", Here)
    study, said = replace(at_data(tiny_study(store), "tokens"), seeds=(0,)), list[str]()
    study = replace(study, held_equal="data")
    found = run_study(study, tmp_path / "study", 1, say=said.append)
    spent = {arm["name"]: arm["runs"][0]["flops"] for arm in found["arms"]}
    assert spent["patches"] < 0.9 * spent["tokens"]
    first = spent["tokens"] / sum(spent.values())
    assert re.findall(r"\d+%(?= of the compute)", " ".join(said)) == [f"{first:.0%}", "100%"]


def test_a_study_may_keep_only_what_its_runs_ended_at(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_popen", Here)
    study, folder = replace(tiny_study(store), seeds=(0,)), tmp_path / "study"
    found = run_study(study, folder, keep="results")
    for run in (folder / "runs").iterdir():
        assert {path.name for path in run.iterdir()} == {
            "metrics.jsonl", "recipe.yaml", "run.json",
        }  # fmt: skip
        assert is_finished(RunFolder(run))

    def never(command: list[str], log: Any, place: Any) -> Any:
        raise AssertionError(f"trained again: {command}")

    monkeypatch.setattr(runner, "_popen", never)
    again = run_study(study, folder, keep="results")
    assert measured(again) == measured(found)
    assert again["arms"][0]["curve"] == found["arms"][0]["curve"] != []


def test_a_run_whose_model_was_lost_is_not_finished(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_popen", Here)
    folder = tmp_path / "study"
    run_study(replace(tiny_study(store), seeds=(0,)), folder)
    run = RunFolder(next((folder / "runs").iterdir()))
    assert is_finished(run)
    (run.model / "config.json").unlink()
    assert not is_finished(run)
    # Deleting for keep="results" may be cut short; the record has said so by then.
    run.write_info({**run.info(), "kept": "results"})
    assert is_finished(run)


def test_a_failed_arm_is_told_and_the_others_go_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(runner, "_popen", failing("patches"))
    study = tiny_study(store, seeds=(0,))
    found = run_study(study, tmp_path / "study", 1, say=said.append)
    assert found["failed"].keys() == {"patches-seed-0"}
    assert "the disk is full (exit code 1; " in found["failed"]["patches-seed-0"]
    assert not found["complete"]
    assert [len(arm["runs"]) for arm in found["arms"]] == [1, 0]
    assert found["arms"][1]["bits_per_byte"] is None
    assert any(line.startswith("patches-seed-0 failed: the disk is full") for line in said)
    page = (tmp_path / "study" / "report.html").read_text()
    assert "1 of 2 runs are finished" in page
    assert "patches-seed-0 failed" in page
    monkeypatch.setattr(runner, "_popen", Here)  # the same call tries it again
    assert run_study(study, tmp_path / "study", 1, say=said.append)["complete"]


def test_a_run_that_diverged_is_not_trained_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_popen", Here)
    study = tiny_study(store, seeds=(0,))
    first, other = study.arms
    study = replace(
        study, arms=(replace(first, recipe={**first.recipe, "training.learning_rate": 1e20}), other)
    )
    said: list[str] = []
    for call in range(2):
        found = run_study(study, tmp_path / "study", 1, say=said.append)
        (reason,) = found["failed"].values()
        assert "became nan at step" in reason or "became inf at step" in reason
        assert "--allow-change" not in reason
        assert ("would again; delete" in reason) == (call == 1)
    log = (tmp_path / "study" / "logs" / f"{first.name}-seed-0.txt").read_text()
    assert log.count("error: ") == 1
    assert any(line.startswith(f"{first.name}-seed-0 failed before: ") for line in said)


def test_more_runs_than_anyone_means_are_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2,002 runs are more than 1,000"):
        run_study(tiny_study(store, seeds=tuple(range(1001))), tmp_path / "study", 1)
    assert not (tmp_path / "study").exists()


def test_a_study_of_which_all_fails_is_an_error(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_popen", failing(""))
    with pytest.raises(PatchtrainError, match=r"no run of the study got to its end; tokens-seed-0"):
        run_study(tiny_study(store, seeds=(0,)), tmp_path / "study", 1, say=lambda line: None)
    assert (tmp_path / "study" / "results.json").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="children end with their parent on Linux only")
def test_a_killed_study_goes_on_with_the_same_numbers(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow, as it needs real processes to kill."""
    steps = 120
    folder = tmp_path / "study"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store), str(steps), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    run = RunFolder(folder / "runs" / "patches-seed-0")
    until = time.monotonic() + 120
    while flops_so_far(run) == 0.0:
        assert child.poll() is None, child.stderr and child.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait(60)
    while run.info()["status"] == "running" and time.monotonic() < until:
        time.sleep(0.05)
    assert run.info()["status"] == "interrupted"
    monkeypatch.setattr(runner, "_popen", Here)
    resumed = run_study(study_of(store, steps), folder, say=lambda line: None)
    whole = run_study(study_of(store, steps), tmp_path / "whole", say=lambda line: None)
    assert run.info()["resumed"], "it did not begin anew"
    assert measured(resumed) == measured(whole)
    assert resumed["arms"][0]["curve"] == whole["arms"][0]["curve"]


def test_an_interrupt_ends_the_runs_and_keeps_what_is_finished(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    class GoingOn(Pretended):
        """The first run ends, the second never does."""

        def __init__(self, command: list[str], log: Any, place: Any) -> None:
            self.command = command[4]
            if "tokens-seed" in self.command:
                super().__init__(command, log, place)
            else:
                self.returncode = 0 if ended else None  # type: ignore[assignment]

        def terminate(self) -> None:
            ended.append(self.command)

    def interrupt(seconds: float) -> None:
        if said:  # the first run has ended
            raise KeyboardInterrupt

    said: list[str] = []
    monkeypatch.setattr(runner, "_popen", GoingOn)
    monkeypatch.setattr(runner.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_study(store, seeds=(0,)), tmp_path / "study", 2, say=said.append)
    assert len(ended) == 1
    assert ended[0].endswith("patches-seed-0.yaml")
    assert said[-1].startswith("stopping; the same command goes on with")
    found = json.loads((tmp_path / "study" / "results.json").read_text())
    assert [len(arm["runs"]) for arm in found["arms"]] == [1, 0]


def study_of(store: Path, steps: int) -> Study:
    study = tiny_study(store, seeds=(0,), steps=steps)
    return replace(study, arms=tuple(replace(arm, against=()) for arm in study.arms[1:]))


KILLED = """
import sys
from pathlib import Path
from patchtrain.analysis.studies.runner import run_study
from tests.analysis.studies.test_runner import study_of
run_study(study_of(Path(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3]), 1)
"""
