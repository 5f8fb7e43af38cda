"""How long the rest of a run takes: each stage at its own pace, and the evaluations to come.

A step of one stage need not take as long as one of another, so steps are never compared across
stages. A stage that has begun is taken at its measured speed since the run was last taken up; one
that has not, at the speed of the nearest stage that has, in proportion to the operations of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from statistics import median
from typing import Any

from patchtrain.cost import AttentionLayers, ModelSize
from patchtrain.report.formats import is_number
from patchtrain.stage import Stage, stage_name
from patchtrain.watch.history import History, Point

_RECENT = 50  # logged steps of a stage that its speed is taken from


@dataclass(frozen=True)
class PlannedStage:
    """A stage as ``run.json`` has it. ``flops`` of all its steps, None where they are not known."""

    index: int
    name: str
    patch_size: int
    first_step: int
    steps: int
    tokens: float
    positions: float
    flops: float | None

    @property
    def last_step(self) -> int:
        """The first step that is no longer of this stage."""
        return self.first_step + self.steps

    def done(self, step: int) -> int:
        """Its steps of a run that is at ``step``."""
        return max(0, min(step, self.last_step) - self.first_step)


def planned_stages(info: Mapping[str, Any]) -> list[PlannedStage]:
    """The stages of a run's plan; empty where ``run.json`` has none that can be read."""
    plan = info.get("plan")
    stages = plan.get("stages") if isinstance(plan, Mapping) else None
    size, found = _model_size(info.get("model")), []
    for index, values in enumerate(stages if isinstance(stages, list) else []):
        if not isinstance(values, Mapping):
            return []
        numbers = [values.get(name) for name in ("first_step", "steps", "tokens", "positions")]
        patch_size = values.get("patch_size", 1)
        if not all(is_number(number) for number in (*numbers, patch_size)):
            return []
        first, steps, tokens, positions = (
            float(number) for number in numbers if number is not None
        )
        found.append(
            PlannedStage(
                index,
                str(values.get("name") or stage_name(int(patch_size))),
                int(patch_size),
                int(first),
                int(steps),
                tokens,
                positions,
                _flops(size, values),
            )
        )
    return found


@dataclass(frozen=True)
class Pace:
    """How fast a run goes. Seconds are of the training clock; None is not known yet."""

    step_seconds: tuple[float | None, ...]  # of each stage
    line_seconds: float | None  # usual time between two lines of metrics in this stage
    evaluation_seconds: float  # of an evaluation and whatever else stops the training clock
    left: float | None  # from the last line of metrics to the end of training
    to_switch: float | None  # from there to the end of its stage; None in the last one


def pace(
    stages: Sequence[PlannedStage], history: History, resumed: int, wall_seconds: float | None
) -> Pace:
    """The pace of a run.

    Args:
        stages: as planned.
        history: the run's metrics so far.
        resumed: the step the run was last taken up at; 0 if it never was.
        wall_seconds: from then to the last line of metrics, evaluations included; None if unknown.
    """
    start = history.at(resumed)
    measured = [_measured(stage, history, start) for stage in stages]
    steps = [_in_proportion(stage, stages, measured) for stage in stages]
    last = history.last
    done = max(last.step if last else 0, resumed)
    evaluation, every = _evaluations(history, start, wall_seconds)
    to_stage_ends = []
    for stage, seconds in zip(stages, steps, strict=True):
        rest = stage.steps - stage.done(done)
        pauses = evaluation * rest / every if every else 0.0
        to_stage_ends.append(
            0.0 if rest == 0 else None if seconds is None else rest * seconds + pauses
        )
    known = [seconds for seconds in to_stage_ends if seconds is not None]
    left = sum(known) if stages and len(known) == len(stages) else None
    now = next((stage.index for stage in stages if done < stage.last_step), None)
    to_switch = to_stage_ends[now] if now is not None and now + 1 < len(stages) else None
    return Pace(tuple(steps), _between_lines(history, resumed), evaluation, left, to_switch)


def _measured(stage: PlannedStage, history: History, start: tuple[int, float]) -> float | None:
    """Seconds of a step of a stage that has begun."""
    rows = history.train.get(stage.index, [])
    here = [row for row in rows[-_RECENT:] if row.step > start[0]]
    places = [(row.step, row.seconds) for row in here]
    if len(places) < 3:  # the first steps count too: where they began is known
        switch = history.switches.get(stage.index)
        if switch is not None and switch.step >= start[0]:
            places.insert(0, (switch.step, switch.seconds))
        elif stage.first_step <= start[0] < stage.last_step:
            places.insert(0, start)
    if len(places) < 2:  # measured before it was taken up, perhaps on another machine
        places = [(row.step, row.seconds) for row in rows[-_RECENT:]]
    if len(places) < 2 or places[-1][0] <= places[0][0]:
        return None
    return max(places[-1][1] - places[0][1], 0.0) / (places[-1][0] - places[0][0])


def _in_proportion(
    stage: PlannedStage, stages: Sequence[PlannedStage], measured: Sequence[float | None]
) -> float | None:
    """A stage's seconds a step: its own, or from the nearest stage that has some."""
    if measured[stage.index] is not None:
        return measured[stage.index]
    with_flops = all(other.flops for other in stages)
    near = [other for other in stages if measured[other.index] is not None]
    if not near:
        return None
    other = min(near, key=lambda other: abs(other.index - stage.index))

    def cost(one: PlannedStage) -> float:
        total = one.flops if with_flops else one.positions
        return (total or 0.0) / max(one.steps, 1)

    seconds = measured[other.index]
    if seconds is None or not cost(other):
        return None
    return seconds * cost(stage) / cost(other)


def _evaluations(
    history: History, start: tuple[int, float], wall_seconds: float | None
) -> tuple[float, float]:
    """Seconds of an evaluation since ``start``, and steps between two; zeros where unknown."""
    done = [point for point in history.evals if point.step > start[0]]
    last = history.last
    if not done or last is None or wall_seconds is None:
        return 0.0, 0.0
    paused = max(wall_seconds - (last.seconds - start[1]), 0.0)
    return paused / len(done), (done[-1].step - start[0]) / len(done)


def _between_lines(history: History, resumed: int) -> float | None:
    last = history.last_train
    if last is None:
        return None
    recent = [row for row in history.train[last.stage][-_RECENT:] if row.step > resumed]
    gaps = [after.seconds - before.seconds for before, after in pairwise(recent)]
    return median(gaps) if gaps else None


def rate(points: Sequence[Point], counter: str) -> float | None:
    """``counter`` a second over the last few of some training points of one stage."""
    recent = points[-10:]
    if len(recent) < 2 or recent[-1].seconds <= recent[0].seconds:
        return None
    first, last = getattr(recent[0], counter), getattr(recent[-1], counter)
    if first is None or last is None:
        return None
    return float(last - first) / (recent[-1].seconds - recent[0].seconds)


def _model_size(values: object) -> ModelSize | None:
    if not isinstance(values, Mapping):
        return None
    try:
        known = {field.name for field in fields(ModelSize)}
        sizes: dict[str, Any] = {name: values[name] for name in known & values.keys()}
        sizes["attention"] = tuple(AttentionLayers(**part) for part in sizes["attention"])
        return ModelSize(**sizes)
    except (KeyError, TypeError):  # the record of an earlier version, or a short one
        return None


def _flops(size: ModelSize | None, values: Mapping[str, Any]) -> float | None:
    """Of all steps of a stage, as the trainer counts them."""
    if size is None:
        return None
    names = {field.name for field in fields(Stage)}
    try:
        stage = Stage(**{name: value for name, value in values.items() if name in names})
        return size.flops_of_stage(stage, stage.steps).total
    except (ArithmeticError, TypeError):  # an instruction tuning's stage has fewer entries
        return None
