"""Settings of a plan that neither paper has, to find what helps where patches do not yet win.

Each has a default that is what both papers do, and is data of the plan: a stage, the schedule or
the order of the tokens follows from it. Standard library only; ``plan_resolver.py`` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from patchtrain.errors import UsageError, nearest, one_line
from patchtrain.stage import ABLATIONS, REARRANGED, Stage

# What a plan and its stages hold where a setting is not used.
UNUSED: dict[str, Any] = {
    "rows": "positions",
    "embedding_scale": "none",
    "pool_weights": "uniform",
    "pool_order": "none",
    "patch_rate": 1.0,
    "rewarm_steps": 0,
    "phase": "fixed",
    "position_scale": "none",
    "token_share": 0.0,
    "hybrid_share": 0.0,
    "average_at_switch": 0.0,
    "freeze_head_steps": 0,
    "freeze_body_steps": 0,
    "head_scale_at_switch": 1.0,
}
# Steps after a switch, which must be fewer than the stage's.
AFTER_SWITCH = ("rewarm_steps", "freeze_head_steps", "freeze_body_steps")
STAGE_UNUSED: dict[str, Any] = {
    "embedding_scale": 1.0,
    "position_scale": 1,
    "pool_weights": None,
    "pool_order": "none",
    "tail": 0,
    "token_steps": 0,
}
POOL_ORDERS = ("none", "rotate")
POSITION_SCALES = ("none", "patch")
LARGEST = 10**15  # beyond what anybody trains, and within what the arithmetic takes in no time
_LARGEST_SCALE = 1024.0
_OF_MODELS = [name for name in ABLATIONS if name not in REARRANGED]
_DOUBLINGS = 64  # further back than so a token weighs nothing


def used(spec: Any) -> dict[str, Any]:
    """The settings that a ``PlanSpec`` uses, by name, but for ``rows``, which the stages show."""
    found = {name: getattr(spec, name) for name in UNUSED if name != "rows"}
    return {name: value for name, value in found.items() if value != UNUSED[name]}


def problems(spec: Any) -> list[str]:
    """What does not fit in these settings of a ``PlanSpec``, a line each."""
    found = []
    try:
        embedding_scale(spec.embedding_scale, 2)
    except UsageError as error:
        found.append(str(error))
    try:
        pool_weights(spec.pool_weights, 2)
    except UsageError as error:
        found.append(str(error))
    if not is_number(spec.patch_rate) or not 0 < spec.patch_rate <= _LARGEST_SCALE:
        found.append(
            f"patch_rate must be above 0 and at most {_LARGEST_SCALE:,.0f}, "
            f"not {shown(spec.patch_rate)}"
        )
    for name in AFTER_SWITCH:
        steps = getattr(spec, name)
        if not is_whole(steps) or steps < 0:
            found.append(f"{name} must be a whole number of at least 0, not {shown(steps)}")
    if not found and spec.freeze_head_steps and spec.freeze_body_steps:
        found.append("freeze_head_steps and freeze_body_steps leave nothing to train; give one")
    scale = spec.head_scale_at_switch
    if not is_number(scale) or not 0 < scale <= _LARGEST_SCALE:
        found.append(
            f"head_scale_at_switch must be above 0 and at most {_LARGEST_SCALE:,.0f}, "
            f"not {shown(scale)}"
        )
    if not is_number(spec.token_share) or not 0 <= spec.token_share < 1:
        found.append(f"token_share must be at least 0 and below 1, not {shown(spec.token_share)}")
    if not is_number(spec.hybrid_share) or not 0 <= spec.hybrid_share < 1:
        found.append(f"hybrid_share must be at least 0 and below 1, not {shown(spec.hybrid_share)}")
    if spec.hybrid_share and spec.documents == "separate":
        found.append("hybrid_share needs documents: mixed, which are not aligned to patches")
    share = spec.average_at_switch
    if not is_number(share) or not 0 <= share <= 1:
        found.append(f"average_at_switch must lie between 0 and 1, not {shown(share)}")
    if spec.phase == "random" and spec.documents == "separate":
        found.append("phase random needs documents: mixed, which are not aligned to patches")
    if spec.position_scale == "patch" and spec.documents == "separate":
        found.append(
            "position_scale patch needs documents: mixed; separate ones are told apart by "
            "positions that count by one"
        )
    return found


def switch_problems(spec: Any, stages: Sequence[Stage]) -> list[str]:
    """What takes all the steps of a stage after its switch, a line each."""
    return [
        f"{name} {steps} leaves none of the {stage.steps} steps of {stage.name}"
        for name in AFTER_SWITCH
        for stage in stages[1:]
        if 1 < stage.steps <= (steps := getattr(spec, name))
    ]


def list_problems(spec: Any, patch_sizes: set[int]) -> list[str]:
    """A list of weights is for the stages with as many tokens a patch; one there must be."""
    return [
        f"{key} has {len(weights)} numbers, and no stage has patches of so many tokens"
        for key in ("slot_weights", "pool_weights")
        if isinstance(weights := getattr(spec, key), list | tuple)
        if (sizes := patch_sizes - {1}) and len(weights) not in sizes
    ]


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
    elif is_number(kind) and 0 < kind <= _LARGEST_SCALE:
        factor = float(kind)
    else:
        raise UsageError(
            f"embedding_scale is none, sqrt or a number above 0 and at most {_LARGEST_SCALE:,.0f}, "
            f"not {shown(kind)}"
        )
    return 1.0 if patch_size == 1 or ablation == "output-only" else factor


def pool_weights(
    kind: Any, patch_size: int, ablation: str | None = None
) -> tuple[float, ...] | None:
    """The weight of each of the K embeddings of a patch in their mean, scaled to a mean of 1.

    Args:
        kind: ``"uniform"``, the plain mean; ``"recent"``, each token weighs twice as much as the
            one before it, since the last one says most about what follows; or non-negative numbers,
            which are for the stages with so many tokens in a patch.
        patch_size: K.
        ablation: of the stage.

    Returns:
        K weights, or None for the plain mean.

    Raises:
        UsageError: the kind makes no sense.
    """
    if kind == "uniform":
        return None
    if kind == "recent":
        raw = [2.0**slot for slot in range(min(patch_size, _DOUBLINGS))]
        raw = [0.0] * (patch_size - len(raw)) + raw
    elif (
        isinstance(kind, list | tuple)
        and kind
        and all(is_number(weight) and 0 <= weight <= _LARGEST_SCALE for weight in kind)
        and sum(kind) > 0
    ):
        raw = [float(weight) for weight in kind]
    else:
        raise UsageError(
            f"pool_weights is uniform, recent or a list of numbers from 0 to "
            f"{_LARGEST_SCALE:,.0f} that are not all 0, not {shown(kind)}"
        )
    if patch_size == 1 or len(raw) != patch_size or ablation == "output-only":
        return None
    return tuple(weight * patch_size / sum(raw) for weight in raw)


def pool_order(kind: Any, patch_size: int, ablation: str | None = None) -> str:
    """The order setting of a stage: ``"none"`` where single tokens are read.

    Raises:
        UsageError: the kind is none of ``POOL_ORDERS``.
    """
    if kind not in POOL_ORDERS:
        raise UsageError(f"pool_order is {' or '.join(POOL_ORDERS)}, not {shown(kind)}")
    return "none" if patch_size == 1 or ablation == "output-only" else kind


def patches_of(
    settings: Mapping[str, Any], patch_size: int, ablation: str | None = None
) -> dict[str, Any]:
    """What patches of K are by the settings of a plan: as a stage has it, and ``patch_level``.

    Args:
        settings: by name; those left out are unused.
        patch_size: K.
        ablation: of the stage.
    """
    asked, where = {**UNUSED, **settings}, (patch_size, ablation)
    return {
        "embedding_scale": embedding_scale(asked["embedding_scale"], *where),
        "position_scale": position_scale(asked["position_scale"], *where),
        "pool_weights": pool_weights(asked["pool_weights"], *where),
        "pool_order": pool_order(asked["pool_order"], *where),
    }


def reading(
    patch_size: int, ablation: Any, pool_weights: Any, tail: Any, **settings: Any
) -> dict[str, Any]:
    """What ``patch_level`` was asked for, checked as it is in a plan, by the same functions.

    Args:
        patch_size: K, checked.
        ablation: of ``stage.ABLATIONS``, but for those in ``REARRANGED``; or None.
        pool_weights: as in a plan, or None for the plain mean; a list has to fit K.
        tail: a number of tokens.
        settings: the others of ``patches_of``.

    Raises:
        UsageError: something makes no sense, or not with what else is given.
    """
    if ablation is not None and ablation not in ABLATIONS:
        raise UsageError(f"no ablation '{one_line(ablation, 40)}'{nearest(ablation, _OF_MODELS)}")
    if ablation in REARRANGED:
        raise UsageError(
            f"ablation {ablation} is an order of the tokens that are read, not of the model: give "
            f"rows in that order, and no ablation"
        )
    if not is_whole(tail) or tail < 0:
        raise UsageError(f"tail must be a whole number of at least 0, not {shown(tail)}")
    if tail and ablation:
        raise UsageError(f"ablation {ablation} needs a tail of 0, not {tail}")
    asked = {**settings, "pool_weights": "uniform" if pool_weights is None else pool_weights}
    found = patches_of(asked, patch_size, ablation)
    if isinstance(pool_weights, list | tuple) and 1 < patch_size != len(pool_weights):
        raise UsageError(
            f"pool_weights has {len(pool_weights)} numbers for a patch of {patch_size} tokens"
        )
    return {"ablation": ablation, **found, "tail": tail}


def tail(share: float, patch_size: int, context_length: int) -> int:
    """How many of a sequence's T positions read single tokens: at least one, and not all.

    A share is rounded to sixteenths where T has them, so that sequences of all stages fit into
    blocks that are not much longer than they are.
    """
    if not share or patch_size == 1:
        return 0
    unit = 1 if context_length % 16 else context_length // 16
    return min(max(round(share * context_length / unit), 1) * unit, context_length - unit)


def averaged_steps(share: float, steps: int) -> int:
    """Of how many of a stage's last steps the weights are averaged: at least 1, but with 0 none."""
    return max(1, round(share * steps)) if share else 0


def position_scale(kind: Any, patch_size: int, ablation: str | None = None) -> int:
    """How far apart the positions of neighbouring patches are.

    With K two patches are as far apart as their tokens are at token level, so that rotary positions
    mean the same distances in both.

    Args:
        kind: ``"none"``, 1; ``"patch"``, K; or the number, which a plan does not have.
        patch_size: K. Where single tokens are read, K = 1 or ``output-only``, it is 1.
        ablation: of the stage.

    Raises:
        UsageError: the kind makes no sense.
    """
    if kind not in POSITION_SCALES and not (is_whole(kind) and 1 <= kind <= LARGEST):
        raise UsageError(
            f"position_scale is {', '.join(POSITION_SCALES)} or a whole number of at least 1, "
            f"not {shown(kind)}"
        )
    if kind == "none" or patch_size == 1 or ablation == "output-only":
        return 1
    return patch_size if kind == "patch" else int(kind)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a number, and none beyond what a plan can mean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def shown(value: Any) -> str:
    return one_line(repr(value), 60)
