"""Whether the process that writes a run is alive, as far as this machine can know.

A run says twice who writes it: in ``RUN/.lock`` from its first moment, and in ``run.json`` from the
first step on. The lock itself is not tried: to hold it for a moment would make a run fail that
starts in this moment.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil

from patchtrain.runs import RunFolder

# Clocks and file times are rounded: a process may seem younger than what it wrote.
_SLACK_SECONDS = 3.0


@dataclass(frozen=True)
class Process:
    """Who writes a run. ``alive`` is None where nobody here can say: it is on another machine."""

    id: int
    host: str
    alive: bool | None
    paused: bool = False  # stopped by a signal, to go on later

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "host": self.host, "alive": self.alive, "paused": self.paused}


def of_record(info: Mapping[str, Any]) -> Process | None:
    """The process that ``run.json`` names, or None if it names none."""
    process, started = info.get("process"), timestamp(info.get("started"))
    if not isinstance(process, Mapping) or not isinstance(process.get("id"), int):
        return None
    return _look(process["id"], str(process.get("host")), started)


def of_lock(run: RunFolder) -> Process | None:
    """The process that last took the run's folder, or None if none did."""
    lock = run.lock_file
    try:
        text, written = lock.read_text("utf-8", "replace"), lock.stat().st_mtime
    except OSError:
        return None
    found = re.fullmatch(r"process (\d{1,10}) on (.*)", text.strip())
    return _look(int(found[1]), found[2], written) if found else None


def timestamp(value: object) -> float | None:
    """Seconds since 1970 of a time as ``run.json`` has it; None where it is none."""
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _look(number: int, host: str, wrote: float | None) -> Process:
    if host != platform.node():
        return Process(number, host, None)
    try:
        process = psutil.Process(number)
        status, born = process.status(), process.create_time()
    except psutil.AccessDenied:
        return Process(number, host, None)
    except (psutil.Error, ValueError, OverflowError):
        return Process(number, host, False)
    # A process that was born after its own words has only the number in common with their author.
    another = wrote is not None and born > wrote + _SLACK_SECONDS
    if another or status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return Process(number, host, False)
    return Process(number, host, True, status == psutil.STATUS_STOPPED)
