"""A few hundred damaged inputs of every kind; see ``tests.fuzzing``. The same ones each time.

``python benchmarks/fuzz.py`` makes as many more as you like.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.fuzzing import KINDS, Case, World, judge, make_world
from tests.fuzzing.judging import outcome

EXAMPLES = {"recipe": 180, "store": 140, "text": 150, "checkpoint": 40}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def check(kind: str, rng: Random, world: World) -> None:
    with tempfile.TemporaryDirectory(dir=world.folder.parent) as name:
        case = KINDS[kind](rng, world, Path(name))
        note(case.what)
        result = judge(case)
    note(f"exit code {result.code}: {result.error}")
    assert result.problems == []


def settled(kind: str) -> settings:
    return settings(
        max_examples=EXAMPLES[kind],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


chance = st.randoms(use_true_random=False)


def test_every_kind_has_its_test() -> None:
    assert KINDS.keys() == EXAMPLES.keys()


@settled("recipe")
@given(rng=chance)
def test_recipes(rng: Random, world: World) -> None:
    check("recipe", rng, world)


@settled("store")
@given(rng=chance)
def test_stores(rng: Random, world: World) -> None:
    check("store", rng, world)


@settled("text")
@given(rng=chance)
def test_text_files(rng: Random, world: World) -> None:
    check("text", rng, world)


@settled("checkpoint")
@given(rng=chance)
def test_checkpoints(rng: Random, world: World) -> None:
    check("checkpoint", rng, world)


def broken(message: str = "", code: int = 1, more: str = "") -> Callable[[list[str]], int]:
    """A command line that does not keep the rule."""

    def main(argv: list[str]) -> int:
        print(more, file=sys.stderr)
        print(f"patchtrain: error: {message}", file=sys.stderr)
        return code

    return main


def hangs(argv: list[str]) -> int:
    with contextlib.suppress(Exception):  # which must not be enough to outlive the deadline
        time.sleep(60)
    return 0


def raises(argv: list[str]) -> int:
    raise ZeroDivisionError("oh")


def writes_below_python(argv: list[str]) -> int:
    os.write(2, b"thread panicked at src/lib.rs\n")
    return broken("a whole clear line")(argv)


@pytest.mark.parametrize(
    ("main", "problem"),
    [
        (broken("a whole clear line"), None),
        (broken("a whole clear line", code=0), "exit code 0 with 1 lines of error"),
        (broken("a whole clear line", code=3), "exit code 3"),
        (broken("a whole clear line", more="patchtrain: error: two"), "with 2 lines of error"),
        (broken("a whole clear line", more="Traceback (most recent call last)"), "a traceback"),
        (broken("ValueError: x (--debug shows where)"), "an error nobody foresaw"),
        (broken("\x1b[2J a whole line"), "no line to read"),
        (broken("oh"), "no line to read"),
        (broken("x" * 5000), "no line to read"),
        (lambda argv: 1, "with 0 lines of error"),
        (hangs, "took more than 0.2 s"),
        (raises, "let ZeroDivisionError through: oh"),
        (writes_below_python, "a traceback"),
    ],
)
def test_the_judge_of_a_call(
    main: Callable[[list[str]], int], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fuzzing.judging.main", main)
    problems = outcome(["x"], seconds=0.2).problems
    assert problems == [] if problem is None else problem in problems[0]


def test_the_judge_of_what_is_left(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = tmp_path / "a.txt", tmp_path / "out"
    text.write_text("one\ntwo")
    argv = ["prepare", str(text), "--out", str(out), "--tokenizer", str(world.tokenizer)]
    whole = [*argv, "--validation-fraction", "0", "--document-separator", "\\n"]
    shutil.copytree(world.store, out)
    assert judge(Case(whole, tmp_path, "", out=out)).problems == ["left out"]
    shutil.rmtree(out)
    assert judge(Case(whole, tmp_path, "", out=out, texts=["one", "two"])).problems == []
    shutil.rmtree(out)
    lost = Case(whole, tmp_path, "", out=out, texts=["one", "two", "six"], rows=3)
    problems = judge(lost).problems
    assert "met 2 documents and 0 blank, not 3" in problems
    assert "holds 6 bytes of text, not 9" in problems
    shutil.rmtree(out)
    failing = Case(["prepare", "nothing.txt", "--out", str(out)], tmp_path, "", succeeds=True)
    assert judge(failing).problems == ["should have succeeded"]

    def writes(argv: list[str]) -> int:
        (tmp_path / "new").write_text("x")
        text.write_text("other")
        return 0

    monkeypatch.setattr("tests.fuzzing.judging.main", writes)
    problems = judge(Case(["train"], tmp_path, "", succeeds=False)).problems
    assert problems == ["should have failed", "changed a.txt, new"]


def test_the_judge_of_a_run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(world.run, out)
    case = Case(["train", "recipe"], tmp_path, "", out=out)
    monkeypatch.setattr("tests.fuzzing.judging.main", broken("a whole clear line"))
    assert judge(case).problems == ["left a run that looks whole (status finished)"]
    (out / "run.json").write_text('{"status": "failed"}')
    assert judge(case).problems == []
    monkeypatch.setattr("tests.fuzzing.judging.main", lambda argv: 0)
    assert judge(case).problems == ["is not finished"]
