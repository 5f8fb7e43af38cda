"""Where the runs of a study are trained: each on a GPU of its own, or on a core without one.

A run is a process, and it is shown one GPU only. More runs at a time than there are GPUs share
them evenly. Runs that are to stay on the CPU, and those of a machine without a GPU, have a core
each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from patchtrain.machine import usable_cores

_VISIBLE = "CUDA_VISIBLE_DEVICES"  # ROCm reads it too


def runs_at_a_time(recipe: Mapping[str, Any]) -> int:
    """How many, where nobody said: one a GPU, else one a core.

    Args:
        recipe: of the study.
    """
    return len(_gpus(recipe)) or (1 if _has_mps(recipe) else usable_cores())


def places(recipe: Mapping[str, Any], jobs: int) -> list[dict[str, str]]:
    """What each of so many runs at a time has in its environment beside the study's own."""
    gpus = _gpus(recipe)
    return [{_VISIBLE: gpus[number % len(gpus)]} if gpus else {} for number in range(jobs)]


def _gpus(recipe: Mapping[str, Any]) -> list[str]:
    """By the names that ``CUDA_VISIBLE_DEVICES`` takes; those of them that this process may use."""
    import torch

    if _stays_on_cpu(recipe) or not torch.cuda.is_available():
        return []
    count, named = torch.cuda.device_count(), os.environ.get(_VISIBLE)
    if named is None:
        return [str(number) for number in range(count)]
    return [name.strip() for name in named.split(",")][:count]


def _has_mps(recipe: Mapping[str, Any]) -> bool:
    import torch

    return not _stays_on_cpu(recipe) and torch.backends.mps.is_available()


def _stays_on_cpu(recipe: Mapping[str, Any]) -> bool:
    return bool((recipe.get("training") or {}).get("use_cpu"))
