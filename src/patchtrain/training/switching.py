"""What becomes of the optimizer's state and of the head where one stage ends and the next begins.

Of the state, ``reset`` forgets it, ``carry`` leaves it alone. ``second`` is between the two:
AdamW's second moments, the scale of each weight's gradient, and its step count stay; the first
moment, the direction of the stage before, is zero again.

After the switch the head has something else to say: one token, where it has learned to spread its
logits over K. It can be scaled at the switch, or it or the body can stay as it is for some steps
while the other adapts (``patch_settings.py``). And code that torch compiled for one stage is of no
use to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

from patchtrain.errors import UsageError
from patchtrain.modeling import input_embeddings, output_embeddings


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


def compiles() -> bool:
    """Whether accelerate compiles the models of the trainer made last.

    ``torch_compile`` of the training arguments is one way to ask for it; the environment, as
    ``accelerate launch --dynamo_backend`` sets it, is another.
    """
    return bool(AcceleratorState().dynamo_plugin.backend != DynamoBackend.NO)


def forget_compiled() -> None:
    """Throw compiled code away, if there is any: it has the forward of the stage before inlined."""
    if compiles():
        torch.compiler.reset()


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


def check_own_head(model: nn.Module) -> None:
    """Refuse a model whose head is its input embedding, which ``scale_head`` would scale along."""
    if output_embeddings(model).weight is input_embeddings(model).weight:
        raise UsageError(
            f"head_scale_at_switch needs a head of its own, and that of {type(model).__name__} is "
            f"its input embedding; set model.config.tie_word_embeddings=false, or leave it out"
        )


@torch.no_grad()
def scale_head(model: nn.Module, factor: float) -> None:
    """Multiply the logits of a head of its own, before the model caps them if it does."""
    for weight in output_embeddings(model).parameters():
        weight *= factor


def drop_frozen(model: nn.Module, parts: Iterable[str]) -> None:
    """Drop the gradients of the ``"head"`` or the ``"body"``, so that the step leaves it alone.

    Without a gradient neither weight decay nor the optimizer's state moves, and the norm that is
    clipped is that of the others.
    """
    head = list(output_embeddings(model).parameters())
    ends = {id(weight) for weight in (*head, *input_embeddings(model).parameters())}
    body = [weight for weight in model.parameters() if id(weight) not in ends]
    for part in parts:
        for weight in head if part == "head" else body:
            weight.grad = None


class CheckingMoments(TrainerCallback):
    """Refuses after the first step what could not be done at the switch, hours later."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_moments(kwargs["optimizer"])


def _name(optimizer: Any) -> str:
    return type(optimizer).__name__


def _listed(state: Mapping[str, Any]) -> str:
    return "only " + ", ".join(sorted(map(str, state))) if state else "none"
