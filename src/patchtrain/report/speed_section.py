"""How fast each stage was on its machine: a table of the page, from the run's own metrics."""

from __future__ import annotations

from typing import Any

from patchtrain.evaluation.throughput import Peak, known_peak, rates
from patchtrain.report.formats import NONE, count, duration, flops, is_number, percent
from patchtrain.report.summary import RunSummary
from patchtrain.report.tables import table
from patchtrain.report.template import note


def speed(run: RunSummary) -> str:
    """Tokens, positions and operations a second by stage, and what was lost to waiting."""
    peak = peak_of(run)
    rows = []
    for stage in run.stages:
        found = rates(stage.done, peak) if stage.done else {}
        rows.append([stage.name, *cells(found)])
    head = ["stage", "steps done", "time", "tokens/s", "positions/s", "compute rate"]
    head += ["of the peak", "waiting for data"]
    return table(head, rows, f"Speed of {run.name}") + _note(run, peak)


def cells(found: dict[str, Any]) -> list[str]:
    """What ``throughput.rates`` found, or nothing of a stage that has not begun, as text."""
    waited = percent(found.get("data_share"))
    if found and found["data_share"] is None:
        waited = "not recorded"
    return [
        count(found.get("steps")),
        duration(found.get("seconds")),
        count(found.get("tokens_per_s")),
        count(found.get("positions_per_s")),
        flops(found.get("flop_per_s"), per_second=True),
        percent(found.get("peak_share")),
        waited if found else NONE,
    ]


def peak_of(run: RunSummary) -> Peak | None:
    """The peak that ``patchtrain eval --speed`` last measured or was told, or the device's own."""
    for result in reversed(run.measured("throughput").values()):
        told = result.get("peak")
        if isinstance(told, dict) and is_number(told.get("flop_per_s")) and told["flop_per_s"] > 0:
            return Peak(float(told["flop_per_s"]), str(told.get("source")))
    return known_peak(run.info)


def _note(run: RunSummary, peak: Peak | None) -> str:
    said = "Time leaves out evaluation. Compute is the model's own, by formula."
    if peak is not None:
        said += f" The peak is {flops(peak.flops, per_second=True)} ({peak.source})."
    elif any(stage.done for stage in run.stages):
        said += " The peak of this device is not known: patchtrain eval --speed measures it."
    return note(said)
