"""How often a position uses each part of a model: found by one pass of shapes without numbers.

Not every parameter is met once. Towers for pictures and sounds are not passed by text, blocks that
run in cycles or are shared by layers are passed several times, and what runs without gradients has
no backward pass. So a copy of the model on the meta device runs on a few embeddings, and notes by
how many rows its weights are multiplied, how often their modules are called, and what its attention
is given. It takes no memory, and a second or so for a model of a hundred layers.

A model whose forward looks at numbers, to choose between branches, does not run on shapes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_COUNTED = "patchtrain_counted"
_POSITIONS = 8
_FORWARD_ONLY = 1 / 3  # of a forward and a backward pass
_PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)


@dataclass(frozen=True)
class Attended:
    """One call of an attention, as it was given."""

    layer: int | None  # its number, where it knows it
    score_width: int  # query heads times the size of one, over which scores are summed
    value_width: int  # query heads times the size of a value


@dataclass
class Uses:
    """What one pass of a position meets; forward and backward count 1, forward alone a third."""

    parameters: dict[str, float]  # by name, shared ones by their first
    attention: dict[Attended, float] = field(default_factory=dict)  # empty: no call was seen


def uses(model: nn.Module) -> Uses | None:
    """Of a transformers causal LM on text; None where it does not run on shapes."""
    try:
        return _uses(model)
    except Exception:  # a model's forward may fail in any way, also where real numbers would do
        return None


def _uses(model: nn.Module) -> Uses:
    shapes: Any = _shapes(model).eval()
    weight = shapes.get_input_embeddings().weight
    embeddings = torch.empty(1, _POSITIONS, weight.shape[1], dtype=weight.dtype, device="meta")
    found, used = Uses({}), _Used()
    with (
        _counted_calls(shapes) as calls,
        _counted_attention(shapes, found.attention),
        one_sequence_a_row(True),
        torch.device("meta"),
        used,
        torch.enable_grad(),
        _quiet(),
    ):
        shapes(inputs_embeds=embeddings, use_cache=False)
    times = _times(shapes, calls)
    for name, parameter in shapes.named_parameters():
        key = id(parameter)
        once = times[key] if key in used.ids else 0.0
        found.parameters[name] = used.rows[key] / _POSITIONS if key in used.rows else once
    return found


@contextlib.contextmanager
def _counted_calls(model: nn.Module) -> Iterator[dict[nn.Module, float]]:
    calls: dict[nn.Module, float] = {}

    def note(module: nn.Module, args: Any) -> None:
        calls[module] = calls.get(module, 0.0) + _weight()

    for module in model.modules():
        module.register_forward_pre_hook(note)
    yield calls


def _times(model: nn.Module, calls: dict[nn.Module, float]) -> dict[int, float]:
    """Calls of the modules that hold a parameter, or else of the one that reaches into them."""
    times: dict[int, float] = {}
    reached: dict[int, float] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        above = name
        while above and modules[above] not in calls:
            above = above.rpartition(".")[0]
        for parameter in module._parameters.values():
            key = id(parameter)
            times[key] = times.get(key, 0.0) + calls.get(module, 0.0)
            reached[key] = calls[modules[above]]
    return {key: count or reached[key] for key, count in times.items()}


def _weight() -> float:
    return 1.0 if torch.is_grad_enabled() else _FORWARD_ONLY


def _shapes(model: nn.Module) -> nn.Module:
    """A copy without numbers, and without what others have hung on the model's modules."""
    known: dict[int, Any] = {}
    for module in model.modules():
        held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in held:
            if not isinstance(tensor, Tensor) or id(tensor) in known:
                continue
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            whole = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if whole else empty
    shapes = copy.deepcopy(model, known)
    for module in shapes.modules():
        module.__dict__.pop("forward", None)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                    del hooks[key]  # those of transformers gather its outputs
        config: Any = getattr(module, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "batched_mm"  # asks no number how many go where
    return shapes


class _Used(TorchFunctionMode):
    """Notes the parameters that torch's functions are given, and the rows each multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()
        self.rows: dict[int, float] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if isinstance(found, Tensor):  # who asks for a dtype or a device uses nothing
            given = (*args, *kwargs.values())
            self.ids.update(id(value) for value in given if isinstance(value, nn.Parameter))
            if func in _PRODUCTS and len(args) > 1 and isinstance(args[1], nn.Parameter):
                rows = args[0].numel() / args[0].shape[-1] * _weight()
                self.rows[id(args[1])] = self.rows.get(id(args[1]), 0.0) + rows
        return found


@contextlib.contextmanager
def _counted_attention(model: nn.Module, found: dict[Attended, float]) -> Iterator[None]:
    """Within the block the model's attention notes what it is given, and computes nothing."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        rows, heads, length, size = query.shape
        layer = getattr(module, "layer_idx", None)
        call = Attended(layer, heads * size, heads * value.shape[-1])
        found[call] = found.get(call, 0.0) + _weight()
        return query.new_empty(rows, length, heads, value.shape[-1]), None

    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "_attn_implementation", None) is not None:
            config._attn_implementation = _COUNTED
    ALL_ATTENTION_FUNCTIONS[_COUNTED] = attention
    # Unlike the mask of sdpa, this one is made without a look at what is padding.
    ALL_MASK_ATTENTION_FUNCTIONS.register(_COUNTED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[_COUNTED]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextlib.contextmanager
def one_sequence_a_row(on: bool) -> Iterator[None]:
    """Within the block transformers takes rows for single sequences, as it finds real ones to be.

    It would look at the positions for packed documents, and where these are no numbers, take them
    for packed and make a T x T mask.
    """
    from transformers import masking_utils

    if not on:
        yield
        return
    found = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = found
