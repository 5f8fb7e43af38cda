"""The curves: leave-one-out is what refitting gives, held-out points are met, and by how much."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.advice import points
from patchtrain.advice.fits import EqualCompute, EqualData, Fit, equal_compute, equal_data
from patchtrain.advice.held_out import Prediction, predictions, summary


@given(st.integers(0, 2**32 - 1), st.integers(4, 12), st.integers(1, 3))
def test_left_out_errors_are_those_of_refitting(seed: int, count: int, features: int) -> None:
    rng = np.random.default_rng(seed)
    X = np.c_[np.ones(count), rng.normal(size=(count, features - 1))]
    y = rng.normal(size=count)
    fit = Fit(X, y)
    for i in range(count):
        rest = np.delete(np.arange(count), i)
        if np.linalg.cond(X[rest]) > 1e4:
            return
        refit = np.linalg.lstsq(X[rest], y[rest], rcond=None)[0]
        assert fit.left_out[i] == pytest.approx(y[i] - X[i] @ refit, rel=1e-6, abs=1e-6)
    assert fit.spread == pytest.approx(math.sqrt(np.mean(fit.left_out**2)))


def test_a_fit_finds_the_line_it_was_given_and_widens_away_from_it() -> None:
    x = np.linspace(0, 1, 6)
    X = np.c_[np.ones(6), x]
    fit = Fit(X, 2 - 3 * x)
    assert fit.coefficients == pytest.approx([2, -3])
    assert fit.spread == pytest.approx(0, abs=1e-12)
    noisy = Fit(X, 2 - 3 * x + np.array([1, -1, 1, -1, 1, -1]) * 0.01)
    widths = [noisy.predict(np.array([1.0, at]))[1] for at in (0.5, 1.0, 2.0, 5.0)]
    assert widths == sorted(widths)
    assert widths[-1] > 3 * widths[0]


def test_equal_data_is_a_line_that_the_other_lambdas_shift() -> None:
    model = equal_data()
    a, b = model.fit.coefficients
    assert b > 0  # more text for each parameter, more gain
    assert model.gain(model.break_even).value == pytest.approx(0, abs=1e-12)  # type: ignore[union-attr]
    usual, less, more = (model.gain(500, share) for share in (2 / 3, 0.5, 0.8))
    assert usual is not None
    assert less is not None
    assert more is not None
    assert usual.value == pytest.approx(a + b * math.log(500))
    gains = points.fraction_gains().values()
    assert less.value - usual.value == pytest.approx(
        np.mean([family[0.5] - family[0.6667] for family in gains])
    )
    assert more.value < usual.value < less.value
    # Another lambda adds its own uncertainty.
    assert less.high - less.low > usual.high - usual.low
    assert model.gain(500, 0.25) is None
    assert model.gain(500, 0.9) is None


def test_equal_compute_has_its_size_from_the_table_and_its_shape_from_the_sweep() -> None:
    model = equal_compute()
    assert model.shape(6, 0.3) == 1
    few, many = (model.gain(ratio, 6, 0.3) for ratio in (15, 700))
    assert few is not None
    assert many is not None
    assert few.value > many.value > 0
    for estimate in (few, many):
        assert estimate.low < estimate.value < estimate.high
    assert model.gain(100, 6, 0.9) is None
    assert model.gain(100, 6, 0.05) is None
    assert model.gain(100, 32, 0.3) is None
    assert model.gain(100, 1, 0.3) is None
    lost = model.gain(100, 16, 0.8)
    assert lost is not None
    assert lost.low < lost.value < 0 < points.sweep("270M").gains[0, 0]


def test_a_known_power_is_found_again() -> None:
    pairs = [points.Pair(1e9, 1e9 * ratio, 0.3 * ratio**-0.25) for ratio in (10, 50, 200, 900)]
    model = EqualCompute(pairs, points.sweep("270M"))
    estimate = model.gain(100, 6, 0.3)
    assert estimate is not None
    assert estimate.value == pytest.approx(0.3 * 100**-0.25)


@pytest.fixture(scope="module")
def found() -> list[Prediction]:
    return predictions()


# How many points a group has, a bound on the largest error in nats a token (what it is, rounded
# up), and how many of the points came out in the range that was given for them.
BOUNDS = {
    "equal data: each point from the other six": (7, 0.006, 7),
    "equal data: 780M to 2.7B from 370M alone": (3, 0.006, 3),
    "equal data: lambda 0.5 and 0.8 against 2/3, from the other data": (4, 0.009, None),
    "equal data: settings that the line has not seen": (4, 0.027, 0),
    "equal compute: each run of the main table from the other three": (4, 0.017, 4),
    "equal compute: each first or last step fraction of the 270M sweep from the others": (
        16, 0.013, None,
    ),
    "equal compute: each inner step fraction of the 270M sweep from the others": (40, 0.007, None),
    "equal compute: each first or last patch size of the 270M sweep from the others": (
        14, 0.02, None,
    ),
    "equal compute: each inner patch size of the 270M sweep from the others": (42, 0.007, None),
    "equal compute: the whole 600M sweep, from 270M and 3B": (21, 0.013, 17),
}  # fmt: skip


def test_held_out_points_are_predicted(found: list[Prediction]) -> None:
    rows = {row["group"]: row for row in summary(found)}
    assert rows.keys() == BOUNDS.keys()
    for group, (count, bound, inside) in BOUNDS.items():
        row = rows[group]
        assert (row["points"], row["inside"]) == (count, inside), group
        assert 0 < row["rms_error"] <= row["largest_error"] < bound, group
        # Better than saying that patches change nothing.
        assert row["rms_error"] < row["largest_gain"] / 2, group


def test_where_the_line_was_not_fitted_it_says_too_little(found: list[Prediction]) -> None:
    unseen = [p for p in found if p.group == "equal data: settings that the line has not seen"]
    assert len(unseen) == 4
    assert all(prediction.error > 0 for prediction in unseen)


def test_the_other_sweep_gains_less_than_predicted(found: list[Prediction]) -> None:
    other = [p for p in found if p.group == "equal compute: the whole 600M sweep, from 270M and 3B"]
    assert len(other) == 21
    assert all(prediction.error < 0 < prediction.measured for prediction in other)


def test_what_is_held_out_is_not_seen(found: list[Prediction]) -> None:
    """A prediction does not move with the measurement it is compared with."""
    pairs, fractions = points.equal_data_pairs(), points.fraction_gains()
    first = found[0]
    moved = [points.Pair(pairs[0].parameters, pairs[0].tokens, 9.9), *pairs[1:]]
    assert EqualData(moved[1:], fractions).gain(pairs[0].tokens_per_parameter).value == (  # type: ignore[union-attr]
        pytest.approx(first.predicted)
    )
    assert EqualData(moved, fractions).gain(pairs[0].tokens_per_parameter).value != (  # type: ignore[union-attr]
        pytest.approx(first.predicted)
    )
    assert first.measured == pairs[0].gain
    assert first.error == first.measured - first.predicted
