"""The device passes of one optimizer step, and how their losses add up to the step's mean.

Where documents are mixed all passes have the same number of targets, and the mean of their means
is the mean. Separate documents leave another number in each pass, and on each process: then every
pass's sum is divided once by the targets of the whole step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from patchtrain.ablations import stage_targets, target_weights
from patchtrain.errors import UsageError
from patchtrain.patches import IGNORE
from patchtrain.stage import Stage


def check_takes_labels(model: nn.Module) -> None:
    """Refuse a model that has no loss of its own, which is what trains it at token level.

    Raises:
        UsageError: its ``forward`` takes no ``labels``.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    if not any(p.name == "labels" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise UsageError(
            f"{type(model).__name__}.forward takes no labels, and the token-level stage trains on "
            f"the model's own loss: let it take labels, as transformers' causal models do, or use "
            f"patch_level() in a loop of your own"
        )


def split_passes(inputs: Mapping[str, Tensor], rows: int) -> list[dict[str, Tensor]]:
    """The step's inputs, ``(B, S)`` each, in passes of ``rows`` sequences."""
    parts = {name: value.split(rows) for name, value in inputs.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def count_targets(inputs: Mapping[str, Tensor], stage: Stage) -> float:
    """The targets of some sequences, each as much as its slot weighs."""
    labels = inputs.get("labels", inputs["input_ids"])
    targets = stage_targets(labels, stage.patch_size, stage.ablation, tail=stage.tail)
    valid = (targets != IGNORE).sum((0, 1))
    weights = target_weights(stage.slot_weights, stage.ablation)
    return float((valid.cpu() * torch.tensor(weights)).sum())


def pass_loss(
    model: nn.Module, inputs: Mapping[str, Tensor], stage: Stage, targets: float, share: float
) -> Tensor:
    """A pass's part of the step's loss, up to a division by the number of all passes.

    Args:
        model: at the stage's level.
        inputs: ``input_ids``; of separate documents also ``labels`` and ``position_ids``.
        stage: the stage of the step.
        targets: of this pass (``count_targets``).
        share: targets of a pass on average, over all passes and processes of the step.

    Returns:
        A scalar whose mean over all passes of all processes is the mean over the step's targets
        (and a mixture of experts' auxiliary loss, averaged over the passes).
    """
    loss: Tensor
    if "labels" not in inputs:
        ids = inputs["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
    elif stage.patch_size > 1:
        loss = model(**inputs, total=share).loss
    elif targets:
        loss = model(**inputs).loss * (targets / share)
    else:  # the model's own loss would be 0 / 0
        plain = {name: value for name, value in inputs.items() if name != "labels"}
        loss = model(**plain).logits.sum() * 0.0
    return loss
