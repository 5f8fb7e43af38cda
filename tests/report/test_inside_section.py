"""The section on the inside of models: also from a stranger's file, also with parts missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from patchtrain.cli.main import main
from patchtrain.errors import PatchtrainError
from patchtrain.evaluation.record import record
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder, read_evaluation
from tests.evaluation.tiny import TEXT, save_tiny_model, save_tiny_run
from tests.report.test_hostile import EVIL, Elements, made_evil


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inside")
    (folder / "t.txt").write_text(TEXT * 3, encoding="utf-8")
    model, out = save_tiny_model(folder / "model"), folder / "e.json"
    words = ["--inside", "--text", str(folder / "t.txt"), "--out", str(out), "--json"]
    assert main(["eval", str(model), *words]) == 0
    return read_evaluation(out)["inside"]["inside"]


def page_of(folder: Path, result: dict[str, Any], name: str = "inside") -> Path:
    run = RunFolder(save_tiny_run(folder))
    record(run.evaluation_file, "inside", name, result)
    return write_page([run], run.report_file, "title")


def test_hostile_texts_add_nothing(result: dict[str, Any], tmp_path: Path) -> None:
    clean = Elements(page_of(tmp_path / "clean", result))
    evil = Elements(page_of(tmp_path / "evil", made_evil(result), EVIL))
    assert evil.tags == clean.tags
    assert evil.attributes == clean.attributes
    assert clean.tags["script"] >= 3


def test_a_model_without_feed_forward_parts_has_no_figure_of_them(
    result: dict[str, Any], tmp_path: Path
) -> None:
    models = [
        {**model, "levels": [{**level, "layers": []} for level in model["levels"]]}
        for model in result["models"]
    ]
    text = page_of(tmp_path / "run", {**result, "models": models}).read_text("utf-8")
    assert 'id="neurons-0"' not in text
    assert 'id="slots-0"' in text


def test_a_file_of_another_form_is_one_clear_error(result: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PatchtrainError, match="has a file of an unexpected form"):
        page_of(tmp_path / "run", {**result, "models": 5})
