"""Write the model card of a run, RUN/model/README.md, as the Hugging Face Hub shows it.

examples:
  patchtrain card runs/small
  patchtrain card runs/small --price 2.50 --watts 700

Every finished run has one, and eval brings it up to date. This command writes it anew, with what
the run cost where you say at what price.

The card has a section of patchtrain's between two marks. What you write outside of it stays. What
you change inside of it, or in the YAML at the top, stays too: that part is no longer written."""

from __future__ import annotations

import argparse
import math
import sys

from patchtrain.cli.parser import general
from patchtrain.cli.results import show_json
from patchtrain.errors import UsageError, warning_line
from patchtrain.runs import RunFolder

HELP = "write the model card of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder")
    parser.add_argument("--price", type=float, metavar="X", help="money for a device-hour")
    parser.add_argument("--watts", type=float, metavar="X", help="power that a device draws")
    general(parser, json="where the card is")


def run(args: argparse.Namespace) -> int:
    for name in ("price", "watts"):
        value = getattr(args, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            raise UsageError(f"--{name} must be 0 or more, not {value}")

    from patchtrain.report.card import Prices
    from patchtrain.report.card_file import write_card

    found = write_card(RunFolder.open(args.run_folder), Prices(args.price, args.watts))
    if not found.written:
        raise UsageError(f"{found.path} is left as it is: {found.kept}")
    if args.json:
        show_json({"path": str(found.path), "kept": found.kept})
    else:
        print(found.path)
    if found.kept:
        print(warning_line(found.kept), file=sys.stderr)
    return 0
