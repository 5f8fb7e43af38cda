"""Whose convention a plan follows: the two papers', or the default, which follows the evidence.

A preset decides what a plan leaves open: values of ``PlanSpec``'s keys, the share of patches, and
for ``patchtrain`` K and the rows of patches by the model's size. The papers' stay as the papers
have them.
"""

from __future__ import annotations

from typing import Any

DEFAULT = "patchtrain"
PRESETS: dict[str, dict[str, Any]] = {
    # As what won in our own comparisons of small models was trained (docs/evidence.md): a
    # patch-level step has as many positions as a token-level step; one cosine and one optimizer
    # run through. K and rows go by the model's size (``by_size``).
    "patchtrain": {
        "hold": "compute",
        "schedule": "cosine",
        "schedule_scope": "run",
        "optimizer_at_switch": "carry",
        "slot_weights": "auto",
    },
    # Shao, Meng, Zhou, arXiv:2407.12665: a patch-level step has as many tokens as a token-level
    # step, and each stage is trained like a run of its own.
    "paper": {
        "hold": "tokens",
        "rows": "positions",
        "schedule": "cosine",
        "schedule_scope": "stage",
        "optimizer_at_switch": "reset",
        "slot_weights": "uniform",
        "patch_size": 4,
    },
    # Peng, Gigant, Quesnelle, arXiv:2605.06546: a patch-level step costs as much as a token-level
    # step and reads K times more tokens; one schedule and one optimizer run through.
    "superposition": {
        "hold": "compute",
        "rows": "positions",
        "schedule": "wsd",
        "schedule_scope": "run",
        "optimizer_at_switch": "carry",
        "slot_weights": "auto",
        "patch_size": 4,
    },
}
# All keys that a preset decides: what who takes a preset as it is leaves out.
DECIDED = tuple(dict.fromkeys(key for decided in PRESETS.values() for key in decided))
# The share at patch level where none is given: lambda of the tokens, or r of the steps.
PATCH_FRACTION = {"paper": 2 / 3}
STEP_FRACTION = {"patchtrain": 0.3, "superposition": 0.3}
# What ``patchtrain`` takes where a plan names no K, as gained most at equal compute in the
# comparisons nearest to a model's size, which below so many parameters are our own (``advice``; a
# test holds the two together).
SMALL = 17_600_000
OF_SMALL, OF_LARGE = (4, "tokens"), (6, "positions")  # K, rows


def decided_by(preset: Any) -> dict[str, Any]:
    """What a preset decides; the default's where there is none of that name, or none is given."""
    known = isinstance(preset, str) and preset in PRESETS
    return PRESETS[preset if known else DEFAULT]


def by_size(parameters: int) -> tuple[int, str]:
    """K and rows of preset ``patchtrain`` for a model of so many parameters, shared ones once."""
    return OF_SMALL if parameters < SMALL else OF_LARGE
