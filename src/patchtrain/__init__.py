"""patchtrain: train causal language models on patches of K tokens first, then on tokens.

The public names below are loaded when first used, so that ``import patchtrain`` is instant and
the core (``patches``, ``loss``, ``plan``, ``cost``) can be used without transformers installed.
Modules with an ``__all__`` are public, and docs/reference/public.md lists them; the rest is ours.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names, for editors and type checkers
    from patchtrain.data.prepare import prepare as prepare
    from patchtrain.data.store import TokenStore as TokenStore
    from patchtrain.errors import PatchtrainError as PatchtrainError
    from patchtrain.errors import UsageError as UsageError
    from patchtrain.loss import patch_loss as patch_loss
    from patchtrain.loss import patch_loss_reference as patch_loss_reference
    from patchtrain.modeling import patch_level as patch_level
    from patchtrain.patches import patch_targets as patch_targets
    from patchtrain.patches import pool_embeddings as pool_embeddings
    from patchtrain.plan import Plan as Plan
    from patchtrain.plan import PlanSpec as PlanSpec
    from patchtrain.runs import RunFolder as RunFolder
    from patchtrain.stage import Stage as Stage
    from patchtrain.stage import slot_weights as slot_weights
    from patchtrain.training.callback import PatchLevelCallback as PatchLevelCallback
    from patchtrain.training.config import PatchConfig as PatchConfig
    from patchtrain.training.trainer import PatchTrainer as PatchTrainer

__version__ = "0.1.0"

_PUBLIC = {
    "pool_embeddings": "patches",
    "patch_targets": "patches",
    "patch_loss": "loss",
    "patch_loss_reference": "loss",
    "slot_weights": "stage",
    "patch_level": "modeling",
    "PatchConfig": "training.config",
    "PatchTrainer": "training.trainer",
    "PatchLevelCallback": "training.callback",
    "PlanSpec": "plan",
    "Plan": "plan",
    "Stage": "stage",
    "prepare": "data.prepare",
    "TokenStore": "data.store",
    "RunFolder": "runs",
    "UsageError": "errors",
    "PatchtrainError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'patchtrain' has no attribute '{name}'")
    return getattr(importlib.import_module(f"patchtrain.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
