"""Versions: Python, what patchtrain needs, what its extras add, and how torch was built."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from patchtrain import __version__
from patchtrain.doctor.finding import Finding

# Extras for those who change patchtrain or run its examples; and the one that is all others.
_NOT_FOR_USERS = ("all", "dev", "docs", "examples")
DRIVER = Path("/proc/driver/nvidia/version")

# The version of an installed package; ``PackageNotFoundError`` if there is none.
Version = Callable[[str], str]


def python_and_packages(
    version: Version | None = None, requirements: list[str] | None = None
) -> Iterator[Finding]:
    """What is needed, then what each extra adds.

    ``requirements`` are patchtrain's own, as its metadata has them; ``version`` is
    ``metadata.version`` or stands in for it.
    """
    yield Finding(
        "python",
        "ok",
        f"patchtrain {__version__}, Python {platform.python_version()} ({sys.executable}), "
        f"{platform.platform()}",
        data={"patchtrain": __version__, "python": platform.python_version()},
    )
    version = version or metadata.version
    needed, extras = _needed(_own_requirements() if requirements is None else requirements)
    found, wrong = _compared(needed, version)
    if wrong:
        yield Finding(
            "packages", "broken", "; ".join(wrong), "pip install --upgrade patchtrain", found
        )
    elif needed:
        yield Finding("packages", "ok", _listed(found), data=found)
    else:
        yield Finding("packages", "absent", "patchtrain is not installed, so what it needs is not "
                      "known", "pip install .")  # fmt: skip
    for extra, packages in extras.items():
        if extra in _NOT_FOR_USERS:
            continue
        found, wrong = _compared(packages, version)
        install = f"pip install 'patchtrain[{extra}]'"
        if wrong:
            yield Finding(f"extra {extra}", "absent", "; ".join(wrong), install, found)
        else:
            yield Finding(f"extra {extra}", "ok", _listed(found), data=found)


def torch_build(torch: Any, driver: Path = DRIVER) -> Finding:
    """What torch was built for, and whether that is what this machine has."""
    cuda, rocm = torch.version.cuda, getattr(torch.version, "hip", None)
    target = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "the CPU only"
    libraries = [
        name
        for name, there in (
            ("MKL", torch.backends.mkl.is_available()),
            ("oneDNN", torch.backends.mkldnn.is_available()),
            ("OpenMP", torch.backends.openmp.is_available()),
        )
        if there
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    text = f"{torch.__version__}, built for {target}; {', '.join([*libraries, capability])}"
    data = {"version": torch.__version__, "cuda": cuda, "rocm": rocm, "cpu": capability}
    if (driver.is_file() or shutil.which("nvidia-smi")) and not (cuda or rocm):
        return Finding(
            "torch", "slow", f"{text}; this machine has an NVIDIA driver, which this torch cannot "
            "use", "install a CUDA build: https://pytorch.org/get-started", data,
        )  # fmt: skip
    if not torch.backends.mkldnn.is_available():
        return Finding("torch", "slow", f"{text}; without oneDNN bf16 is slow on a CPU",
                       "install an official build of torch", data)  # fmt: skip
    return Finding("torch", "ok", text, data=data)


def _own_requirements() -> list[str]:
    try:
        return metadata.requires("patchtrain") or []
    except metadata.PackageNotFoundError:
        return []


def _needed(requirements: list[str]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Requirements that always hold, and those of each extra."""
    from packaging.requirements import Requirement

    needed: list[Any] = []
    extras: dict[str, list[Any]] = {}
    for line in requirements:
        requirement = Requirement(line)
        marker = requirement.marker
        name = str(marker or "").rpartition("extra ==")[2].strip().strip("\"'")
        if marker is not None and not marker.evaluate({"extra": name}):
            continue  # for another Python or system
        (extras.setdefault(name, []) if name else needed).append(requirement)
    return needed, extras


def _compared(packages: list[Any], version: Version) -> tuple[dict[str, str], list[str]]:
    """The versions that are there, and in words what is missing or does not fit."""
    found, wrong = {}, []
    for package in packages:
        try:
            found[package.name] = there = version(package.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{package.name} is missing")
            continue
        if not package.specifier.contains(there, prereleases=True):
            wrong.append(f"{package.name} is {there} and must be {package.specifier}")
    return found, wrong


def _listed(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
