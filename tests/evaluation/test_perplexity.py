"""The loss of a text: windows cover it once, and sums equal those of transformers itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from patchtrain.errors import UsageError
from patchtrain.evaluation import perplexity
from patchtrain.evaluation.perplexity import (
    documents_loss,
    stream_loss,
    windows,
)
from patchtrain.evaluation.text_loss import TextLoss

V = 53


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config)


def _gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(2)
    # Dropout on: a model left in training mode would not repeat its own loss.
    config = GPT2Config(
        vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4
    )
    return GPT2LMHeadModel(config)


MODELS = {"llama": _llama, "gpt2": _gpt2}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return MODELS[request.param]()


def _tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, count).astype(np.uint16)


def _reference(model: torch.nn.Module, text: np.ndarray, context: int, stride: int) -> float:
    """Transformers' own loss on each window, times its number of targets."""
    nats = 0.0
    model.eval()
    for begin, end, first in windows(len(text), context, stride):
        ids = torch.from_numpy(text[begin:end].astype(np.int64))[None]
        labels = ids.clone()
        labels[:, : first - begin] = -100
        with torch.no_grad():
            nats += model(input_ids=ids, labels=labels).loss.item() * (end - first)
    return nats


@given(
    length=st.integers(0, 300),
    context=st.integers(1, 60),
    data=st.data(),
)
def test_every_token_but_the_first_is_scored_exactly_once(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    scored: list[int] = []
    for begin, end, first in windows(length, context, stride):
        assert 0 <= begin < first < end <= length
        assert end - begin - 1 <= context
        # A target has the context it was promised, or all there is.
        assert first - begin >= min(context + 1 - stride, first)
        scored += range(first, end)
    assert scored == list(range(1, length))


@given(length=st.integers(2, 500), context=st.integers(1, 60))
def test_a_stride_of_the_whole_context_reads_each_position_once(length: int, context: int) -> None:
    read = [end - 1 - begin for begin, end, _ in windows(length, context)]
    assert sum(read) == length - 1
    assert len(read) == math.ceil((length - 1) / context)


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 8), (16, 5), (63, 1), (7, 7)])
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_stream_equals_transformers(
    model: torch.nn.Module, context: int, stride: int, batch_size: int | None
) -> None:
    text = _tokens(101)
    nats, targets = stream_loss(model, text, context, stride, batch_size)
    assert targets == 100
    assert nats == pytest.approx(_reference(model, text, context, stride), rel=1e-5)


def test_documents_equal_transformers_and_do_not_see_each_other(model: torch.nn.Module) -> None:
    documents = [_tokens(n, seed=n) for n in (5, 1, 40, 0, 17, 5, 33, 2)]
    nats, targets = documents_loss(model, documents, 0, 16, 8, batch_size=3)
    expected = sum(
        _reference(model, np.concatenate([[0], document]), 16, 8) for document in documents
    )
    assert targets == sum(len(document) for document in documents)
    assert nats == pytest.approx(expected, rel=1e-5)


def test_chunked_log_softmax_changes_nothing(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream_loss(model, _tokens(80), 20)
    monkeypatch.setattr(perplexity, "_CHUNK_LOGITS", 7 * V)
    chunked = stream_loss(model, _tokens(80), 20)
    assert chunked[0] == pytest.approx(whole[0], rel=1e-6)
    assert chunked[1] == whole[1]


def test_max_tokens_reads_the_first_tokens_only(model: torch.nn.Module) -> None:
    text = _tokens(90)
    assert stream_loss(model, text, 16, max_tokens=40) == stream_loss(model, text[:40], 16)


def test_progress_adds_up_and_modes_are_restored() -> None:
    model = _gpt2().train()
    model.transformer.h[0].eval()
    seen: list[int] = []
    stream_loss(model, _tokens(101), 10, batch_size=2, progress=seen.append)
    assert sum(seen) == 100
    assert len(seen) == 5
    assert model.training
    assert not model.transformer.h[0].training
    assert model.transformer.h[1].training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_bfloat16_weights_come_close(model: torch.nn.Module) -> None:
    full = stream_loss(model, _tokens(200), 32)
    half = stream_loss(model.to(torch.bfloat16), _tokens(200), 32)
    assert half[0] == pytest.approx(full[0], rel=0.03)


def test_zero_logits_give_log_vocabulary() -> None:
    model = _llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    nats, targets = stream_loss(model, _tokens(60), 16)
    assert nats / targets == pytest.approx(math.log(V))


def test_text_loss_numbers() -> None:
    loss = TextLoss(nats=100 * math.log(2), targets=50, utf8_bytes=200, words=25)
    assert loss.loss == pytest.approx(2 * math.log(2))
    assert loss.perplexity == pytest.approx(4)
    assert loss.word_perplexity == pytest.approx(16)
    assert loss.bits_per_byte == pytest.approx(0.5)
    assert loss.to_dict()["targets"] == 50


def test_text_loss_without_words_or_beyond_floats_is_valid_json() -> None:
    values = TextLoss(nats=9e5, targets=10, utf8_bytes=0, words=1).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False))["word_perplexity"] is None
    assert values["bits_per_byte"] is None


@pytest.mark.parametrize(
    ("stride", "context", "message"),
    [(0, 16, "between 1 and"), (17, 16, "context length 16, not 17"), (1, 0, "at least 1")],
)
def test_windows_that_cannot_be(stride: int, context: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stream_loss(_llama(), _tokens(40), context, stride)


def test_bad_tokens_are_named() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        stream_loss(_llama(), _tokens(1), 16)
    with pytest.raises(UsageError, match=f"token id {V} is outside the model's vocabulary of {V}"):
        stream_loss(_llama(), np.array([1, V, 2]), 16)
    with pytest.raises(UsageError, match="every document is empty"):
        documents_loss(_llama(), [np.zeros(0, dtype=np.int64)], 0, 16)
    with pytest.raises(UsageError, match="batch size"):
        stream_loss(_llama(), _tokens(9), 4, batch_size=0)
