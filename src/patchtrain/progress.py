"""How far a long job is and when it will be done: a bar on a terminal, lines in a log.

All of it goes to stderr. A terminal that cannot move its cursor (``TERM=dumb``) is treated as a
log; ``NO_COLOR`` takes the colour out of the bar.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

LINE_SECONDS = 15.0  # between two lines of a log
_SPARSER = 20  # later lines are this part of the time so far apart
_BYTES = "bytes"


def live() -> bool:
    """Whether stderr is a terminal where a bar can be drawn."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


class Lines:
    """When the next line of a log is due.

    At first every 15 seconds, then ever more seldom: an hour is some 70 lines, a week some 170.
    """

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for one; if so, the next is counted from now."""
        now = time.monotonic()
        if now - self._last < max(LINE_SECONDS, (now - self._begun) / _SPARSER):
            return False
        self._last = now
        return True


class Progress:
    """Shows one job at a time; ``enabled=False`` shows nothing.

    Use as a context manager; ``start`` names a job and its size in ``unit`` (None: unknown),
    ``update`` and ``advance`` say how much of it is done.
    """

    def __init__(self, enabled: bool = True, unit: str = _BYTES) -> None:
        self._enabled = enabled
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None
        self._job = ""
        self._total: int | None = None
        self._done = 0
        self._begun = 0.0
        self._first: int | None = None
        self._lines = Lines()

    def __enter__(self) -> Progress:
        if self._enabled and live():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bars

            self._bar = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn() if self._unit == _BYTES else MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, job: str, total: int | None, announce: bool = True) -> None:
        """Begin a job; in a log that is a line of its own unless ``announce`` is False."""
        self._job, self._total, self._done, self._first = job, total, 0, None
        self._begun, self._lines = time.monotonic(), Lines()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(job, total=total, note="")
        elif announce:
            self.say(f"{job} ...")

    def update(self, done: int, note: str = "") -> None:
        """So much of the job is done in all."""
        self._done = done
        if self._first is None:  # what was there before, of a job that goes on
            self._begun, self._first = time.monotonic(), done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self._enabled and self._lines.due():
            self.say(self._line(note))

    def advance(self, count: int) -> None:
        """So much more is done."""
        if self._first is None:
            self._first = 0
        self.update(self._done + count)

    def say(self, line: str) -> None:
        """A line on stderr, above the bar where there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def _line(self, note: str) -> str:
        size = self._size(self._done)
        if self._total:
            size = f"{self._done / self._total:.0%} of {self._size(self._total)}"
        parts = [size, note, self._left()]
        return f"{self._job}: {', '.join(part for part in parts if part)}"

    def _size(self, number: int) -> str:
        if self._unit == _BYTES:
            return f"{number / 1e6:,.0f} MB"
        return f"{number:,} {self._unit}"

    def _left(self) -> str:
        new = self._done - (self._first or 0)
        if not self._total or new <= 0:
            return ""
        seconds = (time.monotonic() - self._begun) / new * max(self._total - self._done, 0)
        return f"{clock(seconds)} left"


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, ``4000`` as ``1:06:40``, ``100000`` as ``1 d 3:46:40``."""
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    text = f"{hours}:{minutes:02}:{seconds:02}" if hours or days else f"{minutes}:{seconds:02}"
    return f"{days} d {text}" if days else text
