"""What a few seeds say: mean, spread, and a paired difference with its interval.

Runs of two arms with one seed share their initial weights and data order, so their difference
varies less than either: what is compared is the mean of those differences. Its interval is
Student's, for few values: with two seeds it is twelve standard errors wide on each side, and that
is what two seeds can say. Standard library only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """The mean of some values, and how far they lie apart."""

    values: tuple[float, ...]
    mean: float
    standard_deviation: float | None  # of a sample (n - 1); None of one value
    interval: tuple[float, float] | None  # of the mean, at CONFIDENCE; None of one value

    def to_dict(self) -> dict[str, Any]:
        return {
            "count": len(self.values),
            "mean": self.mean,
            "standard_deviation": self.standard_deviation,
            "interval": None if self.interval is None else list(self.interval),
        }


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and t-interval of at least one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(tuple(values), mean, None, None)
    deviation = statistics.stdev(values)
    half = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return Spread(tuple(values), mean, deviation, (mean - half, mean + half))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Spread | None:
    """``first`` less ``second``, seed by seed; None where they have no seed in common."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    return spread([first[seed] - second[seed] for seed in seeds])


def t_quantile(probability: float, degrees: int) -> float:
    """Student's t below which ``probability`` lies, for a whole number of degrees of freedom.

    By bisection of the distribution's closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    if degrees < 1 or not 0 < probability < 1:
        raise ValueError(f"no quantile {probability} of {degrees} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, 1.0
    while _central(high, degrees) < 2 * probability - 1:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if _central(middle, degrees) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _central(t: float, degrees: int) -> float:
    """The probability between -t and t."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for number in range(degrees // 2):
        total += term
        step = 2 * number + 1 + odd
        term *= step / (step + 1) * cosine * cosine
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
