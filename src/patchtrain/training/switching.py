"""What becomes of the optimizer's state where one stage ends and the next begins.

``reset`` forgets it, ``carry`` leaves it alone. ``second`` is between the two: AdamW's second
moments, the scale of each weight's gradient, and its step count stay; the first moment, the
direction of the stage before, is zero again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerCallback

from patchtrain.errors import UsageError


def switch_optimizer(optimizer: Optimizer, kind: str) -> None:
    """Do to the state of ``optimizer``, in place, what ``plan.optimizer_at_switch`` says.

    Raises:
        UsageError: ``second``, and the optimizer has not AdamW's moments.
    """
    if kind == "reset":
        optimizer.state.clear()
    elif kind == "second":
        check_moments(optimizer)
        for state in optimizer.state.values():
            state["exp_avg"].zero_()


def check_moments(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose state, where it has one yet, is not AdamW's."""
    states = list(optimizer.state.values())
    if not states and "betas" not in optimizer.param_groups[0]:
        states = [{}]  # it never has one
    for state in states:
        if not all(isinstance(state.get(name), Tensor) for name in ("exp_avg", "exp_avg_sq")):
            inner: Any = getattr(optimizer, "optimizer", optimizer)
            raise UsageError(
                f"optimizer_at_switch second keeps AdamW's second moments, and {_name(inner)} has "
                f"{_listed(state)}; set training.optim=adamw_torch, or optimizer_at_switch to "
                f"reset or carry"
            )


class CheckingMoments(TrainerCallback):
    """Refuses after the first step what could not be done at the switch, hours later."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_moments(kwargs["optimizer"])


def _name(optimizer: Any) -> str:
    return type(optimizer).__name__


def _listed(state: Mapping[str, Any]) -> str:
    return "only " + ", ".join(sorted(map(str, state))) if state else "none"
