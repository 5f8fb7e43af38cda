"""``patchtrain report`` as a person calls it."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from patchtrain.cli import report
from patchtrain.errors import UsageError
from tests.report.fake_runs import write_run


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    return report.run(parser.parse_args([str(word) for word in words]))


def test_one_run_gets_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", ((1, 60),))
    assert call(run.path) == 0
    assert capsys.readouterr().out == f"{run.report_file}\n"
    assert "<title>run</title>" in run.report_file.read_text("utf-8")


def test_several_runs_get_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / name, ((1, 60),)).path for name in ("a", "b")]
    monkeypatch.chdir(tmp_path)
    assert call(*runs, "--title", "Two & more") == 0
    assert capsys.readouterr().out == "comparison.html\n"
    page = (tmp_path / "comparison.html").read_text("utf-8")
    assert "<title>Two &amp; more</title>" in page
    assert call(*runs, "--out", tmp_path / "other.html") == 0
    assert "<title>a against b</title>" in (tmp_path / "other.html").read_text("utf-8")


def test_bad_input_is_one_clear_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ((1, 60),))
    with pytest.raises(UsageError, match="no run folder at"):
        call(tmp_path / "none")
    with pytest.raises(UsageError, match="named twice"):
        call(run.path, run.path)
    with pytest.raises(UsageError, match="there is no folder"):
        call(run.path, "--out", tmp_path / "none" / "page.html")
