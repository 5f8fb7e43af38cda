"""The comparison at equal loss: what a baseline would have had to spend to end where an arm ended.

The baseline is trained at several budgets, each a whole run with its own schedule, since a point on
the way of a longer run is worse than the end of a shorter one. What it needs for a given loss is
read off between two of those runs, straight in the logarithm of what was spent, and never beyond
them: outside there is only a bound. Standard library only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from patchtrain.analysis.statistics import spread


@dataclass(frozen=True)
class Ratio:
    """What an arm spent over what the baseline needs for the same loss; below 1 is a saving."""

    value: float | None  # None where the baseline was not trained so long, or so short
    bound: float | None = None  # then: the ratio lies below it, or above it
    below: bool = False  # whether the bound is from above

    @property
    def words(self) -> str:
        if self.value is not None:
            return f"{self.value:.3f}"
        if self.bound is None:
            return "not known"
        return f"{'below' if self.below else 'above'} {self.bound:.3f}"


def falling(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """``(spent, loss)`` points as a curve on which the loss falls with what is spent.

    Where noise makes a larger budget end higher, neighbours are pooled to their means (in log
    spent) until none does: isotonic regression, which favours neither side.
    """
    pooled: list[tuple[float, float, int]] = []  # mean log spent, mean loss, how many
    for spent, loss in sorted(points):
        block = (math.log(spent), loss, 1)
        while pooled and pooled[-1][1] <= block[1]:
            before = pooled.pop()
            count = before[2] + block[2]
            block = (
                (before[0] * before[2] + block[0] * block[2]) / count,
                (before[1] * before[2] + block[1] * block[2]) / count,
                count,
            )
        pooled.append(block)
    return [(math.exp(log_spent), loss) for log_spent, loss, _ in pooled]


def needed_for(points: Sequence[tuple[float, float]], loss: float) -> float | None:
    """What the curve through ``(spent, loss)`` points spends for ``loss``.

    None where ``loss`` is above or below all of the (pooled) points.
    """
    curve = falling(points)
    if not curve or not curve[-1][1] <= loss <= curve[0][1]:
        return None
    for (less, high), (more, low) in pairwise(curve):
        if low <= loss <= high:
            part = (high - loss) / (high - low)
            between = math.exp(math.log(less) + part * (math.log(more) - math.log(less)))
            return min(max(between, less), more)  # rounding goes no further than the neighbours
    return curve[0][0]  # one point, and just its loss


def ratio(points: Sequence[tuple[float, float]], spent: float, loss: float) -> Ratio:
    """``spent`` for ``loss``, over what the baseline of ``points`` needs for it.

    A bound is that of the baseline's longest or shortest run, and only where ``loss`` lies beyond
    all of its ends: pooled points may lie above a run that ended lower.
    """
    if (needed := needed_for(points, loss)) is not None:
        return Ratio(spent / needed)
    budgets, ends = zip(*points, strict=True) if points else ((), ())
    if points and loss < min(ends):
        return Ratio(None, spent / max(budgets), below=True)
    if points and loss > max(ends):
        return Ratio(None, spent / min(budgets))
    return Ratio(None)


def over_seeds(ratios: Mapping[int, Ratio]) -> dict[str, Any]:
    """Ratios by seed as JSON types: geometric mean and t-interval of the logarithm.

    Both are None as soon as one seed has no ratio: leaving out the seeds that lie beyond the
    baseline's runs would favour the others. ``bound`` then says on which side of what the mean
    lies: that of the ratios and bounds together, where all bounds are from one side.
    """
    values = [item.value for item in ratios.values() if item.value is not None]
    found: dict[str, Any] = {
        "seeds": {str(seed): item.value for seed, item in sorted(ratios.items())},
        "bounds": {
            str(seed): {"below" if item.below else "above": item.bound}
            for seed, item in sorted(ratios.items())
            if item.bound is not None
        },
        "inside": len(values),
        "count": len(ratios),
        "mean": None,
        "interval": None,
        "bound": None,
    }
    if values and len(values) == len(ratios):
        logs = spread([math.log(value) for value in values])
        found["mean"] = math.exp(statistics.fmean(logs.values))
        if logs.interval is not None:
            found["interval"] = [math.exp(end) for end in logs.interval]
        return found
    limits = [item.value or item.bound for item in ratios.values()]
    sides = {item.below for item in ratios.values() if item.value is None}
    if len(sides) == 1 and all(limits):
        mean = statistics.geometric_mean(limit for limit in limits if limit)
        found["bound"] = {"below" if sides.pop() else "above": mean}
    return found
