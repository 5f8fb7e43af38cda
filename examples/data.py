"""What the examples train on: the Python standard library's own sources, so nothing is downloaded.

A small BPE tokenizer is trained on them in place; the model is a Llama of 0.5 million parameters.
"""

import ast
import random
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from patchtrain.data.tokenizer import train


@cache
def texts() -> list[str]:
    """Source files, about two million characters, in a shuffled order that is always the same."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    files = [file for file in files if file.parent.name not in {"site-packages", "test"}]
    random.Random(0).shuffle(files)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files[:150]]


@cache
def tokenizer() -> Any:
    return train("bpe", texts(), 512)


def stream(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts in one line of token ids, an end-of-text token after each."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for text in ids for token in (*text, tokenizer.eos_token_id)])


@cache
def rows(length: int) -> tuple[Tensor, Tensor]:
    """Training and held-out rows of ``length`` token ids, from different files."""
    train, held_out = stream(tokenizer(), texts()[10:]), stream(tokenizer(), texts()[:10])
    held_out = held_out[: 32 * 256]
    return train.unfold(0, length, length), held_out.unfold(0, length, length)


def functions(count: int) -> list[dict[str, str]]:
    """Functions that have a docstring: the prompt ends with it, the completion is the body."""
    found = []
    for text in texts():
        lines = text.splitlines(keepends=True)
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and node.body[1:]:
                prompt = lines[node.lineno - 1 : node.body[0].end_lineno]
                body = lines[node.body[0].end_lineno : node.end_lineno]
                found.append({"prompt": "".join(prompt), "completion": "".join(body)})
    return found[:count]


def tiny_model() -> Any:
    sizes = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    ends = {"eos_token_id": tokenizer().eos_token_id, "pad_token_id": tokenizer().pad_token_id}
    common = {"tie_word_embeddings": True, "initializer_range": 0.05}
    config = LlamaConfig(vocab_size=len(tokenizer()), **sizes, **heads, **ends, **common)
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def held_out_loss(model: Any, rows: Tensor) -> float:
    """Next-token loss of a plain model, in nats a token."""
    model.eval()
    return model(input_ids=rows, labels=rows).loss.item()
