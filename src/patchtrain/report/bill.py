"""A bill on the terminal: stages, what they cost, memory, advice."""

from __future__ import annotations

from typing import Any

from patchtrain.advice import Advice
from patchtrain.advice.reasons import rows_of
from patchtrain.advice.recommend import overrides_of
from patchtrain.cost import Bill
from patchtrain.devices import Device, devices
from patchtrain.memory import Memory
from patchtrain.planning import Planned
from patchtrain.report.formats import NONE, count, duration, flops, percent
from patchtrain.report.terminal import console, print_table


def print_devices() -> None:
    """All known devices, what they can do and who says so."""
    rows = []
    for known in devices().values():
        bf16 = NONE if known.bf16_tflops is None else f"{known.bf16_tflops:g}"
        figures = (f"{value:g}" for value in (known.fp32_tflops, known.memory_gb, known.watts))
        rows.append([known.name, known.title, bf16, *figures, known.source])
    print_table(("name", "device", "bf16 TFLOP/s", "fp32 TFLOP/s", "GB", "W", "source"), rows)


def print_bill(run: Planned, found: Bill, warnings: list[str], assumed: bool) -> None:
    """What each stage and all of it costs; ``assumed``: nobody named the utilisation."""
    plan = found.plan
    head = ("stage", "steps", "tokens/step", "positions/step", "tokens", "positions", "compute",
            "share", "time")  # fmt: skip
    rows = []
    for cost in found.stages:
        stage = cost.stage
        rows.append([
            f"{stage.index + 1} {stage.named(plan.context_length)}",
            f"{stage.steps:,}", f"{stage.tokens_per_step:,}",
            f"{stage.positions_per_step:,}", count(stage.tokens), count(stage.positions),
            flops(cost.flops.total), percent(cost.flops.total / found.flops.total),
            duration(cost.seconds),
        ])  # fmt: skip
    print_table(head, rows)
    out = console()
    lines = [
        ("model", _model_line(run)),
        ("steps", f"{plan.total_steps:,}, at token level of {plan.spec.tokens_per_step:,} tokens "
                  f"in rows of {plan.context_length:,}"),
        ("compute", _compute_line(found)),
        ("equal data", f"{found.ratio_at_equal_data:.3f} of the compute of token-level training "
                       f"on the same {count(plan.total_tokens)} tokens"),
        ("equal compute", f"token-level training would read {count(found.tokens_at_equal_compute)} "
                          f"tokens for it; this reads "
                          f"{plan.total_tokens / found.tokens_at_equal_compute:.2f} times as many"),
        ("data", _data_line(run, found)),
        ("time", _time_line(found, assumed)),
    ]  # fmt: skip
    if found.device_hours is not None:
        lines.append(("device-hours", f"{_figure(found.device_hours)}{_money(found.money)}"))
    if found.kwh is not None:
        energy = f"{_figure(found.kwh)} kWh of the devices alone, at their rated power"
        lines.append(("energy", f"{energy}{_money(found.energy_money)}"))
    lines += [("warning", text) for text in warnings]
    for name, text in lines:
        out.print(f"  {name:<15}{text}", soft_wrap=True)


def print_memory(
    run: Planned, device: Device | None, memory: list[Memory], remedies: list[str]
) -> None:
    """The parts of each stage's memory, and whether it fits."""
    parts = ("parameters", "gradients", "optimizer", "activations", "loss", "transient")
    rows = []
    for stage, found in zip(run.plan.stages, memory, strict=True):
        sizes = (f"{getattr(found, part) / 1e9:,.2f} GB" for part in (*parts, "peak"))
        rows.append([f"{stage.index + 1} {stage.name}", *sizes, found.when])
    print_table(("stage", *parts, "peak", "at"), rows)
    out = console()
    passes = run.plan.pass_sequences
    lines = [("memory", f"of each device, {passes} sequence{'s' * (passes > 1)} a pass; the parts "
                        f"are not at their most at one time")]  # fmt: skip
    if device is not None:
        lines.append(("fits", device.title if not remedies else
                      f"not {device.title}; what would make it:"))  # fmt: skip
    lines += [("", text) for text in remedies]
    for name, text in lines:
        out.print(f"  {name:<15}{text}", soft_wrap=True, markup=False)


def print_advice(advice: Advice) -> None:
    """What is advised, what it is expected to gain, and everything that speaks for and against."""

    gain = "not known here"
    if advice.gain is not None and advice.interval is not None:
        low, high = advice.interval
        gain = f"{advice.gain:.3f} nats a token ({low:.3f} to {high:.3f})"
    held = "the same tokens" if advice.held_equal == "data" else "the same compute"
    gain += f", against token-level training on {held}"
    if advice.patch_size == 1:
        gain = "none; this is token-level training"
    others = [] if advice.alternative is None else [advice.alternative]
    known = "untested here" if advice.patch_size == 1 else "the safe choice"
    lines = [
        ("advice", f"{_plan_words(advice.plan)} ({advice.scarce} being scarce)"),
        *(("or", f"{_plan_words(other)}; {known}") for other in others),
        ("expected gain", gain),
        ("costs", f"{advice.cost_ratio:.3f} of its compute; reads {count(advice.tokens_read)} "
                  f"tokens"),
        *(("because", text) for text in advice.reasons),
        *(("beyond", text) for text in advice.extrapolates),
        *(("warning", text) for text in advice.warnings),
        ("to take it", advice.overrides),
        *(("or the other", overrides_of(other)) for other in others),
    ]  # fmt: skip
    out = console()
    out.print()
    for name, text in lines:
        out.print(f"  {name:<15}{text}", soft_wrap=True, markup=False)


def _plan_words(plan: dict[str, Any]) -> str:
    """What an advised plan is, as ``Advice.plan`` has it."""
    if plan["patch_size"] == 1:
        what = "token level only"
    elif "patch_fraction" in plan:
        what = f"K = {plan['patch_size']} on {plan['patch_fraction']:.3g} of the tokens"
    else:
        what = f"K = {plan['patch_size']} for {plan['step_fraction']:.3g} of the steps"
    return f"{what}{rows_of(plan.get('rows'))}, preset {plan['preset']}"


def _model_line(run: Planned) -> str:
    size = run.size
    name = (getattr(run.config, "architectures", None) or [run.config.model_type])[0]
    active = (
        f", {count(size.active_parameters)} of them active at a position"
        if size.active_parameters < size.parameters
        else ""
    )
    return (
        f"{name}: {count(size.parameters)} parameters{active}; {count(size.body_parameters)} in "
        f"the body, vocabulary {size.vocab_size:,}, context length {run.plan.context_length:,}"
    )


def _compute_line(found: Bill) -> str:
    total = found.flops
    shares = [(name, getattr(total, name)) for name in ("body", "attention", "head")]
    words = ", ".join(f"{name} {percent(value / total.total)}" for name, value in shares)
    small = (total.embedding + total.loss) / total.total
    again = sum(cost.recomputed for cost in found.stages)
    checkpoints = f"; checkpointing does {flops(again)} again" if again else ""
    return f"{flops(total.total)}: {words}, pooling and loss {small:.3%}{checkpoints}"


def _data_line(run: Planned, found: Bill) -> str:
    gigabytes = _figure(found.bytes_of_ids / 1e9)
    line = f"{count(found.plan.total_tokens)} tokens, {gigabytes} GB in a store"
    if run.store_tokens:
        epochs = found.plan.total_tokens / run.store_tokens
        line += f"; the recipe's has {count(run.store_tokens)}: {epochs:.2f} epochs"
    return line


def _time_line(found: Bill, assumed: bool) -> str:
    rates = found.rates
    if found.seconds is None:
        if rates.device is not None:
            return f"not known: {rates.device.title} has no figure for {rates.precision}"
        return "not known: name a --device ('--device list' shows them), or --measure here"
    time = duration(found.seconds)
    many = f"{rates.devices:,} x " if rates.devices > 1 else ""
    if rates.measured:
        alone = ", from steps of one, as if more of them lost nothing" if many else ""
        reached = f"; {percent(found.utilisation)} of the peak" if found.utilisation else ""
        return f"{time} on {many}this machine (from a few timed steps{alone}{reached})"
    share = percent(rates.utilisation)
    source = "assumed" if assumed else "as asked for"
    assert rates.device is not None
    return (
        f"{time} on {many}{rates.device.title} at {share} of the {rates.precision} peak ({source})"
    )


def _figure(value: float) -> str:
    """Four digits, and all of them before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _money(money: float | None) -> str:
    return "" if money is None else f", {money:,.2f} in the currency of the price"
