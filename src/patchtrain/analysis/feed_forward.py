"""The feed-forward part of each layer of any transformers causal LM, found by trying it.

Nothing here knows the name of a model or of a module. A feed-forward part is what takes the hidden
states inside a layer, has weights, and treats each position the same whatever stands at the others;
attention and state-space mixers do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from patchtrain.evaluation.perplexity import evaluating
from patchtrain.modeling import vocabulary_size

_TOKENS = 8


@dataclass(frozen=True)
class FeedForward:
    """Where to look in one layer.

    ``output`` is the module whose output is what the layer adds to the hidden states; ``inner`` the
    one whose input are the activations between the two projections, None where they are not one
    tensor (a mixture of experts).
    """

    layer: int
    name: str
    output: nn.Module
    inner: nn.Module | None


@dataclass
class Activity:
    """Counts of one tensor's entries: how many there were, how many lay above the threshold."""

    entries: int = 0
    above: int = 0
    squares: float = 0.0

    def add(self, values: Tensor, threshold: float) -> None:
        wide = values.detach().float()
        self.entries += wide.numel()
        self.above += int((wide.abs() > threshold).sum())
        self.squares += float(wide.square().sum(dtype=torch.float64))

    @property
    def share(self) -> float | None:
        return self.above / self.entries if self.entries else None

    @property
    def rms(self) -> float | None:
        """Root mean square, the scale the threshold is to be seen against."""
        return float((self.squares / self.entries) ** 0.5) if self.entries else None


@dataclass
class LayerActivity:
    """What a layer's feed-forward part did: its outputs, and the activations inside it."""

    part: FeedForward
    output: Activity = field(default_factory=Activity)
    inner: Activity = field(default_factory=Activity)


@contextmanager
def counting(parts: list[FeedForward], threshold: float) -> Iterator[list[LayerActivity]]:
    """Within the block, count what comes out of ``parts`` with an absolute value above it."""
    found = [LayerActivity(part) for part in parts]
    hooks: list[Any] = []

    def watch(layer: LayerActivity) -> None:
        def output(module: nn.Module, args: Any, result: Any) -> None:
            layer.output.add(_first_tensor(result), threshold)

        def inner(module: nn.Module, args: Any) -> None:
            layer.inner.add(args[0], threshold)

        hooks.append(layer.part.output.register_forward_hook(output))
        if layer.part.inner is not None:
            hooks.append(layer.part.inner.register_forward_pre_hook(inner))

    for layer in found:
        watch(layer)
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def find_feed_forwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward part of each layer, in order; layers that have none are left out.

    Runs the model on a few tokens. Empty where no list of layers is found.
    """
    vocabulary = vocabulary_size(model)
    device = next(model.parameters()).device
    ids = (torch.arange(_TOKENS, device=device) * 7 % vocabulary)[None]
    with evaluating(model), _recorded(model) as calls:
        model(input_ids=ids, use_cache=False)
        calls = dict(calls)  # what follows calls modules too
        found = []
        for number, layer in enumerate(_layers(model, calls)):
            if part := _feed_forward(number, layer, calls):
                found.append(part)
    return found


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def states(self) -> Tensor | None:
        """The hidden states it got: its first tensor of that shape."""
        values = (*self.args, *self.kwargs.values())
        return next((value for value in values if _is_states(value)), None)


_Calls = dict[nn.Module, _Call]


def _layers(model: nn.Module, calls: _Calls) -> list[nn.Module]:
    """The outermost list of modules that each turn hidden states into hidden states."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module):
            layers = list(module)
            if all(layer in calls and _keeps_shape(calls[layer]) for layer in layers):
                return layers
    return []


def _keeps_shape(call: _Call) -> bool:
    states = call.states
    return states is not None and _rows(call.result, states.shape[-1]) is not None


def _feed_forward(number: int, layer: nn.Module, calls: _Calls) -> FeedForward | None:
    states = calls[layer].states
    assert states is not None
    width = states.shape[-1]
    children = {module: name for name, module in layer.named_children()}
    # In the order of their calls: of two linear modules of a layer the second one is the output.
    candidates = [
        module
        for module, call in calls.items()
        if module in children
        and _has_matrix(module)
        and _rows(call.result, width) is not None
        and _position_wise(module, call, width)
    ]
    if not candidates:
        return None
    part = candidates[-1]
    projection = _last_projection(part, calls, width)
    return FeedForward(number, children[part], projection or part, projection)


def _last_projection(part: nn.Module, calls: _Calls, width: int) -> nn.Module | None:
    """The module inside ``part``, or itself, with one matrix, whose output is that of ``part``.

    Some parts add the residual, one of their inputs, themselves.
    """
    whole = _rows(calls[part].result, width)
    assert whole is not None
    inputs = [_rows(value, width) for value in calls[part].args if _is_states(value)]
    for module in reversed(list(calls)):
        inside = any(module is own for own in part.modules())
        if not inside or list(module.children()) or not _has_matrix(module):
            continue
        out = _rows(calls[module].result, width)
        if out is None or not isinstance(calls[module].args[0], Tensor):
            continue
        sums = [out, *(out + value for value in inputs if value is not None)]
        if any(_close(value, whole) for value in sums):
            return module
    return None


def _position_wise(module: nn.Module, call: _Call, width: int) -> bool:
    """Whether the last position alone gives what it gives among the others."""

    def last(value: Any) -> Any:
        return value[..., -1:, :] if _is_states(value) else value

    try:
        alone = module(
            *map(last, call.args), **{name: last(value) for name, value in call.kwargs.items()}
        )
    except Exception:  # attention on states that do not fit its mask, and whatever else
        return False
    one, all_rows = _rows(alone, width, 1), _rows(call.result, width)
    return one is not None and all_rows is not None and _close(one, all_rows[-1:])


def _rows(result: Any, width: int, tokens: int = _TOKENS) -> Tensor | None:
    """A module's output as ``(T, width)``, or None if it is nothing of the kind."""
    value = _first_tensor(result)
    if value is None or value.shape[-1:] != (width,) or value.numel() != tokens * width:
        return None
    return value.reshape(tokens, width).float()


def _first_tensor(result: Any) -> Any:
    if isinstance(result, tuple | list):
        return next((value for value in result if isinstance(value, Tensor)), None)
    return result if isinstance(result, Tensor) else None


def _is_states(value: Any) -> bool:
    """Whether ``value`` is ``(1, T, width)``, or ``(T, width)`` as some layers flatten it."""
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return False
    return value.shape[:-1] in ((1, _TOKENS), (_TOKENS,))


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _close(one: Tensor, other: Tensor) -> bool:
    scale = float(other.abs().max())
    return bool((one - other).abs().max() <= 1e-3 * scale)


@contextmanager
def _recorded(model: nn.Module) -> Iterator[_Calls]:
    """Within the block, the last call of each module, in the order in which they ended."""
    calls: _Calls = {}

    def record(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        calls[module] = _Call(args, kwargs, result)

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
