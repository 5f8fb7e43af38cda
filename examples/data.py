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
from tokenizers import Tokenizer, decoders, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast


@cache
def texts() -> list[str]:
    """Source files, about two million characters, in a shuffled order that is always the same."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))
    files = [file for file in files if file.parent.name not in {"site-packages", "test"}]
    random.Random(0).shuffle(files)
    return [file.read_text(encoding="utf-8", errors="replace") for file in files[:150]]


@cache
def tokenizer() -> Any:
    end = "<|endoftext|>"
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    settings = {"initial_alphabet": ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[end], **settings)
    trained.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=end, pad_token=end)


def stream(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts in one line of token ids, an end-of-text token after each."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for text in ids for token in (*text, tokenizer.eos_token_id)])


@cache
def rows(length: int) -> tuple[Tensor, Tensor]:
    """Training and held-out rows of ``length`` token ids, from different files."""
    train, held_out = stream(tokenizer(), texts()[10:]), stream(tokenizer(), texts()[:10])
    return train.unfold(0, length, length), held_out[: 32 * 256].unfold(0, length, length)


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
