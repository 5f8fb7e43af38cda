"""A comparison in words and rows: what its page and the terminal say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchtrain.report.formats import (
    NONE,
    count,
    duration,
    exact,
    flops,
    number,
    seeds_in_words,
    significant,
)
from patchtrain.report.study_page import interval

Row = Mapping[str, Any]
_LENGTHS = ("plan.steps", "plan.tokens", "plan.epochs")
_MOST_SAID = 4  # contenders that the verdict has a sentence for


def verdict(results: Row) -> list[str]:
    """Which contender ended where against token level, in sentences; the best first."""
    ranked = ranking(results)
    compared = [item for item in ranked if item["difference"]]
    astray = [
        f"{item['name']} diverged at every rate it was tried at."
        for item in results["contenders"]
        if item["tried"] and all(tried["diverged"] for tried in item["tried"])
    ]
    if not compared:
        still = "Nothing can be said yet: no contender and its reference are both finished."
        return astray[:_MOST_SAID] or [still]
    said = compared
    if results["name"] == "sweep":  # over models, the largest ends lowest whatever patches do
        said = sorted(compared, key=lambda item: (-item["difference"]["count"],
                                                  item["difference"]["mean"]))[:1]  # fmt: skip
    sentences = [_sentence(item) for item in said[:_MOST_SAID]]
    first = [item for item in results["contenders"] if first_difference(results, item) is not None]
    if results["name"] == "sweep" and first:
        better = sum((first_difference(results, item) or 0) < 0 for item in first)
        sentences.append(
            f"Of {len(first)} points {better} ended below token level with "
            f"{tuned_on(results)}; the best of many is flattered by chance, which only other "
            f"seeds can tell."
        )
    return sentences + astray[:_MOST_SAID]


def held(results: Row) -> list[str]:
    """What is held equal, by which seeds, and how the rates were taken."""
    seeds, what = results["seeds"], results["held_equal"]
    target = next((arm["target"] for arm in results["arms"] if "target" in arm), None)
    amount = {"compute": flops, "data": lambda value: f"{count(value)} tokens"}[what](target)
    sentences = [
        f"Held equal: {what}"
        + (f", {amount} a run" if target is not None and not _lengths(results) else "")
        + f". Seeds: {', '.join(map(str, seeds))}; runs with the same seed are paired."
    ]
    rates, chose = results["rates"], "it" if len(results["tuning_seeds"]) == 1 else "them"
    if results["trials"]:
        sentences.append(
            f"{len(results['trials'])} trials searched, each a point at one learning rate with "
            f"{tuned_on(results)}; token level was tried at "
            f"{', '.join(map(exact, rates)) or 'the rate of the recipe'}. Each is "
            f"taken at the best of its own; the column 'other seeds' is without {chose}."
        )
    elif len(rates) > 1:
        listed = ", ".join(map(exact, rates))
        sentences.append(
            f"Every arm {'was' if results['complete'] else 'is to be'} trained at the learning "
            f"rates {listed} with {tuned_on(results)}, and is taken at its own best of them. What "
            f"chose the rates is also among what is compared, which flatters most the arm whose "
            f"runs vary most; the column 'other seeds' is without {chose}."
        )
    elif len(set(map(_rate, results["contenders"])) - {None}) > 1:
        sentences.append("Each arm has the learning rate it was given; no other was tried.")
    else:
        sentences.append(
            "All contenders have one learning rate, which may suit some better than others: "
            "compare each at its own best before believing a difference."
        )
    if results["confirm"] is not None and len(seeds) > 1:
        sentences.append(
            f"Only the {results['confirm']} points that gained most with {tuned_on(results)}, and "
            f"what they are compared with, were trained on the other seeds."
        )
    if edges := [item["name"] for item in results["contenders"] if item.get("edge")]:
        sentences.append(
            f"At the edge of the rates tried, so that a better one may lie beyond: "
            f"{', '.join(edges)}."
        )
    if (rate := results.get("budget_rate")) is not None:
        sentences.append(f"Token level's other budgets were trained at the rate {exact(rate)}.")
    budgets = [f"{name}-seed-" for name in results["budgets"].values()]
    if any(run.startswith(name) for run in results.get("diverged", []) for name in budgets):
        sentences.append(
            "Where a run at a budget diverged, its seed's ratio is read off between the others."
        )
    for name, reason in results["about"].get("left_out", {}).items():
        sentences.append(f"The arm {name} is left out: {reason}.")
    if len(seeds) < 2:
        sentences.append("One seed says nothing of the spread: no difference here has an interval.")
    else:
        sentences.append(
            f"Intervals are of {results['confidence']:.0%}, Student's t over paired seeds, each of "
            f"one comparison alone."
        )
    return sentences


def ranking(results: Row) -> list[Row]:
    """Contenders that have an end, the best first: those with all seeds before the others."""
    ended = [item for item in results["contenders"] if item["bits_per_byte"]]
    return sorted(
        ended, key=lambda item: (-len(item["seeds"]), item["bits_per_byte"]["mean"], item["name"])
    )


CONTENDER_HEAD = (
    "arm", "bits per byte", "deviation", "difference", "interval", "other seeds", "seeds", "rate",
    "tokens read", "compute", "time",
)  # fmt: skip


def contender_rows(results: Row) -> list[list[str]]:
    """A row for each contender; the cells of ``CONTENDER_HEAD``."""
    rows = []
    for item in [*ranking(results), *(i for i in results["contenders"] if not i["bits_per_byte"])]:
        ended, difference = item["bits_per_byte"] or {}, item["difference"] or {}
        unseen = difference.get("unseen") or {}
        rows.append(
            [
                item["name"],
                number(ended.get("mean"), 4),
                number(ended.get("standard_deviation"), 4),
                _signed(difference.get("mean")),
                interval(difference) if difference else NONE,
                with_interval(unseen),
                str(len(item.get("seeds", []))),
                significant(item.get("learning_rate")),
                count(item.get("tokens")),
                flops(item.get("flops")),
                duration((item.get("seconds") or {}).get("mean")),
            ]
        )
    return rows


LOSS_HEAD = ("arm", "compute ratio", "interval", "time ratio", "interval of time",
             "seeds with a ratio")  # fmt: skip


def loss_rows(results: Row) -> list[list[str]]:
    """At equal loss: a row for each contender that has a ratio; the cells of ``LOSS_HEAD``."""
    rows = []
    for item in ranking(results):
        if found := item["equal_loss"]:
            compute, time = found["compute"], found["time"]
            inside = f"{compute['inside']} of {compute['count']}" if compute else NONE
            rows.append([item["name"], *_ratio(compute), *_ratio(time), inside])
    return rows


def budget_rows(results: Row) -> tuple[list[str], list[list[str]]]:
    """Head and rows: each contender less token level with shares of its compute, with intervals."""
    budgets = list(results["budgets"])
    rows = []
    for item in ranking(results):
        against = (item["equal_loss"] or {}).get("against") or {}
        there = [against.get(budget) for budget in budgets]
        cells = [with_interval(row) if row else "" for row in there]
        if any(cells):
            rows.append([item["name"], *cells])
    return ["arm", *(f"{budget} x" for budget in budgets)], rows


def tuned_on(results: Row) -> str:
    """``seed 0``, ``seeds 0, 1, 2``: what chose the learning rates."""
    return seeds_in_words(results["tuning_seeds"])


def rate_rows(results: Row) -> tuple[list[str], list[list[str]]]:
    """Head and rows: what each contender ended at on the tuning seeds, by learning rate."""
    rates = sorted({t["learning_rate"] for item in results["contenders"] for t in item["tried"]
                    if t["learning_rate"] is not None})  # fmt: skip
    rows = []
    for item in results["contenders"]:
        ended = {tried["learning_rate"]: tried for tried in item["tried"]}
        cells = []
        for rate in rates:
            tried = ended.get(rate)
            mark = " *" if tried and tried["variant"] == item["chosen"] else ""
            cells.append(number(tried["bits_per_byte"], 4) + mark if tried else "")
        rows.append([item["name"], *cells])
    return ["arm", *map(exact, rates)], rows


def first_difference(results: Row, item: Row) -> float | None:
    """A contender's best on the tuning seeds less its reference's; None where one is missing."""
    reference = next((c for c in results["contenders"] if c["name"] == item["reference"]), None)
    ends = [first_end(side) for side in (item, reference) if side is not None]
    if len(ends) < 2 or ends[0] is None or ends[1] is None:
        return None
    return ends[0] - ends[1]


def first_end(item: Row) -> float | None:
    """The best that a contender ended at on the tuning seeds."""
    ends = [t["bits_per_byte"] for t in item["tried"] if t["bits_per_byte"] is not None]
    return min(ends, default=None)


def lost_notes(results: Row) -> list[str]:
    """What is missing: runs to come, runs that failed, contenders that could not be trained."""
    notes = []
    if results["runs_there"] < results["runs_wanted"] or not results["complete"]:
        there, wanted = results["runs_there"], results["runs_wanted"]
        notes.append(
            f"{there} of the {wanted} runs asked for so far are finished"
            + (f", {lost} diverged" if (lost := len(results.get("diverged", []))) else "")
            + ("." if results["complete"] else "; the same command goes on.")
        )
    notes += [f"{name} failed: {reason}" for name, reason in results["failed"].items()]
    notes += [f"{name} was not trained: {reason}" for name, reason in results["unfit"].items()]
    return notes


def _rate(item: Row) -> float | None:
    """The rate a contender was taken at, or the first one tried where it never ended."""
    tried = [one["learning_rate"] for one in item["tried"]]
    rate: float | None = item.get("learning_rate", tried[0] if tried else None)
    return rate


def _sentence(item: Row) -> str:
    found = item["difference"]
    mean, low_high = found["mean"], found["interval"]
    side = "below" if mean < 0 else "above"
    text = f"{item['name']} ended {abs(mean):.4f} bits per byte {side} {item['reference']}"
    if low_high is None:
        text += ", with one seed"
    else:
        text += f" (interval {interval(found)}, {found['count']} seeds)"
        if low_high[0] <= 0 <= low_high[1]:
            text += "; the interval holds zero, so this is no evidence of a difference"
    if lost := item.get("lost_seeds"):
        text += f"; with {seeds_in_words(lost)} it diverged, which no figure here can show"
    if compute := (item["equal_loss"] or {}).get("compute"):
        ratio, ends = compute["mean"], compute["interval"]
        shown = "" if ratio is None else f"{ratio:.2f}"
        for side, value in (compute["bound"] or {}).items():
            shown = f"{'less' if side == 'below' else 'more'} than {value:.2f}"
        if shown:
            text += f". For the same loss it took {shown} of the compute that token level needs"
        text += f" (interval {ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    return text + "."


def _ratio(found: Row | None) -> tuple[str, str]:
    if not found:
        return NONE, NONE
    if found["mean"] is not None:
        ends = found["interval"]
        shown = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else NONE
        return f"{found['mean']:.3f}", shown
    words = [f"{side} {value:.3f}" for side, value in (found["bound"] or {}).items()]
    sides = {side for bound in found["bounds"].values() for side in bound}
    unknown = "on both sides of what was trained" if len(sides) > 1 else "not known"
    return words[0] if words else unknown, NONE


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+z.4f}"


def with_interval(found: Row) -> str:
    """A mean difference, with its interval where it has one: ``-0.0312 (-0.0401 to -0.0223)``."""
    if not found or found["interval"] is None:
        return _signed(found.get("mean"))
    return f"{_signed(found['mean'])} ({interval(found)})"


def _lengths(results: Row) -> Sequence[str]:
    return [path for path in results["axes"] if path in _LENGTHS]
