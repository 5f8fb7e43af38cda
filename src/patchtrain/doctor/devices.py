"""The processor, its memory, and accelerators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchtrain.devices import recognised
from patchtrain.doctor.finding import Finding
from patchtrain.doctor.packages import DRIVER
from patchtrain.machine import Cores, Memory, cores, cpu_model, memory

_SMALL_MEMORY = 2 * 10**9  # torch, transformers and a small model take about one


def processor(threads: int, found: Cores | None = None, name: str | None = None) -> Finding:
    """The cores that may be used, and whether torch uses them; ``threads`` are torch's."""
    found = found or cores()
    text = f"{name or cpu_model()}, {found.usable} of {found.total} cores usable"
    if found.allowed < found.total:
        text += f"; affinity allows {found.allowed}"
    if found.quota is not None:
        text += f"; the control group allows {found.quota:g}"
    data = {
        "total": found.total, "allowed": found.allowed, "quota": found.quota,
        "usable": found.usable, "threads": threads,
    }  # fmt: skip
    if threads > found.usable:
        return Finding(
            "processor", "slow", f"{text}; torch starts {threads} threads, which wait for each "
            "other", f"export OMP_NUM_THREADS={found.usable}", data,
        )  # fmt: skip
    if threads < found.usable:
        return Finding(
            "processor", "slow", f"{text}; torch is held to {threads} thread{'s' * (threads > 1)}",
            f"export OMP_NUM_THREADS={found.usable}, unless several runs share the cores", data,
        )  # fmt: skip
    return Finding("processor", "ok", text, data=data)


def main_memory(found: Memory | None = None) -> Finding:
    """How much there is, and is left."""
    found = found or memory()
    if found is None:
        return Finding("memory", "absent", "this system does not tell how much there is")
    text = f"{found.usable / 1e9:.1f} GB"
    if found.limit is not None and found.limit < found.total:
        text += f" in this control group, of {found.total / 1e9:.1f} GB"
    free = found.available
    if free is not None:
        text += f", {free / 1e9:.1f} GB of it free"
    data = {"total": found.total, "limit": found.limit, "available": free}
    if (found.usable if free is None else free) < _SMALL_MEMORY:
        return Finding("memory", "slow", f"{text}; even a small run takes about 1 GB",
                       "end what else is running, or take a larger machine", data)  # fmt: skip
    return Finding("memory", "ok", text, data=data)


def accelerators(torch: Any, driver: Path = DRIVER) -> Iterator[Finding]:
    """Each GPU as torch sees it, or why there is none."""
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index in range(count):
            yield _gpu(torch, index, driver)
    except RuntimeError as error:
        yield Finding("gpu", "broken", f"torch cannot use it: {' '.join(str(error).split())}",
                      "compare `nvidia-smi` with the CUDA that torch was built for")  # fmt: skip
        return
    if count:
        return
    if torch.backends.mps.is_available():
        yield Finding("gpu", "ok", "Apple's, through MPS; patchtrain is tested on CUDA and CPU")
        return
    yield Finding(
        "gpu",
        "slow",
        "none that torch can use: everything runs on the CPU",
        "models of millions of parameters train here, larger ones need a GPU",
    )


def _gpu(torch: Any, index: int, driver: Path) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    capability = torch.cuda.get_device_capability(index)
    free, total = torch.cuda.mem_get_info(index)
    half = torch.cuda.is_bf16_supported(including_emulation=False)
    known = recognised(properties.name)
    version = _driver_version(driver)
    text = (
        f"{properties.name}, {total / 1e9:.1f} GB, {free / 1e9:.1f} GB free, compute capability "
        f"{capability[0]}.{capability[1]}, bf16 {'yes' if half else 'no'}"
        + (f", driver {version}" if version else "")
        + (f"; --device {known.name} for plan" if known else "")
    )
    data = {
        "title": properties.name, "memory": total, "free": free, "capability": list(capability),
        "bf16": half, "driver": version, "device": known.name if known else None,
    }  # fmt: skip
    name = f"gpu {index}"
    if not half:
        return Finding(name, "slow", text, "leave training.bf16 off: it would be emulated", data)
    if free < total / 2:
        return Finding(name, "slow", f"{text}; another process has most of its memory",
                       "see `nvidia-smi`, or choose with CUDA_VISIBLE_DEVICES", data)  # fmt: skip
    return Finding(name, "ok", text, data=data)


def _driver_version(file: Path) -> str | None:
    """``550.54.15`` from the driver's own line."""
    try:
        words = file.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return None
    return next((word for word in words if word.count(".") >= 1 and word[0].isdigit()), None)
