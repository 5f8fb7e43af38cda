"""What the baseline needs for a loss: between its runs, falling, and never beyond them."""

import math
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchtrain.analysis.equal_loss import Ratio, falling, needed_for, over_seeds, ratio

CURVE = [(1.0, 3.0), (10.0, 2.0), (100.0, 1.5)]
spends = st.floats(1.0, 1e6)
losses = st.floats(0.5, 5.0)
# A busy machine is slow now and then, which says nothing of what is tested.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
curves = st.lists(st.tuples(spends, losses), min_size=1, max_size=8, unique_by=lambda p: p[0])


def test_between_two_runs_it_is_straight_in_log_compute() -> None:
    assert needed_for(CURVE, 2.5) == pytest.approx(math.sqrt(10))
    assert needed_for(CURVE, 1.75) == pytest.approx(10 * math.sqrt(10))


def test_a_run_needs_just_what_it_spent() -> None:
    assert [needed_for(CURVE, loss) for _, loss in CURVE] == pytest.approx([1.0, 10.0, 100.0])


def test_outside_of_the_runs_there_is_no_value() -> None:
    assert needed_for(CURVE, 3.01) is None
    assert needed_for(CURVE, 1.49) is None
    assert needed_for([], 2.0) is None


def test_a_run_that_ended_higher_with_more_is_pooled_with_its_neighbour() -> None:
    # 2.0 and 2.2 become 2.1 at the mean of log 10 and log 1000.
    assert falling([(1.0, 3.0), (10.0, 2.0), (1000.0, 2.2)]) == [
        pytest.approx((1.0, 3.0)), pytest.approx((100.0, 2.1)),
    ]  # fmt: skip


@patient
@given(curves)
def test_the_curve_falls_and_keeps_within_its_points(points: list[tuple[float, float]]) -> None:
    curve = falling(points)
    for (less, high), (more, low) in pairwise(curve):
        assert less < more
        assert high > low
    spent, ended = zip(*points, strict=True)
    assert min(spent) * (1 - 1e-9) <= curve[0][0]
    assert curve[-1][0] <= max(spent) * (1 + 1e-9)
    assert min(ended) - 1e-9 <= curve[-1][1]
    assert curve[0][1] <= max(ended) + 1e-9


@patient
@given(curves, losses, losses)
def test_a_lower_loss_never_needs_less(
    points: list[tuple[float, float]], one: float, two: float
) -> None:
    curve = falling(points)
    for loss in (one, two):
        found = needed_for(points, loss)
        if found is None:
            assert not curve[-1][1] <= loss <= curve[0][1]
            continue
        above = [spent for spent, value in curve if value >= loss]
        below = [spent for spent, value in curve if value <= loss]
        assert max(above) <= found <= min(below)
    needed = [needed_for(points, loss) for loss in sorted((one, two))]
    if None not in needed:
        assert needed[0] >= needed[1]


def test_a_ratio_outside_is_a_bound() -> None:
    assert ratio(CURVE, 5.0, 2.0).value == pytest.approx(0.5)
    low, high = ratio(CURVE, 50.0, 1.0), ratio(CURVE, 2.0, 3.5)
    assert (low.value, low.bound, low.below) == (None, pytest.approx(0.5), True)
    assert (high.value, high.bound, high.below) == (None, pytest.approx(2.0), False)
    assert low.words == "below 0.500"
    assert high.words == "above 2.000"


def test_seeds_are_averaged_in_the_logarithm() -> None:
    # Logs -ln 2 and 0: mean -ln 2 / 2, deviation ln 2 / sqrt 2, and t(0.975, 1) is 12.706.
    found = over_seeds({0: Ratio(0.5), 1: Ratio(1.0)})
    half = 12.7062 * math.log(2) / 2
    assert found["mean"] == pytest.approx(math.sqrt(0.5))
    middle = -math.log(2) / 2
    ends = [math.exp(middle - half), math.exp(middle + half)]
    assert found["interval"] == pytest.approx(ends, rel=1e-4)


def test_one_seed_outside_leaves_no_mean() -> None:
    found = over_seeds({0: Ratio(0.5), 1: Ratio(None, 0.8, below=True)})
    assert (found["mean"], found["interval"], found["inside"]) == (None, None, 1)
    assert found["bounds"] == {"1": {"below": 0.8}}
    # The mean is below that of what is known and what the rest lies below.
    assert found["bound"] == {"below": pytest.approx(math.sqrt(0.4))}
    assert over_seeds({0: Ratio(2.0), 1: Ratio(None, 8.0)})["bound"] == {
        "above": pytest.approx(4.0)
    }


def test_where_pooled_runs_contradict_each_other_there_is_no_bound() -> None:
    """The middle run ended lowest: below it is beyond all, above it and below the mean is not."""
    points = [(0.5, 3.93), (1.0, 3.86), (1.6, 3.92)]
    assert ratio(points, 1.0, 3.87) == Ratio(None)
    assert ratio(points, 1.0, 3.85) == Ratio(None, 1 / 1.6, below=True)
    points = [(0.5, 3.86), (1.0, 3.93), (1.6, 3.80)]
    assert ratio(points, 1.0, 3.92) == Ratio(None)
    assert ratio(points, 1.0, 3.95) == Ratio(None, 2.0)


def test_bounds_from_both_sides_and_seeds_without_any_bound_no_mean() -> None:
    assert over_seeds({0: Ratio(None, 0.8, below=True), 1: Ratio(None, 1.2)})["bound"] is None
    assert over_seeds({0: Ratio(None, 0.8, below=True), 1: Ratio(None)})["bound"] is None
    assert over_seeds({0: Ratio(0.5), 1: Ratio(1.0)})["bound"] is None
