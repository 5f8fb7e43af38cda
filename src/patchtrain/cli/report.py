"""Make the page about one run, or about several side by side.

examples:
  patchtrain report runs/small
  patchtrain report runs/token-level runs/patch-level --out comparison.html

Every finished run has its page already, RUN/report.html; this command makes it again, for example
after an evaluation, or compares runs. The page is one file that needs no network. A run that is
still going has a page too."""

from __future__ import annotations

import argparse
from pathlib import Path

from patchtrain.cli.parser import general
from patchtrain.errors import UsageError
from patchtrain.runs import RunFolder

HELP = "make the HTML page about one or several runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="where to write it (default: RUN/report.html; comparison.html for several runs)",
    )
    parser.add_argument(
        "--title", metavar="TEXT", help="title of the page (default: the runs' names)"
    )
    general(parser, json="where the page is")


def run(args: argparse.Namespace) -> int:
    runs = [RunFolder.open(path) for path in args.runs]
    if len({folder.path.resolve() for folder in runs}) < len(runs):
        raise UsageError("the same run folder is named twice")
    out = args.out or (runs[0].report_file if len(runs) == 1 else Path("comparison.html"))

    from patchtrain.report.page import write_page

    page = write_page(runs, out, args.title)
    if args.json:
        from patchtrain.cli.results import show_json

        show_json({"page": str(page), "runs": [str(folder.path) for folder in runs]})
    else:
        print(page)
    return 0
