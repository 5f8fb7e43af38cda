"""Say what a run costs before it is paid for: compute, time, memory, money, energy, data.

MODEL is a recipe, a config.json or its folder, or a name on the Hugging Face hub; weights are not
read, and no store has to be there. Entries of the recipe can be replaced as for train.

  patchtrain plan recipes/paper-370m.yaml --device h100 --devices 8
  patchtrain plan recipes/paper-370m.yaml plan.patch_size=8 --device a100 --devices 64 --price 1.9
  patchtrain plan my-model/config.json plan.tokens=100B plan.patch_fraction=0.5
  patchtrain plan recipes/small.yaml --measure
  patchtrain plan recipes/papers/patch-370m.yaml --advise data

Time is the operations, counted by formula (docs/cost.md), over what the devices do: a share of
their peak, assumed unless --utilisation names one, or --measure times a few steps here."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from patchtrain.advice import Advice
    from patchtrain.cost import Bill
    from patchtrain.devices import Device
    from patchtrain.planning import Planned

HELP = "say what a run costs, from its recipe or config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a recipe, a config or a model's name")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="entries of the recipe to replace, such as plan.tokens=100B",
    )
    parser.add_argument(
        "--device", metavar="NAME", help="what it runs on, such as h100; 'list' shows all known"
    )
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="how many (default: %(default)s)"
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        metavar="X",
        help="share of the peak that is reached, of the operations done (default: 0.4)",
    )
    parser.add_argument(
        "--measure", action="store_true", help="time a few steps of each stage on this machine"
    )
    parser.add_argument("--price", type=float, metavar="X", help="money for a device-hour")
    parser.add_argument(
        "--watts", type=float, metavar="X", help="of a device (default: what it is rated at)"
    )
    parser.add_argument("--kwh-price", type=float, metavar="X", help="money for a kilowatt-hour")
    parser.add_argument(
        "--advise",
        choices=("data", "compute"),
        metavar="SCARCE",
        help="say what to train with instead, and why: 'data' if the text is what there is, "
        "'compute' if its cost is",
    )
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="write a page of compute and data against K and the patch fraction",
    )


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.device == "list":
        _print_devices()
        return 0
    from patchtrain.advice import plan_warnings
    from patchtrain.cost import ASSUMED_UTILISATION, Rates, bill
    from patchtrain.devices import device
    from patchtrain.planning import planned

    known = device(args.device) if args.device else None
    run = planned(args.model, args.overrides, args.devices)
    measured: tuple[float, ...] = ()
    if args.measure:
        measured, known = _measure(run)
    rates = Rates(
        device=known,
        devices=args.devices,
        utilisation=args.utilisation or ASSUMED_UTILISATION,
        precision=run.precision,
        measured=measured,
        price=args.price,
        watts=args.watts,
        kwh_price=args.kwh_price,
    )
    found = bill(run.size, run.plan, rates, run.checkpointing)
    if args.picture:
        from patchtrain.report.plan_page import write_plan_page

        write_plan_page(found, args.picture, Path(args.model).stem or args.model)
    advice = _advice(found, args.advise) if args.advise else None
    warnings = [*run.plan.warnings(), *plan_warnings(run.size.parameters, run.plan)]
    if args.json:
        more = {"advice": advice.to_dict()} if advice else {}
        print(json.dumps({**found.to_dict(), "warnings": warnings, **more}, indent=2))
    else:
        _print(run, found, warnings, assumed=args.utilisation is None)
        if advice:
            _print_advice(advice)
        if args.picture:
            print(f"  picture        {args.picture}")
    return 0


def _check(args: argparse.Namespace) -> None:
    from patchtrain.errors import UsageError

    for name in ("price", "watts", "kwh_price"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--{name.replace('_', '-')} must be a number of at least 0")
    if args.utilisation is not None and not 0 < args.utilisation <= 1:
        raise UsageError("--utilisation is a share of the device's peak, above 0 and at most 1")
    if args.measure and args.utilisation is not None:
        raise UsageError("--measure times steps, so there is no --utilisation to assume")
    if args.measure and args.device:
        raise UsageError("--measure times steps on this machine, so leave --device out")


def _measure(run: Planned) -> tuple[tuple[float, ...], Device | None]:
    """Seconds of a step of each stage on one device of this machine, and which it is."""
    from contextlib import nullcontext
    from functools import partial

    import torch
    from transformers import AutoModelForCausalLM

    from patchtrain.devices import recognised
    from patchtrain.errors import UsageError
    from patchtrain.recipe import check_size
    from patchtrain.training.measuring import random_rows, step_seconds, too_large

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if too_large(run.size, run.plan, where):
        raise UsageError(
            "a step of this model would take minutes on this CPU; measure it where it is to run, "
            "make training.per_device_train_batch_size smaller, or name a --device"
        )
    check_size(run.size.parameters)
    dtype = getattr(torch, run.recipe.model.dtype)
    model = AutoModelForCausalLM.from_config(run.config, dtype=dtype).to(where)
    half = bool(run.recipe.training.get("bf16"))
    autocast = partial(torch.autocast, where.type, torch.bfloat16) if half else nullcontext
    if run.checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = random_rows(run.plan, run.size.vocab_size)
    seconds = step_seconds(model, run.plan, optimizer, rows, where, autocast)
    return seconds, recognised(torch.cuda.get_device_name()) if where.type == "cuda" else None


def _advice(found: Bill, scarce: str) -> Advice:
    """What to train this model with: on the same text, or in the same compute."""
    from patchtrain.advice import advise

    plan = found.plan
    tokens = plan.total_tokens if scarce == "data" else round(found.tokens_at_equal_compute)
    return advise(
        found.size.parameters,
        tokens,
        "data" if scarce == "data" else "compute",
        context_length=plan.context_length,
        tokens_per_step=plan.spec.tokens_per_step,
    )


def _print_devices() -> None:
    from patchtrain.devices import devices
    from patchtrain.report.formats import NONE

    table = _table("name", "device", "bf16 TFLOP/s", "fp32 TFLOP/s", "GB", "W", "source")
    for known in devices().values():
        bf16 = NONE if known.bf16_tflops is None else f"{known.bf16_tflops:g}"
        figures = (f"{value:g}" for value in (known.fp32_tflops, known.memory_gb, known.watts))
        table.add_row(known.name, known.title, bf16, *figures, known.source)
    _console().print(table)


def _print(run: Planned, found: Bill, warnings: list[str], assumed: bool) -> None:
    from patchtrain.report.formats import count, duration, flops, percent

    plan = found.plan
    table = _table("stage", "steps", "tokens/step", "positions/step", "tokens", "positions",
                   "compute", "share", "time")  # fmt: skip
    for cost in found.stages:
        stage = cost.stage
        table.add_row(
            f"{stage.index + 1} {stage.name}", f"{stage.steps:,}", f"{stage.tokens_per_step:,}",
            f"{stage.positions_per_step:,}", count(stage.tokens), count(stage.positions),
            flops(cost.flops.total), percent(cost.flops.total / found.flops.total),
            duration(cost.seconds),
        )  # fmt: skip
    console = _console()
    console.print(table)
    lines = [
        ("model", _model_line(run)),
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
        lines.append(("device-hours", f"{found.device_hours:,.4g}{_money(found.money)}"))
    if found.kwh is not None:
        lines.append(("energy", f"{found.kwh:,.4g} kWh of the devices alone, at their rated power"
                                f"{_money(found.energy_money)}"))  # fmt: skip
    lines += [("warning", text) for text in warnings]
    for name, text in lines:
        console.print(f"  {name:<15}{text}", soft_wrap=True)


def _print_advice(advice: Advice) -> None:
    """What is advised, what it is expected to gain, and everything that speaks for and against."""
    from patchtrain.report.formats import count

    if advice.patch_size == 1:
        what = "token level only"
    elif advice.step_fraction is None:
        what = f"K = {advice.patch_size} on {advice.patch_fraction:.3g} of the tokens"
    else:
        what = f"K = {advice.patch_size} for {advice.step_fraction:.3g} of the steps"
    gain = "not known here"
    if advice.gain is not None and advice.interval is not None:
        low, high = advice.interval
        gain = f"{advice.gain:.3f} nats a token ({low:.3f} to {high:.3f})"
    held = "the same tokens" if advice.held_equal == "data" else "the same compute"
    lines = [
        ("advice", f"{what}, preset {advice.preset} ({advice.scarce} being scarce)"),
        ("expected gain", f"{gain}, against token-level training on {held}"),
        ("costs", f"{advice.cost_ratio:.3f} of its compute; reads {count(advice.tokens_read)} "
                  f"tokens"),
        *(("because", text) for text in advice.reasons),
        *(("beyond", text) for text in advice.extrapolates),
        *(("warning", text) for text in advice.warnings),
        ("to take it", advice.overrides),
    ]  # fmt: skip
    console = _console()
    console.print()
    for name, text in lines:
        console.print(f"  {name:<15}{text}", soft_wrap=True, markup=False)


def _model_line(run: Planned) -> str:
    from patchtrain.report.formats import count

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
    from patchtrain.report.formats import flops, percent

    total = found.flops
    shares = [(name, getattr(total, name)) for name in ("body", "attention", "head")]
    words = ", ".join(f"{name} {percent(value / total.total)}" for name, value in shares)
    small = (total.embedding + total.loss) / total.total
    again = sum(cost.recomputed for cost in found.stages)
    checkpoints = f"; checkpointing does {flops(again)} again" if again else ""
    return f"{flops(total.total)}: {words}, pooling and loss {small:.3%}{checkpoints}"


def _data_line(run: Planned, found: Bill) -> str:
    from patchtrain.report.formats import count

    line = f"{count(found.plan.total_tokens)} tokens, {found.bytes_of_ids / 1e9:,.4g} GB in a store"
    if run.store_tokens:
        epochs = found.plan.total_tokens / run.store_tokens
        line += f"; the recipe's has {count(run.store_tokens)}: {epochs:.2f} epochs"
    return line


def _time_line(found: Bill, assumed: bool) -> str:
    from patchtrain.report.formats import duration, percent

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


def _money(money: float | None) -> str:
    return "" if money is None else f", {money:,.2f} in the currency of the price"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    words = ("stage", "name", "device", "source")
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right")
    return table


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 150)
