"""What commands with a result share: JSON, progress, where a result came from, keeping it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from patchtrain.errors import UsageError
from patchtrain.files import check_place
from patchtrain.progress import Progress
from patchtrain.report.formats import finite
from patchtrain.runs import RunFolder, versions

_program: IO[str] | None = None  # who reads JSON, while all else that is printed goes to stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a command that measures a model keeps what it measured."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="keep the result in this JSON file (default: RUN/evaluation.json of a run)",
    )


# A kind of ``runs.EVALUATIONS``, a name, and what was measured.
Named = tuple[str, str, dict[str, Any]]


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
        check_place(file, "the result")
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


@contextmanager
def only_json() -> Iterator[None]:
    """Within it only ``show_json`` writes to stdout; whatever else is printed goes to stderr."""
    global _program
    before, _program = _program, sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _program = before


def show_json(result: Any) -> None:
    """Print ``result`` for a program; what is no number (NaN, infinity) becomes null."""
    text = json.dumps(finite(result), indent=2, ensure_ascii=False, allow_nan=False)
    print(text, file=_program or sys.stdout, flush=True)


def show_json_line(result: Any) -> None:
    """One object of several, on a line of its own, at once."""
    text = json.dumps(finite(result), ensure_ascii=False, allow_nan=False)
    print(text, file=_program or sys.stdout, flush=True)


def run_result(run: RunFolder) -> dict[str, Any]:
    """What a program wants to know of a finished run: where things are, and its ``run.json``."""
    places = {"folder": run.path, "model_folder": run.model, "page": run.report_file}
    return {**{name: str(path) for name, path in places.items()}, **run.info()}


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
    total: int | None, what: str = "tokens", done_to_them: str = "scored", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield what counts ``what`` done; see ``patchtrain.progress``."""
    with Progress(not quiet, what) as shown:
        shown.start(f"{what} {done_to_them}", total, announce=False)
        yield shown.advance
