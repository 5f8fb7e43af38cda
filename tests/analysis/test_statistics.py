"""Few values: Student's quantiles against the tables, intervals against their definition."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.analysis.statistics import paired, spread, t_quantile

VALUES = st.floats(-100, 100)


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423)],
)
def test_quantiles_are_those_of_the_tables(degrees: int, expected: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-5)
    assert t_quantile(0.025, degrees) == pytest.approx(-expected, abs=5e-5)
    assert t_quantile(0.5, degrees) == pytest.approx(0, abs=1e-12)


def test_many_degrees_of_freedom_come_to_the_normal_distribution() -> None:
    normal = statistics.NormalDist().inv_cdf(0.975)
    assert t_quantile(0.975, 100_000) == pytest.approx(normal, rel=1e-4)


@pytest.mark.parametrize("case", [(0.975, 0), (0.0, 3), (1.0, 3)])
def test_what_has_no_quantile_is_refused(case: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(*case)


@given(st.lists(VALUES, min_size=2, max_size=12))
def test_an_interval_is_the_mean_and_t_standard_errors(values: list[float]) -> None:
    found = spread(values)
    assert found.interval is not None
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(statistics.fmean(values), abs=1e-6)
    error = statistics.stdev(values) / len(values) ** 0.5
    assert high - low == pytest.approx(2 * t_quantile(0.975, len(values) - 1) * error, abs=1e-6)


def test_one_value_has_no_spread() -> None:
    found = spread([1.5])
    assert (found.mean, found.standard_deviation, found.interval) == (1.5, None, None)


@given(st.dictionaries(st.integers(0, 5), VALUES), st.dictionaries(st.integers(0, 5), VALUES))
def test_paired_differences_are_of_common_seeds(
    first: dict[int, float], second: dict[int, float]
) -> None:
    found = paired(first, second)
    common = sorted(set(first) & set(second))
    if not common:
        assert found is None
        return
    assert found is not None
    assert list(found.values) == [first[seed] - second[seed] for seed in common]


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    token = {0: 1.70, 1: 1.50, 2: 1.90}
    patch = {seed: loss - 0.02 for seed, loss in token.items()}
    found = paired(patch, token)
    assert found is not None
    assert found.mean == pytest.approx(-0.02)
    assert found.standard_deviation == pytest.approx(0, abs=1e-9)
