"""What came out of a comparison: contenders at their best rate, against token level, seed by seed.

On top of what ``results.py`` counts of every variant: which rate each contender was taken at and
what the others ended at, the difference to its reference with and without the seed that chose the
rate, and the ratio of spending at equal loss.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patchtrain.analysis import equal_loss
from patchtrain.analysis.statistics import paired, spread
from patchtrain.analysis.studies import results
from patchtrain.analysis.studies.question import Contender
from patchtrain.analysis.studies.study import Arm, run_folder, run_name
from patchtrain.report.formats import exact
from patchtrain.runs import RunFolder

if TYPE_CHECKING:
    from patchtrain.analysis.studies.comparison import Work

Row = dict[str, Any]
_SPENT = {"compute": "flops", "time": "seconds"}


def bits_per_byte(run: RunFolder) -> float | None:
    """What a run ended at; None where it did not, or where it is no number."""
    info = results.finished(run)
    value = None if info is None else float(info["result"]["bits_per_byte"])
    return value if value is not None and math.isfinite(value) else None


def summarise(work: Work) -> Row:
    """The results as they are now, JSON types.

    ``arms`` are all variants, those that lost too, as ``results.collect`` has them.
    ``contenders`` have, each, ``tried`` (what it ended at on the tuning seeds, by rate), ``chosen``
    (a variant), ``bits_per_byte`` over the seeds, ``difference`` to its ``reference`` (with
    ``unseen``: the same without the seeds that chose the rates), ``equal_loss`` and ``lost_seeds``,
    with which it diverged. ``missing`` are the runs asked for so far that are not finished;
    ``whole``: none is, and nothing was lost but points and rates among others.
    """
    question = work.question
    arms = {name: _against(work, name) for name in work.arms}
    found = results.collect(question.study(list(arms.values())), work.folder, work.failed)
    rows = {arm["name"]: arm for arm in found["arms"]}
    missing, lost = [], {}
    for name, seed in work.wanted:
        if any(run["seed"] == seed for run in rows[name]["runs"]):
            continue
        # What diverged is not trained again, and is missing for good.
        if (what := _diverged(work, work.arms[name], seed)) is not None:
            lost[run_name(work.arms[name], seed)] = what
        else:
            missing.append({"arm": name, "seed": seed})
    contenders = [_contender(work, item, rows) for item in question.contenders]
    complete = not missing and bool(work.chosen)
    many = bool(question.axes or work.trials)  # of which some may lead nowhere
    return {
        **found,
        "failed": {**lost, **found["failed"]},
        "diverged": list(lost),
        "rates": list(question.rates),
        "tuning_seeds": list(question.tuning_seeds),
        "budget_rate": question.budget_rate,
        "confirm": question.confirm,
        "axes": {path: list(values) for path, values in question.axes.items()},
        "contenders": contenders,
        "unfit": dict(question.unfit),
        "budgets": {exact(budget): arm.name for budget, arm in sorted(work.budgets.items())},
        "trials": work.trials,
        "runs_wanted": len(work.wanted),
        "runs_there": len(work.wanted) - len(missing) - len(lost),
        "missing": missing,
        "complete": complete,
        "whole": complete
        and not set(found["failed"]) - set(lost)
        and not any(item["lost_seeds"] for item in contenders)
        and (many or all(item["chosen"] for item in contenders)),
    }


def _diverged(work: Work, arm: Arm, seed: int) -> str | None:
    return results.diverged(run_folder(work.folder, arm, seed))


def _against(work: Work, name: str) -> Any:
    """A variant that was chosen, with the chosen variant of its reference to compare it with."""
    arm = work.arms[name]
    contender = work.question.contender(arm.notes["contender"])
    reference = work.chosen.get(contender.reference or "")
    chosen = work.chosen.get(contender.name)
    if reference is None or chosen is None or chosen.name != name:
        return arm
    return replace(arm, against=(reference.name,))


def _contender(work: Work, contender: Contender, rows: Mapping[str, Row]) -> Row:
    chosen = work.chosen.get(contender.name)
    tried = [
        {
            "learning_rate": rate if rate is not None else _own_rate(rows, arm.name),
            "variant": arm.name,
            "bits_per_byte": work.ended_at(arm),
            "diverged": any(_diverged(work, arm, seed) for seed in work.question.tuning_seeds),
        }
        for rate, arm in work.tried.get(contender.name, {}).items()
    ]
    row: Row = {
        "name": contender.name,
        "words": contender.words,
        "reference": contender.reference,
        "values": dict(contender.values),
        "tried": tried,
        "chosen": chosen.name if chosen else None,
        "bits_per_byte": None,
        "difference": None,
        "equal_loss": None,
        "lost_seeds": [
            seed for seed in work.question.seeds if chosen and _diverged(work, chosen, seed)
        ],
    }
    if chosen is None or not rows[chosen.name]["runs"]:
        return row
    runs = rows[chosen.name]["runs"]
    row["learning_rate"] = runs[0]["learning_rate"]
    row["edge"] = _edge(tried, row["learning_rate"]) if len(tried) > 1 else None
    row["bits_per_byte"] = rows[chosen.name]["bits_per_byte"]
    row["flops"] = statistics.fmean(run["flops"] for run in runs)
    row["tokens"] = statistics.fmean(run["total_tokens"] for run in runs)
    row["seconds"] = spread([run["seconds"] for run in runs]).to_dict()
    row["seeds"] = [run["seed"] for run in runs]
    reference = work.chosen.get(contender.reference or "")
    if reference is not None:
        other = rows[reference.name]["runs"]
        row["difference"] = rows[chosen.name]["differences"].get(reference.name)
        if row["difference"] is not None:
            row["difference"]["unseen"] = _unseen(work, runs, other)
        if len(work.budgets) > 1:
            row["equal_loss"] = _equal_loss(work, runs, row["lost_seeds"], rows)
    return row


def _unseen(work: Work, runs: Sequence[Row], other: Sequence[Row]) -> Row | None:
    """The difference without the seeds that chose the rates; None where nothing was chosen."""
    if len(work.question.rates) < 2 and not work.trials and not work.question.axes:
        return None
    seen = work.question.tuning_seeds
    own, others = (
        {run["seed"]: run["bits_per_byte"] for run in side if run["seed"] not in seen}
        for side in (runs, other)
    )
    found = paired(own, others)
    return None if found is None else {"values": list(found.values), **found.to_dict()}


def _edge(tried: Sequence[Row], rate: float) -> str | None:
    """Whether the best rate is the largest or smallest tried: then a better one may lie beyond.

    Those that diverged are among them; those not trained yet on all tuning seeds are not.
    """
    rates = [
        item["learning_rate"] for item in tried
        if item["bits_per_byte"] is not None or item["diverged"]
    ]  # fmt: skip
    return "largest" if rate >= max(rates) else "smallest" if rate <= min(rates) else None


def _own_rate(rows: Mapping[str, Row], name: str) -> float | None:
    if name not in rows:
        return None
    if runs := rows[name]["runs"]:
        return float(runs[0]["learning_rate"])
    asked = rows[name]["recipe"].get("training.learning_rate")
    return None if asked is None else float(asked)


def _equal_loss(
    work: Work, runs: Sequence[Row], lost_seeds: Sequence[int], rows: Mapping[str, Row]
) -> Row:
    """Ratios of compute and of time at equal loss, over the seeds whose budgets are trained.

    A seed with which the arm diverged is one without a ratio: to leave it out would flatter.
    ``against`` has the difference to the baseline at each of its budgets, over paired seeds.
    """
    found: Row = {}
    for kind, spent in _SPENT.items():
        ratios = {seed: equal_loss.Ratio(None) for seed in lost_seeds}
        for run in runs:
            points = [
                (item[spent], item["bits_per_byte"])
                for arm in work.budgets.values()
                for item in rows[arm.name]["runs"]
                if item["seed"] == run["seed"]
            ]
            # Those that diverged are not waited for: it would be for ever.
            lost = [arm for arm in work.budgets.values() if _diverged(work, arm, run["seed"])]
            if len(points) == len(work.budgets) - len(lost) and len(points) > 1:
                ratios[run["seed"]] = equal_loss.ratio(points, run[spent], run["bits_per_byte"])
        found[kind] = equal_loss.over_seeds(ratios) if ratios else None
    found["against"] = {}
    for budget, arm in sorted(work.budgets.items()):
        own, others = (
            {run["seed"]: run["bits_per_byte"] for run in side}
            for side in (runs, rows[arm.name]["runs"])
        )
        if difference := paired(own, others):
            found["against"][exact(budget)] = difference.to_dict()
    return found
