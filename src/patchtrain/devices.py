"""Accelerators: what they can do at most, and who says so.

``devices.json`` holds dense rates (not the twice as high ones with structured sparsity) as the
makers state them, memory, and the power the board is rated at, each with its source. No device
reaches its peak in training: ``cost.ASSUMED_UTILISATION``. Standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from patchtrain.errors import UsageError, nearest


@dataclass(frozen=True)
class Device:
    """One kind of accelerator."""

    name: str
    title: str
    bf16_tflops: float | None  # dense, of matrix products; None: it has no bf16
    fp32_tflops: float  # dense, in full fp32 (or TF32 where the source says so)
    memory_gb: float  # 10^9 bytes
    watts: float  # of the board, as rated
    source: str

    def peak(self, precision: str) -> float | None:
        """FLOP/s at most in matrix products of this precision; None where it has none."""
        tflops = self.bf16_tflops if precision == "bf16" else self.fp32_tflops
        return None if tflops is None else tflops * 1e12

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gb * 1e9)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def devices() -> dict[str, Device]:
    """All known ones by name."""
    rows = json.loads(files("patchtrain").joinpath("devices.json").read_text("utf-8"))
    return {row["name"]: Device(**row) for row in rows}


def device(name: str) -> Device:
    """The device of a name; ``UsageError`` names the nearest ones."""
    known = devices()
    if name.lower() not in known:
        raise UsageError(f"no device '{name}'{nearest(name.lower(), list(known))}")
    return known[name.lower()]


def recognised(title: str) -> Device | None:
    """The device that a driver calls ``title`` (``NVIDIA A100-SXM4-40GB``); None if not known."""
    words = title.lower()
    fitting = [known for known in devices().values() if all(
        part in words for part in known.name.split("-"))]  # fmt: skip
    return max(fitting, key=lambda known: len(known.name), default=None)
