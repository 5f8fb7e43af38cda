"""What each stage of a run did a second, from the run's own metrics.

Seconds are those of the run's training clock: evaluation and the writing of a stage's model are
left out, checkpoints and logging are in. FLOPs are the model's own by formula (``cost.py``), on
the positions of all processes; what is computed a second time to save memory is not counted. A
stage's share of the peak is those FLOPs over what its devices could do at most in dense products
of matrices of the run's precision.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchtrain.devices import recognised
from patchtrain.errors import UsageError
from patchtrain.runs import RunFolder, of_expected_form

Row = dict[str, Any]
COUNTERS = ("step", "tokens", "positions", "flops", "seconds")

_MEASURED_SECONDS = 1.0
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied


@dataclass(frozen=True)
class Peak:
    """What all devices of a run together can do at most, FLOP/s, and who says so."""

    flops: float
    source: str


def in_order(rows: list[Row]) -> list[Row]:
    """Metrics with growing steps: a resumed run repeats the steps after its checkpoint."""
    kept: list[Row] = []
    for row in rows:
        step = row.get("step")
        if isinstance(step, bool) or not isinstance(step, int | float):
            continue
        if not abs(step) <= sys.float_info.max:  # NaN, or a whole number no float can hold
            continue
        if kept and kept[-1]["step"] > step:
            while kept and kept[-1]["step"] >= step:
                kept.pop()
        kept.append(row)
    return kept


def spent(index: int, rows: Sequence[Row]) -> dict[str, float] | None:
    """Counters spent in a stage: from its switch, or zero, to the next switch or the last row.

    ``rows`` are ``in_order``. ``data_seconds`` are among the counters where all of the stage was
    trained by a version that counts them. None before the stage began.
    """
    start: Row = dict.fromkeys((*COUNTERS, "data_seconds"), 0)
    before = [row for row in rows if row.get("stage", 0) < index]
    switch = [row for row in rows if row.get("event") == "switch" and row.get("stage") == index]
    inside = [row for row in rows if row.get("event") != "switch" and row.get("stage") == index]
    following = [
        row for row in rows if row.get("event") == "switch" and row.get("stage") == index + 1
    ]
    if not inside:
        return None
    if switch or before:
        start = (switch or before)[-1]
    end = (following or inside)[-1]
    done = {key: float(end.get(key, 0)) - float(start.get(key, 0)) for key in COUNTERS}
    if all("data_seconds" in row for row in (start, *inside, end)):
        done["data_seconds"] = float(end["data_seconds"]) - float(start["data_seconds"])
    return done


def rates(done: Mapping[str, float], peak: Peak | None) -> dict[str, Any]:
    """Counters of some training as rates; None for what is not known.

    ``peak_share`` and ``data_share`` are in [0, 1]: FLOP/s of the peak, and the time the training
    loop waited for its next batch of all time.
    """
    seconds = done["seconds"]
    rate = {
        key: done[key] / seconds if seconds > 0 else None
        for key in ("tokens", "positions", "flops")
    }
    waited = done.get("data_seconds")
    return {
        "steps": int(done["step"]),
        **{key: done[key] for key in ("tokens", "positions", "flops", "seconds")},
        "data_seconds": waited,
        "tokens_per_s": rate["tokens"],
        "positions_per_s": rate["positions"],
        "flop_per_s": rate["flops"],
        "peak_share": rate["flops"] / peak.flops if peak and rate["flops"] is not None else None,
        "data_share": waited / seconds if waited is not None and seconds > 0 else None,
    }


def throughput(run: RunFolder, peak: Peak | None) -> dict[str, Any]:
    """``stages``, the rates of each stage that has begun, and ``total``, those of the whole run.

    Raises:
        UsageError: there are no metrics.
        PatchtrainError: the run's files hold other values than a run writes.
    """
    with of_expected_form(run):
        rows = in_order(run.metrics())
        stages, parts = [], []
        for index, stage in enumerate(run.part("plan").get("stages") or []):
            done = spent(index, rows)
            if done is not None:
                patch_size = int(stage["patch_size"])
                named = {"stage": index + 1, "name": str(stage["name"]), "patch_size": patch_size}
                stages.append({**named, **rates(done, peak)})
                parts.append(done)
        if not parts:
            raise UsageError(f"{run.path} has no metrics of training, so no speed to tell")
        keys = [key for key in (*COUNTERS, "data_seconds") if all(key in part for part in parts)]
        whole = {key: sum(part[key] for part in parts) for key in keys}
        return {"stages": stages, "total": rates(whole, peak)}


# ---- the peak


def precision(info: Mapping[str, Any]) -> str:
    """``bf16`` or ``fp32``, whose products of matrices a run computes, from its ``run.json``."""
    identity = _part(info, "identity")
    half = _part(identity, "optimizer").get("bf16") is True
    return "bf16" if half or _part(identity, "model").get("dtype") == "bfloat16" else "fp32"


def known_peak(info: Mapping[str, Any]) -> Peak | None:
    """The peak of a run's devices as their maker states it; None if the device is not known."""
    device = recognised(str(_part(info, "machine").get("device")))
    kind = precision(info)
    flops = device.peak(kind) if device else None
    if device is None or flops is None:
        return None
    number = _processes(info)
    return Peak(flops * number, f"{number} x {device.title}, {kind}: {device.source}")


def measured_peak(info: Mapping[str, Any]) -> Peak | None:
    """The fastest product of large matrices here, on all devices of the run.

    Takes some seconds. None if the run was trained on another machine.
    """
    import torch

    machine, kind = _part(info, "machine"), precision(info)
    cuda = torch.cuda.is_available()
    here = torch.cuda.get_device_name(0) if cuda else "cpu"
    same = _part(info, "process").get("host") == platform.node()
    if not same or machine.get("device") != here or machine.get("cores") != os.cpu_count():
        return None
    where, number = ("cuda" if cuda else "cpu"), _processes(info)
    threads, side = torch.get_num_threads(), MATRIX_SIDE["cuda" if cuda else "cpu"]
    asked = machine.get("threads")
    # Processes on one CPU share its cores: it is measured whole, a GPU one by one.
    wanted = asked * number if isinstance(asked, int) and asked > 0 else threads
    used = min(wanted, os.cpu_count() or 1)
    try:
        torch.set_num_threads(used)
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        rate = matmul_rate(where, dtype, _MEASURED_SECONDS)
    finally:
        torch.set_num_threads(threads)
    flops = rate * (number if cuda else 1)
    devices = f"{number} x {here}" if cuda else f"this CPU with {used} thread{'s' * (used > 1)}"
    return Peak(flops, f"measured: {side} x {side} matrices, {kind}, {devices}")


def matmul_rate(device: str, dtype: Any, seconds: float) -> float:
    """FLOP/s of the fastest of many products of two square matrices, ``MATRIX_SIDE`` wide."""
    import torch

    side = MATRIX_SIDE[device]
    matrix = torch.rand(side, side, device=device).to(dtype)
    product = torch.empty_like(matrix)

    def multiply() -> float:
        before = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    multiply()  # the first one sets things up
    best, begun = multiply(), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        best = min(best, multiply())
    return float(2 * side**3 / best)


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}


def _processes(info: Mapping[str, Any]) -> int:
    number = _part(info, "plan").get("processes")
    return number if isinstance(number, int) and number > 0 else 1
