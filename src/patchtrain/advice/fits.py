"""Simple curves through the published points, each with the error it makes on points left out.

Equal data (the same tokens, less compute): the gain lies on a line in ln(tokens per parameter).
Equal compute (the same steps, more tokens): the gain falls as a power of tokens per parameter, and
its dependence on patch size and step fraction has the same shape for both models that were swept.

*Gain* is always in nats a token by which patches first ended lower than token level; below zero,
patches first lost. All is fitted when first asked for, from the numbers that are shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from patchtrain.advice import points
from patchtrain.advice.points import Pair, Sweep

TWO_THIRDS = 2 / 3
# Beyond r = 0.8 the loss rises ever faster and no curve of low order follows it.
LARGEST_STEP_FRACTION = 0.8


@dataclass(frozen=True)
class Estimate:
    """A gain in nats and the range it is expected in: twice the error on points left out."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, half: float) -> Estimate:
        return cls(value, value - half, value + half)


class Fit:
    """Least squares of ``y`` (P,) on the columns of ``X`` (P, F).

    ``left_out`` (P,) is what each point is above what the fit to all other points says there; not
    a number where they do not make a fit.
    """

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.coefficients: np.ndarray = np.linalg.lstsq(X, y, rcond=None)[0]
        self.inverse = np.linalg.inv(X.T @ X)
        leverage = np.einsum("pf,fg,pg->p", X, self.inverse, X)
        # Leaving a point out moves the fit there by leverage / (1 - leverage) of its residual.
        free = np.where(leverage < 1 - 1e-9, 1 - leverage, np.nan)
        self.left_out: np.ndarray = (y - X @ self.coefficients) / free
        self.spread = float(np.sqrt(np.nanmean(self.left_out**2)))

    def predict(self, x: np.ndarray) -> tuple[float, float]:
        """Value at ``x`` (F,) and half the width of its range, which grows away from the points."""
        half = 2 * self.spread * math.sqrt(1 + float(x @ self.inverse @ x))
        return float(x @ self.coefficients), half


class EqualData:
    """Gain on the same tokens at K = 4 (2407.12665)."""

    def __init__(
        self, pairs: Sequence[Pair], fractions: Mapping[str, Mapping[float, float]]
    ) -> None:
        """``fractions``: gain at each lambda, by family of runs that differ in nothing else."""
        ratios = [pair.tokens_per_parameter for pair in pairs]
        self.lowest = min(ratios)
        self.fit = Fit(
            np.array([self._features(ratio) for ratio in ratios]),
            np.array([pair.gain for pair in pairs]),
        )
        base = points.published()["patch_fraction"]["fractions"][2]  # 2/3
        shifts = [
            {share: gain - family[base] for share, gain in family.items() if share > 0}
            for family in fractions.values()
        ]
        self.fractions = np.array(sorted(shifts[0]))
        table = np.array([[shift[share] for share in self.fractions] for shift in shifts])
        self.shifts = table.mean(axis=0)  # of the gain, against lambda = 2/3
        # How far each family is off the mean of the others; one family alone cannot say.
        others = (table.sum(axis=0) - table) / (len(table) - 1) if len(table) > 1 else np.nan
        moved = np.abs(self.fractions - base) > 1e-9
        self.shift_spread = float(np.sqrt(np.mean((table - others)[:, moved] ** 2)))

    @staticmethod
    def _features(ratio: float) -> np.ndarray:
        return np.array([1.0, math.log(ratio)])

    @property
    def break_even(self) -> float:
        """Tokens per parameter at which lambda = 2/3 neither gains nor loses."""
        a, b = self.fit.coefficients
        return math.exp(-a / b)

    def gain(
        self, tokens_per_parameter: float, patch_fraction: float = TWO_THIRDS
    ) -> Estimate | None:
        """The gain in nats, None outside the lambdas that were measured (0.5 to 0.8)."""
        if not self.fractions[0] - 1e-3 <= patch_fraction <= self.fractions[-1] + 1e-3:
            return None
        value, half = self.fit.predict(self._features(tokens_per_parameter))
        if abs(patch_fraction - TWO_THIRDS) > 1e-3:
            value += float(np.interp(patch_fraction, self.fractions, self.shifts))
            half = math.hypot(half, 2 * self.shift_spread)
        return Estimate.around(value, half)


class Surface:
    """Gain of one swept model over K and r: quadratic in ln K, ln r and ln(1 - r) in r.

    The gain dies with the patch stage (r to 0) and with the token stage (r to 1), the latter
    sooner for larger K. Of several forms with as few terms, this one was best at predicting a step
    fraction of the 270M sweep from the others.
    """

    def __init__(self, sweep: Sweep) -> None:
        rows = sweep.step_fractions <= LARGEST_STEP_FRACTION
        self.step_fractions = sweep.step_fractions[rows]
        self.patch_sizes = sweep.patch_sizes
        gains = sweep.gains[rows]
        X = [self._features(K, r) for r in self.step_fractions for K in self.patch_sizes]
        self.fit = Fit(np.array(X), gains.ravel())

    @staticmethod
    def _features(patch_size: float, step_fraction: float) -> np.ndarray:
        k, r = math.log(patch_size), step_fraction
        left = math.log(1 - r)
        return np.array([1, k, k * k, math.log(r), left, k * left])

    def gain(self, patch_size: float, step_fraction: float) -> float:
        return float(self._features(patch_size, step_fraction) @ self.fit.coefficients)

    def covers(self, patch_size: float, step_fraction: float) -> bool:
        K, r = self.patch_sizes, self.step_fractions
        return bool(K[0] <= patch_size <= K[-1] and r[0] <= step_fraction <= r[-1])


class EqualCompute:
    """Gain at the same steps and compute a step (2605.06546).

    ``pairs``, all at the reference K and r, give the size of the gain; ``sweep`` its shape.
    """

    def __init__(self, pairs: Sequence[Pair], sweep: Sweep) -> None:
        values = points.published()["equal_compute"]
        self.patch_size: int = values["patch_size"]
        self.step_fraction: float = values["step_fraction"]
        ratios = [pair.tokens_per_parameter for pair in pairs]
        self.fit = Fit(
            np.array([[1.0, math.log(ratio)] for ratio in ratios]),
            np.log([pair.gain for pair in pairs]),
        )
        self.surface = Surface(sweep)

    def shape(self, patch_size: float, step_fraction: float) -> float:
        """The gain as a share of that at the reference K and r."""
        reference = self.surface.gain(self.patch_size, self.step_fraction)
        return self.surface.gain(patch_size, step_fraction) / reference

    def gain(
        self, tokens_per_parameter: float, patch_size: float, step_fraction: float
    ) -> Estimate | None:
        """The gain in nats; None for K and r outside of what was swept.

        ``tokens_per_parameter`` counts the tokens of the token-level run of the same compute.
        """
        if not self.surface.covers(patch_size, step_fraction):
            return None
        log_size, log_half = self.fit.predict(np.array([1.0, math.log(tokens_per_parameter)]))
        size, shape = math.exp(log_size), self.shape(patch_size, step_fraction)
        reference = self.surface.gain(self.patch_size, self.step_fraction)
        blur = 2 * self.surface.fit.spread / reference * size
        ends = sorted(size * math.exp(sign * log_half) * shape for sign in (-1, 1))
        value = size * shape
        return Estimate(
            value,
            value - math.hypot(value - ends[0], blur),
            value + math.hypot(ends[1] - value, blur),
        )


@cache
def equal_data() -> EqualData:
    return EqualData(points.equal_data_pairs(), points.fraction_gains())


@cache
def equal_compute() -> EqualCompute:
    return EqualCompute(points.equal_compute_pairs(), points.sweep("270M"))
