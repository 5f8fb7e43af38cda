"""The memory of an optimizer: its states, and what a step needs for a moment.

The optimizer that transformers makes by its name takes a step on tensors without data.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from patchtrain.errors import UsageError, one_line
from patchtrain.memory.live import LiveMemory


def optimizer_bytes(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, name: str, device: str
) -> tuple[int, int]:
    """Bytes of an optimizer's states for weights of ``shapes``, and the most its step adds to them.

    One weight of each shape is stepped, then two: what a step adds is a line through both (flat if
    it goes weight by weight, and steep if it has copies of all at once).

    Raises:
        UsageError: an optimizer that transformers does not make by its name alone, or that does not
            run on tensors without data.
    """
    counts = Counter(shapes)
    distinct = tuple(counts)
    states, once = _stepped(distinct, dtype, name, device)
    _, twice = _stepped((*distinct, *distinct), dtype, name, device)
    total = sum(states[i] * counts[shape] for i, shape in enumerate(distinct))
    one = sum(torch.Size(shape).numel() for shape in distinct)
    all_of_them = sum(torch.Size(shape).numel() * n for shape, n in counts.items())
    return total, round(max(once + (twice - once) * (all_of_them / one - 1), 0))


@functools.lru_cache(maxsize=64)
def _stepped(
    shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype, name: str, device: str
) -> tuple[list[int], int]:
    """Bytes of the states of each weight, and the most that the second step adds to them."""
    make = _optimizer(name, device)
    try:
        with FakeTensorMode():
            weights = [nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in shapes]
            for weight in weights:
                weight.grad = torch.empty_like(weight)
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            optimizer = make(weights)
            with LiveMemory([*weights], gradients, value=1) as live:  # the steps it has taken
                optimizer.step()
                before = live.total
                live.enter("step")
                optimizer.step()
            held = [
                [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
                for weight in weights
            ]
            states = [sum(value.numel() * value.itemsize for value in values) for values in held]
            return states, sum(live.phases["step"].values()) - before
    except Exception as error:  # an optimizer may fail in any way
        raise UsageError(
            f"the memory of the optimizer {name} cannot be told: it does not run on tensors "
            f"without data ({one_line(error, 200)})"
        ) from error


@functools.lru_cache(maxsize=16)
def _optimizer(name: str, device: str) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    from transformers import Trainer, TrainingArguments

    try:
        args = TrainingArguments(output_dir=".", optim=name, use_cpu=True, report_to="none")
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    except Exception as error:  # an unknown name, a package that is not there
        raise UsageError(
            f"the memory of the optimizer '{name}' cannot be told ({one_line(error, 200)}); "
            f"adamw_torch_fused, adamw_torch, adafactor and sgd can"
        ) from error
    if device != "cpu" and kind in (torch.optim.AdamW, torch.optim.SGD) and "fused" not in kwargs:
        kwargs["foreach"] = True  # torch's default there, which has whole copies for a moment
    return lambda weights: kind(weights, **kwargs)
