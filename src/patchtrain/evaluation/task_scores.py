"""Scores of zero-shot tasks from what lm-eval logged of every document.

lm-eval counts a multiple-choice document as right where the first of the likeliest answers is the
right one. That favours an answer by its place when several are equally likely, which in a weak
model or in 16 bits they often are: in BLiMP the right sentence always comes first. Here a tie
between the right answer and m others counts 1 / (m + 1), a half for a pair.

Beside each score stand two that need no model: the chance level, and what always choosing the
longest answer scores (ties shared likewise). A score says something where it is above both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DocumentScore:
    """What one document of a task scored; None is what the task does not have.

    ``score``: 1 right, 0 wrong, between them where tied. ``by_length``: the same by likelihood per
    character (lm-eval's ``acc_norm``). ``chance`` and ``longest_answer``: of choosing at random and
    of choosing the longest answer. ``tied``: the right answer was among several likeliest.
    """

    score: float | None
    by_length: float | None = None
    chance: float | None = None
    longest_answer: float | None = None
    tied: bool = False


# The scores of a task with their standard errors under ``NAME_stderr``.
SCORES = ("score", "by_length")
# What needs no model.
BASELINES = ("chance", "longest_answer")


def shared(values: Sequence[float], right: Sequence[int]) -> float:
    """What choosing the largest of ``values`` scores: the share of the tied that are ``right``."""
    most = max(values)
    tied = [index for index, value in enumerate(values) if value == most]
    return sum(index in right for index in tied) / len(tied)


def multiple_choice(
    likelihoods: Sequence[float],
    choices: Sequence[str],
    right: Sequence[int],
    answers: Sequence[str] | None = None,
    normalized: bool = True,
) -> DocumentScore:
    """Score one document of a multiple-choice task.

    ``likelihoods``: log-likelihood of each choice, in nats. ``choices``: their texts, for the
    length in characters. ``right``: indices of the right ones (usually one). ``answers``: what the
    choices stand for where they are mere letters, for the longest answer.
    """
    by_length = None
    if normalized:
        per_character = [
            value / len(choice) if choice else -math.inf
            for value, choice in zip(likelihoods, choices, strict=True)
        ]
        by_length = shared(per_character, right)
    most = max(likelihoods)
    tied = sum(value == most for value in likelihoods) > 1
    return DocumentScore(
        score=shared(likelihoods, right),
        by_length=by_length,
        chance=len(set(right)) / len(choices),
        longest_answer=shared([len(answer) for answer in answers or choices], right),
        tied=tied and any(likelihoods[index] == most for index in right),
    )


def score_sample(task: Any, sample: Mapping[str, Any]) -> DocumentScore:
    """The score of one document as lm-eval logged it; ``task`` is lm-eval's ``ConfigurableTask``.

    A task of another kind than multiple choice is scored by its first metric where that is a plain
    number for each document (``acc`` of LAMBADA, ``exact_match``).
    """
    doc = sample["doc"]
    if task.OUTPUT_TYPE != "multiple_choice" or callable(task.config.process_results):
        value = sample.get(first_metric(sample))
        return DocumentScore(float(value) if isinstance(value, int | float) else None)
    choices = task.doc_to_choice(doc)
    # Mutual information adds the answers without their question.
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]][: len(choices)]
    # In a task like WinoGrande the choices stand before a common end, and the text is the label.
    target = task.doc_to_text(doc) if task.multiple_input else sample["target"]
    targets = target if isinstance(target, list) else [target]
    right = [choices.index(t) if isinstance(t, str) and t in choices else t for t in targets]
    return multiple_choice(
        likelihoods,
        choices,
        [index for index in right if isinstance(index, int) and 0 <= index < len(choices)],
        _answers(doc, choices),
        "acc_norm" in sample["metrics"],
    )


def first_metric(sample: Mapping[str, Any]) -> str:
    """The metric that is a task's score: ``acc`` if it has it, or the first it names."""
    metrics = list(sample["metrics"])
    return "acc" if "acc" in metrics else str(metrics[0])


def summary(scores: Sequence[DocumentScore]) -> dict[str, Any]:
    """Means over the documents of a task, with the standard errors of the scores.

    The standard error is lm-eval's: the sample's standard deviation over the root of its size;
    None for a single document.
    """
    values: dict[str, Any] = {}
    for name in SCORES:
        values[name], values[f"{name}_stderr"] = _mean([getattr(s, name) for s in scores])
    for name in BASELINES:
        values[name] = _mean([getattr(s, name) for s in scores])[0]
    values["ties"] = sum(score.tied for score in scores)
    values["documents"] = len(scores)
    return values


def aggregate(group: Any, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The summary of an lm-eval ``Group`` from those of its tasks, weighted as the group says.

    MMLU weighs its subjects by size, BLiMP its paradigms equally; standard errors are pooled by
    lm-eval's own rule. Scores are None where the group has no mean of its own.
    """
    members = {task.task_name: tasks[task.task_name] for task in group.get_all_tasks()}
    values: dict[str, Any] = {}
    for name in SCORES:
        values[name], values[f"{name}_stderr"] = _group_mean(group, members, name)
    for name in BASELINES:
        values[name] = _group_mean(group, members, name)[0]
    for name in ("ties", "documents", "documents_available"):
        values[name] = sum(member[name] for member in members.values())
    return values


def _group_mean(
    group: Any, members: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[float | None, float | None]:
    if any(member[name] is None for member in members.values()):
        return None, None
    metrics = {
        task: {
            "acc,none": member[name],
            # lm-eval's word for one that is not known
            "acc_stderr,none": "N/A" if (error := member.get(f"{name}_stderr")) is None else error,
            "sample_len": member["documents"],
        }
        for task, member in members.items()
    }
    found = group.aggregate(metrics)
    value, error = found.get("acc,none"), found.get("acc_stderr,none")
    return (
        None if value is None else float(value),
        float(error) if isinstance(error, int | float | np.floating) else None,
    )


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    numbers = [value for value in values if value is not None]
    if not numbers or len(numbers) < len(values):
        return None, None
    error = float(np.std(numbers, ddof=1)) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return float(np.mean(numbers)), error


def _answers(doc: Mapping[str, Any], choices: Sequence[str]) -> Sequence[str] | None:
    """What the choices stand for where they are letters, as in MMLU: the document's own texts."""
    if any(len(choice.strip()) > 1 for choice in choices):
        return None
    texts = doc.get("choices")
    if isinstance(texts, Mapping):
        texts = texts.get("text")
    if not isinstance(texts, list) or len(texts) != len(choices):
        return None
    return texts if all(isinstance(text, str) for text in texts) else None
