"""The sizes of a model: read off its modules and config, without weights (a 70B costs seconds).

What is in a matrix product is what the modules say: parameters of two dimensions or more that are
no embedding table. Experts are told by their number, which stands in the shape of a stacked
parameter or in the name of a listed one. How often each is passed, and what attention is given, is
seen in one pass of shapes (``uses.py``). Where that does not run, each is passed once, and
attention comes from the config's fields, which families share, as windows do everywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from patchtrain import machine
from patchtrain.cost import AttentionLayers, ModelSize
from patchtrain.errors import UsageError
from patchtrain.uses import Attended, Uses, uses

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = (
    "num_experts_per_tok",
    "experts_per_token",
    "moe_topk",
    "moe_k",
    "moe_top_k",
    "top_k_experts",
)


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
    experts, found = _Experts.of(config), uses(model)
    modules = dict(model.named_modules())
    body = matrices = active = passed = 0.0
    for name, parameter in model.named_parameters():  # shared ones once
        if id(parameter) in outside:
            continue
        body += parameter.numel()
        of_experts = experts.has(name, parameter, modules[name.rpartition(".")[0]])
        share = experts.share(parameter) if of_experts else 1.0
        active += share * parameter.numel()
        vectors = of_experts and experts.vectors(name, parameter)
        if parameter.ndim >= 2 and not vectors and id(parameter) not in tables:
            matrices += share * parameter.numel()
            times = found.parameters.get(name, 1.0) if found else 1.0
            passed += times * share * parameter.numel()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(
        parameters=parameters,
        active_parameters=round(parameters - body + active),
        body_parameters=round(body),
        matrix_parameters=round(matrices),
        head_parameters=sum(tensor.numel() for tensor in head_tensors),
        hidden_size=embedding.shape[1],
        vocab_size=head.weight.shape[0],
        attention=_attention(config, found),
        uses=1.0 if passed == matrices else passed / matrices,
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


@dataclass(frozen=True)
class _Experts:
    """What a config says of its mixture of experts; 0 of each where there is none."""

    count: int
    chosen: int  # for each position
    idle: int  # experts that do nothing, among which is chosen too

    @classmethod
    def of(cls, config: Any) -> _Experts:
        idle = getattr(config, "zero_expert_num", None) or 0
        count, chosen = _first(config, _EXPERTS), _first(config, _CHOSEN)
        if (inner := getattr(config, "ffn_config", None)) is not None:
            count, chosen = count or _first(inner, _EXPERTS), chosen or _first(inner, _CHOSEN)
        return cls(count or 0, chosen or 0, idle)

    def has(self, name: str, parameter: torch.Tensor, owner: nn.Module) -> bool:
        """Whether a parameter holds the experts, stacked, or is one of a list of them."""
        words = f"{name} {type(owner).__name__}".lower()
        if not self.count or "expert" not in words or "router" in words:
            return False
        listed = re.search(r"experts\.\d+\.", name) is not None
        # Or the rows of one expert below those of another, in a module that is nothing else.
        flat = "expert" in type(owner).__name__.lower() and parameter.shape[0] % self.count == 0
        stacked = parameter.ndim >= 2 and "shared" not in name
        return listed or (stacked and (flat or self._stacks(parameter)))

    def vectors(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether it is a stack of experts' biases: a matrix, and none of a product."""
        return parameter.ndim == 2 and "expert" in name and self._stacks(parameter)

    def _stacks(self, parameter: torch.Tensor) -> bool:
        return self.count > 0 and parameter.shape[0] in (self.count, self.count + self.idle)

    def share(self, parameter: torch.Tensor) -> float:
        """Of a parameter of experts, what one position meets where all are chosen as often."""
        if not self.chosen:
            return 1.0
        share = self.chosen / (self.count + self.idle)
        # A stack that holds the idle ones too: they are never used.
        whole = self.idle > 0 and parameter.shape[0] == self.count + self.idle
        return share * self.count / (self.count + self.idle) if whole else share


def _attention(config: Any, found: Uses | None) -> tuple[AttentionLayers, ...]:
    """The layers that attend, by how far: as they were seen to, or else as the config says."""
    calls = found.attention if found else {}
    layers: dict[tuple[int, int, int, int], float] = {}
    for call, count in (calls or _configured(config)).items():
        window, chunk = _reach(config, call.layer)
        key = (window, chunk, call.score_width, call.value_width)
        layers[key] = layers.get(key, 0) + count
    return tuple(
        AttentionLayers(
            int(count) if count == int(count) else count,
            score,
            value,
            window or None,
            chunk or None,
        )
        for (window, chunk, score, value), count in sorted(layers.items(), reverse=True)
    )


def _configured(config: Any) -> dict[Attended, float]:
    """The attention of each layer by the config's fields alone."""
    kinds = _kinds(config) or ["attention"] * config.num_hidden_layers
    found: dict[Attended, float] = {}
    for index, kind in enumerate(kinds):
        layer = _of_layer(config, index)
        heads = getattr(layer, "num_attention_heads", 0) or 0
        if not isinstance(heads, int) or heads < 1:
            continue  # a state-space model
        if "linear" in kind or not ("attention" in kind or "hybrid" in kind):
            continue
        score = value = getattr(layer, "head_dim", None) or layer.hidden_size // heads
        if (latent := getattr(layer, "qk_nope_head_dim", None)) is not None:  # multi-head latent
            score = latent + layer.qk_rope_head_dim
            value = layer.v_head_dim
        found[Attended(index, heads * score, heads * value)] = 1
    return found


def _reach(config: Any, index: int | None) -> tuple[int, int]:
    """The sliding window and the chunk of a layer; 0 for what it does not have."""
    kinds = _kinds(config)
    layer = config if index is None else _of_layer(config, index)
    if kinds is None:
        used = getattr(layer, "use_sliding_window", True)
        return (getattr(layer, "sliding_window", None) or 0) if used else 0, 0
    kind = kinds[index] if index is not None and 0 <= index < len(kinds) else ""
    if "sliding" in kind:
        return getattr(layer, "sliding_window", None) or 0, 0
    return 0, (getattr(layer, "attention_chunk_size", None) or 0) if "chunked" in kind else 0


def _kinds(config: Any) -> list[str] | None:
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return list(kinds) if kinds is not None else None


def _of_layer(config: Any, index: int) -> Any:
    """The config as one layer has it: some families give their layers heads of other sizes."""
    if getattr(config, "is_heterogeneous", False) and 0 <= index < config.num_hidden_layers:
        return config.per_layer_config[index]
    return config


def _first(config: Any, names: tuple[str, ...]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
