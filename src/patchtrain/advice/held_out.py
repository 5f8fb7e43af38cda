"""How well the curves of ``fits`` predict measured points that were kept from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from patchtrain.advice import points
from patchtrain.advice.fits import LARGEST_STEP_FRACTION, EqualCompute, EqualData, Surface


@dataclass(frozen=True)
class Prediction:
    """One measured point and what the others say of it; nats."""

    group: str
    point: str
    predicted: float
    measured: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Measured less predicted."""
        return self.measured - self.predicted

    @property
    def inside(self) -> bool | None:
        """Whether it came out in the range that was given for it."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error, "inside": self.inside}


def predictions() -> list[Prediction]:
    """Every prediction of a held-out point, in the order of ``GROUPS``."""
    return [prediction for group in GROUPS for prediction in group()]


def summary(found: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Points, largest and root mean square error and how many fell into their range, by group."""
    rows = []
    for name in dict.fromkeys(prediction.group for prediction in found):
        group = [prediction for prediction in found if prediction.group == name]
        errors = np.array([prediction.error for prediction in group])
        inside = [prediction.inside for prediction in group if prediction.inside is not None]
        rows.append({
            "group": name,
            "points": len(group),
            "largest_error": float(np.abs(errors).max()),
            "rms_error": float(np.sqrt(np.mean(errors**2))),
            "largest_gain": max(abs(prediction.measured) for prediction in group),
            "inside": sum(inside) if inside else None,
        })  # fmt: skip
    return rows


def equal_data_each_from_the_others() -> Iterator[Prediction]:
    pairs, fractions = points.equal_data_pairs(), points.fraction_gains()
    for i, pair in enumerate(pairs):
        model = EqualData([*pairs[:i], *pairs[i + 1 :]], fractions)
        yield _equal_data("equal data: each point from the other six", model, pair)


def equal_data_sizes_from_one_model() -> Iterator[Prediction]:
    """The larger models from 370M alone: is it tokens per parameter that counts?"""
    pairs = points.equal_data_pairs()
    smallest = min(pair.parameters for pair in pairs)
    model = EqualData([p for p in pairs if p.parameters == smallest], points.fraction_gains())
    for pair in pairs:
        if pair.parameters != smallest:
            yield _equal_data("equal data: 780M to 2.7B from 370M alone", model, pair)


def _equal_data(group: str, model: EqualData, pair: points.Pair) -> Prediction:
    estimate = model.gain(pair.tokens_per_parameter)
    assert estimate is not None  # lambda is 2/3
    name = f"{pair.parameters / 1e6:,.0f}M, {pair.tokens / 1e9:,.0f}B tokens"
    return Prediction(group, name, estimate.value, pair.gain, estimate.low, estimate.high)


def patch_fraction_other_family() -> Iterator[Prediction]:
    """What another lambda changes, for one kind of data from the other kind."""
    families = points.fraction_gains()
    for name in families:
        other = {key: family for key, family in families.items() if key != name}
        model = EqualData(points.equal_data_pairs(), other)
        base = model.fractions[1]
        for share, shift in zip(model.fractions, model.shifts, strict=True):
            if share != base:
                yield Prediction(
                    "equal data: lambda 0.5 and 0.8 against 2/3, from the other data",
                    f"lambda = {share:g}, {name}",
                    float(shift),
                    families[name][float(share)] - families[name][float(base)],
                )


def equal_data_elsewhere() -> Iterator[Prediction]:
    """What was never fitted: several epochs, and the other paper's comparison on equal data."""
    group = "equal data: settings that the line has not seen"
    model = EqualData(points.equal_data_pairs(), points.fraction_gains())
    values = points.published()["patch_fraction"]
    (family,) = (family for family in values["families"] if family["epochs"] > 1)
    read = family["unique_tokens"] * family["epochs"]
    for share, gain in points.fraction_gains()[family["name"]].items():
        if share > 0:
            estimate = model.gain(read / values["parameters"], share)
            assert estimate is not None
            name = f"370M, {family['name']}, lambda = {share:.2g}"
            yield Prediction(group, name, estimate.value, gain, estimate.low, estimate.high)
    (row,) = (
        row
        for row in points.published()["not_equal_compute"]["rows"]
        if row["held_equal"] == "data"
    )
    K, r = row["patch_size"], row["step_fraction"]
    share = r * K / (r * K + 1 - r)
    estimate = model.gain(row["tokens"] / row["parameters"], share)
    assert estimate is not None
    name = f"3B, 105B tokens, K = 6, lambda = {share:.2g} (2605.06546)"
    measured = row["token_loss"] - row["patch_loss"]
    yield Prediction(group, name, estimate.value, measured, estimate.low, estimate.high)


def equal_compute_each_from_the_others() -> Iterator[Prediction]:
    pairs = points.equal_compute_pairs()
    for i, pair in enumerate(pairs):
        model = EqualCompute([*pairs[:i], *pairs[i + 1 :]], points.sweep("270M"))
        estimate = model.gain(pair.tokens_per_parameter, model.patch_size, model.step_fraction)
        assert estimate is not None
        yield Prediction(
            "equal compute: each run of the main table from the other three",
            f"{pair.parameters / 1e6:,.0f}M, {pair.tokens / 1e9:,.0f}B tokens",
            estimate.value,
            pair.gain,
            estimate.low,
            estimate.high,
        )


def sweep_rows_and_columns() -> Iterator[Prediction]:
    """A whole step fraction or patch size of the 270M sweep from the rest of it."""
    sweep = points.sweep("270M")
    rows = sweep.step_fractions <= LARGEST_STEP_FRACTION
    sweep = replace(sweep, step_fractions=sweep.step_fractions[rows], gains=sweep.gains[rows])
    for axis, name in enumerate(("step_fractions", "patch_sizes")):
        values = getattr(sweep, name)
        for left_out in range(len(values)):
            rest: dict[str, Any] = {
                name: np.delete(values, left_out),
                "gains": np.delete(sweep.gains, left_out, axis),
            }
            surface = Surface(replace(sweep, **rest))
            place = "first or last" if left_out in (0, len(values) - 1) else "inner"
            what = name.removesuffix("s").replace("_", " ")
            for index in np.ndindex(sweep.gains.shape):
                if index[axis] == left_out:
                    r = float(sweep.step_fractions[index[0]])
                    K = float(sweep.patch_sizes[index[1]])
                    yield Prediction(
                        f"equal compute: each {place} {what} of the 270M sweep from the others",
                        f"K = {K:.0f}, r = {r:g}",
                        surface.gain(K, r),
                        float(sweep.gains[index]),
                    )


def other_sweep() -> Iterator[Prediction]:
    """The 600M sweep: size of the gain from the other models, shape from the 270M sweep."""
    sweep = points.sweep("600M")
    pairs = [p for p in points.equal_compute_pairs() if p.parameters != sweep.parameters]
    model = EqualCompute(pairs, points.sweep("270M"))
    for i, r in enumerate(sweep.step_fractions):
        for j, K in enumerate(sweep.patch_sizes):
            estimate = model.gain(sweep.tokens / sweep.parameters, K, r)
            if estimate is not None:  # r = 0.9 is beyond the curve
                yield Prediction(
                    "equal compute: the whole 600M sweep, from 270M and 3B",
                    f"K = {K:.0f}, r = {r:g}",
                    estimate.value,
                    float(sweep.gains[i, j]),
                    estimate.low,
                    estimate.high,
                )


GROUPS = (
    equal_data_each_from_the_others,
    equal_data_sizes_from_one_model,
    patch_fraction_other_family,
    equal_data_elsewhere,
    equal_compute_each_from_the_others,
    sweep_rows_and_columns,
    other_sweep,
)
