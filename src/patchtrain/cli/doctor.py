"""Say what this machine has, what will be fast or slow on it and why, and what is broken.

examples:
  patchtrain doctor
  patchtrain doctor --dir /scratch/me               # where runs are going to be written
  patchtrain doctor --no-measure --json

Versions, processor, memory and GPUs, the loss backends that can be used and the one that a run
would take, attention, the compiler that torch.compile needs, the disk, and the speed of matrix
products, measured for some seconds. The file it writes to --dir is deleted again.

`ok` is as it should be; `slow` works, slower or less safely than it could; `absent` is something
optional that is not there; `broken` will fail. An arrow says what to do. The exit code is 1 only if
something is broken."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from patchtrain.cli.parser import general

if TYPE_CHECKING:
    from rich.console import Console

    from patchtrain.doctor.finding import Finding

HELP = "say what this machine has, and what will be fast, slow or broken"
_INDENT = 28  # of what is said
_STYLES = {"ok": "green", "slow": "yellow", "broken": "bold red", "absent": "dim"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where runs are to be written (default: %(default)s, or what is there of its path)",
    )
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time products of matrices, which takes some seconds (default: yes)",
    )
    general(parser, json="all of it", quiet=True)


def run(args: argparse.Namespace) -> int:
    from patchtrain.cli.results import show_json
    from patchtrain.doctor.examine import examine
    from patchtrain.doctor.finding import verdict
    from patchtrain.progress import Progress
    from patchtrain.report.terminal import console

    with Progress(not args.quiet, "steps") as progress:

        def step(name: str) -> None:
            progress.start(f"looking at {name}", None, announce=False)

        found = dict(examine(args.dir, args.measure, step))
    every = [finding for findings in found.values() for finding in findings]
    worst = verdict(every)
    if args.json:
        areas = {area: [one.to_dict() for one in findings] for area, findings in found.items()}
        show_json({"verdict": worst, **areas})
    else:
        out = console()
        for area, findings in found.items():
            print_area(out, area, findings)
        print_verdict(out, every)
    return 1 if worst == "broken" else 0


def print_area(out: Console, area: str, findings: Iterable[Finding]) -> None:
    """Each finding, and what to do below it."""
    from rich.text import Text

    # A file has one line for each, which can be searched; a terminal is read.
    width = max(out.width - _INDENT, 40) if out.is_terminal else sys.maxsize
    out.print(Text(area, style="bold"))
    for finding in findings:
        status = Text(f"  {finding.status:<8}", style=_STYLES[finding.status])
        first, *rest = textwrap.wrap(finding.text, width) or [""]
        out.print(status.append(f"{finding.name:<18}{first}", style="not dim"), soft_wrap=True)
        rest += textwrap.wrap(f"-> {finding.todo}", width) if finding.todo else []
        for line in rest:
            out.print(Text(" " * _INDENT + line), soft_wrap=True)


def print_verdict(out: Console, findings: list[Finding]) -> None:
    """How many of each, by name."""
    from rich.text import Text

    for status in ("broken", "slow"):
        names = [finding.name for finding in findings if finding.status == status]
        if names:
            out.print(Text(f"{status}: {', '.join(names)}", style=_STYLES[status]), soft_wrap=True)
    if not any(finding.status in ("broken", "slow") for finding in findings):
        out.print(Text("all is well", style=_STYLES["ok"]))
