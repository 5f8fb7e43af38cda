"""Look at a run while it trains: curves in the terminal, and a live page on this machine.

examples:
  patchtrain watch runs/small
  patchtrain watch runs/small --no-serve            # the terminal alone; ends with the run
  patchtrain watch runs/small --once --json         # how it stands, for a script
  patchtrain watch studies/compare-small --open     # all runs of a comparison, in the browser

Shows where the run is and how fast, where the switch lies, when training will end, and whether its
process is alive. RUN need not be there yet, may be resumed, stopped or finished, and may be a
folder of runs, such as that of a study or a comparison.

The page is served to this machine alone (127.0.0.1) and needs no network. For a run elsewhere,
`ssh -L 8421:127.0.0.1:8421 HOST` brings it here. Ctrl-C ends the watching, never the run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from patchtrain.cli.parser import general
from patchtrain.cli.results import show_json
from patchtrain.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, Group

    from patchtrain.watch.server import PageServer
    from patchtrain.watch.state import State
    from patchtrain.watch.watching import Watching

HELP = "look at a run while it trains, in the terminal and the browser"
_LOOK_SECONDS, _LINE_SECONDS = 1.0, 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="a run's folder, or a folder of runs"
    )
    parser.add_argument(
        "--over",
        choices=("compute", "steps", "tokens", "time"),
        default="compute",
        help="what the terminal draws losses over (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        help="port of the page, 0 for any (default: the first free one from 8421)",
    )
    parser.add_argument("--no-serve", action="store_true", help="no page")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--once", action="store_true", help="show how it stands now, and end")
    general(parser, json="how it stands (with --once)")


def run(args: argparse.Namespace) -> int:
    if args.json and not args.once:
        raise UsageError("--json prints how a run stands now; give it with --once")
    if (args.no_serve or args.once) and (args.open or args.port is not None):
        other = "--no-serve" if args.no_serve else "--once"
        raise UsageError(f"{other} shows no page, so --port and --open do not go with it")
    from rich.console import Console

    from patchtrain.watch.watching import Watching

    watching, console = Watching(args.folder), Console(highlight=False)
    if args.once:
        _print_once(watching, console, args)
        return 0
    server = None
    try:
        if not args.no_serve:
            from patchtrain.watch.server import PageServer

            watching.look()  # before a browser asks
            server = PageServer(watching, args.port)
        if server is not None and args.open:
            import webbrowser

            webbrowser.open(server.url)
        if console.is_terminal:
            _watch_on_terminal(watching, console, args, server)
        else:
            _watch_in_lines(watching, server)
    except KeyboardInterrupt:
        print("stopped watching", file=sys.stderr)
    finally:
        if server is not None:
            server.close()
    return 0


def _print_once(watching: Watching, console: Console, args: argparse.Namespace) -> None:
    states = watching.look()
    if not args.json:
        console.print(_view(watching, states, console, args, []))
        return
    found = [state.to_dict() for state in states.values()]
    show_json({"runs": found} if watching.is_group else found[0])


def _watch_on_terminal(
    watching: Watching, console: Console, args: argparse.Namespace, server: PageServer | None
) -> None:
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            states = watching.look()
            notes = [*([f"page: {server.url}"] if server else []), "Ctrl-C ends the watching"]
            over = _is_over(states)
            if over and server is None:
                notes = []
            live.update(_view(watching, states, console, args, notes), refresh=True)
            if over and server is None:
                return
            time.sleep(_LOOK_SECONDS)


def _watch_in_lines(watching: Watching, server: PageServer | None) -> None:
    """For a log: a line where something changes, and now and then on progress."""
    from patchtrain.watch.words import line, summary

    if server is not None:
        print(f"page: {server.url}", flush=True)
    before, last_line = None, 0.0
    while True:
        states = watching.look()
        now = [(state.status, state.stage and state.stage.index) for state in states.values()]
        if now != before or time.monotonic() - last_line >= _LINE_SECONDS:
            one = len(states) == 1 and not watching.is_group
            words = line(next(iter(states.values()))) if one else summary(list(states.values()))
            if now != before or not _is_over(states):
                print(words, flush=True)
            before, last_line = now, time.monotonic()
        if _is_over(states) and server is None:
            return
        time.sleep(_LOOK_SECONDS)


def _view(
    watching: Watching,
    states: Mapping[str, State],
    console: Console,
    args: argparse.Namespace,
    notes: list[str],
) -> Group:
    from patchtrain.watch.terminal import table, view

    if watching.is_group:
        most = len(states) if args.once else max(console.height - 8, 3)
        return table(list(states.values()), most, notes)
    (name,) = states
    height = None if args.once else console.height
    return view(states[name], watching.history(name), console, args.over, notes, height)


def _is_over(states: Mapping[str, State]) -> bool:
    """Whether all runs are finished: one that was stopped or failed may be taken up again."""
    return bool(states) and all(state.status == "finished" for state in states.values())
