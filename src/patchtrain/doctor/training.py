"""What training takes its speed from: loss backends, attention, a compiler, shared memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from patchtrain.doctor.finding import Finding
from patchtrain.errors import one_line
from patchtrain.loss_backends import LOSSES, check, choose, unavailable
from patchtrain.modeling import Probe

_HIDDEN, _VOCABULARY = 64, 1024
_SMALL_SHM = 256 * 10**6
_COMPILER_SECONDS = 60


def losses(device: str, dtype: torch.dtype) -> Iterator[Finding]:
    """Each loss backend, tried on this device, and which one a run would take."""
    head = nn.Linear(_HIDDEN, _VOCABULARY, bias=False).to(device, dtype)
    plain_head = Probe(fused=True)
    usable, out = [], []
    for name in LOSSES:
        why = unavailable(name, device)
        if why is None and (wrong := check(name, plain_head, head.weight, None)):
            why = f"it failed its check against the formula: {wrong}"
        if why is None:
            usable.append(name)
        else:
            out.append(f"{name}: {why}")
    taken = choose("auto", plain_head, head)
    precision = str(dtype).removeprefix("torch.")
    plain = taken.name == "plain"
    yield Finding(
        "patch loss",
        "slow" if plain else "ok",
        f"{taken}, unless training.loss_backend says otherwise; checked on {device} in "
        f"{precision}: {', '.join(usable)}" + (f"; not usable: {'; '.join(out)}" if out else ""),
        "all logits are formed, which costs memory; please report it" if plain else "",
        {"chosen": taken.name, "usable": usable, "unusable": out},
    )


def attention(device: str, dtype: torch.dtype) -> Finding:
    """Which kernels torch's attention (SDPA) may use here, each tried."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    }
    states = torch.randn(1, 2, 64, 64, device=device, dtype=dtype)
    usable = []
    for name, kernel in kernels.items():
        try:
            with sdpa_kernel(kernel):
                nn.functional.scaled_dot_product_attention(states, states, states, is_causal=True)
        except RuntimeError:
            continue
        usable.append(name)
    package = find_spec("flash_attn") is not None
    text = f"SDPA with {', '.join(usable) or 'no kernel'}"
    text += "; flash-attn is installed" if package else "; flash-attn is not installed"
    data = {"sdpa": usable, "flash_attn": package}
    if not usable:
        return Finding("attention", "broken", text, "install an official build of torch", data)
    if usable == ["math"]:
        return Finding(
            "attention",
            "slow",
            f"{text}: memory grows with the square of the context",
            "train in bf16 (training.bf16), for which there are fused kernels",
            data,
        )
    return Finding("attention", "ok", text, data=data)


def compiler() -> Finding:
    """Whether torch.compile could build its kernels: a C++ compiler that finds Python's headers."""
    asked = os.environ.get("CXX")
    names = [asked] if asked else ["g++", "clang++"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    install = "only for training.torch_compile=true: apt-get install g++ python3-dev, or the like"
    if found is None:
        text = f"no C++ compiler ({', '.join(names)}), which torch.compile needs"
        return Finding("compiler", "absent", text, install)
    includes = {sysconfig.get_paths()[name] for name in ("include", "platinclude")}
    command = [found, "-x", "c++", "-fsyntax-only", *(f"-I{path}" for path in includes), "-"]
    try:
        done = subprocess.run(
            command, input="#include <Python.h>\n", text=True, capture_output=True,
            timeout=_COMPILER_SECONDS, check=False,
        )  # fmt: skip
        wrong = done.stderr if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    if wrong:
        text = f"{found} does not compile against Python's headers: {one_line(wrong)}"
        return Finding("compiler", "absent", text, install)
    return Finding("compiler", "ok", f"{found} finds Python's headers, as torch.compile needs")


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Where processes of one machine hand each other data."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return Finding("shared memory", "absent", f"no {folder} on this system")
    text = f"{folder} has {free / 1e9:.1f} GB free"
    if free < _SMALL_SHM:
        return Finding("shared memory", "slow", f"{text}: several processes or GPUs need more",
                       "start the container with --shm-size=8g", {"free": free})  # fmt: skip
    return Finding("shared memory", "ok", text, data={"free": free})
