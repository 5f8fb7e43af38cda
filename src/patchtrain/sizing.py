"""The sizes of a model: read off its modules and config, without weights (a 70B costs seconds).

What is in a matrix product is what the modules say: parameters of two dimensions or more that are
no embedding table. Experts are told by their number, which stands in the shape of a stacked
parameter or in the name of a listed one. Attention has no parameter to read its cost off; it comes
from the config's fields, which families of transformers share.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch
from torch import nn

from patchtrain import machine
from patchtrain.cost import AttentionLayers, ModelSize
from patchtrain.errors import UsageError

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k", "top_k_experts")


def meta_model(config: Any, trust_remote_code: bool = False, dtype: str = "float32") -> Any:
    """The model of a config on the meta device: shapes and a dtype, no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=trust_remote_code, dtype=getattr(torch, dtype)
        )


def model_size(model: Any) -> ModelSize:
    """The sizes of a transformers causal LM, real or on the meta device."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    head_tensors = [head.weight, *([head.bias] if getattr(head, "bias", None) is not None else [])]
    outside = {id(tensor) for tensor in (embedding, *head_tensors)}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    config = model.config.get_text_config()
    experts, chosen = _first(config, _EXPERTS), _first(config, _CHOSEN)
    body = matrices = active = 0.0
    for name, parameter in model.named_parameters():  # shared ones once
        if id(parameter) in outside:
            continue
        body += parameter.numel()
        share = 1.0
        if experts and chosen and _of_experts(name, parameter, experts):
            share = chosen / experts
        active += share * parameter.numel()
        # A stack of experts' biases is a matrix too, of vectors: it is none of a product.
        vectors = parameter.ndim == 2 and _of_experts(name, parameter, experts)
        if parameter.ndim >= 2 and not vectors and id(parameter) not in tables:
            matrices += share * parameter.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(
        parameters=parameters,
        active_parameters=round(parameters - body + active),
        body_parameters=round(body),
        matrix_parameters=round(matrices),
        head_parameters=sum(tensor.numel() for tensor in head_tensors),
        hidden_size=embedding.shape[1],
        vocab_size=head.weight.shape[0],
        attention=_attention(config),
    )


def check_size(parameters: int, itemsize: int = 4) -> None:
    """Refuse a model whose weights alone are more than the memory of this machine."""
    size = parameters * itemsize
    found = machine.memory()
    if found is not None and size > (memory := found.usable):
        raise UsageError(
            f"the model has {size / 1e9:,.1f} GB of weights, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory; make it smaller (model.config)"
        )


def _of_experts(name: str, parameter: torch.Tensor, experts: int | None) -> bool:
    """Whether a parameter holds the experts of a mixture, stacked, or is one of a list of them."""
    if not experts or "expert" not in name:
        return False
    listed = re.search(r"experts\.\d+\.", name) is not None
    stacked = parameter.ndim >= 2 and parameter.shape[0] == experts and "shared" not in name
    return listed or stacked


def _attention(config: Any) -> tuple[AttentionLayers, ...]:
    """The layers that attend, by how far."""
    heads = getattr(config, "num_attention_heads", 0) or 0
    if not isinstance(heads, int) or heads < 1:
        return ()  # a state-space model
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    score = value = size
    if (latent := getattr(config, "qk_nope_head_dim", None)) is not None:  # multi-head latent
        score = latent + config.qk_rope_head_dim
        value = config.v_head_dim
    windows = Counter(_windows(config))
    return tuple(
        AttentionLayers(layers, heads * score, heads * value, window or None)
        for window, layers in sorted(windows.items(), reverse=True)
    )


def _windows(config: Any) -> list[int]:
    """The window of each layer that attends; 0 for one that sees all before it."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if kinds is None:
        used = getattr(config, "use_sliding_window", True)
        return [window if used else 0] * config.num_hidden_layers
    attending = [kind for kind in kinds if "attention" in kind and "linear" not in kind]
    chunk = getattr(config, "attention_chunk_size", None) or 0
    return [
        window if "sliding" in kind else chunk if "chunked" in kind else 0 for kind in attending
    ]


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
