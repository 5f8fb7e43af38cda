"""Settings of a plan that neither paper has, to find what helps where patches do not yet win.

Each has a default that is what both papers do, and is data of the plan: a stage, the schedule or
the order of the tokens follows from it. Standard library only; ``plan_resolver.py`` calls it.
"""

from __future__ import annotations

import math
from typing import Any

from patchtrain.errors import UsageError, one_line

# What a plan and its stages hold where a setting is not used.
UNUSED: dict[str, Any] = {
    "embedding_scale": "none",
    "rewarm_steps": 0,
    "phase": "fixed",
    "position_scale": "none",
    "token_share": 0.0,
}
STAGE_UNUSED: dict[str, Any] = {
    "embedding_scale": 1.0,
    "position_scale": 1,
    "token_steps": 0,
}
_LARGEST_SCALE = 1024.0


def used(spec: Any) -> dict[str, Any]:
    """The settings that a ``PlanSpec`` uses, by name."""
    found = {name: getattr(spec, name) for name in UNUSED}
    return {name: value for name, value in found.items() if value != UNUSED[name]}


def problems(spec: Any) -> list[str]:
    """What does not fit in these settings of a ``PlanSpec``, a line each."""
    found = []
    try:
        embedding_scale(spec.embedding_scale, 2)
    except UsageError as error:
        found.append(str(error))
    steps = spec.rewarm_steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        found.append(
            f"rewarm_steps must be a whole number of at least 0, not {_shown(spec.rewarm_steps)}"
        )
    if not _is_number(spec.token_share) or not 0 <= spec.token_share < 1:
        found.append(f"token_share must be at least 0 and below 1, not {_shown(spec.token_share)}")
    if spec.phase == "random" and spec.documents == "separate":
        found.append("phase random needs documents: mixed, which are not aligned to patches")
    if spec.position_scale == "patch" and spec.documents == "separate":
        found.append(
            "position_scale patch needs documents: mixed; separate ones are told apart by "
            "positions that count by one"
        )
    return found


def embedding_scale(kind: Any, patch_size: int, ablation: str | None = None) -> float:
    """What the mean of a patch's embeddings is multiplied with.

    The mean of K independent embeddings is sqrt(K) times shorter than one of them.

    Args:
        kind: ``"none"``, a factor of 1; ``"sqrt"``, a factor of sqrt(K); or the factor.
        patch_size: K. Where single tokens are read, K = 1 or ``output-only``, the factor is 1.
        ablation: of the stage.

    Raises:
        UsageError: the kind makes no sense.
    """
    if kind == "none":
        factor = 1.0
    elif kind == "sqrt":
        factor = math.sqrt(patch_size)
    elif _is_number(kind) and 0 < kind <= _LARGEST_SCALE:
        factor = float(kind)
    else:
        raise UsageError(
            f"embedding_scale is none, sqrt or a number above 0 and at most {_LARGEST_SCALE:,.0f}, "
            f"not {_shown(kind)}"
        )
    return 1.0 if patch_size == 1 or ablation == "output-only" else factor


def position_scale(kind: str, patch_size: int, ablation: str | None = None) -> int:
    """How far apart the positions of neighbouring patches are: 1, or K for ``"patch"``.

    With K two patches are as far apart as their tokens are at token level, so that rotary positions
    mean the same distances in both. Where single tokens are read it is 1.
    """
    return 1 if kind != "patch" or ablation == "output-only" else patch_size


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return one_line(repr(value), 60)
