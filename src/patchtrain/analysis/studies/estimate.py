"""What a comparison trains, what that costs, and how long the rest of it takes.

Counted from the question alone, before anything is trained; the time by the runs that the folder
has already.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from patchtrain.analysis.studies import results
from patchtrain.analysis.studies.equal import plan_of
from patchtrain.analysis.studies.question import BASELINE, Question
from patchtrain.analysis.studies.study import Arm, Study, refuse_too_many, run_name
from patchtrain.runs import RunFolder


def estimate(question: Question, folder: Path, trials: int = 0) -> dict[str, Any]:
    """The contenders, what a run of each costs, and how many runs there are at most; JSON types.

    ``flops`` is of all runs, ``flops_left`` of those that are not finished in ``folder`` yet.
    ``seconds_left``, one run at a time, is None until a run has finished there.

    Args:
        question: with its contenders at their lengths.
        folder: of the comparison; it need not be there.
        trials: of a search.

    Raises:
        UsageError: there are more runs than anyone means.
    """
    named = [
        Arm(item.name, item.words, item.recipe, notes={"contender": item.name})
        for item in question.contenders
    ]
    arms = arm_rows(question.study(named))
    costs = {arm["name"]: arm["flops"] for arm in arms}
    rates, seeds, points = max(len(question.rates), 1), len(question.seeds), len(costs)
    tried = rates * question.tuning
    repeated = points if question.confirm is None else min(2 * question.confirm, points + trials)
    average = sum(costs.values()) / points
    later = trials * question.tuning + repeated * (seeds - question.tuning)
    budgets = [budget for budget in question.budgets if budget != 1]
    most = points * tried + later + len(budgets) * seeds
    refuse_too_many(most)
    flops = sum(costs.values()) * tried + average * later
    flops += costs.get(BASELINE, 0.0) * seeds * sum(budgets)
    names = None if trials else set(_names(question))
    there = [info for name, info in _finished(folder) if names is None or name in names]
    done, left = sum(info["flops"] for info in there), 0.0
    if len(there) < most:
        left = max(flops - done, 0.0)
    pace = sum(map(_seconds, there)) / done if done else None
    return {
        "arms": arms,
        "left_out": question.about.get("left_out", {}),
        "unfit": question.unfit,
        "held_equal": question.held_equal,
        "tuning_seeds": list(question.tuning_seeds),
        "first_runs": points * tried,
        "trials": trials * question.tuning,
        "budgets": list(question.budgets),
        "most_runs": most,
        "runs_there": len(there),
        "flops": flops,
        "flops_left": left,
        "seconds_left": None if pace is None else pace * left,
    }


def arm_rows(study: Study) -> list[dict[str, Any]]:
    """Of each arm what it is and what a run of it costs; ``off`` is the error of what is equal."""
    rows = []
    for arm in study.arms:
        planned, equality = plan_of(study, arm), study.equality.get(arm.name)
        rows.append(
            {
                "name": arm.name,
                "words": arm.words,
                "steps": planned.plan.total_steps,
                "tokens": planned.plan.total_tokens,
                "flops": planned.size.flops(planned.plan).total,
                "off": equality.off if equality else None,
            }
        )
    return rows


def _names(question: Question) -> Iterator[str]:
    """Of all runs that may be trained."""
    for rate in question.rates or (None,):
        variants = [question.variant(item, rate) for item in question.contenders]
        variants += [
            question.variant(item, rate, budget)
            for item in question.contenders
            if item.name == BASELINE
            for budget in question.budgets
        ]
        for arm in variants:
            for seed in question.seeds:
                yield run_name(arm, seed)


def _finished(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((folder / "runs").glob("*")):
        if (info := results.finished(RunFolder(path))) is not None:
            yield path.name, info


def _seconds(info: dict[str, Any]) -> float:
    """From start to end where it is known: loading, evaluation and export take time too.

    A run that was cut short knows the start of its last part only, and all of its training time.
    """
    trained = float(info["seconds"])
    try:
        start, end = (datetime.fromisoformat(info[name]) for name in ("started", "finished"))
        return max(trained, (end - start).total_seconds())
    except (KeyError, TypeError, ValueError):
        return trained
