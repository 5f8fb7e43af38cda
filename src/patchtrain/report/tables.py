"""The tables of the page, as HTML. Every cell is escaped here, whoever wrote it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from patchtrain.report.figures import COLOURS
from patchtrain.report.formats import (
    NONE,
    count,
    duration,
    flops,
    is_number,
    number,
    percent,
    significant,
)
from patchtrain.report.summary import RunSummary, StageSummary
from patchtrain.report.words import stage_tokens


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str) -> str:
    """An HTML table of plain text; the first column is a heading. Scrolls on a narrow screen."""
    columns = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def run_heading(run: RunSummary, number_: int) -> str:
    """The run's name with the dot of its colour in the figures."""
    colour = COLOURS[number_ % len(COLOURS)]
    return f'<h3><span class="dot" style="background:{colour}"></span>{html.escape(run.name)}</h3>'


def results_table(runs: Sequence[RunSummary]) -> str:
    """How the runs ended and what they spent: one column a run."""
    lines: list[tuple[str, list[str]]] = [
        ("bits per byte", [number(run.result.get("bits_per_byte"), 4) for run in runs]),
        ("validation loss (nats per token)", [number(run.result.get("loss"), 4) for run in runs]),
        ("perplexity per token", [number(run.result.get("perplexity"), 2) for run in runs]),
        (
            "perplexity per word",
            [significant(run.result.get("word_perplexity"), 4) for run in runs],
        ),
        ("tokens measured", [count(run.result.get("targets")) for run in runs]),
        ("window and stride", [window(run.result) for run in runs]),
        ("tokens read", [count(run.total("tokens")) for run in runs]),
        ("positions computed", [count(run.total("positions")) for run in runs]),
        ("compute", [flops(run.total("flops")) for run in runs]),
        ("training time", [duration(run.total("seconds")) for run in runs]),
        ("compute against token level on the same tokens", [_ratio(run) for run in runs]),
        ("parameters", [count(run.part("model").get("parameters")) for run in runs]),
        ("without embeddings", [count(run.part("model").get("body_parameters")) for run in runs]),
        ("status", [run.status for run in runs]),
    ]
    rows = [[name, *cells] for name, cells in lines if set(cells) != {NONE}]
    return table(["", *(run.name for run in runs)], rows, "Results")


def stages_table(run: RunSummary) -> str:
    """What the plan made of each stage."""
    planned = run.plan.get("stages") or []
    shares = _compute_shares(run)
    rows = []
    for stage, values, share in zip(run.stages, planned, shares, strict=True):
        rows.append(
            [
                stage.name,
                str(stage.patch_size),
                count(stage.planned_steps),
                count(stage_tokens(run, stage.index)),
                count(values.get("positions")),
                count(values.get("tokens_per_step")),
                _learning_rate(run, stage),
                percent(share),
            ]
        )
    head = [
        "stage",
        "K",
        "steps",
        "tokens",
        "positions",
        "tokens a step",
        "learning rate",
        "compute",
    ]
    return table(head, rows, f"Stages of {run.name}")


def machine_table(runs: Sequence[RunSummary]) -> str:
    """Versions, machine and data of each run."""
    keys: list[tuple[str, str]] = []
    for run in runs:
        for part in ("versions", "machine", "store"):
            keys += [(part, key) for key in run.part(part) if (part, key) not in keys]
    rows = [
        [_key_title(part, key), *(_plain(run.part(part).get(key)) for run in runs)]
        for part, key in keys
    ]
    for key in ("seed", "started", "finished", "command"):
        rows.append([key, *(_plain(run.info.get(key)) for run in runs)])
    return table(["", *(run.name for run in runs)], rows, "Versions and machine")


def samples_grid(runs: Sequence[RunSummary]) -> str:
    """Completions side by side, prompt by prompt."""
    prompts = list(dict.fromkeys(sample["prompt"] for run in runs for sample in run.samples))
    blocks = []
    for prompt in prompts:
        cards = []
        for index, run in enumerate(runs):
            for sample in run.samples:
                if sample["prompt"] == prompt:
                    heading = run_heading(run, index) if len(runs) > 1 else ""
                    cards.append(
                        f'<div class="card">{heading}<p class="sample"><b>{html.escape(prompt)}</b>'
                        f"{html.escape(sample['completion'])}</p></div>"
                    )
        blocks.append(f'<div class="grid">{"".join(cards)}</div>')
    return "".join(blocks)


def window(values: dict[str, Any]) -> str:
    """Context length and stride of a result."""
    if not is_number(values.get("context_length")):
        return NONE
    return f"{values['context_length']}, stride {values.get('stride', NONE)}"


def _ratio(run: RunSummary) -> str:
    ratio = run.plan.get("compute_ratio")
    return percent(ratio) if is_number(ratio) else NONE


def _compute_shares(run: RunSummary) -> list[float | None]:
    """Share of the run's FLOPs if every stage is done, else of the planned positions."""
    if all(stage.done for stage in run.stages) and run.status == "finished":
        parts = [stage.done["flops"] if stage.done else 0.0 for stage in run.stages]
    else:
        planned = run.plan.get("stages") or []
        parts = [float(stage.get("positions") or 0) for stage in planned]
    total = sum(parts)
    return [part / total if total else None for part in parts]


def _learning_rate(run: RunSummary, stage: StageSummary) -> str:
    schedule = run.plan.get("schedule")
    scope = {"stage": "anew in each stage", "run": "one over the run"}.get(
        str(run.plan.get("schedule_scope")), ""
    )
    words = ", ".join(part for part in (str(schedule) if schedule else "", scope) if part)
    if not stage.learning_rates:
        return words or NONE
    peak, last = max(stage.learning_rates), stage.learning_rates[-1]
    values = f"{_rate(peak)} → {_rate(last)}" if peak != last else _rate(peak)
    return f"{values} ({words})" if words else values


def _rate(value: float) -> str:
    return f"{value:.2g}"


def _key_title(part: str, key: str) -> str:
    title = key.replace("_", " ")
    return f"store {title}" if part == "store" and not title.startswith("store") else title


def _plain(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return str(value)
