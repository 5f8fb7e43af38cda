"""Cosines against loops, mutual information against a dictionary, and what must hold of both."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain.analysis.coherence import (
    cosine_at,
    information_at,
    information_inside,
    patch_cosines,
    unit,
)
from patchtrain.analysis.patch_content import Text
from patchtrain.errors import UsageError


def text_of(tokens: np.ndarray, document: np.ndarray | None = None, end: int | None = None) -> Text:
    document = np.zeros(len(tokens), dtype=np.int64) if document is None else document
    return Text(tokens, document, document, np.zeros((0, 2), dtype=np.int64), end)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_cosines_agree_with_loops(seed: int, K: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(9, 4))
    n = int(rng.integers(2 * K, 60))
    text = text_of(rng.integers(0, 9, n), np.cumsum(rng.random(n) < 0.1), end=0)
    rows = [
        (text.tokens[i : i + K], set(text.document[i : i + K])) for i in range(0, n // K * K, K)
    ]
    whole = [len(held) == 1 and 0 not in row for row, held in rows]
    inside = [
        np.mean([cosine(table[row[a]], table[row[b]]) for a in range(K) for b in range(a)])
        for row, good in zip([row for row, _ in rows], whole, strict=True)
        if good
    ]
    across = [
        np.mean([cosine(table[a], table[b]) for a in rows[i][0] for b in rows[i + 1][0]])
        for i in range(len(rows) - 1)
        if whole[i] and whole[i + 1] and rows[i][1] == rows[i + 1][1]
    ]
    found = patch_cosines(text, unit(table), K)
    for mean, values in ((found.inside, inside), (found.next_patch, across)):
        assert mean.count == len(values)
        expected = pytest.approx(np.mean(values), abs=1e-5) if values else None
        assert mean.value == expected
    pairs = [
        cosine(table[text.tokens[i]], table[text.tokens[i + K]])
        for i in range(n - K)
        if text.document[i] == text.document[i + K] and text.tokens[i] and text.tokens[i + K]
    ]
    at = cosine_at(text, unit(table), K)
    assert at.value == (pytest.approx(np.mean(pairs), abs=1e-5) if pairs else None)


def test_identical_tokens_have_cosine_1_and_random_ones_that_of_the_table() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 8)) + 1
    same = text_of(np.full(400, 7))
    found = patch_cosines(same, unit(table), 4)
    for mean in (found.inside, found.next_patch, found.far_patch, found.random):
        assert mean.value == pytest.approx(1, abs=1e-5)
    drawn = text_of(rng.integers(0, 50, 40_000))
    found = patch_cosines(drawn, unit(table), 4)
    average = unit(table).mean(0)
    expected = float(average @ average)
    assert found.random.error is not None
    assert 0 < found.random.error < 0.01
    for mean in (found.inside, found.next_patch, found.far_patch, found.random):
        assert mean.value == pytest.approx(expected, abs=0.02)


def test_neighbours_alike_are_found() -> None:
    rng = np.random.default_rng(0)
    table = np.repeat(np.eye(10), 5, axis=0)  # 10 topics of 5 tokens
    topics = np.repeat(rng.integers(0, 10, 500), 16)
    text = text_of(topics * 5 + rng.integers(0, 5, len(topics)))
    found = patch_cosines(text, unit(table), 8)
    assert found.inside.value == pytest.approx(1)
    assert found.next_patch.value == pytest.approx(0.55, abs=0.05)  # every second one, and chance
    assert found.far_patch.value == pytest.approx(0.1, abs=0.05)


def test_a_standard_error_is_the_spread_of_repetitions() -> None:
    table = np.random.default_rng(0).normal(size=(200, 16))
    means = []
    for seed in range(40):
        drawn = text_of(np.random.default_rng(seed).integers(0, 200, 4000))
        means.append(patch_cosines(drawn, unit(table), 2).inside)
    spread = np.std([mean.value for mean in means], ddof=1)
    assert np.mean([mean.error for mean in means]) == pytest.approx(spread, rel=0.4)


def test_a_token_without_an_embedding_is_an_error() -> None:
    with pytest.raises(UsageError, match="token id 9 has no embedding in a model of 5 tokens"):
        patch_cosines(text_of(np.array([1, 9, 1, 1])), np.ones((5, 2)), 2)
    with pytest.raises(UsageError, match="no two tokens"):
        patch_cosines(text_of(np.array([1, 1])), np.ones((5, 2)), 1)


def information(pairs: list[tuple[int, int]]) -> float:
    joint, n = Counter(pairs), len(pairs)
    one, other = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    return sum(
        count / n * math.log(count * n / (one[a] * other[b])) for (a, b), count in joint.items()
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_counted_information_agrees_with_a_dictionary(seed: int, distance: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 120))
    text = text_of(rng.integers(0, 7, n), np.cumsum(rng.random(n) < 0.1), end=0)
    pairs = [
        (int(text.tokens[i]), int(text.tokens[i + distance]))
        for i in range(n - distance)
        if text.document[i] == text.document[i + distance]
        and text.tokens[i] and text.tokens[i + distance]
    ]  # fmt: skip
    found = information_at(text, distance)
    assert found.pairs == len(pairs)
    assert found.counted == pytest.approx(information(pairs) if pairs else 0, abs=1e-9)
    assert found.nats == pytest.approx(found.counted - found.shuffled)


def test_rare_tokens_are_one() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.choice(40, 3000, p=np.arange(1, 41)[::-1] / 820)
    common = {token for token, _ in Counter(tokens.tolist()).most_common(7)}
    kept = np.where(np.isin(tokens, list(common)), tokens, 99)
    pairs = list(zip(kept[:-2].tolist(), kept[2:].tolist(), strict=True))
    assert information_at(text_of(tokens), 2, types=8).counted == pytest.approx(information(pairs))


def test_independent_tokens_tell_nothing_and_copies_all() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 60, 50_000)
    found = information_at(text_of(drawn), 1)
    assert found.counted > 0.03  # what the few pairs alone would claim
    assert found.nats == pytest.approx(0, abs=5 * found.noise + 1e-4)
    pairs = np.repeat(rng.integers(0, 4, 50_000), 2)
    copied = information_at(text_of(pairs), 1)
    # Every second pair is a copy: half of the pairs are equal for sure, the others by chance.
    equal = 0.5 + 0.5 / 4
    entropy = math.log(4) + equal * math.log(equal) + (1 - equal) * math.log((1 - equal) / 3)
    assert copied.nats == pytest.approx(entropy, abs=0.01)


def test_the_pairs_of_a_patch() -> None:
    rng = np.random.default_rng(0)
    text = text_of(np.repeat(rng.integers(0, 4, 5000), 3))
    found = [information_at(text, distance) for distance in (1, 2, 3)]
    at = {entry.distance: entry.nats for entry in found}
    expected = (3 * at[1] + 2 * at[2] + at[3]) / 6
    assert information_inside(found, 4) == pytest.approx(expected)
    assert information_inside(found, 5) is None
    assert information_inside(found, 1) is None
    assert information_at(text_of(np.array([1, 2])), 5).pairs == 0
