"""``patchtrain generate`` as a person calls it."""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from patchtrain import chat
from patchtrain.cli import generate
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.answering import Decoding, answer
from patchtrain.evaluation.loading import load_model
from tests.evaluation.chatty import save_chatty_run
from tests.evaluation.stops import stop_within
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
    assert re.fullmatch(r"6 tokens in [\d.]+ s, [\d,.]+ a second\n", first.err)
    call(run, "The cell", "--max-new-tokens", 6)
    assert capsys.readouterr().out == first.out
    call(run / "model", "The cell", "--max-new-tokens", 6)
    assert capsys.readouterr().out == first.out


def test_prompt_from_stdin_and_several_samples(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("A leaf\n"))
    assert call(run, "-", "--num-samples", 2, "--max-new-tokens", 5) == 0
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
    with pytest.raises(UsageError, match="--num-samples"):
        call(run, "x", "--num-samples", 0)


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


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_many_prompts_from_a_file_are_the_same_in_batches(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["The cell", "A leaf turns", "Le café"]
    (tmp_path / "p.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (tmp_path / "p.jsonl").write_text(rows, encoding="utf-8")
    short = ("--greedy", "--max-new-tokens", 5, "--json", "--quiet")
    call(run, "--prompts", tmp_path / "p.txt", *short)
    found = lines(capsys)
    assert [line["prompt"] for line in found] == prompts
    assert all(line["tokens"] == 5 and line["finish_reason"] == "length" for line in found)
    call(run, "--prompts", tmp_path / "p.jsonl", "--batch-size", 3, *short)
    assert lines(capsys) == found
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts)))
    call(run, "--prompts", "-", "--batch-size", 2, *short)
    assert lines(capsys) == found
    call(run, "--prompts", tmp_path / "p.txt", *short[:3], "--batch-size", 2)
    told = capsys.readouterr()
    assert f"--- prompt 3 of 3 ---\nLe café{found[2]['completion']}\n" in told.out


def test_stop_and_beams(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(run, "The cell", "--greedy", "--max-new-tokens", 8, "--json", "--quiet")
    (whole,) = lines(capsys)
    stop = stop_within(whole["completion"])
    call(run, "The cell", "--greedy", "--max-new-tokens", 8, "--stop", stop, "--quiet")
    assert capsys.readouterr().out == "The cell" + whole["completion"].split(stop)[0] + "\n"
    call(run, "x", "--num-beams", 3, "--num-samples", 2, "--max-new-tokens", 4, "--json")
    first, second = lines(capsys)
    assert first["sample"] == 0
    assert first["completion"] != second["completion"]


def test_the_model_of_an_earlier_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [{"patch_size": 2}, {"patch_size": 1}]
    run = save_tiny_run(tmp_path / "run", plan={"context_length": CONTEXT, "stages": stages})
    with pytest.raises(UsageError, match="kept no model of stage 1"):
        call(run, "x", "--stage", 1)
    save_tiny_model(run / "stage-1")
    weights = load_file(run / "stage-1" / "model.safetensors")
    save_file({name: -value for name, value in weights.items()},
              run / "stage-1" / "model.safetensors", {"format": "pt"})  # fmt: skip
    texts = []
    for stage in ((), ("--stage", 1), ("--stage", 2)):
        call(run, "The cell", "--greedy", "--max-new-tokens", 8, *stage)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[2] != texts[1]
    with pytest.raises(UsageError, match="has 2 stages"):
        call(run, "x", "--stage", 3)
    with pytest.raises(UsageError, match="not a run folder"):
        call(run / "model", "x", "--stage", 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--prompts", "none.txt"], "both say what to continue"),
        (["--prompts", "none.txt"], "no file of prompts"),
        (["x", "--temperature", "0"], "temperature"),
        (["x", "--top-p", "2"], "top-p"),
        (["x", "--min-p", "-1"], "min-p"),
        (["x", "--repetition-penalty", "0"], "repetition penalty"),
        (["x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["x", "--batch-size", "0"], "--batch-size"),
        (["x", "--num-beams", "0"], "--num-beams"),
        (["x", "--num-beams", "2", "--num-samples", "3"], "2 beams give at most 2"),
        (["x", "--greedy", "--num-samples", "2"], "--greedy gives one text"),
        (["x", "--greedy", "--top-k", "5"], "--top-k does nothing"),
        (["x", "--num-beams", "2", "--temperature", "1"], "--num-beams leaves nothing to chance"),
        (["x", "--seed", "-1"], "--seed"),
        (["x", "--stop", ""], "stop text"),
    ],
)
def test_impossible_values_are_refused_before_the_model_is_loaded(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        call(tmp_path / "none", *words)


def test_a_file_of_prompts_must_hold_some(run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n{"text": 1}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"p.jsonl: line 2 is no JSON object"):
        call(run, "--prompts", tmp_path / "p.jsonl")
    (tmp_path / "p.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no prompts in"):
        call(run, "--prompts", tmp_path / "p.txt")
