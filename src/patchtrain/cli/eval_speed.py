"""``patchtrain eval --speed``: what each stage of a run did a second."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from typing import Any

from patchtrain.cli import results
from patchtrain.errors import UsageError, one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Throughput, from the run's metrics."""
    group = parser.add_argument_group("speed")
    group.add_argument(
        "--speed",
        action="store_true",
        help="tokens, positions and FLOP a second of each stage, their share of the peak, and the "
        "time spent waiting for data; from the run's metrics, nothing is run again",
    )
    group.add_argument(
        "--peak-flops",
        type=float,
        metavar="X",
        help="FLOP/s of all devices together at most, such as 312e12 (default: by the device's "
        "name; of a CPU as measured here in a second)",
    )


def asked(args: argparse.Namespace) -> bool:
    if args.peak_flops is not None and not args.speed:
        raise UsageError("--peak-flops is for --speed")
    return bool(args.speed)


def run(args: argparse.Namespace) -> Iterator[results.Named]:
    """Tell the speed and keep it.

    Raises:
        UsageError: not a run, or one without metrics.
    """
    from patchtrain.evaluation import throughput
    from patchtrain.runs import RunFolder

    name = results.checked_name(args.name or "training")
    if args.peak_flops is not None and not (math.isfinite(args.peak_flops) and args.peak_flops > 0):
        raise UsageError(f"--peak-flops is a number above 0, not {args.peak_flops}")
    run_folder = RunFolder.open(args.run_folder)
    file = results.place(run_folder, args.out)
    begun = time.monotonic()
    info = run_folder.info()
    throughput.throughput(run_folder, None)  # refuses what has no metrics before it measures
    if args.peak_flops is not None:
        peak: throughput.Peak | None = throughput.Peak(args.peak_flops, "as given")
    else:
        peak = throughput.known_peak(info) or throughput.measured_peak(info)
    result = {
        "name": name,
        **throughput.throughput(run_folder, peak),
        "peak": {"flop_per_s": peak.flops, "source": peak.source} if peak else None,
        "precision": throughput.precision(info),
        **results.provenance(begun),
    }
    if not args.json:
        _show(args.run_folder, result)
    results.keep(file, "throughput", name, result, quiet=args.json)
    yield "throughput", name, result


def _show(run_folder: str, result: dict[str, Any]) -> None:
    from patchtrain.report.formats import flops
    from patchtrain.report.speed_section import cells
    from patchtrain.report.terminal import print_table

    head = ("stage", "steps", "time", "tokens/s", "positions/s", "compute rate", "of the peak",
            "waiting for data")  # fmt: skip
    rows = [
        (one_line(f"{stage['stage']} {stage['name']}", 60), *cells(stage))
        for stage in result["stages"]
    ]
    if len(rows) > 1:
        rows.append(("all", *cells(result["total"])))
    print(run_folder)
    print_table(head, rows)
    peak = result["peak"]
    told = "not known on this machine: name it with --peak-flops"
    if peak is not None:
        told = f"{flops(peak['flop_per_s'], per_second=True)}, {one_line(peak['source'])}"
    print(f"  {'peak':14}{told}")
