"""The weights of a model on one device, and what FSDP2 gathers and reduces in each phase of a step.

The part of ``estimate.py`` that is a formula; ``tracing.py`` runs the real thing against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from patchtrain.memory.dataless import layers_of
from patchtrain.memory.live import Pass
from patchtrain.modeling import input_embeddings, output_embeddings

if TYPE_CHECKING:
    from patchtrain.memory.estimate import Training


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights on one device, and elements of what FSDP2 gathers together."""

    dtype: torch.dtype  # of the weights as they are kept
    shards: tuple[tuple[int, ...], ...]  # the shape of each weight's part
    parameters: int
    buffers: int
    layer: int  # elements of the largest
    layers: int  # of all
    embedding: int  # 0 if it is the head's
    tail: int  # norm and head, and the embedding if it is the head's
    tied: bool

    @classmethod
    def of(cls, model: Any, training: Training) -> Sizes:
        weights = list(model.parameters())
        dtype = weights[0].dtype
        if training.sharded and training.bf16:
            dtype = torch.float32  # accelerate makes them so
        shards = tuple(shard_shape(tuple(weight.shape), training.parts) for weight in weights)
        blocks = [sum(p.numel() for p in block.parameters()) for block in layers_of(model)]
        embedding = input_embeddings(model).weight
        tied = embedding is output_embeddings(model).weight
        total = sum(weight.numel() for weight in weights)
        outside = 0 if tied else embedding.numel()
        return cls(
            dtype=dtype,
            shards=shards,
            parameters=sum(torch.Size(shape).numel() for shape in shards) * dtype.itemsize,
            buffers=sum(buffer.numel() * buffer.itemsize for buffer in model.buffers()),
            layer=max(blocks),
            layers=sum(blocks),
            embedding=outside,
            tail=total - sum(blocks) - outside,
            tied=tied,
        )


def shard_shape(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """The first process's part of a weight that FSDP2 cuts along its first dimension."""
    return (-(-shape[0] // parts), *shape[1:]) if shape else shape


def sharded(sizes: Sizes, training: Training, found: Pass) -> dict[str, float]:
    """What FSDP2 adds in each phase of ``found``, in bytes.

    A pass on tensors without data has the activations and the whole gradients of one layer. Beside
    these there are: the weights of what computes, gathered in ``wide`` bytes; the buffer of a
    gathering, for the next layer or from the last one; the fp32 input of the reduction before,
    until the next one begins; and this device's part of the gradients that are reduced. Norm and
    head stay gathered from forward to backward; an embedding that is the head, all along.
    """
    wide = 2 if training.bf16 else sizes.dtype.itemsize
    reduced = 4 if training.bf16 else sizes.dtype.itemsize
    layer, tail, embedding = sizes.layer, sizes.tail, sizes.embedding
    whole = sizes.layers + tail + embedding
    parts = training.parts
    resharding = training.reshard_after_forward
    resting = 0 if resharding else wide * (sizes.layers + embedding)
    moving = 2 * wide * layer if resharding else 0
    late = wide * tail if sizes.tied else 0  # gathered first, and reduced last
    waiting = 0 if sizes.tied else reduced * tail
    kept = sum(found.kept.values())
    # When head and norm are through: their gradients, what is reduced of them, and the next layer.
    at_reduction = kept + wide * tail + waiting + moving / 2 - found.at("loss backward")
    # This device's part of the gradients of the passes before.
    summed = reduced * whole / parts if training.passes > 1 else 0
    half = summed or reduced * whole / 2 / parts
    extra = {
        "forward": late + max(moving, 0 if sizes.tied else 2 * wide * tail) + resting + summed,
        "loss": wide * tail + (moving / 2 if sizes.tied else wide * tail) + resting + summed,
        "loss backward": max(wide * tail, at_reduction) + resting + summed,
        "last layer": late + waiting + moving + resting + summed,
        "middle": late + reduced * layer + half + moving + resting,
        "first layer": late + reduced * (layer + whole / parts) + moving / 2 + wide * embedding,
        "embedding": late + wide * embedding + reduced * (max(embedding, late and tail)
        + whole / parts),
    }  # fmt: skip
    return extra
