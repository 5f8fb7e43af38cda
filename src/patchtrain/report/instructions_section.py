"""Following instructions on the page: the loss of answers, IFEval, MT-Bench."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from patchtrain.report.formats import NONE, accuracy, count, number, with_error
from patchtrain.report.summary import Row, RunSummary
from patchtrain.report.tables import table

_ANSWERS_NOTE = (
    "Loss of the answers alone, in nats per token, ± standard error; prompts are not counted. "
    "Before is the model that was tuned, on the same answers."
)
_IFEVAL_NOTE = (
    "IFEval: share of prompts whose instructions were all followed, and of instructions, ± "
    "standard error. Loose also takes an answer without its first line, its last line or its "
    "asterisks."
)
_MT_BENCH_NOTE = (
    "MT-Bench: mean rating from 1 to 10 ± standard error over questions. Ratings compare only "
    "under the same judge. Answers it gave no rating to are in no mean."
)


def instructions_section(runs: Sequence[RunSummary]) -> str:
    """A table for each of the three, and what each is made of folded away."""
    return "".join(part(runs) for part in (_answers, _ifeval, _mt_bench))


def _measured(runs: Sequence[RunSummary], measure: str) -> Iterator[tuple[str, str, Row]]:
    """``(run, name, values)`` of the results of one measure."""
    for run in runs:
        for name, values in run.measured("instructions").items():
            if values.get("measure") == measure:
                yield run.name, name, values


def _section(heading: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    return (
        f'<div class="last"><h3>{heading}</h3>{table(head, rows, heading)}</div>'
        f'<p class="note">{html.escape(note)}</p>'
    )


def _answers(runs: Sequence[RunSummary]) -> str:
    rows = [
        [
            run,
            name,
            with_error(values.get("loss"), values.get("loss_stderr"), 4),
            number(_part(values, "before").get("loss"), 4),
            count(values.get("targets")),
            str(values.get("scored") or NONE),
        ]
        for run, name, values in _measured(runs, "answers")
    ]
    head = ["run", "answers", "loss", "before", "tokens", "what was scored"]
    return _section("Answers", head, rows, _ANSWERS_NOTE) if rows else ""


def _ifeval(runs: Sequence[RunSummary]) -> str:
    found = list(_measured(runs, "ifeval"))
    kinds = [(level, kind) for level in ("prompt", "instruction") for kind in ("strict", "loose")]
    rows = [
        [
            run,
            name,
            *(
                accuracy(values.get(f"{level}_{kind}"), values.get(f"{level}_{kind}_stderr"))
                for level, kind in kinds
            ),
            count(values.get("prompts")),
            count(values.get("not_ended")),
        ]
        for run, name, values in found
    ]
    if not rows:
        return ""
    head = ["run", "result", *(f"{level}s, {kind}, %" for level, kind in kinds)]
    parts = [
        [run, str(group), *(accuracy(_dict(of).get(kind)) for kind in ("strict", "loose")),
         count(_dict(of).get("instructions"))]
        for run, _, values in found
        for group, of in _part(values, "by_group").items()
    ]  # fmt: skip
    return _section("IFEval", [*head, "prompts", "answers not ended"], rows, _IFEVAL_NOTE) + (
        f"<details><summary>By kind of instruction</summary>"
        f"{table(['run', 'kind', 'strict, %', 'loose, %', 'instructions'], parts, 'IFEval')}"
        f"</details>"
    )


def _mt_bench(runs: Sequence[RunSummary]) -> str:
    found = list(_measured(runs, "mt_bench"))
    rows = [
        [
            run,
            name,
            _rating(values),
            *(_rating(_dict(_part(values, "turns").get(turn))) for turn in ("1", "2")),
            count(values.get("rated")),
            count(values.get("unrated")),
            str(_part(values, "judge").get("model") or NONE),
        ]
        for run, name, values in found
    ]
    if not rows:
        return ""
    parts = [
        [run, str(category), _rating(_dict(of)), count(_dict(of).get("rated"))]
        for run, _, values in found
        for category, of in _part(values, "categories").items()
    ]
    head = ["run", "result", "rating", "turn 1", "turn 2", "rated", "not rated", "judge"]
    return _section("MT-Bench", head, rows, _MT_BENCH_NOTE) + (
        f"<details><summary>By category</summary>"
        f"{table(['run', 'category', 'rating', 'rated'], parts, 'MT-Bench')}</details>"
    )


def _rating(values: Row) -> str:
    return with_error(values.get("score"), values.get("score_stderr"), 2)


def _part(values: Row, name: str) -> Row:
    return _dict(values.get(name))


def _dict(value: Any) -> Row:
    return value if isinstance(value, dict) else {}
