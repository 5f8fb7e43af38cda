"""The architectures that are written as GGUF: their settings, and what becomes of their weights.

llama.cpp computes each architecture by a graph of its own. What a configuration asks for beyond
that graph would be left out without a word, so it is an obstacle here.
"""

from __future__ import annotations

from typing import Any

import torch

# transformers' model type: GGUF's architecture.
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt2": "gpt2",
}


def obstacles(config: Any) -> list[str]:
    """Why a model of this configuration cannot be written, in words; empty if it can."""
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        return [f"the architecture {config.model_type} is not written (known: {known})"]
    wanted = _GPT2 if config.model_type == "gpt2" else _ROTARY
    found = []
    for name, allowed in wanted.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            found.append(f"{name} is {value!r}, and llama.cpp computes {allowed[0]!r}")
    if config.model_type != "gpt2":
        rope = config.rope_parameters
        if rope.get("rope_type", "default") != "default":
            found.append(f"positions are scaled ({rope['rope_type']}), which is not written")
        window = getattr(config, "sliding_window", None)
        if window is not None and window < config.max_position_embeddings:
            found.append(f"attention slides over {window} tokens, which is not written")
        if head_size(config) % 2:
            found.append(f"heads have the odd size {head_size(config)}")
    return found


_ROTARY: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",)}
_GPT2: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def head_size(config: Any) -> int:
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def add_settings(writer: Any, config: Any) -> None:
    """Put the model's shape into a ``gguf.GGUFWriter``."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(head_size(config))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))


def as_gguf(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """A weight as llama.cpp wants it; ``name`` is transformers'."""
    if ARCHITECTURES[config.model_type] == "llama":
        # Its rotary embedding turns neighbouring pairs, transformers' the two halves of a head.
        if ".q_proj." in name:
            return _interleaved(weight, config.num_attention_heads)
        if ".k_proj." in name:
            return _interleaved(weight, config.num_key_value_heads)
    if config.model_type == "gpt2" and weight.dim() == 2 and (".c_" in name):
        return weight.T  # of transformers' Conv1D
    return weight


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
