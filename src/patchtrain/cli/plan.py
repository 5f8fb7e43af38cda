"""Say what a run costs before it is paid for: compute, time, memory, money, energy, data.

examples:
  patchtrain plan recipes/papers/patch-370m.yaml --device h100 --devices 8
  patchtrain plan recipes/papers/patch-370m.yaml plan.patch_size=8 --device a100 --price 1.9
  patchtrain plan my-model/config.json plan.tokens=100B plan.patch_fraction=0.5
  patchtrain plan recipes/small.yaml --measure
  patchtrain plan recipes/papers/patch-370m.yaml --advise data
  patchtrain plan --device list                     # all known devices

MODEL is a recipe, a config.json or its folder, or a name on the Hugging Face hub; weights are not
read, and no store has to be there unless the plan counts epochs. Entries of the recipe can be
replaced as for train.

Time is the operations, counted by formula (docs/cost.md), over what the devices do: a share of
their peak, assumed unless --utilisation names one, or --measure times a few steps here."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchtrain.cli.parser import general
from patchtrain.cli.results import show_json

if TYPE_CHECKING:
    from patchtrain.advice import Advice
    from patchtrain.cost import Bill
    from patchtrain.devices import Device
    from patchtrain.memory import Memory
    from patchtrain.planning import Planned

HELP = "say what a run costs, from its recipe or config"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a recipe, a config or a model's name"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="entries of the recipe to replace, such as plan.tokens=100B",
    )
    group = parser.add_argument_group("what it runs on")
    group.add_argument(
        "--device", metavar="NAME", help="what it runs on, such as h100; 'list' shows all known"
    )
    group.add_argument(
        "--devices", type=int, default=1, metavar="N", help="how many (default: %(default)s)"
    )
    group.add_argument(
        "--utilisation",
        type=float,
        metavar="X",
        help="share of the peak that is reached, of the operations done (default: 0.4)",
    )
    group.add_argument(
        "--measure", action="store_true", help="time a few steps of each stage on this machine"
    )
    group.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        help="what each stage takes of a device's memory, and what would make it fit; takes some "
        "seconds (default: with --device)",
    )
    group = parser.add_argument_group("what that costs")
    group.add_argument("--price", type=float, metavar="X", help="money for a device-hour")
    group.add_argument(
        "--watts",
        type=float,
        metavar="X",
        help="power that a device draws (default: what it is rated at)",
    )
    group.add_argument("--kwh-price", type=float, metavar="X", help="money for a kilowatt-hour")
    parser.add_argument(
        "--advise",
        choices=("data", "compute"),
        metavar="SCARCE",
        help="say what to train with instead, and why: 'data' if the text is what there is, "
        "'compute' if its cost is",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write an HTML page of compute and data against K and the patch fraction",
    )
    general(parser, json="all of it")


def run(args: argparse.Namespace) -> int:
    _check(args)
    if args.device == "list":
        if args.json:
            from patchtrain.devices import devices

            show_json([known.to_dict() for known in devices().values()])
        else:
            from patchtrain.report.bill import print_devices

            print_devices()
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
    if args.page:
        from patchtrain.report.plan_page import write_plan_page

        write_plan_page(found, args.page, Path(args.model).stem or args.model)
    memory, remedies = _memory(run, known, args.memory)
    advice = _advice(found, args.advise) if args.advise else None
    warnings = [*run.plan.warnings(), *plan_warnings(run.size.parameters, run.plan)]
    if args.json:
        more: dict[str, Any] = {"advice": advice.to_dict()} if advice else {}
        if memory:
            more["memory"] = [stage.to_dict() for stage in memory]
            more["would_fit"] = remedies
        show_json({**found.to_dict(), "warnings": warnings, **more})
    else:
        from patchtrain.report import bill as printed

        printed.print_bill(run, found, warnings, assumed=args.utilisation is None)
        if memory:
            printed.print_memory(run, known, memory, remedies)
        if advice:
            printed.print_advice(advice)
        if args.page:
            print(f"  page           {args.page}")
    return 0


def _check(args: argparse.Namespace) -> None:
    from patchtrain.errors import UsageError

    if args.model is None and args.device != "list":
        raise UsageError("say what to plan: a recipe, a config.json or a model's name")
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
    from patchtrain.sizing import check_size
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


def _memory(
    run: Planned, device: Device | None, asked: bool | None
) -> tuple[list[Memory], list[str]]:
    """What each stage takes, and what would make all fit the device; nothing if not wanted.

    A model whose memory cannot be told is an error only where ``asked`` for, and else a line.
    """
    from patchtrain.errors import UsageError, warning_line
    from patchtrain.memory import what_would_fit

    if not (asked or (asked is None and device)):
        return [], []
    try:
        memory = run.memory()
        return memory, what_would_fit(run.on_meta, memory, device.memory) if device else []
    except UsageError as error:
        if asked:
            raise
        print(warning_line(f"the memory is not known: {error}"), file=sys.stderr)
        return [], []


def _advice(found: Bill, scarce: str) -> Advice:
    """What to train this model with: on the same text, or in the same compute."""
    from dataclasses import replace

    from patchtrain.advice import advise

    plan = found.plan
    tokens = plan.total_tokens if scarce == "data" else round(found.tokens_at_equal_compute)
    advice = advise(
        found.size.parameters,
        tokens,
        "data" if scarce == "data" else "compute",
        context_length=plan.context_length,
        tokens_per_step=plan.spec.tokens_per_step,
        processes=plan.processes,
    )
    if (epochs := plan.spec.epochs) is None:
        return advice

    def in_epochs(plan_keys: dict[str, Any]) -> dict[str, Any]:
        if scarce == "data":
            return {key: v for key, v in plan_keys.items() if key != "tokens"} | {"epochs": epochs}
        # So many tokens need a leave to read them so often; so many epochs do not.
        return plan_keys | {"max_epochs": max(plan.spec.max_epochs, epochs)}

    other = advice.alternative
    return replace(advice, plan=in_epochs(advice.plan), alternative=other and in_epochs(other))
