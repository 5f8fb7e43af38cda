"""Small models of the architectures that are written as GGUF, with a trained tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from patchtrain.data import tokenizer as tokenizers

TEXT = ["The cell is the smallest unit of life, it's said. Le café est fermé; 1,234 leaves!\n"] * 9
VOCAB = 320

_ROTARY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _ROTARY | {"tie_word_embeddings": True},
    "llama-biased": _ROTARY | {"attention_bias": True, "tie_word_embeddings": False},
    "mistral": _ROTARY | {"sliding_window": None, "head_dim": 24},
    "qwen2": _ROTARY,
    "qwen3": _ROTARY | {"head_dim": 32},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
}


def tokenizer(kind: str = "bpe") -> Any:
    return tokenizers.train(kind, TEXT, None if kind == "byte" else VOCAB)


def save(folder: Path, name: str, kind: str = "bpe", **changes: Any) -> Path:
    """A random model with weights and biases large enough to matter."""
    words = tokenizer(kind)
    config = transformers.AutoConfig.for_model(
        name.partition("-")[0],
        **CONFIGS[name] | {"vocab_size": VOCAB, "bos_token_id": words.bos_token_id,
                           "eos_token_id": words.eos_token_id} | changes,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
