"""How far a long job is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

_LINE_SECONDS = 15.0


class Progress:
    """Shows one job at a time on stderr; ``enabled=False`` shows nothing.

    Use as a context manager; ``start`` names a job and its size in bytes (None: unknown),
    ``update`` sets how much of it is done.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._bar: Any = None
        self._task: Any = None
        self._job = ""
        self._total: int | None = None
        self._last = 0.0

    def __enter__(self) -> Progress:
        if self._enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            self._bar = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
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

    def start(self, job: str, total: int | None) -> None:
        self._job, self._total, self._last = job, total, time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(job, total=total, note="")
        elif self._enabled:
            self.say(f"{job} ...")

    def update(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self._enabled and time.monotonic() - self._last > _LINE_SECONDS:
            self._last = time.monotonic()
            share = f"{100 * done / self._total:.0f} %" if self._total else f"{done / 1e6:.0f} MB"
            self.say(f"{self._job}: {share} {note}".rstrip())

    def say(self, line: str) -> None:
        """A line on stderr, above the bar where there is one."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)
