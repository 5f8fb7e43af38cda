"""Whole files or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchtrain.files import whole_folder, write_json


def fail_within(out: Path, name: str) -> None:
    with whole_folder(out) as folder:
        (folder / name).write_text("x")
        raise ZeroDivisionError


def test_a_failed_folder_takes_its_parents_along(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail_within(tmp_path / "there" / "new" / "newer" / "out", "half")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_parent_that_somebody_else_uses_stays(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_within(tmp_path / "new" / "out", "../other")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["other"]


def test_json_of_names_that_are_no_utf8(tmp_path: Path) -> None:
    values = {"source": "caf\udce9.txt", "other": "é"}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == values
    assert "é" in text
