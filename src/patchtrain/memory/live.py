"""One training pass on fake tensors, and the bytes that live in each part of it.

``torch``'s fake tensors have shapes and no data, so the model's own forward, its loss and its
backward run for a model of any size, without computing anything. ``LiveMemory`` sees every tensor
that is made, and counts the bytes of those that live, by kind, as long as they do: so what autograd
keeps, what a checkpointed layer computes again and what a backward pass needs for a moment are
found by running the model, and not guessed by family.

A pass has phases, of which each has its largest moment:

    forward       up to the language-model head
    loss          head and loss, forward
    loss backward until the gradient reaches the last layer's output
    last layer    backward of the layers nearest to the loss, when nearly all activations live
    middle        of the layers between: never the largest where the layers are alike
    first layer   of the layers nearest to the embedding, when nearly all gradients are there
    embedding     of the embedding
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from patchtrain.errors import UsageError, one_line
from patchtrain.loss_backends import Backend
from patchtrain.memory.dataless import (
    assume_flash,
    enable_checkpointing,
    layers_of,
    without_data,
)
from patchtrain.modeling import PatchLevel, Probe, input_embeddings, output_embeddings
from patchtrain.uses import one_sequence_a_row

KINDS = ("activations", "copies", "gradients")
PHASES = (
    "forward", "loss", "loss backward", "last layer", "middle", "first layer", "embedding",
)  # fmt: skip


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of the storages made while it is on, by kind.

    Kinds: ``gradients`` of parameters, ``copies`` of parameters in another dtype (autocast's), and
    ``activations``, which is all else. ``phases`` has, by phase, the counts of its largest moment.
    """

    def __init__(self, parameters: list[Tensor], others: list[Tensor], value: int = 0) -> None:
        super().__init__()
        self.value = value  # of every tensor that is asked for it, having none
        self.now = dict.fromkeys(KINDS, 0)
        self.phases: dict[str, dict[str, int]] = {}
        self._records: Any = WeakIdKeyDictionary()  # storage -> [kind, bytes], or None: not counted
        self._parameters: Any = WeakIdKeyDictionary()
        for tensor in [*parameters, *others]:
            self._records[tensor.untyped_storage()] = None
        for tensor in parameters:
            self._parameters[tensor.untyped_storage()] = True
        self.enter("forward")

    @property
    def total(self) -> int:
        return sum(self.now.values())

    def enter(self, phase: str) -> None:
        """From here on, moments are those of ``phase``."""
        self._most = self.phases.setdefault(phase, dict(self.now))
        self._look()

    def is_gradient(self, parameter: Tensor) -> None:
        """Count the gradient of ``parameter`` as such."""
        if parameter.grad is None:
            return
        record = self._records.get(parameter.grad.untyped_storage())
        if record is not None and record[0] != "gradients":
            self.now[record[0]] -= record[1]
            record[0] = "gradients"
            self.now["gradients"] += record[1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.value
        result = func(*args, **(kwargs or {}))
        copied = func is torch.ops.aten._to_copy.default and (
            args[0].untyped_storage() in self._parameters
        )
        tree_map_only(Tensor, lambda made: self._count(made, copied), result)
        self._look()
        return result

    def _count(self, tensor: Tensor, copied: bool) -> None:
        storage = tensor.untyped_storage()
        if storage in self._records:
            return
        record: list[Any] = ["copies" if copied else "activations", storage.nbytes()]
        self._records[storage] = record
        self.now[record[0]] += record[1]
        weakref.finalize(storage, self._gone, record).atexit = False

    def _gone(self, record: list[Any]) -> None:
        self.now[record[0]] -= record[1]

    def _look(self) -> None:
        if self.total > sum(self._most.values()):
            self._most.update(self.now)


@dataclass(frozen=True)
class Pass:
    """What a training pass holds beyond parameters, buffers, inputs and optimizer, in bytes.

    ``kept`` and ``phases`` are by kind (``KINDS``). A Pass of a model of any number of layers is a
    straight line through those of two.
    """

    parameters: int  # elements, shared ones once
    kept: dict[str, float]  # when the forward reaches the head
    phases: dict[str, dict[str, float]]  # the largest moment of each

    def at(self, phase: str) -> float:
        """Bytes in the largest moment of a phase."""
        return sum(self.phases[phase].values())

    def towards(self, other: Pass, share: float) -> Pass:
        """``self + share * (other - self)``, number by number; none falls below 0."""

        def mixed(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
            return {k: max(v + share * (second[k] - v), 0.0) for k, v in first.items()}

        return Pass(
            round(self.parameters + share * (other.parameters - self.parameters)),
            mixed(self.kept, other.kept),
            {name: mixed(most, other.phases[name]) for name, most in self.phases.items()},
        )


@dataclass(frozen=True)
class Work:
    """What a pass does. Shapes: ``rows`` sequences of ``patch_size * context_length`` tokens."""

    patch_size: int
    context_length: int
    rows: int
    passes: int = 1  # 2: the one that counts finds the gradients of another one there
    checkpointing: bool = False
    autocast: bool = False  # bf16
    sharded: bool = False  # gradients leave with their layer, as under FSDP2
    backend: str = "chunked"
    device: str = "cpu"
    documents: bool = False  # packed documents kept apart: positions, and the mask they make


def run_pass(
    build: Callable[[], nn.Module],
    work: Work,
    period: int = 1,
    weights: torch.dtype = torch.float32,
) -> Pass:
    """A pass of the model that ``build`` makes, with weights of a dtype, on fake tensors.

    ``period`` is how many layers count as the first and as the last.

    Raises:
        UsageError: a model that does not run on tensors without data.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), one_sequence_a_row(not work.documents):
            return _run(without_data(build, weights), work, period)
    except UsageError:
        raise
    except Exception as error:  # a model's forward may fail in any way
        raise UsageError(
            f"the memory of this model cannot be told: it does not run on tensors without data "
            f"({one_line(f'{type(error).__name__}: {error}', 300)})"
        ) from error


def _run(model: Any, work: Work, period: int) -> Pass:
    config = model.config
    config.use_cache = False
    if work.device != "cpu" and getattr(config, "_attn_implementation", None) == "sdpa":
        assume_flash(config)
    if work.checkpointing:
        enable_checkpointing(model)
    if work.sharded:  # a sharded embedding is called, and pooled then (patches.py)
        input_embeddings(model).register_forward_hook(lambda module, args, output: None)
    ids = torch.zeros(work.rows, work.patch_size * work.context_length, dtype=torch.int64)
    inputs = {"input_ids": ids, "labels": ids}
    if work.documents:
        inputs["position_ids"] = torch.zeros_like(ids)
    parameters = list(model.parameters())
    live = LiveMemory(parameters, [*model.buffers(), *inputs.values()])
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(live.is_gradient)
    kept: dict[str, float] = {}
    hooks = _mark(model, live, kept, period, work.sharded)
    found = Probe(fused=work.backend != "plain", auxiliary=1.0)  # used where there is such a loss
    name = {"liger": "chunked", "cce": "chunked"}.get(work.backend, work.backend)
    slots = (1.0,) * work.patch_size
    with live, PatchLevel(model, work.patch_size, slots, found, Backend(name, "asked for")):
        for number in range(work.passes):
            if number:
                live.phases.clear()
                live.enter("forward")
            with _autocast(work.autocast):
                loss = model(**inputs).loss
            live.enter("loss backward")
            loss.backward()
            del loss
    hooks.close()
    return Pass(
        sum(parameter.numel() for parameter in parameters),
        kept,
        {name: dict(live.phases[name]) for name in PHASES if name in live.phases},
    )


def _mark(
    model: Any, live: LiveMemory, kept: dict[str, float], period: int, sharded: bool
) -> contextlib.ExitStack:
    """Have ``live`` told when a phase begins; ``kept`` is filled when the head is reached.

    With ``sharded``, the gradients of what a phase went backward through leave when it ends.
    """
    hooks = contextlib.ExitStack()
    blocks = layers_of(model)
    embedding = input_embeddings(model)
    in_layers = {id(parameter) for block in blocks for parameter in block.parameters()}
    in_embedding = {id(parameter) for parameter in embedding.parameters()}
    rest = [p for p in model.parameters() if id(p) not in in_layers | in_embedding]

    def leave(parameters: list[Tensor]) -> None:
        if sharded:
            for parameter in parameters:
                parameter.grad = None

    def reaching_head(module: nn.Module, args: tuple[Any, ...]) -> None:
        kept.update(live.now)
        live.enter("loss")

    def leaving_layers(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]

        def has_gradient(gradient: Tensor) -> None:
            leave(rest)
            live.enter("last layer")

        hidden.register_hook(has_gradient)

    def reaching_layer(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs.get("hidden_states")
            if not isinstance(hidden, Tensor) or not hidden.requires_grad:
                return

            def is_through(gradient: Tensor) -> None:
                leave(list(blocks[number].parameters()))
                if number == 0:
                    live.enter("embedding")
                elif number == period:
                    live.enter("first layer")
                elif number == len(blocks) - period:
                    live.enter("middle")

            hidden.register_hook(is_through)

        return hook

    # Before the head's own hooks: at patch level one of them takes the rows away.
    hooks.callback(output_embeddings(model).register_forward_pre_hook(reaching_head).remove)
    hooks.callback(blocks[-1].register_forward_hook(leaving_layers).remove)
    for number, block in enumerate(blocks):
        handle = block.register_forward_pre_hook(reaching_layer(number), with_kwargs=True)
        hooks.callback(handle.remove)
    return hooks


@contextlib.contextmanager
def _autocast(on: bool) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
        yield
