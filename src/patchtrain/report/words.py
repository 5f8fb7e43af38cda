"""The sentences at the top of the page, each computed from the numbers of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchtrain.report import curve
from patchtrain.report.formats import count, duration, flops, is_number, number, percent
from patchtrain.report.summary import RunSummary

# Two numbers closer than this are called equal.
_SAME = 0.02


def headline(runs: Sequence[RunSummary]) -> list[str]:
    """Plain text sentences about one run, or about several against a baseline."""
    if len(runs) == 1:
        return [*describe(runs[0]), *curve.sentences(runs[0])]
    base = baseline(runs)
    sentences = [sentence for run in runs if run is not base for sentence in compare(run, base)]
    told = [f"{run.name}: {sentence}" for run in runs for sentence in curve.sentences(run)]
    return [*sentences, *told, *cautions(runs)]


def baseline(runs: Sequence[RunSummary]) -> RunSummary:
    """The run the others are held against: the first trained at token level, else the first."""
    return next((run for run in runs if run.token_level and not run.part("tuning")), runs[0])


def describe(run: RunSummary) -> list[str]:
    """What was trained, what it cost, how it ended."""
    parameters = run.part("model").get("parameters")
    what = f"a model of {count(parameters)} parameters" if is_number(parameters) else "a model"
    planned = run.plan.get("total_tokens")
    amount = f" on {count(planned)} tokens" if is_number(planned) else ""
    verb = "trained" if run.status == "finished" else "trains"
    if run.status not in ("finished", "running"):
        verb = "was to train"
    sentences = [f"{run.name} {verb} {what}{amount}{_curriculum(run)}."]
    if tuning := run.part("tuning"):
        sentences = [f"{run.name} {_tuning_verb(run)} {what}{amount}{_conversations(tuning)}."]
    ratio = run.plan.get("compute_ratio")
    spent = [value for value in (_spent(run),) if value]
    if is_number(ratio) and not run.token_level and run.stages:
        share = f"Its plan costs {percent(ratio)} of the compute of token-level training on the "
        sentences.append(share + "same tokens" + _held(run) + ".")
    if spent and run.status == "finished":
        sentences.append(f"It took {spent[0]}{_ending(run)}.")
    elif spent:
        sentences.append(f"So far it has taken {spent[0]}{_latest(run)}.")
    return sentences


def _tuning_verb(run: RunSummary) -> str:
    return {"finished": "tuned", "running": "tunes"}.get(run.status, "was to tune")


def _conversations(tuning: dict[str, Any]) -> str:
    """What a model was tuned on, and what the held-out answers say of it."""
    number_, held_out = tuning.get("conversations"), tuning.get("held_out_conversations")
    text = ""
    if is_number(number_) and is_number(held_out):
        text = f" of {count(number_ - held_out)} conversations"
    before, after = (
        values.get("loss") if isinstance(values := tuning.get(when), dict) else None
        for when in ("before", "after")
    )
    if is_number(before) and is_number(after):
        text += f"; held-out answers went from {number(before)} to {number(after)} nats per token"
    return text


def compare(run: RunSummary, base: RunSummary) -> list[str]:
    """``run`` against ``base``: what was equal, what it cost, how it ended."""
    sentences = []
    cost = [
        f"{percent(_quotient(run, base, counter))} of the {words}"
        for counter, words in (("flops", "FLOPs"), ("seconds", "training time"))
        if _quotient(run, base, counter) is not None
    ]
    if cost:
        used = "used" if run.status == base.status == "finished" else "has used"
        first = f"{_titled(run)} {used} {' and '.join(cost)} of {_titled(base)}"
        sentences.append(f"{first}; {_equal(run, base)}.")
    ours, theirs = run.result, base.result
    if is_number(ours.get("loss")) and is_number(theirs.get("loss")):
        measure, digits, unit = ("loss", 3, "nats per token")
        if is_number(ours.get("bits_per_byte")) and is_number(theirs.get("bits_per_byte")):
            measure, digits, unit = ("bits_per_byte", 4, "bits per byte")
        gap = ours[measure] - theirs[measure]
        relation = (
            "the same as"
            if abs(gap) < 0.5 * 10**-digits
            else (f"{number(abs(gap), digits)} {'better' if gap < 0 else 'worse'} than")
        )
        sentences.append(
            f"{run.name} ended at {number(ours[measure], digits)} {unit} on held-out text, "
            f"{relation} the {number(theirs[measure], digits)} of {base.name} (lower is better)."
        )
    if sentence := _equal_loss(run, base):
        sentences.append(sentence)
    return sentences or [f"{run.name} and {base.name} have no numbers in common to compare yet."]


def cautions(runs: Sequence[RunSummary]) -> list[str]:
    """Why a difference between the runs may mean less than it seems to."""
    notes = []
    stores = {run.part("store").get("fingerprint") for run in runs}
    if len(stores - {None}) > 1:
        notes.append(
            "The runs did not use the same token store: their losses are not on the same text."
        )
    windows = {
        (run.result.get("context_length"), run.result.get("stride")) for run in runs if run.result
    }
    if len(windows) > 1:
        notes.append("Their final losses were measured with different windows.")
    rates = [rate for run in runs if is_number(rate := run.info.get("learning_rate"))]
    if len(set(rates)) > 1:
        shown = ", ".join(f"{rate:g}" for rate in rates)
        notes.append(f"Their peak learning rates are not the same: {shown}.")
    sizes = {run.part("model").get("parameters") for run in runs}
    if len(sizes - {None}) > 1:
        notes.append("Their models are not of the same size.")
    configurations = [str([stage.patch_size for stage in run.stages]) for run in runs]
    if len(set(configurations)) == len(configurations):
        notes.append(
            "There is one run of each kind: another seed would move these numbers a little."
        )
    return notes


def _titled(run: RunSummary) -> str:
    return run.name if run.name == _kind(run) else f"{run.name} ({_kind(run)})"


def _kind(run: RunSummary) -> str:
    if not run.stages:
        return "plan unknown"
    if run.token_level:
        return "token-level"
    sizes = [str(stage.patch_size) for stage in run.stages if stage.patch_size > 1]
    then = ", then tokens" if run.stages[-1].patch_size == 1 else ""
    return f"patches of {', '.join(sizes)}{then}"


def _curriculum(run: RunSummary) -> str:
    total = sum(stage_tokens(run, i) or 0 for i in range(len(run.stages)))
    if not run.stages or run.token_level or not total:
        return ", token by token" if run.token_level else ""
    parts = []
    for index, stage in enumerate(run.stages):
        share = percent((stage_tokens(run, index) or 0) / total)
        parts.append(
            f"{share} of them "
            + (f"in patches of {stage.patch_size}" if stage.patch_size > 1 else "one by one")
        )
    return ": " + ", then ".join(parts)


def stage_tokens(run: RunSummary, index: int) -> float | None:
    """Tokens the plan gives a stage."""
    stages = run.plan.get("stages") or []
    value = stages[index].get("tokens") if index < len(stages) else None
    return float(value) if is_number(value) else None


def _held(run: RunSummary) -> str:
    """What a step at patch level has in common with one at token level."""
    held = {
        "tokens": "reads as many tokens as one at token level and costs less",
        "compute": "has as many positions as one at token level and reads more tokens",
    }.get(str(run.plan.get("hold")))
    return f"; a step at patch level {held}" if held else ""


def _spent(run: RunSummary) -> str:
    parts = [duration(run.total("seconds"))] if run.total("seconds") else []
    if run.total("flops"):
        parts.append(flops(run.total("flops")))
    return " and ".join(parts)


def _ending(run: RunSummary) -> str:
    loss = run.result.get("loss")
    if not is_number(loss):
        return ""
    nats = f"{number(loss)} nats per token (perplexity {number(run.result.get('perplexity'), 1)})"
    if is_number(bits := run.result.get("bits_per_byte")):
        return f" and ended at {number(bits)} bits per byte on held-out text, {nats}"
    return f" and ended at {nats} on held-out text"


def _latest(run: RunSummary) -> str:
    rows = [row for row in run.events("eval") if is_number(row.get("loss"))]
    if not rows:
        return ""
    return f"; held-out text was last at {number(rows[-1]['loss'])} nats per token"


def _quotient(run: RunSummary, base: RunSummary, counter: str) -> float | None:
    ours, theirs = run.total(counter), base.total(counter)
    return ours / theirs if ours is not None and theirs else None


def _equal(run: RunSummary, base: RunSummary) -> str:
    """Which of data and compute the two runs have in common."""
    tokens, cost = _tokens_quotient(run, base), _quotient(run, base, "flops")
    if tokens is not None and abs(tokens - 1) <= _SAME:
        amount = f"{count(run.plan.get('total_tokens'))} tokens" if _planned(run) else "tokens"
        return f"both read the same {amount} (equal data)"
    if cost is not None and abs(cost - 1) <= _SAME:
        more = f", {run.name} reading {number(tokens, 2)} times the tokens" if tokens else ""
        return f"both spent the same compute (equal compute{more})"
    many = f"{run.name} read {number(tokens, 2)} times the tokens; " if tokens else ""
    return f"{many}neither data nor compute is equal"


def _planned(run: RunSummary) -> bool:
    return is_number(run.plan.get("total_tokens"))


def _tokens_quotient(run: RunSummary, base: RunSummary) -> float | None:
    if run.status == base.status == "finished" and _planned(run) and base.plan.get("total_tokens"):
        return float(run.plan["total_tokens"] / base.plan["total_tokens"])
    return _quotient(run, base, "tokens")


def _equal_loss(run: RunSummary, base: RunSummary) -> str | None:
    """When ``run`` was first evaluated at or below the last validation loss of ``base``."""
    theirs = [row for row in base.events("eval") if is_number(row.get("loss"))]
    ours = [row for row in run.events("eval") if is_number(row.get("loss"))]
    if base.status != "finished" or not theirs or not ours or not base.total("flops"):
        return None
    goal = theirs[-1]["loss"]
    reached = next((row for row in ours if row["loss"] <= goal), None)
    where = f"the loss {base.name} had at its last evaluation ({number(goal)}, during training)"
    if reached is None or not is_number(reached.get("flops")):
        return f"{run.name} did not reach {where}." if run.status == "finished" else None
    if not theirs[-1].get("flops"):
        return None
    share = percent(reached["flops"] / theirs[-1]["flops"])
    return f"{run.name} came down to {where} with {share} of the FLOPs."
