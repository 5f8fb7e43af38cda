"""What a run's curve tells beside its numbers: what patches learned, spikes, steps left out,
rollbacks, the switch.

In sentences for the page and the terminal, and as marks in the figures. Plain text: whoever puts it
on a page escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patchtrain.report.formats import count, is_number, number, significant
from patchtrain.report.spikes import Spike, Switch
from patchtrain.report.summary import Row, RunSummary

_LISTED = 5  # steps named one by one


@dataclass(frozen=True)
class Mark:
    """Something to point at in the figures."""

    row: Row  # where: its counters
    loss: float  # at which height
    symbol: str  # of plotly's
    text: str


def sentences(run: RunSummary) -> list[str]:
    """What is worth telling of the curve, good or bad; often nothing but the switch."""
    return [*_learned(run), *_recoveries(run), *warnings(run)]


def _learned(run: RunSummary) -> list[str]:
    """Of each stage of patches, how far its loss came below that of token frequencies."""
    entropy = run.info.get("unigram_entropy")
    last = {row.get("stage"): row for row in run.events("train")}
    return [
        f"Patches of {row['patch_size']} came to a loss of {number(row['loss'])}, "
        f"{number(abs(beyond))} nats a token {'below' if beyond >= 0 else 'above'} the "
        f"{number(entropy)} that token frequencies alone give."
        for row in last.values()
        if is_number(beyond := row.get("beyond_unigram"))
        and is_number(entropy)
        and is_number(row.get("loss"))
        and is_number(row.get("patch_size"))
    ]


def warnings(run: RunSummary) -> list[str]:
    """What the curve gives reason to worry about."""
    found = [_slow(switch) for switch in run.switches if switch.slow]
    if run.spikes:
        found.append(_spiked(run))
    if skipped := run.events("nonfinite"):
        found.append(
            f"{count(len(skipped))} {'step was' if len(skipped) == 1 else 'steps were'} left out, "
            f"as a loss or gradient was nan or infinite ({_steps(skipped)})."
        )
    if back := run.events("rollback"):
        where = "; ".join(
            f"from step {count(row['step'])} to checkpoint-{row.get('to_step')}"
            for row in back[:_LISTED]
        )
        more = "; ..." if len(back) > _LISTED else ""
        times = "once" if len(back) == 1 else f"{count(len(back))} times"
        found.append(f"The run was rolled back {times}: {where}{more}.")
    return found


def marks(run: RunSummary) -> list[Mark]:
    """The spikes, the steps left out and the rollbacks, each with a place in the figures."""
    found = [
        Mark(dict(spike.row), spike.row["loss"], "triangle-up", f"spike: {_rise(run, spike)}")
        for spike in run.spikes
    ]
    loss = next((row["loss"] for row in run.events("train") if is_number(row.get("loss"))), None)
    for row in run.rows:  # what has no loss of its own is put at the last one before it
        event = row.get("event")
        if event == "train" and is_number(row.get("loss")):
            loss = row["loss"]
        if loss is None or event not in ("nonfinite", "rollback"):
            continue
        what = str(row.get("what") or "a loss or gradient became nan or infinite")
        if event == "rollback":
            text = f"rolled back to checkpoint-{row.get('to_step')}: {what}"
            found.append(Mark(row, loss, "triangle-left", text))
        else:
            found.append(Mark(row, loss, "x", f"step left out: {what}"))
    return found


def _recoveries(run: RunSummary) -> list[str]:
    """How soon the token level made up for the switch."""
    return [
        f"The token level came under the last patch loss ({number(switch.goal)}) after "
        f"{_of_its_steps(switch)}{_from_above(switch)}."
        for switch in run.switches
        if switch.patch_size == 1 and switch.recovered_after is not None and not switch.slow
    ]


def _from_above(switch: Switch) -> str:
    return "" if switch.rise < 0.005 else f", from {number(switch.rise, 2)} nats above it"


def _slow(switch: Switch) -> str:
    stage = "token-level" if switch.patch_size == 1 else f"patches-of-{switch.patch_size}"
    last = f"the last loss of patches of {switch.from_patch_size} ({number(switch.goal)})"
    if switch.recovered_after is None:
        what = f"never came under {last}, so it is too short to make up for the switch"
    else:
        what = f"came under {last} only after {_of_its_steps(switch)}, so it is short"
    return f"The {stage} stage {what}: give it more of the run."


def _of_its_steps(switch: Switch) -> str:
    if switch.steps is None:
        return f"{count(switch.recovered_after)} steps"
    return f"{count(switch.recovered_after)} of its {count(switch.steps)} steps"


def _spiked(run: RunSummary) -> str:
    highest = max(run.spikes, key=lambda spike: spike.height)
    if len(run.spikes) == 1:
        return f"The training loss spiked: {_rise(run, highest)}."
    times = f"The training loss spiked {count(len(run.spikes))} times"
    return f"{times}; the highest: {_rise(run, highest)}."


def _rise(run: RunSummary, spike: Spike) -> str:
    """``+0.82 nats at step 310, back after 40 steps``."""
    if spike.back_after is not None:
        end = f"back after {count(spike.back_after)} steps"
    elif run.status == "running" and spike is run.spikes[-1]:
        end = "not back yet"
    else:
        end = "not back by the end of its stage"
    return f"+{significant(spike.height, 2)} nats at step {count(spike.step)}, {end}"


def _steps(rows: Sequence[Row]) -> str:
    shown = ", ".join(count(row["step"]) for row in rows[:_LISTED])
    return f"step{'s' if len(rows) > 1 else ''} {shown}{', ...' if len(rows) > _LISTED else ''}"
