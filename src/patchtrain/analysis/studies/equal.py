"""Make the arms of a study equal: in compute, or in tokens read.

The free number is an arm's steps. A whole number of steps hits the target but for half a step, so
each arm comes with what it is off by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from patchtrain.analysis.studies.study import Arm, Equality, Study
from patchtrain.errors import UsageError
from patchtrain.plan import Plan
from patchtrain.planning import PASS_SEQUENCES, Planned, planned_recipe
from patchtrain.recipe import Recipe

_FEW = 1000  # steps of the first try


def at_compute(study: Study, baseline: str) -> Study:
    """``study`` with the steps of each arm such that all cost the FLOPs of ``baseline``.

    FLOPs are counted by ``cost.py``: by position, its context, vocabulary and patch.

    Raises:
        UsageError: an arm's recipe is wrong, or its text too short for so long a run.
    """
    return held_at(study, measured(study, study.arm(baseline), "compute"), "compute")


def at_data(study: Study, baseline: str) -> Study:
    """``study`` with the steps of each arm such that all read the tokens of ``baseline``."""
    return held_at(study, measured(study, study.arm(baseline), "data"), "data")


def measured(study: Study, arm: Arm, held: str) -> float:
    """FLOPs (``held`` is ``"compute"``) or tokens (``"data"``) of an arm at its own length."""
    return _MEASURES[held](plan_of(study, arm))


def held_at(study: Study, target: float, held: str) -> Study:
    """``study`` with the steps of each arm such that all have ``target`` FLOPs or tokens.

    Raises:
        UsageError: as ``at_compute``; or an arm has no number of tokens to hold equal.
    """
    arms, equality, measure = [], {}, _MEASURES[held]
    for arm in study.arms:
        run = plan_of(study, arm, steps=_FEW, tokens=None, epochs=None)
        if held == "data" and run.plan.spec.documents == "separate":
            raise UsageError(
                f"arm {arm.name}: its tokens are counted with the padding between separate "
                f"documents, which differs by patch size; use --equal compute, or documents: mixed"
            )

        def at(steps: int, run: Planned = run) -> float:
            return measure(replace(run, plan=_resized(run.plan, steps)))

        with _naming(arm):
            steps = _steps(at, target)
        length = {"plan.steps": steps, "plan.tokens": None, "plan.epochs": None}
        entries = {**length, **_epochs_allowed(study, arm, run, steps)}
        arms.append(replace(arm, recipe={**arm.recipe, **entries}))
        equality[arm.name] = Equality(target, at(steps))
    return replace(study, arms=tuple(arms), equality=equality)


def _epochs_allowed(study: Study, arm: Arm, run: Planned, steps: int) -> dict[str, float]:
    """The ``max_epochs`` of an arm whose length was ``epochs``, which ask for no such leave.

    That is these epochs, and what rounding adds; an arm that reads more for what it holds equal
    needs the leave of its recipe, as one does whose length is steps.
    """
    epochs = study.values(arm)["plan"].get("epochs")
    if epochs is None or not run.store_tokens:
        return {}
    plan = _resized(run.plan, steps)
    store = max(run.store_tokens // plan.block_tokens, 1)
    read = sum(stage.blocks for stage in plan.stages)
    # Steps are whole ones, half of one too many at most, and each stage ends its last block.
    rounding = plan.total_tokens / steps / plan.block_tokens / 2 + len(plan.stages)
    if read <= epochs * store + rounding:
        epochs = max(epochs, read / store)
    return {"plan.max_epochs": epochs} if epochs > plan.spec.max_epochs else {}


def plan_of(study: Study, arm: Arm, **plan: Any) -> Planned:
    """The model and plan of an arm, with entries of its plan replaced."""
    values = study.values(arm)
    values = {**values, "plan": {**values["plan"], **plan}, "out": "none"}
    with _naming(arm):
        return planned_recipe(Recipe.check(values, f"arm {arm.name}"))


def check_data(study: Study) -> None:
    """Refuse a study of which an arm would read its store more often than its plan allows.

    The run itself would, after the others have been trained.
    """
    problems = []
    for arm in study.arms:
        run = plan_of(study, arm)
        sequences = run.recipe.training.get("per_device_train_batch_size", PASS_SEQUENCES)
        try:
            run.plan.spec.resolve(store_tokens=run.store_tokens, device_sequences=sequences)
        except UsageError as error:
            problems.append(f"arm {arm.name}: {error}")
    if problems:
        raise UsageError("; ".join(problems))


@contextmanager
def _naming(arm: Arm) -> Iterator[None]:
    """Say of a ``UsageError`` whose it is, once."""
    try:
        yield
    except UsageError as error:
        name = f"arm {arm.name}: "
        raise UsageError(name + str(error).removeprefix(name)) from error


_MEASURES: dict[str, Callable[[Planned], float]] = {
    "compute": lambda run: run.size.flops(run.plan).total,
    "data": lambda run: float(run.plan.total_tokens),
}


def _resized(plan: Plan, steps: int) -> Plan:
    """A plan of another length; the device passes are of no matter to what it costs."""
    return replace(plan.spec, steps=steps, tokens=None, epochs=None).resolve()


def _steps(at: Callable[[int], float], target: float) -> int:
    """The number of steps at which ``at`` is nearest to ``target``; it grows with the steps."""
    steps = max(1, round(_FEW * target / at(_FEW)))
    for _ in range(3):  # shares of stages are rounded to steps, so it is not quite proportional
        steps = max(1, round(steps * target / at(steps)))
    return min(range(max(1, steps - 2), steps + 3), key=lambda number: abs(at(number) - target))
