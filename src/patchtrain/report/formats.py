"""Numbers as a reader wants them: short, with a unit, and a dash where there is none.

And what of many losses is worth drawing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

Place = TypeVar("Place")
NONE = "\N{EN DASH}"
_PREFIXES = (
    (1e24, "Y"),
    (1e21, "Z"),
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value from a JSON file is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # neither NaN nor a whole number no float can hold


def finite(value: Any) -> Any:
    """JSON types without the numbers that JSON has not, NaN and infinity: those are None."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, digits: int = 3) -> str:
    """Fixed decimals, with commas: ``3.142``."""
    return f"{value:,.{digits}f}" if value is not None and is_number(value) else NONE


def significant(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits, never in exponents between 0.0001 and a million."""
    if value is None or not is_number(value):
        return NONE
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float | None) -> str:
    """A count of tokens, steps or parameters: ``9,216``, ``12.3M``, ``1.20B``."""
    if value is None or not is_number(value):
        return NONE
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{significant(value / size)}{suffix}"
    return f"{value:,.0f}"


def scale(largest: float) -> tuple[float, str]:
    """The SI step below ``largest`` and its letter: ``(1e12, "T")``, or ``(1.0, "")``."""
    return next(((size, letter) for size, letter in _PREFIXES if largest >= size), (1.0, ""))


def flops(value: float | None, per_second: bool = False) -> str:
    """Floating-point operations: ``1.23 PFLOP``, or ``1.23 TFLOP/s``."""
    if value is None or not is_number(value):
        return NONE
    size, letter = scale(value)
    return f"{significant(value / size)} {letter}FLOP{'/s' if per_second else ''}"


def duration(seconds: float | None) -> str:
    """``8.4 s``, ``3 min 10 s``, ``2 h 05 min``, ``12 d 5 h``."""
    if seconds is None or not is_number(seconds):
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 100:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days:,} d {hours} h"


def percent(share: float | None) -> str:
    """A share as ``50%``; below 10% with a decimal."""
    if share is None or not is_number(share):
        return NONE
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def accuracy(value: float | None, error: float | None = None) -> str:
    """An accuracy in percent, with its standard error where there is one: ``79.1 ± 0.5``."""
    if value is None or not is_number(value):
        return NONE
    shown = f"{100 * value:.1f}"
    return f"{shown} ± {100 * error:.1f}" if error is not None and is_number(error) else shown


def with_error(value: Any, error: Any, digits: int) -> str:
    """A value with its standard error where there is one: ``0.1234 ± 0.0012``."""
    if not is_number(value):
        return NONE
    return number(value, digits) + (f" ± {number(error, digits)}" if is_number(error) else "")


def exact(value: float) -> str:
    """A number as short as tells it from any other."""
    return repr(float(value)).removesuffix(".0")


def seeds_in_words(seeds: Sequence[int]) -> str:
    """``seed 0``, ``seeds 0, 1, 2``."""
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def part_of(done: float | None, whole: float | None) -> str:
    """How much was done: ``1,000``, or ``200 of 1,000``."""
    return count(done) if done == whole or whole is None else f"{count(done)} of {count(whole)}"


def loss_range(lines: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """The range worth drawing: the fall of the first steps would flatten all the rest.

    Each line is its points, of place and loss; there is at least one point. ``live.js`` has the
    same rule.
    """
    shown = []
    for line in lines:
        last = max((place for place, _ in line), default=0.0)
        shown += [loss for place, loss in line if place >= 0.04 * last]
    shown = sorted(shown or [loss for line in lines for _, loss in line])
    low, high = shown[0], shown[min(len(shown) - 1, int(0.985 * len(shown)))]
    space = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - space, high + space


def averaged(points: Sequence[tuple[Place, float]], most: int) -> list[tuple[Place, float]]:
    """At most ``most`` points: each the mean loss of neighbours, placed at the last of them."""
    size = neighbours(len(points), most)
    groups = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups]


def neighbours(number: int, most: int) -> int:
    """How many of ``number`` points stand behind each one that is drawn."""
    return max(math.ceil(number / most), 1)
