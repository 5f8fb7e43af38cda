"""Progress in a log and on a terminal."""

import io
import sys

import pytest

from patchtrain import progress
from patchtrain.progress import Lines, Progress, clock, live


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_has_plain_lines_with_the_time_left(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as bar:
        bar.start("tokenising", 400_000_000)
        for second in range(61):
            time.now = 100.0 + second
            bar.update(second * 2_000_000, "3 files")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "tokenising ...",
        "tokenising: 8% of 400 MB, 3 files, 3:05 left",
        "tokenising: 15% of 400 MB, 3 files, 2:50 left",
        "tokenising: 22% of 400 MB, 3 files, 2:35 left",
        "tokenising: 30% of 400 MB, 3 files, 2:20 left",
    ]


def test_what_was_there_before_is_not_taken_for_speed(
    time: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(unit="answers") as bar:
        bar.start("answers written", 100, announce=False)
        bar.update(50)
        time.now += 20
        bar.advance(10)
    assert capsys.readouterr().err == "answers written: 60% of 100 answers, 1:20 left\n"


def test_an_unknown_size_has_no_time_left(time: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(unit="tokens") as bar:
        bar.start("tokens scored", None, announce=False)
        time.now += 20
        bar.advance(1234)
    assert capsys.readouterr().err == "tokens scored: 1,234 tokens\n"


def test_lines_come_ever_more_seldom(time: Clock) -> None:
    lines, hour, week = Lines(), 0, 0
    for second in range(7 * 86_400):
        time.now = 100.0 + second
        due = lines.due()
        week += due
        hour += due and second < 3600
    assert 60 < hour < 80
    assert 150 < week < 190


def test_nothing_is_said_where_none_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(False) as bar:
        bar.start("x", 10)
        bar.update(5)
        bar.say("hello")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("term", "colour"), [("xterm-256color", True), ("dumb", False)])
def test_a_bar_only_where_it_can_be_drawn(
    term: str, colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", term)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", out := Terminal())
    assert live() is colour
    with Progress(unit="tokens") as bar:
        bar.start("tokens scored", 10)
        bar.advance(3)
    assert ("\x1b[" in out.getvalue()) is colour
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", out := Terminal())
    with Progress(unit="tokens") as bar:
        bar.start("tokens scored", 10)
        bar.advance(3)
    assert "\x1b[3" not in out.getvalue()  # no colour; the cursor may move


def test_a_clock_is_short() -> None:
    assert [clock(seconds) for seconds in (75, 4000, 100_000)] == ["1:15", "1:06:40", "1 d 3:46:40"]
