"""What a comparison has yet to train, what that costs, and how long it takes.

Counted before anything is trained, from the question and from what the folder holds. Which rate
an arm is taken at may not be known yet, nor which points a search comes to, so what is said is the
most it can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from patchtrain.analysis.studies import results
from patchtrain.analysis.studies.comparison import Work
from patchtrain.analysis.studies.equal import plan_of
from patchtrain.analysis.studies.question import BASELINE, Question
from patchtrain.analysis.studies.study import Arm, Study, run_folder
from patchtrain.runs import RunFolder

_Cost = tuple[int, float]  # runs and their FLOPs


def estimate(question: Question, folder: Path | None, trials: int = 0) -> dict[str, Any]:
    """The contenders, what a run of each costs, and how many are to be trained at most; JSON types.

    ``seconds_left``, one run at a time, is None until a run has finished in the folder.

    Args:
        question: with its contenders at their lengths.
        folder: of the comparison; it need not be there. None: what it holds does not count.
        trials: those that a search has yet to make.
    """
    arms = arm_rows(question.study([question.variant(item, None) for item in question.contenders]))
    costs = {arm["name"]: arm["flops"] for arm in arms}
    rates, tuned = question.rates or (None,), question.tuning_seeds
    others = question.seeds[question.tuning :]
    average = sum(costs.values()) / len(costs)

    def missing(arm: Arm, seeds: Iterable[int], cost: float) -> _Cost:
        left = [seed for seed in seeds if not _is_there(folder, arm, seed)]
        return len(left), len(left) * cost

    first, repeats, budgets = (0, 0.0), [], (0, 0.0)
    for item in question.contenders:
        tried, cost = {rate: question.variant(item, rate) for rate in rates}, costs[item.name]
        tuning = _sum([missing(arm, tuned, cost) for arm in tried.values()])
        first = _sum([first, tuning])
        if folder is not None and not tuning[0]:  # then it is known which rate is the best
            work = Work(question, folder, tried={item.name: tried})
            work.choose()
            tried = {rate: arm for rate, arm in tried.items() if arm in work.chosen.values()}
        repeats.append(max((missing(arm, others, cost) for arm in tried.values()), default=(0, 0)))
        if item.name == BASELINE:
            for budget in question.budgets:
                at_rates = question.budget_rates(tried) if budget != 1 else []
                at = [question.variant(item, rate, budget) for rate in at_rates]
                most = max((missing(a, question.seeds, budget * cost) for a in at), default=(0, 0))
                budgets = _sum([budgets, most])
    searched = trials * question.tuning
    repeats += [(len(others), len(others) * average)] * trials
    if question.confirm is not None:  # each with its reference
        repeats = sorted(repeats, reverse=True)[: 2 * question.confirm]
    runs, flops = _sum([first, (searched, searched * average), *repeats, budgets])
    paths = sorted((folder / "runs").glob("*")) if folder is not None else []
    there = [info for path in paths if (info := results.finished(RunFolder(path))) is not None]
    done = sum(info["flops"] for info in there)
    pace = sum(map(_seconds, there)) / done if done else None
    return {
        "arms": arms,
        "left_out": question.about.get("left_out", {}),
        "unfit": question.unfit,
        "held_equal": question.held_equal,
        "tuning_seeds": list(question.tuning_seeds),
        "budgets": list(question.budgets),
        "first_runs": first[0],
        "trials": searched,
        "most_runs": runs,
        "runs_there": len(there),
        "flops": flops,
        "seconds_left": None if pace is None else pace * flops,
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


def _is_there(folder: Path | None, arm: Arm, seed: int) -> bool:
    """Whether a run is not trained any more: it got to its end, or never would."""
    if folder is None:
        return False
    run = run_folder(folder, arm, seed)
    return results.finished(run) is not None or results.diverged(run) is not None


def _sum(costs: Iterable[_Cost]) -> _Cost:
    counts, flops = zip(*costs, strict=True)
    return sum(counts), sum(flops)


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
