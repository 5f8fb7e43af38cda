"""A transformers model as shapes: weights without data, fewer layers, the attention of a GPU.

What ``live.py`` and ``tracing.py`` run in the place of the model that is to be trained.

Attention: on a CPU torch's own kernel is asked what it saves. For a GPU a flash kernel is assumed
(``_Flash``), which keeps queries, keys, values, its output and one number a row, and no T x T
matrix, also where keys and values have fewer heads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from patchtrain.errors import UsageError

_FLASH = "patchtrain_flash"


def without_data(build: Callable[[], nn.Module], weights: torch.dtype) -> Any:
    """What ``build`` makes, as fake tensors of a CPU, in train mode. Within a FakeTensorMode."""
    with torch.device("meta"):  # nothing is initialised there
        model: Any = build()
    made: dict[int, Any] = {}  # what is shared stays shared
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                empty = torch.empty_like(weight, dtype=weights, device="cpu")
                empty = nn.Parameter(empty, weight.requires_grad)
                module._parameters[name] = made.setdefault(id(weight), empty)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                empty = torch.empty_like(buffer, device="cpu")
                module._buffers[name] = made.setdefault(id(buffer), empty)
    return model.train()


def layers_of(model: Any) -> list[nn.Module]:
    """The transformer's layers, in order.

    Raises:
        UsageError: a model that does not hold them in one list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise UsageError(
        f"the memory of {type(model).__name__} cannot be told: it has no list of {count} layers"
    )


def with_layers(config: Any, count: int) -> Any:
    """A copy of ``config`` for a model of its first ``count`` layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    before = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == before and not name.startswith("_"):
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return config


def period_of(config: Any) -> int:
    """After how many layers the kinds of layers repeat (1: all alike), as the config lists them."""
    text = config.get_text_config()
    count = text.num_hidden_layers
    lists = [
        value
        for name, value in vars(text).items()
        if isinstance(value, list | tuple) and len(value) == count and not name.startswith("_")
    ]
    for period in range(1, count):
        if all(kinds[i] == kinds[i % period] for kinds in lists for i in range(count)):
            return period
    return count


def enable_checkpointing(model: Any) -> None:
    """Gradient checkpointing as Trainer has it; random states, which are tiny, left alone."""
    kwargs = {"use_reentrant": False, "preserve_rng_state": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs)
    else:
        model.gradient_checkpointing_enable(kwargs)


# ---- attention on a GPU


def assume_flash(config: Any) -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_FLASH, _flash_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_FLASH, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    config._attn_implementation = _FLASH


def _flash_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    attended: Tensor = _Flash.apply(query, key, value)
    return attended.transpose(1, 2).contiguous(), None


class _Flash(torch.autograd.Function):
    """What a flash kernel allocates, and nothing else: shapes of attention, no numbers."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        # As the kernels lay it out: what the model makes of it next is a view.
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)
        log_sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        # Queries' gradients are summed in fp32; those of keys and values come for every head.
        sums = torch.empty(query.shape, dtype=torch.float32, device=query.device)
        heads = [key.new_empty(*query.shape[:-1], t.shape[-1]) for t in (key, value)]
        result = tuple(torch.empty_like(t) for t in (query, key, value))
        del sums, heads
        return result
