"""What the benchmarks share: where they ran, and writing what they found."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from patchtrain.errors import PatchtrainError
from patchtrain.files import write_text
from patchtrain.machine import cpu_model

PACKAGES = ("patchtrain", "torch", "transformers", "accelerate", "numpy")


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """End with the line and the exit code of an error that a user can cause, not its traceback."""
    try:
        yield
    except PatchtrainError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def about(name: str, held_equal: str, device: str = "cpu") -> dict[str, Any]:
    """The head of every result: its benchmark, command, versions, machine, what is held equal."""
    return {
        "benchmark": name,
        "command": shlex.join(["python", *sys.argv]),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": machine(device),
        "held_equal": held_equal,
    }


def machine(device: str = "cpu") -> dict[str, Any]:
    """The processor, its cores and, if used, the GPU."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of some measurements."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def write(file: Path, result: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(result, indent=1) + "\n")
    print(f"written to {file}", flush=True)


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def status(field: str) -> int:
    """A size of this process in bytes, from /proc: Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")
