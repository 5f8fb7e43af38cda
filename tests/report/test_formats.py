"""Numbers as the page writes them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.report import formats


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (formats.count(9216), "9,216"),
        (formats.count(12_345_678), "12.3M"),
        (formats.count(1.2e9), "1.20B"),
        (formats.count(None), formats.NONE),
        (formats.flops(3.1e14), "310 TFLOP"),
        (formats.flops(1.234e15, per_second=True), "1.23 PFLOP/s"),
        (formats.flops(12), "12.0 FLOP"),
        (formats.exact(0.008), "0.008"),
        (formats.exact(1e-5), "1e-05"),
        (formats.exact(2), "2"),
        (formats.duration(8.44), "8.4 s"),
        (formats.duration(59.97), "1 min 00 s"),
        (formats.duration(190), "3 min 10 s"),
        (formats.duration(7500), "2 h 05 min"),
        (formats.duration(293.2 * 3600), "12 d 5 h"),
        (formats.duration(3599.9), "1 h 00 min"),
        (formats.percent(0.5), "50%"),
        (formats.percent(0.051), "5.1%"),
        (formats.significant(0.00012345), "0.000123"),
        (formats.significant(1234.5), "1,234"),
        (formats.significant(1e9), "1.00e+09"),
        (formats.significant(0), "0"),
        (formats.number(math.nan), formats.NONE),
        (formats.number(True), formats.NONE),
    ],
)
def test_numbers(value: str, expected: str) -> None:
    assert value == expected


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_an_exact_number_comes_back(value: float) -> None:
    assert float(formats.exact(value)) == value


def test_the_fall_of_the_first_steps_does_not_flatten_the_rest() -> None:
    line = [(float(n), 3 + 10 * 0.5 ** (n / 5)) for n in range(1000)]
    low, high = formats.loss_range([line])
    assert low < 3 < high < 3.5
    low, high = formats.loss_range([[(0, 9.0), (1, 2.0), (2, 3.0)], [], [(1000, 2.5)]])
    assert low < 2
    assert 3 < high < 4


@pytest.mark.parametrize("loss", [0.0, 5.0, 1e30])
def test_losses_that_are_all_the_same_have_a_range(loss: float) -> None:
    low, high = formats.loss_range([[(-1.0, loss)] * 3])
    assert low < loss < high


def test_long_curves_are_averaged() -> None:
    points = [(n, float(n % 2)) for n in range(10_001)]
    found = formats.averaged(points, 400)
    assert formats.neighbours(len(points), 400) == 26
    assert len(found) == 385
    assert found[-1][0] == 10_000
    assert all(loss == 0.5 for _, loss in found[:-1])
    assert formats.averaged(points[:400], 400) == points[:400]
    assert formats.averaged([], 400) == []
