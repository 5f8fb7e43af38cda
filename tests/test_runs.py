"""A run folder with files of another kind than a run writes is one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from patchtrain.errors import PatchtrainError
from patchtrain.runs import RunFolder
from patchtrain.training.record import RunRecord


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    (tmp_path / "run.json").write_text("{}")
    return RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "not a JSON object"),
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8 text"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_run_json(run: RunFolder, content: bytes, message: str) -> None:
    run.info_file.write_bytes(content)
    with pytest.raises(PatchtrainError, match=message):
        run.info()


def test_a_section_of_another_kind_is_an_empty_one(run: RunFolder) -> None:
    run.info_file.write_text('{"plan": [1], "store": {"path": "x"}, "model": null}')
    assert (run.part("plan"), run.part("model"), run.part("none")) == ({}, {}, {})
    assert run.part("store") == {"path": "x"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "line 2 is not a JSON object"),
        (b"{", "line 2 is not JSON"),
        (b'{"step": ' + b"9" * 5000 + b"}", "line 2 is not JSON"),
        (b"\xff", "not UTF-8 text"),
    ],
)
def test_a_broken_line_of_metrics(run: RunFolder, line: bytes, message: str) -> None:
    run.metrics_file.write_bytes(b'{"event": "train"}\n' + line + b'\n{"event": "eval"}\n')
    with pytest.raises(PatchtrainError, match=message):
        run.metrics()


def test_the_last_line_may_be_unfinished_and_a_line_separator_ends_none(run: RunFolder) -> None:
    run.metrics_file.write_text('{"event": "a\u2028b"}\n{"event": "c"}\n{"ev', encoding="utf-8")
    assert [row["event"] for row in run.metrics()] == ["a\u2028b", "c"]
    assert run.metrics("c") == [{"event": "c"}]


def test_evaluations_by_kind_and_name(run: RunFolder) -> None:
    assert run.evaluation() == {}
    results = {"text": {"book": {"loss": 1.0}}, "tasks": {}}
    run.evaluation_file.write_text(json.dumps({"format_version": 1, "mine": 1, **results}))
    assert run.evaluation() == results
    run.evaluation_file.unlink()
    run.evaluation_file.mkdir()
    assert run.evaluation() == {}


def test_checkpoints_are_found_by_their_names(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.checkpoints() == {}
    for name in ("checkpoint-40", "checkpoint-9", "checkpoint-50.aside", ".checkpoint-50.partial",
                 "checkpoint-x", f"checkpoint-{'9' * 200}"):  # fmt: skip
        (run.path / name).mkdir(parents=True)
    (run.path / "checkpoint-60").touch()
    assert list(run.checkpoints().items()) == [
        (step, run.path / f"checkpoint-{step}") for step in (9, 40)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no record of evaluations"),
        ('{"text": {}}', "no record of evaluations"),
        ('{"format_version": 2}', "no record of evaluations of version 1"),
        ('{"format_version": 1, "text": []}', "'text' does not hold results by name"),
        ('{"format_version": 1, "tasks": {"a": 1}}', "'tasks' does not hold results by name"),
        ("{", "not valid JSON"),
    ],
)
def test_a_broken_record_of_evaluations(run: RunFolder, content: str, message: str) -> None:
    run.evaluation_file.write_text(content)
    with pytest.raises(PatchtrainError, match=message):
        run.evaluation()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="no such flag on this system")
def test_links_are_not_written_through(run: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (run.path / ".lock").symlink_to(outside)
    with pytest.raises(PatchtrainError, match="link"), run.locked():
        pass
    run.metrics_file.unlink(missing_ok=True)
    run.metrics_file.symlink_to(outside)
    with pytest.raises(PatchtrainError, match="link"):
        RunRecord(run.path).event({"event": "train", "step": 1})
    assert outside.read_text() == "mine"
