"""How documents are scored: ties, baselines, and lm-eval's rule where there is no tie."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.evaluation.task_scores import (
    DocumentScore,
    multiple_choice,
    score_sample,
    shared,
    summary,
)

VALUES = st.lists(st.integers(-3, 0).map(float), min_size=2, max_size=5)


@given(VALUES, st.data())
def test_a_tie_is_the_mean_over_every_order_of_the_choices(
    values: list[float], data: st.DataObject
) -> None:
    gold = data.draw(st.integers(0, len(values) - 1))
    # The first of the likeliest, lm-eval's rule, over rotations that put each of them first once.
    turns = [np.roll(values, -shift) for shift in range(len(values))]
    tied = [i for i, value in enumerate(values) if value == max(values)]
    hits = [
        int((np.argmax(turns[first]) + first) % len(values) == gold)
        for first in tied  # each of the tied stands first in one of these
    ]
    assert shared(values, [gold]) == pytest.approx(np.mean(hits))


@given(VALUES)
def test_the_chances_of_all_choices_add_up_to_one(values: list[float]) -> None:
    assert sum(shared(values, [gold]) for gold in range(len(values))) == pytest.approx(1)


@given(st.lists(st.floats(-50, -0.1), min_size=2, max_size=5, unique=True), st.data())
def test_without_a_tie_it_is_the_rule_of_lm_eval(values: list[float], data: st.DataObject) -> None:
    gold = data.draw(st.integers(0, len(values) - 1))
    choices = [data.draw(st.text("ab", min_size=1, max_size=9)) for _ in values]
    score = multiple_choice(values, choices, [gold])
    assert score.score == float(np.argmax(values) == gold)
    assert not score.tied
    assert score.chance == 1 / len(values)
    per_character = values / np.array([float(len(choice)) for choice in choices])
    if sum(per_character == per_character.max()) == 1:
        assert score.by_length == float(np.argmax(per_character) == gold)


def test_a_tie_of_a_pair_counts_one_half() -> None:
    score = multiple_choice([-3.0, -3.0], ["ab", "abcd"], [0])
    assert (score.score, score.tied) == (0.5, True)
    assert score.by_length == 0  # the longer one is likelier per character
    assert score.longest_answer == 0
    three = multiple_choice([-3.0, -3.0, -3.0, -4.0], ["a"] * 4, [3])
    assert (three.score, three.tied, three.longest_answer) == (0, False, 0.25)
    assert multiple_choice([-3.0, -3.0, -5.0], ["a"] * 3, [0, 1]).score == 1  # both are right


def test_letters_stand_for_the_answers_of_the_document() -> None:
    score = multiple_choice([-1.0, -2.0], ["A", "B"], [1], ["short", "much longer"])
    assert (score.score, score.longest_answer) == (0, 1)


def task(**values: Any) -> Any:
    """As much of lm-eval's task as scoring asks for."""
    known = {
        "OUTPUT_TYPE": "multiple_choice",
        "multiple_input": 0,
        "config": SimpleNamespace(process_results=None),
        "doc_to_choice": lambda doc: doc["options"],
        "doc_to_text": lambda doc: doc["label"],
    }
    return SimpleNamespace(**{**known, **values})


def sample(doc: dict[str, Any], target: Any, *likelihoods: float, **more: Any) -> dict[str, Any]:
    responses = [(value, False) for value in likelihoods]
    return {
        "doc": doc,
        "target": target,
        "filtered_resps": responses,
        "metrics": ["acc"],
        "acc": 1.0,
    } | more


def test_samples_of_each_kind() -> None:
    doc = {"options": ["left", "right"], "label": 1}
    assert score_sample(task(), sample(doc, 0, -1.0, -2.0)).score == 1
    assert score_sample(task(), sample(doc, "right", -1.0, -2.0)).score == 0
    # WinoGrande's target is the common end of the sentence; the label is the text.
    score = score_sample(task(multiple_input=2), sample(doc, "end.", -2.0, -1.0))
    assert (score.score, score.longest_answer, score.by_length) == (1, 1, None)
    # The second half are the answers without their question.
    assert score_sample(task(), sample(doc, 1, -2.0, -1.0, -9.0, 0.0)).score == 1
    # What is no multiple choice has lm-eval's own score, and no baseline.
    lambada = task(OUTPUT_TYPE="loglikelihood")
    assert score_sample(lambada, sample(doc, "x", -1.0)) == DocumentScore(1.0)
    words = sample(doc, "x", metrics=["exact_match"], exact_match=0.0)
    assert score_sample(task(OUTPUT_TYPE="generate_until"), words) == DocumentScore(0.0)
    pair = sample(doc, "x", metrics=["bits_per_byte"], bits_per_byte=(1.0, 2))
    assert score_sample(task(OUTPUT_TYPE="loglikelihood_rolling"), pair).score is None


def test_a_right_answer_that_is_no_choice_is_never_right() -> None:
    doc = {"options": ["left", "right"], "label": 1}
    for target in (7, "up", -100):
        score = score_sample(task(), sample(doc, target, -1.0, -2.0))
        assert (score.score, score.longest_answer) == (0, 0)


def test_letters_of_mmlu_and_of_arc() -> None:
    for texts in (["a", "abc"], {"text": ["a", "abc"], "label": ["A", "B"]}):
        doc = {"options": ["A", "B"], "choices": texts}
        assert score_sample(task(), sample(doc, 1, -1.0, -2.0)).longest_answer == 1
    doc = {"options": ["A", "B"], "choices": ["a"]}
    assert score_sample(task(), sample(doc, 1, -1.0, -2.0)).longest_answer == 0.5


def test_means_and_their_standard_errors() -> None:
    scores = [DocumentScore(value, None, 0.5, 1.0, value == 0.5) for value in (0.0, 1.0, 0.5, 1.0)]
    values = summary(scores)
    assert values["score"] == 0.625
    assert values["score_stderr"] == pytest.approx(np.std([0, 1, 0.5, 1], ddof=1) / 2)
    assert (values["by_length"], values["by_length_stderr"]) == (None, None)
    assert (values["chance"], values["longest_answer"]) == (0.5, 1.0)
    assert (values["ties"], values["documents"]) == (1, 4)
    assert summary(scores[:1])["score_stderr"] is None
    assert math.isfinite(values["score"])
