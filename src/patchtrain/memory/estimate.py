"""How much memory training takes on each device, told before anything is trained.

``estimate`` says it for a stage of a plan: parameters, gradients, optimizer, activations, loss, and
what sharding and a layer's backward need for a moment. Nothing is guessed by family: the model's
own forward and backward run on tensors without data (``live.py``), with two layers and with
three, and a straight line goes through both, so a model of 80 layers takes seconds. The optimizer
takes a step on tensors without data as well (``optimizer.py``). Only what FSDP2 gathers and
reduces is counted by formula (``sharded.py``).

What is assumed:

- All devices hold the same. DDP keeps a second copy of the gradients (its buckets).
- FSDP2 as accelerate sets it up: every layer, the embedding, and norm with head are gathered on
  their own, the next one while this one computes; gradients are reduced in fp32.
- On a GPU attention is a flash kernel; liger and cce count as the chunked loss.
- A compiled model takes no more than one that is not.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from patchtrain.loss import CHUNK_ELEMENTS, CHUNK_ELEMENTS_GPU, CHUNK_ROWS
from patchtrain.memory.dataless import period_of, with_layers
from patchtrain.memory.live import Pass, Work, run_pass
from patchtrain.memory.optimizer import optimizer_bytes
from patchtrain.memory.sharded import Sizes, sharded
from patchtrain.modeling import output_embeddings

if TYPE_CHECKING:
    from patchtrain.plan import Plan

# Of a device's memory, for what is not tensors: the CUDA context, its libraries and NCCL's buffers
# take some GB, and torch's allocator keeps blocks that fit no request. A rule of thumb.
RESERVE = 0.10
MOST_PROCESSES = 1024


@dataclass(frozen=True)
class Training:
    """What decides the memory of a stage, besides the model.

    ``step_sequences`` are those of an optimizer step over all processes: what a device pass does
    not take is done in further passes. With ``fsdp``, ``shards`` processes share one copy of the
    model (hybrid sharding; None: all of them).
    """

    patch_size: int
    context_length: int
    sequences: int  # a device pass
    step_sequences: int | None = None  # None: one pass
    processes: int = 1
    fsdp: bool = False
    shards: int | None = None
    reshard_after_forward: bool = True
    gradient_checkpointing: bool = False
    bf16: bool = False  # autocast, or FSDP2's mixed precision; bf16 weights are the model's dtype
    optimizer: str = "adamw_torch_fused"  # a name of transformers' TrainingArguments.optim
    backend: str = "chunked"  # of loss_backends.LOSSES; the token level has the model's own loss
    documents: bool = False  # kept separate
    averaged: bool = False  # a mean of the weights is taken, for the switch
    device: str = "cuda"

    @property
    def passes(self) -> int:
        """Device passes of a step."""
        return -(-(self.step_sequences or 0) // (self.sequences * self.processes)) or 1

    @property
    def sharded(self) -> bool:
        return self.fsdp and self.processes > 1

    @property
    def parts(self) -> int:
        """Processes that share one copy of the model."""
        return (self.shards or self.processes) if self.sharded else 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device in a stage. The parts are each at their most, not all at one time."""

    training: Training
    parameters: int  # and their mean, buffers and inputs
    gradients: int
    optimizer: int
    activations: int  # kept for the backward when the forward reaches the head
    loss: int  # the most that head and loss come to on top
    transient: int  # gathered or cast weights, what is being reduced, and a layer's backward
    phases: dict[str, int]  # everything, in the largest moment of each phase

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @property
    def when(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda phase: self.phases[phase])

    def to_dict(self) -> dict[str, Any]:
        parts = ("parameters", "gradients", "optimizer", "activations", "loss", "transient")
        return {name: getattr(self, name) for name in parts} | {
            "phases": self.phases,
            "peak": self.peak,
            "when": self.when,
        }


def estimate(model: nn.Module, training: Training) -> Memory:
    """The memory of training ``model`` in one stage, on each device.

    Args:
        model: a transformers causal LM, best on the meta device: only shapes and dtypes are read.
        training: stage, batch, processes and what else decides it.

    Raises:
        UsageError: a model or optimizer that does not run on tensors without data.
    """
    sizes = Sizes.of(model, training)
    states, working = optimizer_bytes(
        sizes.shards, sizes.dtype, training.optimizer, training.device
    )
    found = _pass(model, training)
    count = training.sequences * training.patch_size * training.context_length
    mean = 4 * sum(math.prod(shape) for shape in sizes.shards) if training.averaged else 0
    held = sizes.parameters + mean + sizes.buffers + count * (24 if training.documents else 8)
    base = held + states
    gradients = sizes.parameters
    if training.sharded:
        extra = sharded(sizes, training, found)
    else:
        # DDP's buckets hold every gradient once more.
        extra = dict.fromkeys(found.phases, gradients if training.processes > 1 else 0)
    phases = {name: base + found.at(name) + extra[name] for name in found.phases}
    if "loss" in phases and training.patch_size > 1:
        phases["loss"] += _larger_chunks(model, training)
    buckets = gradients if training.processes > 1 and not training.sharded else 0
    phases["optimizer step"] = base + gradients + buckets + working
    kept = found.kept["activations"]
    before = base + sum(found.kept.values())
    loss = max(phases[name] - extra[name] for name in ("loss", "loss backward")) - before
    beyond = found.phases["last layer"]["activations"] - kept
    return Memory(
        training,
        parameters=round(held),
        gradients=round(gradients),
        optimizer=round(states),
        activations=round(kept),
        loss=round(max(loss, 0)),
        transient=round(found.kept["copies"] + max(beyond, 0) + max(extra.values())),
        phases={name: round(most) for name, most in phases.items()},
    )


def memory_of(
    model: nn.Module,
    plan: Plan,
    args: Any,
    *,
    device: str = "cuda",
    fsdp: bool | None = None,
    shards: int | None = None,
    backend: str | None = None,
) -> list[Memory]:
    """The memory of each stage of a plan.

    Args:
        model: see ``estimate``.
        plan: resolved for the processes and device passes that it will have.
        args: a ``PatchConfig`` or ``TrainingArguments``: precision, checkpointing, optimizer, FSDP.
        device: ``"cuda"`` or ``"cpu"``.
        fsdp: whether the model is sharded; None: as ``args`` say. (On one process ``PatchConfig``
            turns sharding off, so for a plan of many made on one, say it.)
        shards: see ``Training``.
        backend: the loss backend taken (``choose``); None: as ``args`` ask, ``auto`` being chunked.
    """
    config = getattr(args, "fsdp_config", None) or {}
    asked = str(backend or getattr(args, "loss_backend", "auto"))
    checkpointing = getattr(args, "gradient_checkpointing", False) or getattr(
        args, "activation_checkpointing", False
    )
    training = Training(
        patch_size=1,
        context_length=plan.context_length,
        sequences=plan.pass_sequences,
        processes=plan.processes,
        fsdp=bool(args.fsdp) if fsdp is None else fsdp,
        shards=shards,
        reshard_after_forward=bool(config.get("reshard_after_forward", True)),
        gradient_checkpointing=bool(checkpointing or config.get("activation_checkpointing")),
        bf16=bool(args.bf16),
        optimizer=str(getattr(args.optim, "value", args.optim)),
        backend="chunked" if asked == "auto" else asked,
        documents=plan.spec.documents == "separate",
        device=device,
    )
    return [
        estimate(
            model,
            replace(
                training,
                patch_size=stage.patch_size,
                context_length=stage.context_length,
                sequences=plan.pass_rows(stage),
                step_sequences=stage.sequences_per_step,
                averaged=plan.is_averaged(stage.last_step - 1),
            ),
        )
        for stage in plan.stages
    ]


def fits(memory: Memory | Iterable[Memory], device_bytes: int) -> bool:
    """Whether a stage, or every one of several, fits a device, ``RESERVE`` of it left free."""
    stages = [memory] if isinstance(memory, Memory) else list(memory)
    return all(stage.peak <= (1 - RESERVE) * device_bytes for stage in stages)


def what_would_fit(
    model: nn.Module, stages: Memory | Sequence[Memory], device_bytes: int
) -> list[str]:
    """What would make training fit a device, a line each, in the order in which to try it.

    Smaller device passes, gradient checkpointing, sharding over the processes there are, more
    processes, bf16: each is added to those before it as long as it helps, until all stages fit. The
    pass is then made as large again as fits. Lines name recipe keys and the peak that is left.

    Returns:
        No line if everything fits as it is. The last line says if nothing is enough.
    """
    stages = [stages] if isinstance(stages, Memory) else list(stages)
    if fits(stages, device_bytes):
        return []

    def tried(**changes: Any) -> list[Memory]:
        return [estimate(model, replace(stage.training, **changes)) for stage in stages]

    def most(memories: list[Memory]) -> int:
        return max(memory.peak for memory in memories)

    first = stages[0].training
    changes: dict[str, Any] = {}
    lines: list[str] = []
    best = most(stages)
    for name, words, options in _measures(first):
        # The last goes farthest: where it is not enough, those before it need not be tried.
        farthest = tried(**changes, **options[-1])
        for option in options if fits(farthest, device_bytes) else options[-1:]:
            memories = farthest if option is options[-1] else tried(**changes, **option)
            peak = most(memories)
            enough = fits(memories, device_bytes)
            if not enough and option is not options[-1]:
                continue
            if not enough and peak > 0.98 * best:
                break  # it is no help
            changes |= option
            best = peak
            lines.append(f"{words} {option[name]}: {_gb(peak)}".replace(" True:", ":"))
            break
        if fits(tried(**changes), device_bytes):
            break
    else:
        lines.append(
            f"and still not enough: {_gb(best)} of the {_gb((1 - RESERVE) * device_bytes)} that "
            f"{_gb(device_bytes)} have for tensors; take a smaller model or a larger device"
        )
        return lines
    larger = changes.get("sequences", first.sequences)
    while larger * 2 <= first.sequences and len(lines) > 1:
        memories = tried(**{**changes, "sequences": larger * 2})
        if not fits(memories, device_bytes):
            break
        larger *= 2
        changes["sequences"], best = larger, most(memories)
    if "sequences" in changes and len(lines) > 1:
        lines[0] = f"training.per_device_train_batch_size={larger}"
        lines[-1] = f"{lines[-1].rsplit(':', 1)[0]}: together {_gb(best)}"
        if larger == first.sequences:
            lines = lines[1:]
    return lines


def _measures(first: Training) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """What can be done, in order: the field, words for it, and values to try."""
    smaller = [first.sequences >> shift for shift in range(1, first.sequences.bit_length())]
    measures: list[tuple[str, str, list[dict[str, Any]]]] = [
        (
            "sequences",
            "training.per_device_train_batch_size of",
            [{"sequences": n} for n in smaller],
        )
    ]
    if not first.gradient_checkpointing:
        measures.append((
            "gradient_checkpointing", "training.activation_checkpointing=true",
            [{"gradient_checkpointing": True}],
        ))  # fmt: skip
    if not first.fsdp and first.processes > 1:
        measures.append((
            "fsdp", f"training.fsdp=true over the {first.processes} processes", [{"fsdp": True}]
        ))  # fmt: skip
    more = [
        {"processes": n, "fsdp": True, "shards": None}
        for n in (2**power for power in range(1, 11))
        if first.processes < n <= MOST_PROCESSES
    ]
    measures.append(("processes", "FSDP2 over more processes, that is", more))
    if not first.bf16:
        measures.append(("bf16", "training.bf16=true", [{"bf16": True}]))
    return [measure for measure in measures if measure[2]]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


# ---- a pass


def _pass(model: Any, training: Training) -> Pass:
    """The pass of the whole model, from those of few layers where its layers are alike."""
    weights = next(iter(model.parameters())).dtype
    work = Work(
        patch_size=training.patch_size,
        context_length=training.context_length,
        rows=training.sequences,
        passes=1 if training.sharded else min(training.passes, 2),
        checkpointing=training.gradient_checkpointing,
        autocast=training.bf16,
        sharded=training.sharded,
        backend=training.backend,
        device=training.device,
        documents=training.documents,
    )
    if training.bf16 and training.sharded:
        weights = torch.bfloat16  # what is gathered
    config = copy.deepcopy(model.config)
    layers = config.get_text_config().num_hidden_layers
    period = period_of(config)
    recipe = _Kind(type(model), config)
    if layers <= 3 * period:
        return _cached_pass(recipe, layers, weights, work, 1)
    short, long = (_cached_pass(recipe, n * period, weights, work, period) for n in (2, 3))
    found = short.towards(long, layers / period - 2)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if abs(found.parameters - parameters) <= 0.01 * parameters:
        return found
    return _cached_pass(recipe, layers, weights, work, 1)  # its layers are not alike


class _Kind:
    """A model's class and config; equal to another with the same class and the same text."""

    def __init__(self, made_by: Any, config: Any) -> None:
        self.made_by, self.config = made_by, config
        self.key = (made_by, config.to_json_string(use_diff=False), config._attn_implementation)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kind) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=64)
def _cached_pass(kind: _Kind, layers: int, weights: torch.dtype, work: Work, period: int) -> Pass:
    return run_pass(lambda: kind.made_by(with_layers(kind.config, layers)), work, period, weights)


def _larger_chunks(model: Any, training: Training) -> float:
    """What the chunked loss takes more on a GPU: larger chunks, and a softmax beside its logits."""
    if training.device == "cpu" or training.backend == "plain":
        return 0.0
    vocabulary = output_embeddings(model).weight.shape[0]
    rows = training.sequences * (training.context_length - 1)

    def elements(at_least: int) -> int:
        return min(max(CHUNK_ROWS, at_least // vocabulary), rows) * vocabulary

    narrow = training.bf16 or next(iter(model.parameters())).dtype == torch.bfloat16
    on_gpu, on_cpu = (10, 6) if narrow else (8, 4)  # bytes an element, counted in loss.py
    return on_gpu * elements(CHUNK_ELEMENTS_GPU) - on_cpu * elements(CHUNK_ELEMENTS)
