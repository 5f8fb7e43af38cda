"""``patchtrain eval --tasks`` as a person calls it, down to the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchtrain.cli.main import main
from patchtrain.runs import RunFolder, read_evaluation
from tests.evaluation.task_folder import write_task_folder
from tests.evaluation.tiny import save_tiny_run

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_folder(tmp_path_factory.mktemp("tasks") / "data")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command puts into the environment goes away with the test."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def call(*words: object) -> int:
    return main(["eval", *(str(word) for word in words)])


def test_from_the_command_to_the_page(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(save_tiny_run(tmp_path / "tiny"))
    assert call(run.path, "--tasks", "small,piqa", "--task-data", folder) == 0
    out = capsys.readouterr().out
    for task in ("blimp", "lambada_openai", "sciq", "piqa"):
        assert f"\n  {task} " in out
    assert f"written to    {run.evaluation_file}" in out
    # A part of the documents is another measurement and leaves the whole one alone.
    assert call(run.path, "--tasks", "piqa", "--task-data", folder, "--limit", "1") == 0
    assert "1 of 2" in capsys.readouterr().out
    kept = run.evaluation()["tasks"]
    assert set(kept) == {"blimp", "lambada_openai", "sciq", "piqa", "piqa-first-1"}
    blimp = kept["blimp"]
    assert blimp["data"] == [str(folder)]
    assert blimp["lm_eval_version"]
    assert blimp["model"]["path"] == str(run.model)
    assert blimp["seconds"] > 0
    assert blimp["command"].startswith("patchtrain")

    page = tmp_path / "page.html"
    assert main(["report", str(run.path), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Zero-shot tasks" in text
    assert "The 67 tasks of blimp" in text
    assert f"{100 * blimp['score']:.1f} ± {100 * blimp['score_stderr']:.1f}" in text


def test_the_exported_model_alone_gives_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(save_tiny_run(tmp_path / "tiny"))
    words = ("--tasks", "sciq,winogrande", "--task-data", folder, "--shots", 1, "--json")
    assert call(run.path, *words) == 0
    first = json.loads(capsys.readouterr().out)["tasks"]
    assert first == run.evaluation()["tasks"]
    assert set(first) == {"sciq-1-shot", "winogrande-1-shot"}
    out = tmp_path / "alone.json"
    assert call(run.model, *words, "--out", out) == 0
    second = read_evaluation(out)["tasks"]
    for name in first:
        # All but when, how and how long.
        own = {"seconds", "finished", "command"}
        assert {k: v for k, v in first[name].items() if k not in own} == {
            k: v for k, v in second[name].items() if k not in own
        }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--tasks", ","], 2, "--tasks names no task"),
        (["--tasks", "piqa", "--task-data", "no-such-folder"], 2, "no folder at --task-data"),
        (["--tasks", "piqua", "--task-data", "."], 2, "did you mean 'piqa'"),
        (["--tasks", "piqa", "--task-data", ".", "--shots", "-1"], 2, "0 or more, not -1"),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = save_tiny_run(tmp_path / "tiny")
    assert call(run, *words) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (run / "evaluation.json").exists()
