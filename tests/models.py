"""Tiny random models that the tests share."""

from typing import Any

import torch
import transformers

VOCAB = 61


def tiny_model(family: str = "llama", seed: int = 0, **settings: Any) -> Any:
    """A two-layer causal LM of ``family`` with random weights, the same for the same seed."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    config = transformers.AutoConfig.for_model(family, **{**common, **settings})
    if family == "gpt2":  # dropout would make two passes differ
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return transformers.AutoModelForCausalLM.from_config(config)
