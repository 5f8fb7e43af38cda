"""MT-Bench (Zheng et al. 2023, arXiv:2306.05685): 80 questions of two turns, graded by a model.

As its authors do it: the answers are written with a temperature that goes by category, the judge
sees one answer at a time (the second with the whole conversation) and a reference where there is
one, and ends with a rating from 1 to 10 in double brackets. The judge's instructions are in our
words. A score is comparable with another only under the same judge; published ones are of GPT-4
with the authors' own instructions.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from patchtrain import chat
from patchtrain.data.rows import file_rows
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.answering import Decoding, answer
from patchtrain.evaluation.judge import Judge, text_of
from patchtrain.evaluation.kept_lines import KeptLines, key_of
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.uncertainty import ratio_stderr
from patchtrain.model_folder import fingerprint

HUB_QUESTIONS = "hf:HuggingFaceH4/mt_bench_prompts"
MAX_NEW_TOKENS = 1024  # the authors'
TURNS = 2
_TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1,
                 "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0}  # fmt: skip
_OTHER_TEMPERATURE = 0.7
_SEED = 0
_AT_A_TIME = 4  # requests to the judge
_RATING = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")

_INSTRUCTIONS = """\
You grade the answers of an AI assistant. Be fair and strict, and judge what is written, not how \
long it is. Look at whether the answer is correct, helps with what was asked, keeps to what was \
asked, goes deep enough, is original where that is wanted, and gives enough detail.{reference}{turn}
First explain your judgement in a few sentences. Then give the rating, a whole number from 1 (very \
poor) to 10 (excellent), on a line of its own and in exactly this form: Rating: [[5]]"""
_WITH_REFERENCE = """
You also get a reference answer that is known to be good. Compare with it, find the mistakes of \
the assistant and hold them against it."""
_SECOND_TURN = """
You get a conversation of two questions. Grade the assistant's answer to the second one only; the \
first is there for you to understand it."""


@dataclass(frozen=True)
class Question:
    """Two turns of a user; ``references`` is empty or has one for each."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...]


def read_questions(file: str | None, first: int | None = None) -> list[Question]:
    """MT-Bench's questions from a file of JSON lines, or from the hub; only the ``first`` ones.

    Raises:
        UsageError: there are none.
        PatchtrainError: a row is no question of MT-Bench, with its file and line.
    """
    found: list[Question] = []
    for where, row in file_rows(file or HUB_QUESTIONS, "holds no questions: give JSON lines"):
        turns: Any = row.get("turns", row.get("prompt"))
        reference: Any = row.get("reference") or []
        if not _texts(turns) or len(turns) != TURNS or not isinstance(row.get("category"), str):
            raise PatchtrainError(
                f"{where} is no question of MT-Bench: it needs turns, a list of two texts, and "
                "category"
            )
        if not isinstance(reference, list) or (reference and not _texts(reference)):
            raise PatchtrainError(f"{where}: the reference is not a list of texts")
        name = row.get("question_id", row.get("prompt_id", len(found) + 1))
        given = tuple(reference) if len(reference) == TURNS else ()
        found.append(Question(str(name), row["category"], tuple(turns), given))
        if len(found) == first:
            break
    if not found:
        raise UsageError(f"there is no question in {file}")
    if len({question.id for question in found}) < len(found):
        raise PatchtrainError(f"{file or HUB_QUESTIONS} has two questions of the same question_id")
    return found


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)


def write_answers(
    loaded: LoadedModel,
    questions: Sequence[Question],
    kept: KeptLines,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """The model's two answers to each question, by its id; taken from ``kept`` where they are.

    Each is drawn with a seed of its own, so that neither order nor a resume changes it.
    ``progress`` is told of every answer.
    """
    model, found = fingerprint(loaded.path), {}
    for question in questions:
        talk: chat.Messages = []
        rows = []
        temperature = _TEMPERATURES.get(question.category, _OTHER_TEMPERATURE)
        for turn, text in enumerate(question.turns):
            talk.append({"role": "user", "content": text})
            own = zlib.crc32(f"{_SEED} {question.id} {turn}".encode())
            how = Decoding(max_new_tokens, temperature, own)
            prompt = chat.render(loaded.tokenizer, talk, "a question of MT-Bench", prompt=True)
            key = key_of(model, prompt, max_new_tokens, temperature, own)
            row = kept.get(key)
            if row is None:
                about = {"question_id": question.id, "turn": turn + 1, "messages": list(talk),
                         "temperature": temperature, "seed": own}  # fmt: skip
                row = kept.add(key, {**about, **answer(loaded, talk, how).to_dict()})
            rows.append(row)
            talk.append({"role": "assistant", "content": row["text"]})
            if progress is not None:
                progress(1)
        found[question.id] = rows
    return found


def requests_of(question: Question, answers: Sequence[str]) -> list[chat.Messages]:
    """What the judge is asked about the answers to a question, one request a turn."""
    requests = []
    for turn in range(TURNS):
        instructions = _INSTRUCTIONS.format(
            reference=_WITH_REFERENCE if question.references else "",
            turn=_SECOND_TURN if turn else "",
        )
        parts = []
        for index in range(turn + 1):
            number = f" {index + 1}" if turn else ""
            parts.append(f"<question{number}>\n{question.turns[index]}\n</question{number}>")
            if question.references:
                text = question.references[index]
                parts.append(f"<reference answer{number}>\n{text}\n</reference answer{number}>")
            parts.append(f"<assistant{number}>\n{answers[index]}\n</assistant{number}>")
        requests.append(
            [
                {"role": "system", "content": instructions},
                {"role": "user", "content": "\n\n".join(parts)},
            ]
        )
    return requests


def rating_of(text: str) -> float | None:
    """The last rating in double brackets, from 1 to 10; None where there is none."""
    found = _RATING.findall(text)
    rating = float(found[-1]) if found else 0.0
    return rating if 1 <= rating <= 10 else None


def judge_answers(
    judge: Judge,
    questions: Sequence[Question],
    answers: dict[str, list[dict[str, Any]]],
    kept: KeptLines,
    progress: Callable[[int], None] | None = None,
) -> dict[str, list[float | None]]:
    """The ratings of both turns of each question, by its id; None where the judge gave none.

    What the judge says is kept as it is, as soon as it is said, and what ``kept`` has already is
    not asked again. Several requests run at a time. ``progress`` is told of every judgement.

    Raises:
        PatchtrainError: the judge cannot be asked; see ``Judge.ask``.
    """
    wanted: dict[tuple[str, int], tuple[str, chat.Messages]] = {}
    for question in questions:
        texts = [row["text"] for row in answers[question.id]]
        for turn, messages in enumerate(requests_of(question, texts)):
            key = key_of(judge.url, judge.model, messages)
            wanted[question.id, turn] = (key, messages)
    # Two answers may be the same, as may be two requests: each is asked once.
    missing = {key: (place, messages) for place, (key, messages) in wanted.items()
               if kept.get(key) is None}  # fmt: skip
    if progress is not None:
        progress(len(wanted) - len(missing))

    def keep(done: Future[dict[str, Any]]) -> None:
        key, response = asked[done], done.result()
        (id_, turn), messages = missing[key]
        about = {"question_id": id_, "turn": turn + 1, "judge": judge.model, "messages": messages}
        kept.add(key, {**about, "rating": rating_of(text_of(response)), "response": response})
        if progress is not None:
            progress(1)

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        asked = {pool.submit(judge.ask, messages): key for key, (_, messages) in missing.items()}
        try:
            for done in as_completed(asked):
                keep(done)
        except BaseException:
            judge.stop.set()  # those that wait for another try do not
            pool.shutdown(cancel_futures=True)
            for done in asked:
                if done.cancelled() or done.exception() or kept.get(asked[done]):
                    continue
                keep(done)
            raise
    found: dict[str, list[float | None]] = {}
    for question in questions:
        rows = [kept.rows[wanted[question.id, turn][0]] for turn in range(TURNS)]
        found[question.id] = [rating_of(text_of(row["response"])) for row in rows]
    return found


def summary(
    questions: Sequence[Question], ratings: dict[str, list[float | None]]
) -> dict[str, Any]:
    """Mean ratings over all, by turn and by category, with standard errors over questions.

    A judgement without a rating is counted in ``unrated`` and in no mean. What nothing was rated
    of has None for a mean.
    """
    categories = dict.fromkeys(question.category for question in questions)
    return {
        "measure": "mt_bench",
        **_means(ratings.values()),
        "turns": {
            str(turn + 1): _means([both[turn]] for both in ratings.values())
            for turn in range(TURNS)
        },
        "categories": {
            category: {
                **_means(ratings[q.id] for q in questions if q.category == category),
                "turns": [
                    _means([ratings[q.id][turn]] for q in questions if q.category == category)
                    for turn in range(TURNS)
                ],
            }
            for category in categories
        },
        "questions": len(questions),
        "with_reference": sum(bool(question.references) for question in questions),
    }


def _means(groups: Any) -> dict[str, Any]:
    """Mean rating and its standard error, the ratings of one question taken together."""
    groups = [list(group) for group in groups]
    rated = [[r for r in group if r is not None] for group in groups]
    number = sum(map(len, rated))
    some = [group for group in rated if group]
    return {
        "score": sum(map(sum, some)) / number if number else None,
        "score_stderr": (
            ratio_stderr([sum(group) for group in some], [float(len(group)) for group in some])
            if number
            else None
        ),
        "rated": number,
        "unrated": sum(map(len, groups)) - number,
    }
