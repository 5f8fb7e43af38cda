"""The mean of a stage's last weights, which the next stage begins with: ``plan.average_at_switch``.

At a high rate the weights of one step are somewhere around where the stage has got to; the mean of
many steps is nearer. It is kept running in fp32, in as many parts as the weights are sharded into,
and is in every checkpoint that is written meanwhile. The optimizer's state is another matter
(``switching.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from patchtrain.errors import PatchtrainError
from patchtrain.training.state import named_weights, read_tensors, tensor_shapes, write_tensors

FOLDER = "average"  # of a checkpoint


class WeightMean:
    """The running mean of a model's weights; called on all processes of a sharded one."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget it."""
        self.count = 0  # steps in the mean
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Take the weights as they are now into the mean."""
        self.count += 1
        for name, weight in named_weights(model):
            if self.count == 1:
                self._means[name] = _wide(weight).clone()
            else:
                mean = _local(self._means[name])
                mean += (_local(weight.detach()) - mean) / self.count

    @torch.no_grad()
    def move_to(self, model: nn.Module) -> None:
        """Give the model the mean, and forget it; nothing where there is none."""
        if self.count:
            for name, weight in named_weights(model):
                _local(weight).copy_(_local(self._means[name]))
        self.clear()

    def write(self, folder: Path) -> None:
        """Into ``folder/average``, if there is one; ``count`` is the caller's to keep."""
        if self.count:
            write_tensors(self._means, folder / FOLDER)

    @torch.no_grad()
    def read(self, model: nn.Module, folder: Path, count: int) -> None:
        """The opposite of ``write``: what the checkpoint ``folder`` says is a mean of so many.

        Raises:
            PatchtrainError: it is not of the weights of this model.
        """
        self.clear()
        if not count:
            return
        means = {name: torch.zeros_like(_wide(weight)) for name, weight in named_weights(model)}
        stored = tensor_shapes(folder / FOLDER)
        for name in sorted(means.keys() | stored.keys()):
            here = (means[name].shape, means[name].dtype) if name in means else None
            if here != stored.get(name):
                raise PatchtrainError(f"{folder / FOLDER} is not of this model's weights: {name}")
        read_tensors(means, folder / FOLDER)
        self.count, self._means = count, means


class AveragingWeights(TrainerCallback):
    """Takes the weights after each of a stage's last steps into the trainer's ``weight_mean``."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.plan.is_averaged(state.global_step - 1):
            self.trainer.weight_mean.add(self.trainer.plain_model())


def _wide(weight: Tensor) -> Tensor:
    """In fp32, or wider; still sharded where it is."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def _local(tensor: Any) -> Tensor:
    """This process's part, which shares its memory."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
