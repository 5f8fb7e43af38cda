"""One call of the command line, held to the rule of ``tests.fuzzing``."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from unittest import mock

import torch

from patchtrain.cli.main import main
from patchtrain.data.store import TokenStore
from patchtrain.errors import PatchtrainError
from patchtrain.machine import Memory
from patchtrain.runs import RunFolder

SECONDS = 30
PREFIX = "patchtrain: error: "


@dataclass(frozen=True)
class Case:
    """One call and what is known of its outcome."""

    argv: Sequence[str]
    folder: Path
    """All that the call may see and touch."""
    what: str
    """What was done to the input, for a reader."""
    out: Path | None = None
    """The store or run the call is to make; None: it must write nothing."""
    succeeds: bool | None = None
    """Whether it must succeed or fail; None: both will do."""
    texts: Sequence[str] | None = None
    """If it succeeds, the documents the new store must hold, blank ones left out."""
    rows: int | None = None
    """If it succeeds, how many documents it must have met, blank ones too."""


@dataclass
class Outcome:
    code: int
    output: str
    error: str
    """The line of the error, empty for none."""
    problems: list[str] = field(default_factory=list)
    """How the rule was broken; empty if it was kept."""


def judge(case: Case, seconds: float = SECONDS) -> Outcome:
    """Run a case and find what is wrong with how it ended."""
    before = _listing(case.folder)
    result = outcome(case.argv, seconds)
    if case.succeeds is not None and case.succeeds != (result.code == 0):
        result.problems.append(f"should have {'succeeded' if case.succeeds else 'failed'}")
    card = Path("model", "README.md")  # shows what a model was measured at: eval writes it anew
    changed = {
        path
        for path, state in (before.items() ^ _listing(case.folder).items())
        if case.out is None or (path != case.out and case.out not in path.parents)
        if case.argv[0] != "eval" or Path(*path.parts[-2:]) != card
    }
    if changed:
        names = ", ".join(sorted(str(path.relative_to(case.folder)) for path in changed))
        result.problems.append(f"changed {names}")
    if case.out is not None:
        result.problems += _judge_result(case, case.out, result.code)
    return result


def outcome(argv: Sequence[str], seconds: float = SECONDS) -> Outcome:
    """Run the command line in this process, and hold the call itself to the rule."""
    problems: list[str] = []
    code = 0
    with _restored(), _captured() as (out, err):
        try:
            with _deadline(seconds):
                code = main(list(argv))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 99
        except _HangError:
            problems.append(f"took more than {seconds:g} s")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            problems.append(f"let {type(error).__name__} through: {error}")
    lines = err.getvalue().strip().splitlines()
    errors = [line for line in lines if line.startswith(PREFIX)]
    if problems:
        return Outcome(code, out.getvalue(), "", problems)
    if "Traceback" in err.getvalue() or "panicked at" in err.getvalue():
        problems.append("a traceback: " + err.getvalue()[-500:])
    if code not in (0, 1, 2):
        problems.append(f"exit code {code}")
    if len(errors) != (code != 0) or (errors and errors != lines[-1:]):
        problems.append(f"exit code {code} with {len(errors)} lines of error, in: {lines}")
    message = errors[0].removeprefix(PREFIX) if errors else ""
    if message.endswith("(--debug shows where)"):
        problems.append(f"an error nobody foresaw: {message}")
    if len(message) > 2100 or not message.isprintable() or (errors and len(message) < 10):
        problems.append(f"no line to read: {message!r}")
    return Outcome(code, out.getvalue(), message, problems)


def _judge_result(case: Case, out: Path, code: int) -> list[str]:
    """What is wrong with what was left at ``out``."""
    command = case.argv[0]
    if command == "prepare":
        if code:
            return [f"left {out.name}"] if out.exists() else []
        store = TokenStore.open(out)
        store.verify()
        return _lost(case, store)
    if command == "eval":
        return [f"left {out.name}"] if code and out.exists() else []
    if not code:
        return [] if RunFolder(out).info()["status"] == "finished" else ["is not finished"]
    try:
        status = RunFolder(out).info()["status"]
    except (OSError, PatchtrainError):
        status = None
    if status in (None, "failed", "interrupted"):
        return []
    return [f"left a run that looks whole (status {status})"]


def _lost(case: Case, store: TokenStore) -> list[str]:
    """Whether all the documents of the input are in the store."""
    splits = (store.train, store.validation)
    made = store.meta["made"]
    met = sum(split.documents for split in splits)
    problems = []
    if case.rows is not None and met + made["blank_documents"] != case.rows:
        problems.append(f"met {met} documents and {made['blank_documents']} blank, not {case.rows}")
    if case.texts is not None:
        size = sum(split.utf8_bytes for split in splits)
        expected = sum(len(text.encode()) for text in case.texts)
        if size != expected and not (made["documents_cut"] and size < expected):
            problems.append(f"holds {size} bytes of text, not {expected}")
        if met != len(case.texts) and not made["documents_cut"]:
            problems.append(f"holds {met} documents, not {len(case.texts)}")
    return problems


def _listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything in a folder by name, with size and time of the last change."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        found[path] = (state.st_size if path.is_file() else 0, state.st_mtime_ns)
    # The time of a folder changes with its entries, which are compared themselves.
    return {path: state if not path.is_dir() else (0, 0) for path, state in found.items()}


class _HangError(BaseException):
    """The deadline passed. Not an Exception, which somebody would catch."""


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only there can a signal be handled
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise _HangError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Standard output and error, also of code that is no Python; standard input is empty."""
    out, err = io.StringIO(), io.StringIO()
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 2)
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                mock.patch("sys.stdin", io.StringIO()),
            ):
                yield out, err
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            below = file.read().decode("utf-8", "replace")
            # Before ours: the order of two streams is lost, and ours is to be the last word.
            kept = err.getvalue()
            err.seek(0)
            err.truncate()
            err.write(below + kept)


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Cheap calls that leave no trace in this process.

    What is made cheap changes nothing of what is refused: the timing of a dry run is short, models
    beyond a gigabyte are too large, and the hub is out of reach.
    """
    with (
        mock.patch.dict(os.environ),
        mock.patch("patchtrain.training.measuring.TIMED_SECONDS", 0.0),
        mock.patch("patchtrain.training.measuring.LARGEST_PASS", 1e8),
        mock.patch("patchtrain.machine.memory", return_value=Memory(1 << 30, None, None)),
        mock.patch("patchtrain.data.hub.reachable", return_value=False),
        mock.patch("patchtrain.data.tokenizer.reachable", return_value=False),
    ):
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            torch.set_grad_enabled(True)
