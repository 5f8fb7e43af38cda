"""Whether a run trains, stands still, or has ended, and how: one word for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchtrain.report.formats import is_number
from patchtrain.watch.history import History
from patchtrain.watch.pace import Pace, PlannedStage
from patchtrain.watch.process import Process

STATUSES = {
    "waiting": "has not started yet",
    "starting": "is starting",
    "running": "is training",
    "finishing": "has done its last step and writes model and page",
    "stalled": "has written nothing for longer than it should",
    "stopped": "was stopped, and can go on",
    "failed": "failed",
    "gone": "is gone: its process ended without a word",
    "finished": "is finished",
}
# A line of metrics may be late by an evaluation, a checkpoint, a slow file system; the first one
# also by what is compiled before it.
_LATE_TIMES, _LATE_SECONDS, _FIRST_SECONDS = 5.0, 60.0, 600.0


def status_of(
    info: Mapping[str, Any],
    process: Process | None,
    history: History,
    stages: Sequence[PlannedStage],
    found: Pace,
    step: int,
    now: float,
    heard: float | None,
) -> str:
    """One of STATUSES. ``heard`` is when the run last gave a sign of itself."""
    alive, recorded = process.alive if process else None, info.get("status")
    again = alive and process is not None and process.id != _recorded_id(info)
    if not info:
        return "starting" if alive else "waiting"
    if again and recorded != "finished":
        return "starting"
    ended = {"finished": "finished", "interrupted": "stopped", "failed": "failed"}
    if str(recorded) in ended:
        return ended[str(recorded)]
    if alive is False:
        return "gone"
    silence = now - heard if heard is not None else 0.0
    usual = (found.line_seconds or 0.0) + found.evaluation_seconds
    late = max(_LATE_SECONDS, _LATE_TIMES * usual)
    if process is not None and process.paused:
        return "stalled"
    if stages and step >= stages[-1].last_step:
        return "stalled" if silence > max(late, _FIRST_SECONDS) else "finishing"
    if found.line_seconds is None:  # no two lines since it was started
        begun = (
            history.last_train is not None
            and history.last_train.step > (resumed_at(info) or (0,))[-1]
        )
        if silence > max(late, _FIRST_SECONDS):
            return "stalled"
        return "running" if begun else "starting"
    return "stalled" if silence > late else "running"


def _recorded_id(info: Mapping[str, Any]) -> object:
    process = info.get("process")
    return process.get("id") if isinstance(process, Mapping) else None


def resumed_at(info: Mapping[str, Any]) -> tuple[int, ...]:
    """The steps at which the run was taken up again."""
    entries = info.get("resumed")
    return tuple(
        int(entry["step"])
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, Mapping) and is_number(entry.get("step"))
    )
