"""Small models: what patches gained in the project's own comparisons nearest to a run.

No curve is drawn through them. At these sizes the gain hangs on the text and on the length of the
run, so each text speaks for itself, by its comparisons that are nearest in size and in tokens. What
gained most over the texts is advised, and a gain is promised only where no text disagrees.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from patchtrain.advice import points
from patchtrain.advice.fits import Estimate
from patchtrain.advice.points import Own

_REACH = 2.0


@dataclass(frozen=True)
class Choice:
    """One K, share and length of rows, and how it came out on each text."""

    patch_size: int
    share: float  # r, or at equal data lambda
    rows: str
    found: tuple[Own, ...]  # one a text

    @property
    def mean(self) -> float:
        """Nats a token, over the texts."""
        return fmean(gain(item) for item in self.found)

    @property
    def estimate(self) -> Estimate | None:
        """The mean, from the least seed of any text to the best; None where texts disagree."""
        if any(gain(item) <= 0 for item in self.found):
            return None
        gains = [value for item in self.found for value in item.gains]
        return Estimate(self.mean, min(gains), max(gains))


def gain(item: Own) -> float:
    """Nats a token, over the seeds."""
    return fmean(item.gains)


def best(parameters: float, tokens: float, own: Sequence[Own] | None = None) -> Choice:
    """What gained most over the texts, among what was tried on most of them."""
    choices = nearest(parameters, tokens, points.own() if own is None else own)
    most = max(len(choice.found) for choice in choices)
    return max((c for c in choices if len(c.found) == most), key=lambda choice: choice.mean)


def nearest(parameters: float, tokens: float, own: Iterable[Own]) -> list[Choice]:
    """Each K, share and rows, with the comparison of each text that is nearest to such a run.

    The distance is that in the logarithms of size and tokens. Of a text counts its nearest
    comparison and what is farther by ln ``_REACH`` at most, as much as a doubling: a setting is
    not left out where it was tried at another length.
    """

    def distance(item: Own) -> float:
        size = math.log(item.parameters / parameters)
        # Not by tokens for each parameter: whatever the size, about as many tokens must be read
        # until patches gain (benchmarks/map.py).
        return math.hypot(size, math.log(item.tokens / tokens))

    by_text: dict[str, list[Own]] = defaultdict(list)
    for item in sorted(own, key=distance):
        by_text[item.text].append(item)
    by_setting: dict[tuple[int, float, str], dict[str, Own]] = defaultdict(dict)
    for text, items in by_text.items():
        for item in items:
            if distance(item) <= distance(items[0]) + math.log(_REACH):
                setting = item.patch_size, item.share, item.rows
                by_setting[setting].setdefault(text, item)
    return [Choice(*setting, tuple(found.values())) for setting, found in by_setting.items()]
