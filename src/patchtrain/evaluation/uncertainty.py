"""How far a measured mean may be off by the chance of which items were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return math.fsum(values) / len(values)


def ratio_stderr(totals: Sequence[float], counts: Sequence[float]) -> float:
    """The standard error of ``sum(totals) / sum(counts)`` over items drawn independently.

    The linearised one of a ratio: what belongs to one item (the tokens of an answer, the turns of a
    question) is not taken as independent. With all counts 1 it is that of a mean. 0 for one item.
    """
    n, ratio = len(totals), math.fsum(totals) / math.fsum(counts)
    if n < 2:
        return 0.0
    squares = math.fsum((x - ratio * y) ** 2 for x, y in zip(totals, counts, strict=True))
    return math.sqrt(n / (n - 1) * squares) / math.fsum(counts)
