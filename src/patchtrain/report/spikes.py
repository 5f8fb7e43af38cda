"""Spikes of the training loss, and what the switch did to it, read from a run's metrics.

Standard library only. Rows are those of ``RunFolder.metrics()``, in their order. Losses are in nats
per token, each the mean since the row before.

**A spike** is a rise that the noise of the curve does not explain. Within a stage, take the last
``WINDOW`` training losses that belong to no spike, at least ``LEAST_ROWS``: m is their median, d
the median of the absolute differences from each to the next. A spike begins at the first loss above
m + b, where b is the larger of ``NOISES * 1.05 * d`` and ``LEAST_RISE``. (1.05 d is the standard
deviation of normal noise; the fall of the curve hardly counts in it.) It lasts until the first loss
at or below m + b / 2, so that a rise is one spike however often it goes up and down between. Its
height is its highest loss less m. While the curve falls, m is above it, and a spike has to reach
above what the loss was half a window ago.

**The switch** to a smaller patch size changes what the loss is of, so no loss is held against those
of the stage before, and the rows after a switch are the switch's until the stage has *recovered*:
up to the first row that is, and whose median with the four rows after it is, below the median of
the last five losses of the stage before. After a rollback, likewise, rows are the rollback's until
the loss is back where it was.

**Why that is recovery.** The K tokens of the next patch, predicted together from pooled context,
are harder than the one next token. So a token-level stage that is not below the last patch loss
has not even made up for the switch; the stages that work are below it almost at once. A stage is
called *slow* that was still above in more than ``SLOW_SHARE`` of its steps, or to its end. (A model
of 0.13M parameters, K = 4, 1,500 steps, one seed, was above in 0.5, 0.8 and 3 % of the stage where
the token level had 70, 40 and 20 % of the steps, in 27 % where it had 10 %, and in all of it where
it had 5 %. The final loss rose from 2.8 to 4.6 in that order.) A stage that is not slow can still
be too short for the patches to pay: ``Plan.warnings`` judges that before the run. At a context of a
few tokens the argument fails, because a patch-level sequence reaches K times further back.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

Row = Mapping[str, Any]

WINDOW = 40
LEAST_ROWS = 16
NOISES = 7.0
LEAST_RISE = 0.1  # nats; less is not worth a word
SLOW_SHARE = 0.1  # of a stage: to recover later is too late
_NEIGHBOURS = 5  # rows whose median takes the noise out of a recovery


@dataclass(frozen=True)
class Spike:
    """One rise of the training loss that nothing planned explains."""

    row: Row  # its highest
    height: float  # nats above the median before it
    first_step: int
    back_after: int | None  # steps from its first row to the one that was back; None if none was

    @property
    def step(self) -> int:
        """The step of its highest loss."""
        return int(self.row["step"])


@dataclass(frozen=True)
class Switch:
    """One switch to a smaller patch size, and how the stage made up for it."""

    stage: int
    from_patch_size: int
    patch_size: int
    step: int
    goal: float  # the last loss of the stage before
    rise: float  # of the loss above the goal, at most, before it recovered; 0 if never
    recovered_after: int | None  # steps of the stage; None if it has not recovered
    last_above: int  # steps of the stage at the last row before that; 0 if there is none
    steps: int | None  # that the plan gives the stage; None if that is not known
    finished: bool  # whether the stage has come to its end

    @property
    def slow(self) -> bool:
        """Whether the stage is over and has not recovered, or only late in it."""
        if not self.finished or self.steps is None:
            return False
        return self.recovered_after is None or self.last_above > SLOW_SHARE * self.steps


def find_switches(rows: Sequence[Row], plan: Mapping[str, Any] | None = None) -> list[Switch]:
    """The switches to a smaller patch size after which there are losses.

    Args:
        rows: a run's metrics.
        plan: the entry ``plan`` of its ``run.json``, which says how long the stages are.
    """
    planned = list((plan or {}).get("stages") or [])
    starts = {row["stage"]: row["step"] for row in rows if row.get("event") == "switch"}
    found = []
    for (_, before), (stage, after) in pairwise(sorted(_stages(rows).items())):
        sizes = [int(part[0].get("patch_size", 1)) for part in (before, after)]
        if sizes[1] >= sizes[0]:
            continue
        goal = median(row["loss"] for row in before[-_NEIGHBOURS:])
        step = starts[stage] if stage in starts else before[-1]["step"]
        losses = [row["loss"] for row in after]
        back = next(
            (
                i
                for i, loss in enumerate(losses)
                if loss < goal and median(losses[i : i + _NEIGHBOURS]) < goal
            ),
            None,
        )
        steps = planned[stage].get("steps") if stage < len(planned) else None
        found.append(
            Switch(
                stage=stage,
                from_patch_size=sizes[0],
                patch_size=sizes[1],
                step=step,
                goal=goal,
                rise=max(0.0, max(losses[:back] or [goal]) - goal),
                recovered_after=None if back is None else after[back]["step"] - step,
                last_above=0 if back == 0 else after[back - 1 if back else -1]["step"] - step,
                steps=steps,
                finished=steps is not None and after[-1]["step"] >= step + steps,
            )
        )
    return found


def find_spikes(rows: Sequence[Row]) -> list[Spike]:
    """All spikes of a run's training loss, in the order of the steps."""
    switches = {switch.stage: switch for switch in find_switches(rows)}
    found = []
    for stage, part in sorted(_stages(rows, ("train", "rollback")).items()):
        if (switch := switches.get(stage)) is not None:
            after = switch.recovered_after
            until = math.inf if after is None else switch.step + after
            part = [row for row in part if row["step"] > until]
        found += _spikes_of_stage(part)
    return found


def _spikes_of_stage(rows: Sequence[Row]) -> list[Spike]:
    found: list[Spike] = []
    calm: deque[float] = deque(maxlen=WINDOW)  # the last losses that are no spike's
    high: list[Row] = []  # the rows since the loss left the calm ones
    excused = False  # a rollback has put it where it is

    def close(back: Row | None) -> None:
        if high and not excused:
            top = max(high, key=lambda row: row["loss"])
            first = int(high[0]["step"])
            after = None if back is None else int(back["step"]) - first
            found.append(Spike(top, top["loss"] - median(calm), first, after))
        high.clear()

    for row in rows:
        if row["event"] == "rollback":
            excused = excused or not high
            continue
        loss = row["loss"]
        if len(calm) >= LEAST_ROWS:
            middle = median(calm)
            change = median(abs(one - next_) for one, next_ in pairwise(calm))
            bound = max(NOISES * 1.05 * change, LEAST_RISE)
            if loss > middle + (bound / 2 if high else bound):
                high.append(row)
                continue
        close(row)
        excused = False
        calm.append(loss)
    close(None)
    return found


def _stages(rows: Sequence[Row], events: Sequence[str] = ("train",)) -> dict[int, list[Row]]:
    """Rows of some events by their stage; of training rows, those with a finite loss."""
    stages: dict[int, list[Row]] = {}
    for row in rows:
        event, loss = row.get("event"), row.get("loss")
        # Neither nan nor a whole number that no float can hold.
        number = isinstance(loss, int | float) and abs(loss) <= sys.float_info.max
        if event in events and (number or event != "train"):
            stages.setdefault(int(row.get("stage", 0)), []).append(row)
    return stages
