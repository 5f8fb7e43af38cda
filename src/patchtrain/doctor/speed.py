"""Products of matrices, measured: what will be fast or slow on this machine, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from patchtrain.devices import recognised
from patchtrain.doctor.finding import Finding
from patchtrain.evaluation.throughput import matmul_rate
from patchtrain.report.formats import count, flops

_SECONDS = 0.4  # of each measurement
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PARAMETERS = 10**7  # of the model that rates are put into words with
_LOW_SHARE = 0.3  # of a known device's peak
_EFFICIENT = 0.6  # of what as many threads would do if they did not disturb each other


@dataclass(frozen=True)
class Rates:
    """FLOP/s by precision: with one thread, and with all (of a GPU: the device)."""

    device: str  # cpu or cuda
    threads: int
    one: dict[str, float]
    all: dict[str, float]
    name: str = ""


def measure(device: str, threads: int, step: Callable[[str], None] = lambda name: None) -> Rates:
    """Measure this machine for some seconds; ``step`` is told each measurement as it begins."""
    one: dict[str, float] = {}
    all_: dict[str, float] = {}
    before = torch.get_num_threads()
    try:
        for name, dtype in _DTYPES.items():
            if device == "cpu":
                step(f"{name}, one thread")
                torch.set_num_threads(1)
                one[name] = _products(device, dtype)
                torch.set_num_threads(threads)
            step(f"{name}, {device}")
            repeat = device != "cpu" or threads > 1
            all_[name] = _products(device, dtype) if repeat else one[name]
    finally:
        torch.set_num_threads(before)
    title = torch.cuda.get_device_name() if device == "cuda" else ""
    return Rates(device, threads, one, all_, title)


def _products(device: str, dtype: torch.dtype) -> float:
    return matmul_rate(device, dtype, _SECONDS)


def judged(rates: Rates) -> Iterator[Finding]:
    """What the rates mean for training here."""
    data: dict[str, Any] = {"one_thread": rates.one, "all": rates.all, "threads": rates.threads}
    if rates.device == "cuda":
        yield _of_gpu(rates, data)
        return
    fast = rates.all["fp32"]
    rate = f"{_rate(rates.one['fp32'])} with one thread"
    if rates.threads > 1:
        rate = f"{_rate(fast)} with {rates.threads} threads, {rate}"
    tokens = fast / (6 * _PARAMETERS)
    yield Finding(
        "fp32", "ok",
        f"{rate}: at most about "
        f"{count(tokens)} tokens a second of a model of {count(_PARAMETERS)} parameters, K times "
        "as many in patches of K", data=data,
    )  # fmt: skip
    gain = fast / rates.one["fp32"]
    if rates.threads > 1 and gain < 1 + _EFFICIENT * (rates.threads - 1):
        yield Finding(
            "threads", "slow", f"{rates.threads} threads do {gain:.1f} times what one does: the "
            "cores are shared, busy, or two threads of one core",
            "several runs side by side, with OMP_NUM_THREADS=1 each, use the cores better than one "
            "(as compare and study do)",
        )  # fmt: skip
    elif rates.threads > 1:
        yield Finding("threads", "ok", f"{rates.threads} threads do {gain:.1f} times what one does")
    yield _of_half(rates)


def _of_half(rates: Rates) -> Finding:
    ratio = rates.all["bf16"] / rates.all["fp32"]
    text = f"{_rate(rates.all['bf16'])}, {ratio:.2g} times fp32"
    if ratio < 0.95:
        return Finding("bf16", "slow", f"{text}: this processor has no instructions for it",
                       "train in fp32 here: leave training.bf16 and model.dtype alone")  # fmt: skip
    if ratio < 1.2:
        return Finding("bf16", "ok", f"{text}: it saves memory here and no time")
    return Finding("bf16", "ok", f"{text}: training.bf16=true will be faster")


def _of_gpu(rates: Rates, data: dict[str, Any]) -> Finding:
    known = recognised(rates.name)
    half, full = rates.all["bf16"], rates.all["fp32"]
    tokens = half / (6 * _PARAMETERS)
    text = (
        f"{rates.name}: bf16 {_rate(half)}, fp32 {_rate(full)}; in bf16 at most about "
        f"{count(tokens)} tokens a second of a model of {count(_PARAMETERS)} parameters"
    )
    peak = known.peak("bf16") if known else None
    if peak is not None:
        data["share_of_peak"] = half / peak
        text += f"; {half / peak:.0%} of the {known.title if known else ''}'s peak"
        if half < _LOW_SHARE * peak:
            return Finding("matrices", "slow", text, "is it shared, throttled or a part of one? "
                           "see `nvidia-smi`", data)  # fmt: skip
    if half > 1.2 * full:
        text += "; training.bf16=true will be faster"
    return Finding("matrices", "ok", text, data=data)


def _rate(value: float) -> str:
    return flops(value, per_second=True)
