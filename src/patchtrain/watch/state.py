"""What there is to say of a run at this moment, from its folder alone.

The state is made anew at every look, and nothing is written: a run is looked at from another
process, perhaps on another machine that shares the folder, while it is being written, and after it
was killed. What cannot be read is a problem to name, never an error.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError, one_line
from patchtrain.report.formats import count, finite, is_number
from patchtrain.runs import RunFolder
from patchtrain.watch.history import History, Point
from patchtrain.watch.pace import Pace, PlannedStage, pace, planned_stages, rate
from patchtrain.watch.process import Process, of_lock, of_record, timestamp
from patchtrain.watch.status import resumed_at, status_of


@dataclass(frozen=True)
class State:
    """One run at one moment. Times are seconds since 1970; None and empty where unknown."""

    name: str
    path: Path
    status: str  # of status.STATUSES
    at: float  # when this was so
    stages: tuple[PlannedStage, ...] = ()
    stage: PlannedStage | None = None  # the one it is in
    step: int = 0
    last: Point | None = None  # counters so far
    last_train: Point | None = None
    last_eval: Point | None = None
    total_flops: float | None = None
    tokens_per_s: float | None = None
    data_share: float | None = None  # of the training time, waiting for the next batch
    pace: Pace | None = None
    started: float | None = None  # the process that trains now, or trained last
    line_at: float | None = None  # when metrics were last written
    ended: float | None = None
    left: float | None = None  # seconds to the end of training
    to_switch: float | None = None  # seconds to the next switch
    checkpoint: tuple[int, float] | None = None  # step and time of the newest
    resumed: tuple[int, ...] = ()  # steps it was taken up at
    process: Process | None = None
    result: Mapping[str, float] = field(default_factory=dict)  # of the final validation
    problems: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int:
        return self.stages[-1].last_step if self.stages else 0

    @property
    def total_tokens(self) -> float:
        return sum(stage.tokens for stage in self.stages)

    @property
    def total_positions(self) -> float:
        return sum(stage.positions for stage in self.stages)

    @property
    def share(self) -> float:
        """How much of the run's compute is done, by positions, in [0, 1]."""
        if self.status == "finished":
            return 1.0
        total = self.total_positions
        done = (self.last.positions if self.last else 0.0) / total if total else 0.0
        return min(max(done, 0.0), 1.0) if is_number(done) else 0.0

    @property
    def switch_shares(self) -> list[float]:
        """Where the switches lie in the run's compute, in [0, 1]."""
        total, passed, found = self.total_positions, 0.0, []
        for stage in self.stages[:-1]:
            passed += stage.positions
            place = passed / total if total else 0.0
            found.append(place if is_number(place) else 0.0)
        return found

    @property
    def ends_at(self) -> float | None:
        """When training is expected to end."""
        return None if self.left is None else self.at + self.left

    @property
    def over(self) -> bool:
        """Whether nothing more is to come unless somebody starts it again."""
        return self.status in ("finished", "stopped", "failed", "gone")

    def to_dict(self) -> dict[str, Any]:
        """JSON types, for machines; times as ISO 8601, durations in seconds, losses in nats."""
        last, train, validation = self.last, self.last_train, self.last_eval
        values = {
            "name": self.name,
            "path": str(self.path),
            "status": self.status,
            "at": _iso(self.at),
            "step": self.step,
            "total_steps": self.total_steps or None,
            "share": round(self.share, 6),
            "stage": None if self.stage is None else self._stage_to_dict(self.stage),
            "stages": [self._stage_to_dict(stage) for stage in self.stages],
            "tokens": last.tokens if last else 0,
            "total_tokens": self.total_tokens or None,
            "flops": last.flops if last else 0,
            "total_flops": self.total_flops,
            "loss": train.loss if train else None,
            "loss_of": None if train is None else "patch" if train.patch_size > 1 else "token",
            "validation_loss": validation.loss if validation else None,
            "validation_step": validation.step if validation else None,
            "learning_rate": train.learning_rate if train else None,
            "tokens_per_s": self.tokens_per_s,
            "data_share": self.data_share,
            "seconds": last.seconds if last else 0.0,
            "left_seconds": self.left,
            "to_switch_seconds": self.to_switch,
            "ends_at": _iso(self.ends_at),
            "started": _iso(self.started),
            "last_line": _iso(self.line_at),
            "ended": _iso(self.ended),
            "checkpoint": None
            if self.checkpoint is None
            else {"step": self.checkpoint[0], "at": _iso(self.checkpoint[1])},
            "resumed": list(self.resumed),
            "process": self.process.to_dict() if self.process else None,
            "result": dict(self.result) or None,
            "problems": list(self.problems),
        }
        plain: dict[str, Any] = finite(values)
        return plain

    def _stage_to_dict(self, stage: PlannedStage) -> dict[str, Any]:
        seconds = self.pace.step_seconds[stage.index] if self.pace else None
        return {
            "number": stage.index + 1,
            "name": stage.name,
            "patch_size": stage.patch_size,
            "first_step": stage.first_step,
            "steps": stage.steps,
            "step": stage.done(self.step),
            "step_seconds": seconds,
        }


class Watched:
    """A run's folder, which need not be there yet, looked at again and again."""

    def __init__(self, path: Path) -> None:
        self.run = RunFolder(path)
        self.history = History(self.run.metrics_file)
        self._info: dict[str, Any] = {}
        self._info_read: tuple[int, int, int] | None = None
        self._sizes: dict[str, int] = {}  # of checkpoints, by name

    def look(self, now: float | None = None) -> State:
        """The state at ``now``."""
        now = time.time() if now is None else now
        problems: list[str] = []
        info = self._read_info(problems)
        try:
            self.history.read()
        except OSError as error:
            problems.append(f"metrics.jsonl cannot be read: {(error.strerror or '').lower()}")
        if self.history.broken:
            lines = "line" if self.history.broken == 1 else "lines"
            problems.append(f"{self.history.broken:,} {lines} of metrics.jsonl cannot be read")
        return self._state(info, now, problems)

    def _state(self, info: dict[str, Any], now: float, problems: list[str]) -> State:
        history, stages = self.history, planned_stages(info)
        last = history.last
        resumed = resumed_at(info)
        started, line_at = timestamp(info.get("started")), _modified(self.run.metrics_file)
        if last is None:
            line_at = None
        elif started is not None and line_at is not None:
            line_at = max(line_at, started)  # where clocks differ
        wall = line_at - started if started is not None and line_at is not None else None
        taken_up = resumed[-1] if resumed else 0
        found = pace(stages, history, taken_up, wall)
        step = max(last.step if last else 0, taken_up)
        process = self._process(info)
        status = status_of(info, process, history, stages, found, step, now, line_at or started)
        passed = 0.0  # of the time left, since the last line: not more than to the next
        if line_at is not None and status in ("running", "stalled", "finishing"):
            most = (found.line_seconds or 0.0) + found.evaluation_seconds
            passed = min(max(now - line_at, 0.0), most)
        going = status in ("running", "starting", "stalled")
        stage = next(
            (one for one in stages if step < one.last_step), stages[-1] if stages else None
        )
        of_stage = history.train.get(stage.index, []) if stage else []
        recent = [point for point in of_stage[-10:] if point.step > taken_up]
        checkpoint = self._newest_checkpoint()
        problems += self._disk(checkpoint, going)
        if status in ("failed", "gone") and (words := self._failure()):
            problems.append(words)
        return State(
            name=one_line(info.get("name") or self.run.name),
            path=self.run.path,
            status=status,
            at=now,
            stages=tuple(stages),
            stage=stage,
            step=step,
            last=last,
            last_train=history.last_train,
            last_eval=history.evals[-1] if history.evals else None,
            total_flops=_total_flops(stages, last),
            tokens_per_s=rate(recent, "tokens") or rate(of_stage, "tokens"),
            data_share=rate(recent, "data_seconds"),
            pace=found,
            started=started,
            line_at=line_at,
            ended=timestamp(info.get("finished")) if not going else None,
            left=max(found.left - passed, 0.0) if going and found.left is not None else None,
            to_switch=max(found.to_switch - passed, 0.0)
            if going and found.to_switch is not None
            else None,
            checkpoint=checkpoint,
            resumed=resumed,
            process=process,
            result=_result(info),
            problems=(*problems, *_incidents(history)),
        )

    def _read_info(self, problems: list[str]) -> dict[str, Any]:
        """``run.json``, read when it is another file than before."""
        try:
            found = self.run.info_file.stat()
            key = (found.st_mtime_ns, found.st_size, found.st_ino)
            if key != self._info_read:
                self._info, self._info_read = self.run.info(), key
        except FileNotFoundError:
            self._info, self._info_read = {}, None
        except (OSError, PatchtrainError) as error:
            self._info_read = None
            problems.append(f"run.json cannot be read: {one_line(error)}")
        return self._info

    def _process(self, info: Mapping[str, Any]) -> Process | None:
        """Who writes the run: the one that holds the folder now, or that wrote its record."""
        recorded, holding = of_record(info), of_lock(self.run)
        if holding is not None and (recorded is None or holding.alive):
            return holding
        return recorded

    def _newest_checkpoint(self) -> tuple[int, float] | None:
        try:
            *_, (step, path) = self.run.checkpoints().items()
            return step, path.stat().st_mtime
        except (OSError, ValueError):  # none, or deleted in this moment
            return None

    def _disk(self, checkpoint: tuple[int, float] | None, going: bool) -> list[str]:
        """A warning where the next checkpoint will not find room."""
        if not going:
            return []
        try:
            free, needed = shutil.disk_usage(self.run.path).free, 1 << 20
            if checkpoint is not None:
                needed = max(needed, self._size(self.run.path / f"checkpoint-{checkpoint[0]}"))
        except OSError:
            return []
        if free >= needed:
            return []
        what = "the next checkpoint takes" if needed > 1 << 20 else "a run needs more than"
        return [f"the disk is almost full: {count(free)} bytes are free, {what} {count(needed)}"]

    def _size(self, folder: Path) -> int:
        if folder.name not in self._sizes:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            self._sizes = {folder.name: size}
        return self._sizes[folder.name]

    def _failure(self) -> str | None:
        """What the first of several processes to fail left."""
        try:
            values = json.loads(self.run.failure_file.read_text("utf-8"))
            return one_line(f"process {values['process']} on {values['host']}: {values['error']}")
        except (OSError, ValueError, LookupError, TypeError):
            return None


def _result(info: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the final validation."""
    result = info.get("result")
    items = result.items() if isinstance(result, dict) else []
    return {name: value for name, value in items if is_number(value)}


def _incidents(history: History) -> list[str]:
    """Steps left out and rollbacks, in words."""
    kinds = {
        "nonfinite": "left out, as a loss or gradient was no number",
        "rollback": "rolled back",
    }
    found = []
    for kind, words in kinds.items():
        steps = [point.step for point in history.incidents if point.event == kind]
        if steps:
            what = f"step {steps[0]:,} was" if len(steps) == 1 else f"{len(steps):,} steps were"
            last = "" if len(steps) == 1 else f" (the last: step {steps[-1]:,})"
            found.append(f"{what} {words}{last}")
    return found


def _total_flops(stages: list[PlannedStage], last: Point | None) -> float | None:
    """Of the whole run: as planned, or by its positions so far."""
    flops = [stage.flops for stage in stages]
    known = [value for value in flops if value is not None]
    if stages and len(known) == len(stages):
        return sum(known)
    if last is None or last.positions <= 0 or not stages:
        return None
    return last.flops / last.positions * sum(stage.positions for stage in stages)


def _modified(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _iso(seconds: float | None) -> str | None:
    try:
        then = None if seconds is None else datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):  # beyond the years that there are
        return None
    return None if then is None else then.isoformat(timespec="seconds")
