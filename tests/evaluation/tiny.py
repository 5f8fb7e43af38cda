"""A tiny random model with a byte-level tokenizer, as a folder, and a run folder around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = (
    "The cell is the smallest unit of life. A cell divides and both halves live on. "
    "Le café est fermé. The leaf turns light into sugar, and the root takes water from the soil. "
)
CONTEXT = 32


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def tiny_model(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def save_tiny_model(folder: Path, vocab_size: int | None = None) -> Path:
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size or len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_run(folder: Path, store: Path | None = None, **info: Any) -> Path:
    """A finished run whose model is random; ``info`` is laid over its run.json."""
    save_tiny_model(folder / "model")
    values = {
        "format_version": 1,
        "name": folder.name,
        "status": "finished",
        "plan": {"context_length": CONTEXT // 2, "stages": []},
        "store": {"path": str(store) if store else None},
    }
    (folder / "run.json").write_text(json.dumps(values | info), encoding="utf-8")
    return folder
