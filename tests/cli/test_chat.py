"""``patchtrain chat`` in a pipe and, with a person's lines put in, in a terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from patchtrain import chat as chat_templates
from patchtrain.cli.main import main
from patchtrain.evaluation.loading import load_model
from tests.evaluation.chatty import save_chatty_run

SHORT = ["--greedy", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = save_chatty_run(tmp_path_factory.mktemp("runs") / "small-sft")
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"tuning": {"from": "elsewhere"}}))
    loaded = load_model(run)
    chat_templates.use_template(loaded.tokenizer)
    loaded.tokenizer.save_pretrained(run / "model")
    return run


def pipe(monkeypatch: pytest.MonkeyPatch, words: Sequence[object], text: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", *map(str, words)])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_is_a_turn(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "What is a cell?\n\nAnd a leaf?\n/reset\nWhat is a cell?\n//x\n/exit\nnever asked\n"
    assert pipe(monkeypatch, [tuned, "--json", *SHORT], text) == 0
    turns = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [turn["user"] for turn in turns] == [
        "What is a cell?", "And a leaf?", "What is a cell?", "/x"
    ]  # fmt: skip
    assert turns[0]["assistant"] == turns[2]["assistant"]
    assert turns[0]["prompt_tokens"] == turns[2]["prompt_tokens"] < turns[1]["prompt_tokens"]
    assert pipe(monkeypatch, [tuned, *SHORT], "What is a cell?\n") == 0
    told = capsys.readouterr()
    assert told.out.strip() == turns[0]["assistant"]
    system = [tuned, "--json", "--system", "Be brief.", *SHORT]
    assert pipe(monkeypatch, system, "What is a cell?\n/system\nWhat is a cell?\n") == 0
    with_system, without = map(json.loads, capsys.readouterr().out.splitlines())
    assert with_system["prompt_tokens"] > turns[0]["prompt_tokens"]
    assert without["user"] == "What is a cell?"


def test_forgetting_is_said(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "A question on the cell, the leaf and the light of the sun?\n" * 6
    assert pipe(monkeypatch, [tuned, "--json", *SHORT], text) == 0
    told = capsys.readouterr()
    assert "the oldest turn was left out: the conversation no longer fits the context of 256" in (
        told.err
    )
    assert json.loads(told.out.splitlines()[-1])["forgotten"] > 0


def test_a_person_makes_mistakes_and_goes_on(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = f"/save {tmp_path / 'talk.jsonl'}"
    lines = iter(["/what", "What is \\", "a cell?", "/save", save, save, "The cell " * 300,
                  "/help", None])  # fmt: skip

    def typed(prompt: str) -> str:
        line = next(lines)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["chat", str(tuned), *SHORT]) == 0
    told = capsys.readouterr()
    for part in ("no command /what", "/save needs the name", "1 turns written", "talk.jsonl exists",
                 "say it shorter", "cut at 8 tokens"):  # fmt: skip
        assert part in told.err, part
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert saved[0] == {"role": "user", "content": "What is \na cell?"}
    assert saved[1]["content"] in told.out


def test_a_pipe_stops_at_what_cannot_be_done(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, [tuned, *SHORT], "/what\n") == 2
    assert "no command /what" in capsys.readouterr().err
    assert pipe(monkeypatch, [tuned, "--max-new-tokens", 256], "x\n") == 2
    assert "leave no room for a question" in capsys.readouterr().err
    assert pipe(monkeypatch, [tmp_path / "none"], "x\n") == 2
    plain = save_chatty_run(tmp_path / "small")
    assert pipe(monkeypatch, [plain], "x\n") == 2
    assert "was only pretrained" in capsys.readouterr().err
