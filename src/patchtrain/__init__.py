"""patchtrain: train causal language models on patches of K tokens first, then on tokens.

The public names below are loaded when first used, so that ``import patchtrain`` is instant and
the core (``patches``, ``loss``, ``plan``, ``cost``) can be used without transformers installed.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "pool_embeddings": "patches",
    "patch_targets": "patches",
    "patch_loss": "loss",
    "patch_loss_reference": "loss",
    "slot_weights": "stage",
    "PlanSpec": "plan",
    "Plan": "plan",
    "Stage": "stage",
    "UsageError": "errors",
    "PatchtrainError": "errors",
    "patch_level": "modeling",
    "TokenStore": "data.store",
    "PatchConfig": "training.config",
    "PatchTrainer": "training.trainer",
    "PatchLevelCallback": "training.callback",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'patchtrain' has no attribute '{name}'")
    return getattr(importlib.import_module(f"patchtrain.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
