"""IFEval end to end: lm-eval's checks and answers, kept as they are, without the network."""

from __future__ import annotations

import json
import math
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchtrain import chat
from patchtrain.cli.main import main
from patchtrain.errors import PatchtrainError
from patchtrain.evaluation import ifeval
from patchtrain.evaluation.answering import Answer
from patchtrain.evaluation.kept_lines import KeptLines
from patchtrain.evaluation.loading import load_model
from patchtrain.runs import RunFolder, read_evaluation
from tests.evaluation.chatty import PROMPTS, save_chatty_run, write_lines

pytest.importorskip("lm_eval")
TOKENS = 12


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_lines(folder / "prompts.jsonl", PROMPTS)
    return save_chatty_run(folder / "run")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "run")
    return tmp_path / "run"


def words(run: Path, base: Path, *more: str) -> list[str]:
    prompts = base.parent / "prompts.jsonl"
    return ["eval", str(run), "--ifeval", "--prompts", str(prompts),
            "--max-new-tokens", str(TOKENS), *more]  # fmt: skip


def answering(monkeypatch: pytest.MonkeyPatch, texts: list[str | BaseException]) -> None:
    """Let the model answer ``texts`` in turn; one that is an error is raised."""
    left = iter(texts)

    def answers(loaded: Any, prompts: Any, *rest: Any) -> Iterator[tuple[int, Answer]]:
        for index in range(len(prompts)):
            text = next(left)
            if isinstance(text, BaseException):
                raise text
            yield index, Answer(text, len(text), True, 0)

    monkeypatch.setattr(ifeval, "answer_prompts", answers)


GIVEN = [
    "No comma here",
    "*Intro:*\nSugar is in the leaf. It is sweet.",
    "ALL of it",
    "Das ist ein Blatt, und es macht Zucker aus dem Licht der Sonne.",
]


def test_the_accuracies_are_of_the_answers_given(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*GIVEN[:3], "This is English, and it is about the light of the sun."]
    answering(monkeypatch, list(given))
    assert main(words(run, base)) == 0
    out = capsys.readouterr().out
    result = RunFolder(run).evaluation()["instructions"]["ifeval"]
    assert (result["prompts"], result["instructions"]) == (4, 5)
    assert result["prompt_strict"] == 3 / 4
    assert result["instruction_strict"] == 4 / 5
    p = 3 / 4
    assert result["prompt_strict_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 3))
    assert result["by_group"]["keywords"] == {"strict": 1, "loose": 1, "instructions": 1}
    assert result["by_group"]["language"]["strict"] == 0
    assert "prompts followed, strict" in out
    assert "75.0%" in out
    samples = [json.loads(line) for line in (run / "ifeval" / "ifeval.jsonl").open()]
    assert [sample["text"] for sample in samples] == given
    assert [sample["strict"] for sample in samples] == [[True], [True, True], [True], [False]]


def test_loose_forgives_what_strict_does_not(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, ["Yes, gladly:\nNo comma in this line", *GIVEN[1:]])
    assert main(words(run, base)) == 0
    result = RunFolder(run).evaluation()["instructions"]["ifeval"]
    assert (result["prompt_strict"], result["prompt_loose"]) == (0.75, 1.0)


def test_a_killed_measurement_goes_on(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, [GIVEN[0], GIVEN[1], KeyboardInterrupt()])
    assert main(words(run, base)) == 130
    assert len((run / "ifeval" / "answers.jsonl").read_text().splitlines()) == 2
    assert not RunFolder(run).evaluation_file.exists()
    answering(monkeypatch, list(GIVEN[2:]))  # only these two are asked for
    assert main(words(run, base)) == 0
    answering(monkeypatch, [])
    capsys.readouterr()
    assert main(words(run, base, "--json", "--name", "again")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["instructions"]["again"]["name"] == "again"
    assert printed.err == ""
    found = RunFolder(run).evaluation()["instructions"]
    assert found["ifeval"]["prompt_strict"] == found["again"]["prompt_strict"] == 1.0


def test_the_models_own_answers_are_those_of_lm_eval(run: Path, base: Path, tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    assert main(words(run, base)) == 0
    samples = [json.loads(line) for line in (run / "ifeval" / "ifeval.jsonl").open()]
    loaded = load_model(run)
    chat.use_template(loaded.tokenizer)
    theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)
    asked = [
        theirs.apply_chat_template([{"role": "user", "content": prompt["prompt"]}])
        for prompt in PROMPTS
    ]
    how = {"until": [], "do_sample": False, "max_gen_toks": TOKENS}
    requests = [
        Instance("generate_until", doc={}, arguments=(text, how), idx=i)
        for i, text in enumerate(asked)
    ]
    given = theirs.generate_until(requests, disable_tqdm=True)
    assert [sample["text"] for sample in samples] == given

    # From the exported model alone, in a file of one's own.
    alone = shutil.copytree(run / "model", tmp_path / "model")
    out = tmp_path / "o.json"
    assert main(words(alone, base, "--out", str(out))) == 0
    kept = RunFolder(run).evaluation()["instructions"]["ifeval"]
    found = read_evaluation(out)["instructions"]["ifeval"]
    for name in ("prompt_strict", "instruction_loose", "by_group", "not_ended"):
        assert found[name] == kept[name]
    assert (tmp_path / "o-ifeval" / "answers.jsonl").is_file()
    assert main(words(alone, base)) == 2


def test_sentences_are_told_without_data_and_it_is_said(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    def missing(name: str) -> None:
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", missing)
    before = nltk.data.find, nltk.word_tokenize
    answering(monkeypatch, [GIVEN[0], "Sugar. Sugar. Sugar.", *GIVEN[2:]])
    assert main(words(run, base)) == 0
    result = RunFolder(run).evaluation()["instructions"]["ifeval"]
    assert "untrained punkt" in result["sentences"]
    assert result["by_group"]["length_constraints"]["strict"] == 0  # three are not less than three
    assert (nltk.data.find, nltk.word_tokenize) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, r"line 1 is no prompt of IFEval: it needs prompt, instruction_id_list"),
        ({**PROMPTS[0], "kwargs": []}, "one for each instruction"),
        ({**PROMPTS[0], "instruction_id_list": ["a:b"]}, "line 1: lm-eval knows no instruction 'a"),
    ],
)
def test_other_rows_are_named(row: dict[str, Any], message: str, run: Path, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "bad.jsonl", [row])
    loaded = load_model(run)
    with pytest.raises(PatchtrainError, match=message):
        ifeval.ifeval(loaded, ifeval.read_prompts(str(file)), KeptLines(tmp_path / "k.jsonl"))


def test_options_that_do_not_fit(run: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (["--limit", "0"], "--limit must be at least 1"),
        (["--judge-model", "m"], "--judge-model is for --mt-bench"),
        (["--mt-bench"], "--mt-bench needs a judge"),
        (["--name", "../x"], "cannot name a result"),
        (["--answers", "a.json", "--name", "x"], "--name names one result"),
    ):
        assert main(words(run, base, *more)) == 2
        assert message in capsys.readouterr().err
    assert main(["eval", str(run), "--prompts", "x"]) == 2
    assert "--prompts is for --ifeval" in capsys.readouterr().err


def test_a_folder_that_is_a_link_is_not_written_to(
    run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (run / "ifeval").symlink_to(tmp_path / "other")
    assert main(words(run, base)) == 2
    assert "ifeval is a link to another folder" in capsys.readouterr().err
    assert not list((tmp_path / "other").iterdir())


def test_a_missing_extra_is_named(
    run: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    assert main(words(run, base)) == 2
    assert "pip install 'patchtrain[eval]'" in capsys.readouterr().err
