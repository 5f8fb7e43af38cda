"""The entropy of token frequencies."""

import math

import numpy as np
import pytest

from patchtrain.data import unigram
from patchtrain.data.unigram import unigram_entropy


def test_of_a_few_tokens_by_hand() -> None:
    tokens = np.array([3, 3, 3, 7], dtype=np.uint16)
    assert unigram_entropy(tokens) == pytest.approx(
        -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    )
    assert unigram_entropy(np.full(9, 5)) == 0
    assert unigram_entropy(np.arange(64)) == pytest.approx(math.log(64))


def test_it_is_the_least_loss_of_a_model_without_context() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 6, 4000) * rng.integers(0, 2, 4000)
    least = unigram_entropy(tokens)
    share = np.bincount(tokens) / len(tokens)
    assert -np.log(share)[tokens].mean() == pytest.approx(least)
    for _ in range(20):
        other = rng.dirichlet(np.ones(len(share)))
        assert -np.log(other)[tokens].mean() > least


def test_of_a_long_text_a_sample_from_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unigram, "_SAMPLE", 1 << 14)
    tokens = np.repeat(np.arange(4, dtype=np.uint16), 1 << 14)  # the last begins after the sample
    assert unigram_entropy(tokens) == pytest.approx(math.log(4))
