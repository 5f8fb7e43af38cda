"""What of this machine a process may use: cores and memory, also inside a container.

A container sees all cores and all memory of its host in most places where one would ask; what it
may use stands in its control groups (versions 1 and 2). Standard library only.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED = 1 << 60  # what version 1 of control groups calls no limit is somewhat below 2^63


@dataclass(frozen=True)
class Cores:
    """``total`` of the machine, those this process may run on, and how many it may keep busy."""

    total: int
    allowed: int
    quota: float | None  # of its control group; None: no limit

    @property
    def usable(self) -> int:
        """Processes or threads that make sense at a time; at least 1."""
        return max(1, min(self.allowed, math.ceil(self.quota or self.allowed)))


@dataclass(frozen=True)
class Memory:
    """Bytes: of the machine, what the control group allows (None: all), and what is free of it."""

    total: int
    limit: int | None
    available: int | None

    @property
    def usable(self) -> int:
        return min(self.total, self.limit or self.total)


def cores(root: Path = _ROOT) -> Cores:
    """The cores of this process; ``root`` is where /proc and /sys lie."""
    total = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quotas = [*_quotas(root)]
    return Cores(total, allowed, min(quotas) if quotas else None)


def usable_cores() -> int:
    """``cores().usable``"""
    return cores().usable


def memory(root: Path = _ROOT) -> Memory | None:
    """The memory of this process, or None where the system does not tell."""
    info = _meminfo(root)
    total = info.get("MemTotal")
    if total is None:
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):
            return None
    limits = [int(text) for text in _group_files(root, "memory.max", "memory",
              "memory.limit_in_bytes") if text.isdigit()]  # fmt: skip
    limit = min((value for value in limits if value < _UNLIMITED), default=None)
    available = info.get("MemAvailable")
    if limit is not None and available is not None:
        available = min(available, limit)
    return Memory(total, limit, available)


def cpu_model(root: Path = _ROOT) -> str:
    """What the processor is called."""
    told = _cpuinfo("model name", root) or platform.processor() or platform.machine()
    return told or "an unknown processor"


def cpu_vendor(root: Path = _ROOT) -> str | None:
    """What an x86 processor says who made it, such as ``AuthenticAMD``; None: it does not tell."""
    # Windows: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
    return _cpuinfo("vendor_id", root) or platform.processor().partition(", ")[2] or None


def _cpuinfo(entry: str, root: Path) -> str:
    """An entry of the first processor in /proc/cpuinfo."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == entry:
            return " ".join(value.split())
    return ""


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that each control group of this process allows."""
    for text in _group_files(root, "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)
    quotas = _group_files(root, None, "cpu", "cpu.cfs_quota_us")
    periods = _group_files(root, None, "cpu", "cpu.cfs_period_us")
    for quota, period in zip(quotas, periods, strict=False):
        if quota.isdigit() and period.isdigit() and int(period):  # -1: no limit
            yield int(quota) / int(period)


def _group_files(
    root: Path, name: str | None, controller: str = "", old_name: str = ""
) -> Iterator[str]:
    """A file of each control group that this process is in, the outer ones too.

    ``name`` in version 2; ``old_name`` of a ``controller`` in version 1.
    """
    top = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers and name:
            folder, file = top, name
        elif controller and controller in controllers.split(","):
            folder, file = top / controller, old_name
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            if text := _read(folder.joinpath(*parts[:depth], file)).strip():
                yield text


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name."""
    found = {}
    for line in _read(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
