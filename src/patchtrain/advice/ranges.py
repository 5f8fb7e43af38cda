"""What the measured runs cover, and how far outside of it a run lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from patchtrain.advice import points
from patchtrain.advice.points import Own, Pair

# The papers round their sizes; within a tenth of the smallest or largest is not beyond it.
_ROUNDING = 1.1
# So many times beyond the smallest or largest, a curve is no longer worth a number.
_FAR = 10.0


@dataclass(frozen=True)
class Range:
    """The least and the most that was measured of one thing."""

    name: str
    least: float
    most: float
    who: str  # "published" or "own"

    def holds(self, value: float, factor: float = _ROUNDING) -> bool:
        return self.least / factor <= value <= self.most * factor

    def beyond(self, value: float) -> str | None:
        """What to say of a value outside, None inside."""
        if self.holds(value):
            return None
        known = f"the {self.who} {short(self.least)}"
        if self.most > self.least:
            known += f" to {short(self.most)}"
        far = "" if self.holds(value, _FAR) else ", so far that no gain is given"
        return f"{self.name}: {short(value)} is outside of {known}{far}"


@dataclass(frozen=True)
class Coverage:
    """What one set of comparable runs covers."""

    size: Range
    ratio: Range
    steps: Range

    def beyond(self, parameters: float, tokens: float, steps: float | None) -> list[str]:
        """Each thing in which a run lies outside; ``steps`` None if not known."""
        said = [self.size.beyond(parameters), self.ratio.beyond(tokens / parameters)]
        said += [] if steps is None else [self.steps.beyond(steps)]
        return [text for text in said if text is not None]

    def is_far(self, parameters: float, tokens: float, steps: float | None = None) -> bool:
        """Whether nothing near enough was measured to give a number."""
        near = self.size.holds(parameters, _FAR) and self.ratio.holds(tokens / parameters, _FAR)
        return not near or (steps is not None and not self.steps.holds(steps, _FAR))


def of_table(name: str, pairs: Sequence[Pair]) -> Coverage:
    """Of ``equal_data`` or ``equal_compute`` in ``published.json``."""
    step = points.published()[name]["tokens_per_step"]
    return _coverage(pairs, [pair.tokens / step for pair in pairs], "published")


def of_own(held_equal: str = "compute") -> Coverage:
    """Of the comparisons in ``own.json`` that held compute or data equal."""
    own = points.own(held_equal)
    return _coverage(own, [item.steps for item in own], "own")


def _coverage(runs: Sequence[Pair | Own], steps: Sequence[float], whose: str) -> Coverage:
    def over(name: str, values: Sequence[float]) -> Range:
        return Range(name, min(values), max(values), whose)

    return Coverage(
        over("model size", [run.parameters for run in runs]),
        over("tokens for each parameter", [run.tokens_per_parameter for run in runs]),
        over("steps", steps),
    )


def boundary() -> float:
    """Parameters below which the own runs are nearer, by the ratio of the sizes, than any published
    ones at equal compute."""
    published = of_table("equal_compute", points.equal_compute_pairs())
    return math.sqrt(of_own().size.most * published.size.least)


def short(value: float) -> str:
    """A count in three digits: ``370M``, ``1.05T``, ``20,000``."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
