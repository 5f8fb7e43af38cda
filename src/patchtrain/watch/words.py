"""A state in words: the same in the terminal, on the page and in a log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from patchtrain.report.formats import NONE, count, duration, flops, number, percent, significant
from patchtrain.watch.state import State
from patchtrain.watch.status import STATUSES


def headline(state: State) -> str:
    """One sentence: which run, and how it stands."""
    if state.status == "waiting":
        return f"{state.name} has not started yet: there is no run at {state.path}"
    if state.status == "finished" and (loss := state.result.get("loss")):
        return f"{state.name} is finished, with a validation loss of {number(loss)}"
    if state.status == "stalled" and state.process and state.process.paused:
        return f"{state.name} stands still: its process is suspended"
    what = STATUSES[state.status]
    if state.status == "stalled" and state.line_at is not None:
        what = f"has written nothing for {duration(state.at - state.line_at)}"
    where = f" at step {state.step:,}" if state.status in ("stopped", "failed", "gone") else ""
    how = "; --resume goes on" if state.status in ("stopped", "failed", "gone") else ""
    return f"{state.name} {what}{where}{how}"


def facts(state: State) -> list[tuple[str, str]]:
    """What is known, as label and value, in the order of interest."""
    if not state.stages:
        return _ends(state)
    last, train, validation = state.last, state.last_train, state.last_eval
    found = [
        ("step", f"{state.step:,} of {state.total_steps:,}, {percent(state.share)} of the compute"),
        ("stage", _stage(state)),
    ]
    if len(state.stages) > 1:
        found.append(("switch", _switch(state)))
    if train is not None:
        kind = f"patch loss, K={train.patch_size}" if train.patch_size > 1 else "token loss"
        found.append(("training loss", f"{number(train.loss)} ({kind})"))
    if validation is not None:
        bits = validation.bits_per_byte
        more = f", {number(bits)} bits per byte" if bits is not None else ""
        found.append(
            ("validation loss", f"{number(validation.loss)} at step {validation.step:,}{more}")
        )
    if train is not None:
        found.append(("learning rate", significant(train.learning_rate)))
    if state.tokens_per_s is not None and not state.over:
        found.append(("speed", _speed(state)))
    tokens = f"{count(last.tokens if last else 0)} of {count(state.total_tokens)}"
    compute = f"{flops(last.flops if last else 0)} of {flops(state.total_flops)}"
    found += [
        ("tokens read", tokens),
        ("compute", compute),
        ("training time", duration(last.seconds if last else 0)),
    ]
    if state.left is not None:
        found.append(("time left", duration(state.left)))
        found.append(("expected end", clock(state.ends_at, state.at)))
    return found + _ends(state)


COLUMNS = ("run", "state", "done", "loss", "validation", "tokens/s", "left", "ends")


def cells(state: State) -> list[str]:
    """A run as a row of a table with ``COLUMNS``."""
    train, validation = state.last_train, state.last_eval
    loss = state.result.get("loss", validation.loss if validation else None)
    return [
        state.name,
        state.status,
        percent(state.share) if state.stages else "",
        number(train.loss) if train else "",
        number(loss) if loss is not None else "",
        count(state.tokens_per_s) if state.tokens_per_s is not None and not state.over else "",
        duration(state.left) if state.left is not None else "",
        clock(state.ends_at, state.at) if state.left is not None else "",
    ]


def summary(states: Sequence[State]) -> str:
    """``12 runs: 1 running, 3 finished, 8 waiting``."""
    counts = {status: sum(state.status == status for state in states) for status in STATUSES}
    kinds = ", ".join(f"{number} {status}" for status, number in counts.items() if number)
    return f"{len(states)} run{'s' * (len(states) != 1)}{': ' * bool(kinds)}{kinds}"


def line(state: State) -> str:
    """All that matters on one line, for a log."""
    if not state.stages or state.last is None or state.over or state.status == "starting":
        return headline(state)
    parts = []
    if state.last_train is not None:
        parts.append(f"loss {number(state.last_train.loss)}")
    if state.last_eval is not None:
        parts.append(f"validation {number(state.last_eval.loss)}")
    if state.tokens_per_s is not None:
        parts.append(f"{count(state.tokens_per_s)} tokens/s")
    if state.left is not None:
        parts.append(f"{duration(state.left)} left, ends {clock(state.ends_at, state.at)}")
    name = state.stage.name if state.stage else ""
    what = f" ({STATUSES[state.status]})" if state.status in ("stalled", "finishing") else ""
    where = f"{state.name}{what}: step {state.step:,} of {state.total_steps:,}, {name}"
    return f"{where}: {', '.join(parts)}"


def clock(seconds: float | None, now: float) -> str:
    """A time of day, with the day where it is not today: ``Tue 1 Dec 16:42 UTC``."""
    if seconds is None:
        return NONE
    try:
        then, today = (datetime.fromtimestamp(value).astimezone() for value in (seconds, now))
    except (ValueError, OverflowError, OSError):  # beyond the years that there are
        return NONE
    day = "" if then.date() == today.date() else f"{then:%a} {then.day} {then:%b} "
    year = "" if then.year == today.year else f"{then.year} "
    return f"{day}{year}{then:%H:%M} {then.tzname() or ''}".strip()


def _stage(state: State) -> str:
    stage = state.stage
    if stage is None:
        return NONE
    of = f"{stage.index + 1} of {len(state.stages)}"
    return f"{of}: {stage.name}, step {stage.done(state.step):,} of {stage.steps:,}"


def _switch(state: State) -> str:
    """The next switch, or the last one that was."""
    ahead = [stage for stage in state.stages[1:] if stage.first_step > state.step]
    stage = ahead[0] if ahead else state.stages[-1]
    soon = f", in {duration(state.to_switch)}" if state.to_switch is not None else ""
    return f"to {stage.name} at step {stage.first_step:,}{soon if ahead else ': done'}"


def _speed(state: State) -> str:
    speed = f"{count(state.tokens_per_s)} tokens/s"
    if state.data_share is not None and state.data_share >= 0.02:
        speed += f", waiting for data {percent(state.data_share)} of the time"
    return speed


def _ends(state: State) -> list[tuple[str, str]]:
    """Checkpoint, process, and when it last wrote."""
    found = []
    if state.checkpoint is not None:
        step, at = state.checkpoint
        found.append(("checkpoint", f"checkpoint-{step}, {duration(max(state.at - at, 0))} ago"))
    if state.resumed:
        steps = ", ".join(f"{step:,}" for step in state.resumed[-3:])
        found.append(("taken up", f"after step {steps}"))
    if (process := state.process) is not None:
        alive = {True: "alive", False: "ended", None: "on another machine, not seen from here"}
        how = "suspended" if process.paused else alive[process.alive]
        found.append(("process", f"{process.id} on {process.host}: {how}"))
    if state.line_at is not None and not state.over:
        found.append(("last line", f"{duration(max(state.at - state.line_at, 0))} ago"))
    return found
