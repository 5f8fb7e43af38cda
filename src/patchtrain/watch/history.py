"""A run's metrics as they grow: a point a line, told apart by kind and stage."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from patchtrain.report.formats import is_number
from patchtrain.watch.tail import Tail


class Point(NamedTuple):
    """What is kept of a line: counters over the whole run, and what was measured there."""

    event: str  # train, eval, switch, nonfinite, rollback
    step: int
    stage: int
    patch_size: int
    tokens: float
    positions: float
    flops: float
    seconds: float
    data_seconds: float | None
    loss: float | None
    learning_rate: float | None
    bits_per_byte: float | None


class History:
    """The points of one ``metrics.jsonl``, in the order of their steps.

    ``generation`` is another where points that were there are void (the run was resumed or begun
    anew), and another in every process: who has points of one knows what the next ones follow.
    """

    def __init__(self, file: Path) -> None:
        self._tail = Tail(file)
        self._unusable = 0
        self._clear()

    def _clear(self) -> None:
        self.generation = secrets.token_hex(8)
        self.points: list[Point] = []
        self.train: dict[int, list[Point]] = {}  # by stage
        self.evals: list[Point] = []
        self.switches: dict[int, Point] = {}  # by the stage they lead to
        self.incidents: list[Point] = []  # steps left out, rollbacks

    def read(self) -> bool:
        """Take in what is new; whether anything is. ``OSError`` where it cannot be read."""
        replaced, rows = self._tail.read()
        if replaced:
            self._unusable = 0
            self._clear()
        for row in rows:
            point = _point(row)
            if point is None:
                self._unusable += 1
            else:
                self._add(point)
        return replaced or bool(rows)

    @property
    def broken(self) -> int:
        """Lines that are no metrics."""
        return self._tail.broken + self._unusable

    def _add(self, point: Point) -> None:
        if self.points and point.step < self.points[-1].step:
            # A run that was taken up again repeats the steps after its checkpoint.
            kept = [before for before in self.points if before.step < point.step]
            self._clear()
            for before in kept:
                self._add(before)
        self.points.append(point)
        if point.event == "train":
            self.train.setdefault(point.stage, []).append(point)
        elif point.event == "eval":
            self.evals.append(point)
        elif point.event == "switch":
            self.switches[point.stage] = point
        else:
            self.incidents.append(point)

    @property
    def last(self) -> Point | None:
        return self.points[-1] if self.points else None

    @property
    def last_train(self) -> Point | None:
        return self.train[max(self.train)][-1] if self.train else None

    def at(self, step: int) -> tuple[int, float]:
        """``step``, and the training clock as a run that is resumed there has it."""
        before = [point.seconds for point in self.points if point.step <= step] if step else []
        return step, max(before, default=0.0)


def _point(row: Mapping[str, Any]) -> Point | None:
    """The point of a line, or None where its counters are no numbers."""
    counters = ("step", "tokens", "positions", "flops", "seconds")
    stage, patch_size = row.get("stage", 0), row.get("patch_size", 1)
    if not all(is_number(row.get(name)) for name in counters):
        return None
    if not is_number(stage) or not is_number(patch_size):
        return None
    extra = (row.get(name) for name in ("data_seconds", "loss", "learning_rate", "bits_per_byte"))
    return Point(
        str(row.get("event")),
        int(row["step"]),
        int(stage),
        int(patch_size),
        *(float(row[name]) for name in counters[1:]),
        *(float(value) if is_number(value) else None for value in extra),
    )
