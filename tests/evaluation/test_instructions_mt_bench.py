"""MT-Bench end to end against an endpoint on this machine that is sometimes ill."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from patchtrain.cli.main import main
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation import judge as judge_module
from patchtrain.evaluation import mt_bench
from patchtrain.evaluation.judge import Judge
from patchtrain.runs import RunFolder, read_evaluation
from tests.evaluation.chatty import save_chatty_run, write_lines
from tests.evaluation.fake_judge import FakeJudge, Reply, completion

QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Write of cells.", "Shorter."]},
    {"question_id": 82, "category": "writing", "turns": ["Write of leaves.", "Longer."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And 2 + 2?"],
     "reference": ["It is TWO.", "It is FOUR."]},
]  # fmt: skip
NO_RATING = "I like it. Rating: ten of ten"


def rating(body: dict[str, Any]) -> int:
    """A rating that goes by the request alone, as a judge at temperature 0 has it."""
    text = json.dumps(body["messages"])
    return 1 + int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10


def graded(body: dict[str, Any], number: int = 0) -> Reply:
    if "Shorter." in body["messages"][1]["content"]:
        return completion(NO_RATING)
    return completion(f"Fine, [[3]] or so.\nRating: [[{rating(body)}]]")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "_WAITS_SECONDS", (0.0,) * 3)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_lines(folder / "questions.jsonl", QUESTIONS)
    return save_chatty_run(folder / "run")


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    shutil.copytree(base, tmp_path / "run")
    shutil.copy(base.parent / "questions.jsonl", tmp_path)
    return tmp_path / "run"


@pytest.fixture
def fake() -> Iterator[FakeJudge]:
    with FakeJudge(graded).serving() as judge:
        yield judge


def words(run: Path, fake: FakeJudge, *more: str) -> list[str]:
    return ["eval", str(run), "--mt-bench", "--judge-url", fake.url, "--judge-model", "strict-1",
            "--questions", str(run.parent / "questions.jsonl"), "--max-new-tokens", "8",
            *more]  # fmt: skip


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_both_turns_are_judged_and_all_that_was_said_is_kept(
    run: Path, fake: FakeJudge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
    assert main(words(run, fake)) == 0
    out = capsys.readouterr().out
    answers = lines(run / "mt_bench" / "answers.jsonl")
    judgments = lines(run / "mt_bench" / "judgments.jsonl")
    assert [(row["question_id"], row["turn"]) for row in answers] == [
        (str(q["question_id"]), turn) for q in QUESTIONS for turn in (1, 2)
    ]
    # The second question follows the first answer.
    assert [m["content"] for m in answers[1]["messages"]] == [
        QUESTIONS[0]["turns"][0], answers[0]["text"], QUESTIONS[0]["turns"][1]]  # fmt: skip
    assert [row["temperature"] for row in answers] == [0.7] * 4 + [0.0] * 2

    assert set(fake.paths) == {"/v1/chat/completions"}
    assert all(body["model"] == "strict-1" and body["temperature"] == 0 for body in fake.bodies)
    assert all(headers["Authorization"] == "Bearer secret-7" for headers in fake.headers)
    assert len(fake.bodies) == 6
    by_place = {(row["question_id"], row["turn"]): row for row in judgments}
    for row in judgments:
        assert row["response"] == json.loads(graded({"messages": row["messages"]})[1])
        system, user = (message["content"] for message in row["messages"])
        first, second = (a["text"] for a in answers if a["question_id"] == row["question_id"])
        assert first in user
        assert (second in user and "second one only" in system) or row["turn"] == 1
        with_reference = row["question_id"] == "111"
        assert ("TWO" in user) == ("reference" in system) == with_reference
        assert ("FOUR" in user) == (with_reference and row["turn"] == 2)

    result = RunFolder(run).evaluation()["instructions"]["mt-bench"]
    ratings = {place: row["rating"] for place, row in by_place.items()}
    assert ratings["81", 2] is None
    rated = [value for value in ratings.values() if value is not None]
    assert result["score"] == pytest.approx(mean(rated))
    assert (result["rated"], result["unrated"], result["with_reference"]) == (5, 1, 1)
    assert result["turns"]["2"]["score"] == mean([ratings["82", 2], ratings["111", 2]])
    math = result["categories"]["math"]
    assert math["score"] == mean([ratings["111", 1], ratings["111", 2]])
    assert [turn["score"] for turn in math["turns"]] == [ratings["111", 1], ratings["111", 2]]
    assert "the judge gave no rating to 1 more" in out
    for file in (run / "evaluation.json", run / "mt_bench" / "judgments.jsonl"):
        assert "secret-7" not in file.read_text()


def test_a_judge_that_is_ill_for_a_while_is_asked_again(
    run: Path, fake: FakeJudge, capsys: pytest.CaptureFixture[str]
) -> None:
    ills: list[Reply] = [
        (500, b"oops", {}),
        (429, b'{"error": "slow down"}', {"Retry-After": "0"}),
        (200, b"<html>", {}),
        (200, b'{"choices": []}', {}),
        completion(None),
        (503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    ]
    failed: dict[str, Reply] = {}  # each request is refused once, whoever comes first

    def reply(body: dict[str, Any], number: int) -> Reply:
        asked = json.dumps(body)
        if asked in failed:
            return graded(body)
        failed[asked] = ills[len(failed)]
        return failed[asked]

    fake.reply = reply
    assert main(words(run, fake)) == 0
    assert len(fake.bodies) == 6 + len(ills)
    assert RunFolder(run).evaluation()["instructions"]["mt-bench"]["rated"] == 5


def test_a_judge_that_fails_for_good_loses_nothing(
    run: Path, base: Path, fake: FakeJudge, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake.reply = lambda body, number: graded(body) if number < 2 else (500, b"out of order", {})
    assert main(words(run, fake)) == 1
    error = capsys.readouterr().err
    assert error.startswith("patchtrain: error: the judge at http://127.0.0.1")
    assert "HTTP 500 out of order; what it said so far is kept" in error
    assert error.count("\n") == 1
    kept = lines(run / "mt_bench" / "judgments.jsonl")
    assert len(kept) == 2
    assert not RunFolder(run).evaluation_file.exists()

    fake.reply, before = graded, len(fake.bodies)
    assert main(words(run, fake)) == 0
    assert len(fake.bodies) == before + 4
    assert lines(run / "mt_bench" / "judgments.jsonl")[:2] == kept

    # As if nothing had happened, and from the exported model alone.
    alone, out = shutil.copytree(base / "model", tmp_path / "model"), tmp_path / "o.json"
    assert main(words(alone, fake)) == 2
    assert "say where with --out FILE" in capsys.readouterr().err
    assert main(words(alone, fake, "--out", str(out))) == 0
    resumed = RunFolder(run).evaluation()["instructions"]["mt-bench"]
    whole = read_evaluation(out)["instructions"]["mt-bench"]
    for name in ("score", "score_stderr", "turns", "categories", "unrated"):
        assert whole[name] == resumed[name]
    assert len(lines(tmp_path / "o-mt_bench" / "judgments.jsonl")) == 6


def test_killed_while_it_answers(
    run: Path, fake: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, calls = mt_bench.answer, []

    def killed(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return usual(*args)

    monkeypatch.setattr(mt_bench, "answer", killed)
    assert main(words(run, fake)) == 130
    assert len(lines(run / "mt_bench" / "answers.jsonl")) == 3
    assert not fake.bodies
    assert main(words(run, fake)) == 0
    assert len(calls) == 4 + 3
    assert main(words(run, fake)) == 0  # all of it is there
    assert (len(calls), len(fake.bodies)) == (7, 6)
    assert main(words(run, fake, "--max-new-tokens", "9")) == 0  # other answers
    assert len(calls) == 13


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, b'{"error": "no"}', {}), r"refuses: HTTP 401 .*is OPENAI_API_KEY set and right"),
        ((404, b"no such model", {}), "refuses: HTTP 404 no such model"),
        ((400, b"too long", {}), "refuses: HTTP 400 too long"),
        ((307, b"", {"Location": "http://127.0.0.1:1/"}), "redirects to http://127.0.0.1:1/, and"),
        ((200, b"\xff", {}), "failed 4 times: its answer is no chat completion"),
    ],
)
def test_a_refusal_is_one_line(reply: Reply, message: str) -> None:
    with (
        FakeJudge(lambda body, number: reply).serving() as fake,
        pytest.raises(PatchtrainError, match=message) as caught,
    ):
        Judge(fake.url, "m").ask([{"role": "user", "content": "x"}])
    assert "\n" not in str(caught.value)


def test_nobody_there() -> None:
    with FakeJudge(graded).serving() as fake:
        pass
    with pytest.raises(PatchtrainError, match=r"failed 4 times: .*refused"):
        Judge(fake.url, "m").ask([])


def test_a_judge_that_takes_no_temperature(fake: FakeJudge) -> None:
    fake.reply = lambda body, number: (
        (400, b"unsupported parameter: temperature", {})
        if "temperature" in body
        else completion("[[4]]")
    )
    judge = Judge(f"{fake.url}/chat/completions", "m")
    assert mt_bench.rating_of(judge_module.text_of(judge.ask([]))) == 4
    assert judge.temperature is None
    assert len(fake.bodies) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rating: [[5]]", 5),
        ("Not [[2]], rather\nRating: [[ 7.5 ]]", 7.5),
        ("[[10/10]]", 10),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[5]", None),
        ("[[five]]", None),
        ("", None),
    ],
)
def test_the_rating_is_the_last_in_double_brackets(text: str, expected: float | None) -> None:
    assert mt_bench.rating_of(text) == expected


def test_an_unrated_category_has_no_mean() -> None:
    questions = [mt_bench.Question(str(n), f"c{n}", ("a", "b"), ()) for n in range(2)]
    found = mt_bench.summary(questions, {"0": [4.0, 8.0], "1": [None, None]})
    assert found["categories"]["c1"]["score"] is None
    assert (found["score"], found["rated"], found["unrated"]) == (6, 2, 2)
    assert mt_bench.summary(questions, {"0": [None] * 2, "1": [None] * 2})["score"] is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": ["x"], "category": "math"}, "line 1 is no question of MT-Bench: it needs turns"),
        ({"turns": ["x", "y"]}, "and category"),
        ({**QUESTIONS[0], "reference": "x"}, "line 1: the reference is not a list of texts"),
    ],
)
def test_other_questions_are_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PatchtrainError, match=message):
        mt_bench.read_questions(str(write_lines(tmp_path / "q.jsonl", [row])))


def test_questions_by_the_hubs_names_and_twice(tmp_path: Path) -> None:
    row = {"prompt_id": 5, "category": "math", "prompt": ["x", "y"], "reference": []}
    file = write_lines(tmp_path / "q.jsonl", [row, {**row, "prompt_id": 6}])
    assert [q.id for q in mt_bench.read_questions(str(file))] == ["5", "6"]
    assert len(mt_bench.read_questions(str(file), first=1)) == 1
    with pytest.raises(PatchtrainError, match="two questions of the same"):
        mt_bench.read_questions(str(write_lines(tmp_path / "r.jsonl", [row, row])))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000/v1", "must be like http"),
        ("ftp://x/v1", "must be like http"),
        ("http://me:key@x/v1", "set the key in OPENAI_API_KEY"),
        ("http://x/v1?key=1", "carries a name, a key or a query"),
    ],
)
def test_addresses_that_are_none(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Judge(url, "m")
