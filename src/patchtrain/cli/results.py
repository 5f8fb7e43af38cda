"""What the commands that measure a model share: where a result came from, progress, keeping it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patchtrain.errors import UsageError
from patchtrain.runs import RunFolder, versions

_SECONDS_BETWEEN_LINES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every such command."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="keep the result in this JSON file (default: RUN/evaluation.json of a run)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def checked_name(name: str) -> str:
    """``name`` if it can be the name of a result; ``UsageError`` otherwise."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            f"--name '{name}' cannot name a result: use letters, digits, '.', '-' and '_'"
        )
    return name


def place(run: RunFolder | None, out: str | None) -> Path | None:
    """The file a result is kept in: ``--out``, or a run's own, or none of a model without a run.

    Asked before the measuring begins, so that a place where nothing can be written costs no time.
    """
    if out is None:
        file = run.evaluation_file if run else None
    else:
        file = Path(out)
        if file.is_dir() or not file.absolute().parent.is_dir():
            what = "it is a folder" if file.is_dir() else f"there is no folder {file.parent}"
            raise UsageError(f"cannot write the result to --out {out}: {what}")
    if file and file.is_symlink():
        raise UsageError(f"{file} is a link to another file, so nothing is written to it")
    return file


def keep(file: Path | None, kind: str, name: str, result: dict[str, Any], quiet: bool) -> None:
    """Record ``result`` in ``file``, if there is one, and say so unless ``quiet``.

    To be called last: a folder that cannot be written to does not cost the result on the screen.
    """
    if file is None:
        return
    from patchtrain.evaluation.record import record

    record(file, kind, name, result)
    run = RunFolder(file.parent)
    if file == run.evaluation_file and run.info_file.is_file():
        from patchtrain.report.card_file import refresh_card

        refresh_card(run)
    if not quiet:
        print(f"  {'written to':14}{file}")


def show_json(result: dict[str, Any]) -> None:
    print(json.dumps(result, indent=2, ensure_ascii=False))


def provenance(begun: float) -> dict[str, Any]:
    """What a result says about its making; ``begun`` is ``time.monotonic()`` at the beginning."""
    import shlex

    return {
        "seconds": round(time.monotonic() - begun, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["patchtrain", *sys.argv[1:]]),
        "versions": versions(),
    }


@contextmanager
def progress(
    total: int | None, what: str = "tokens", done_to_them: str = "scored"
) -> Iterator[Callable[[int], None]]:
    """Yield what counts ``what`` done: a bar on a terminal, now and then a line elsewhere.

    Both go to stderr.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{what} {done_to_them}", total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            of = f" of {total:,}" if total else ""
            print(f"patchtrain: {done:,}{of} {what} {done_to_them}", file=sys.stderr, flush=True)

    yield advance
