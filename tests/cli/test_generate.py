"""``patchtrain generate`` as a person calls it."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pytest

from patchtrain import chat
from patchtrain.cli import generate
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.answering import Decoding, answer
from patchtrain.evaluation.loading import load_model
from tests.evaluation.chatty import save_chatty_run
from tests.evaluation.tiny import CONTEXT, save_tiny_model, save_tiny_run


def call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


def test_text_goes_to_stdout_and_repeats(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "The cell", "--max-new-tokens", 6) == 0
    first = capsys.readouterr()
    assert first.out.startswith("The cell")
    assert len(first.out) > len("The cell\n")
    assert first.err == ""
    call(run, "The cell", "--max-new-tokens", 6)
    assert capsys.readouterr().out == first.out
    call(run / "model", "The cell", "--max-new-tokens", 6)
    assert capsys.readouterr().out == first.out


def test_prompt_from_stdin_and_several_samples(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("A leaf\n"))
    assert call(run, "-", "--samples", 2, "--max-new-tokens", 5) == 0
    out = capsys.readouterr().out
    assert out.startswith("--- 1 of 2 ---\nA leaf")
    one, two = out.split("--- 2 of 2 ---\n")
    assert one.removeprefix("--- 1 of 2 ---\n") != two


def test_a_long_prompt_is_cut_and_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "The cell is the leaf " * 50, "--greedy") == 0
    assert f"fits a context of {CONTEXT // 2} with {CONTEXT // 4} new tokens" in (
        capsys.readouterr().err
    )


def test_without_a_prompt_it_starts_a_document(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, "--max-new-tokens", 4) == 0
    assert capsys.readouterr().out.strip()


def test_bad_input_is_one_clear_line(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run or model folder at"):
        call(tmp_path / "none", "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"neither a run .* nor a model folder"):
        call(tmp_path / "empty", "x")
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "run.json").write_text('{"status": "running"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"no model yet .*'running'"):
        call(tmp_path / "young", "x")
    with pytest.raises(UsageError, match="--samples"):
        call(run, "x", "--samples", 0)


def test_a_broken_model_is_one_clear_line(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PatchtrainError, match="cannot load the model in") as caught:
        call(folder, "x")
    assert "\n" not in str(caught.value)


def test_a_question_is_answered_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = save_chatty_run(tmp_path / "run")
    assert call(tuned, "What is a cell?", "--chat", "--greedy", "--max-new-tokens", 9) == 0
    out = capsys.readouterr().out
    loaded = load_model(tuned)
    chat.use_template(loaded.tokenizer)
    question = [{"role": "user", "content": "What is a cell?"}]
    assert out.strip() == answer(loaded, question, Decoding(9)).text.strip()
    assert "User" not in out
