"""How long a step of each stage takes on this machine, from a few timed passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchtrain.cost import ModelSize
from patchtrain.modeling import patch_level
from patchtrain.plan import Plan
from patchtrain.probing import probe
from patchtrain.stage import Stage

TIMED_SECONDS = 0.5  # at least, of each thing timed
LARGEST_PASS = 1e12  # FLOPs of a device pass that is still tried on a CPU: some ten seconds


def too_large(size: ModelSize, plan: Plan, device: torch.device) -> bool:
    """Whether one device pass would take minutes: a model for a GPU, asked about on a CPU."""
    position = size.flops_per_position(plan.context_length)
    flops = plan.pass_sequences * plan.context_length * position.total
    return device.type == "cpu" and flops > LARGEST_PASS


def step_seconds(
    model: Any,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    rows: Callable[[Stage, int], Mapping[str, Tensor]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[float, ...]:
    """Mean seconds of an optimizer step of each stage on one process, weights unchanged.

    Args:
        model: a causal LM on ``device``, not at patch level.
        plan: whose stages are timed.
        optimizer: of the model's parameters; its state is of no use afterwards.
        rows: the inputs of one device pass of a stage, at one of its steps whose level it is (a
            stage with ``token_steps`` has two); ``plan.pass_rows(stage)`` rows each.
        device: where the model is.
        autocast: a context for the forward pass, for mixed precision.
    """
    checked = probe(model)
    model.train()
    passes: dict[tuple[Any, ...], float] = {}
    levels = [level for stage in plan.stages for level in stage.levels()]
    for stage, step, _ in levels:
        if _kind(stage) in passes:
            continue
        inputs = {name: value.to(device) for name, value in rows(stage, step).items()}
        inputs.setdefault("labels", inputs["input_ids"])
        with patch_level(
            model, stage.patch_size, stage.slot_weights, checked=checked, **stage.reading()
        ):
            passes[_kind(stage)] = _timed(partial(_pass, model, inputs, autocast))
    for group in optimizer.param_groups:  # so that the weights do not move
        group["lr"] = 0.0
    update = _timed(optimizer.step)
    optimizer.zero_grad(set_to_none=True)

    def mean(stage: Stage) -> float:
        total = sum(steps * passes[_kind(level)] for level, _, steps in stage.levels())
        return plan.passes(stage) * total / stage.steps

    return tuple(mean(stage) + update for stage in plan.stages)


def _kind(stage: Stage) -> tuple[Any, ...]:
    """What the time of a pass depends on."""
    return stage.patch_size, stage.context_length, *stage.reading().values()


def random_rows(plan: Plan, vocab_size: int) -> Callable[[Stage, int], dict[str, Tensor]]:
    """Inputs of ``step_seconds`` where there is no text: what the ids are costs nothing."""

    def rows(stage: Stage, step: int) -> dict[str, Tensor]:
        shape = (plan.pass_rows(stage), stage.sequence_tokens)
        return {"input_ids": torch.randint(0, vocab_size, shape)}

    return rows


def _pass(
    model: Any,
    inputs: Mapping[str, Tensor],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> None:
    with autocast():
        loss = model(**inputs).loss
    loss.backward()


def _timed(work: Callable[[], Any]) -> float:
    """Seconds of one call, the first one not counted."""
    work()
    _synchronize()
    begin, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - begin < TIMED_SECONDS:
        work()
        count += 1
        _synchronize()
    return (time.perf_counter() - begin) / count


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
