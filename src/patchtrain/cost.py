"""What a plan costs: floating-point operations of training, by position.

The unit is a *position*, a place where the transformer computes a hidden state. At patch level a
position stands for K tokens and costs what one token costs, which is the whole point.

Standard library only. Forward and backward pass of one position::

    6 * (P_body + P_head)  +  6 * layers * width * T

``P_body`` are the parameters outside embedding and head, each in one multiply-add forward (2) and
two backward (4); ``P_head = V * D``, tied or not. The second term is attention over T positions,
causal, so half of the square: scores and values are 2 * 2 * (T / 2) * width a layer, times 3 for
forward and backward. Looking up embeddings, taking their mean and the K gathers of the loss are
additions without a matrix product, and are not counted; nor is the optimizer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that its cost depends on."""

    parameters: int  # all, shared ones once
    body_parameters: int  # outside input embedding and head
    head_parameters: int  # V * D (and a bias), whether tied or not
    layers: int
    attention_width: int  # heads times head size

    def flops_per_position(self, context_length: int) -> float:
        """Training FLOPs (forward and backward) of one position in a context of T positions."""
        matrices = 6 * (self.body_parameters + self.head_parameters)
        attention = 6 * self.layers * self.attention_width * context_length
        return float(matrices + attention)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def model_size(model: Any) -> ModelSize:
    """The sizes of a transformers causal LM, from its parameters and config."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    head_tensors = [head.weight, *([head.bias] if getattr(head, "bias", None) is not None else [])]
    outside = {id(tensor) for tensor in (embedding, *head_tensors)}
    body = [p for p in model.parameters() if id(p) not in outside]
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 0
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        body_parameters=sum(p.numel() for p in body),
        head_parameters=sum(t.numel() for t in head_tensors),
        layers=config.num_hidden_layers,
        attention_width=heads * head_size,
    )
