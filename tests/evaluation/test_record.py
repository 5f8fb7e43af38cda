"""The file that holds all that was measured on a model."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from patchtrain.errors import PatchtrainError
from patchtrain.evaluation.record import record
from patchtrain.runs import read_evaluation


def test_a_result_replaces_its_like_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    record(file, "text", "book", {"loss": 1.0})
    record(file, "tasks", "book", {"accuracy": 0.5})
    record(file, "text", "other", {"loss": 2.0})
    assert record(file, "text", "book", {"loss": 3.0}) == file
    assert read_evaluation(file) == {
        "text": {"book": {"loss": 3.0}, "other": {"loss": 2.0}},
        "tasks": {"book": {"accuracy": 0.5}},
    }


def test_what_a_later_version_wrote_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({"format_version": 1, "speech": {"a": {"b": 1}}}))
    record(file, "text", "book", {"loss": 1.0})
    assert json.loads(file.read_text())["speech"] == {"a": {"b": 1}}
    assert read_evaluation(file) == {"text": {"book": {"loss": 1.0}}}


def test_results_recorded_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: record(file, "text", f"n{n}", {"loss": n}), range(40)))
    assert len(read_evaluation(file)["text"]) == 40
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    record(file, "text", "book", {"loss": 1.0})
    before = file.read_text()
    with pytest.raises(PatchtrainError, match="'bad' holds a number that is not finite"):
        record(file, "text", "bad", {"loss": math.nan})
    assert file.read_text() == before
    with pytest.raises(ValueError, match="kind is 'texts'"):
        record(file, "texts", "book", {})

    other = tmp_path / "other.json"
    other.write_text(json.dumps({"mine": 1}))
    with pytest.raises(PatchtrainError, match="no record of evaluations"):
        record(other, "text", "book", {"loss": 1.0})
    assert json.loads(other.read_text()) == {"mine": 1}
    (tmp_path / "link.json").symlink_to(file)
    with pytest.raises(PatchtrainError, match="is a link to another file"):
        record(tmp_path / "link.json", "text", "book", {"loss": 4.0})
    assert file.read_text() == before
