"""Losses by position and document are those of single tokens, taken one at a time."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from patchtrain.errors import UsageError
from patchtrain.evaluation import tally as tally_module
from patchtrain.evaluation.perplexity import blocks_loss, documents_loss, stream_loss
from patchtrain.evaluation.tally import Tally
from tests.evaluation.tiny import tiny_model

V, T = 53, 12
# Empty ones too: a store has none, other text may.
LENGTHS = (5, 1, 0, 33, 12, 0, 7, 2)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_model(V).eval()


def make_documents(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, length) for length in LENGTHS]


@torch.no_grad()
def nll(model: LlamaForCausalLM, context: np.ndarray, token: int) -> float:
    """The loss of one token after a context, alone in its batch."""
    logits = model(input_ids=torch.from_numpy(context.astype(np.int64))[None]).logits[0, -1]
    return -float(logits.log_softmax(-1)[int(token)])


def context_begin(target: int, stride: int) -> int:
    """Where the window that first reaches ``target`` begins: they start ``stride`` apart."""
    return max(0, math.ceil((target - T) / stride)) * stride


class Slow:
    """Sums by position and document, from single tokens."""

    def __init__(self) -> None:
        self.at: dict[int, list[float]] = defaultdict(list)
        self.of: dict[int, list[float]] = defaultdict(list)

    def see(self, model: LlamaForCausalLM, text: np.ndarray, begin: int, i: int, doc: int) -> None:
        loss = nll(model, text[begin:i], text[i])
        self.at[i - begin].append(loss)
        self.of[doc].append(loss)

    def check(self, tally: Tally, sizes: list[int]) -> None:
        for length, size in zip(LENGTHS, sizes, strict=True):
            tally.add_document(length, size)
        bins = tally.by_position()
        assert sum(b["targets"] for b in bins) == sum(map(len, self.at.values()))
        for b in bins:
            inside = [x for i in range(b["from"], b["to"] + 1) for x in self.at[i]]
            assert b["targets"] == len(inside)
            assert b["loss"] == pytest.approx(np.mean(inside), rel=1e-5)
        found = tally.by_document()
        expected = [
            np.mean(self.of[i]) * LENGTHS[i] / sizes[i] / math.log(2) if i in self.of else None
            for i in range(len(LENGTHS))
        ]
        assert found["each"] == [
            None if value is None else pytest.approx(value, rel=1e-4) for value in expected
        ]
        values = [value for value in expected if value is not None]
        assert found["documents"] == len(values)
        assert found["mean"] == pytest.approx(np.mean(values), rel=1e-5)
        assert found["quantiles"]["0.5"] == pytest.approx(np.median(values), rel=1e-5)
        worst = max(range(len(LENGTHS)), key=lambda i: expected[i] or 0)
        assert found["worst"][0]["document"] == worst
        assert found["worst"][0]["loss"] == pytest.approx(np.mean(self.of[worst]), rel=1e-5)
        assert (
            found["best"][0]["bits_per_byte"]
            == found["quantiles"]["0"]
            == min(b["bits_per_byte"] for b in (*found["best"], *found["worst"]))
        )


SIZES = [3 * length + 1 for length in LENGTHS]


@pytest.mark.parametrize("stride", [T, 5, 1])
def test_a_stream_equals_single_tokens(model: LlamaForCausalLM, stride: int) -> None:
    documents = make_documents()
    text = np.concatenate(documents)
    owners = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    slow = Slow()
    for i in range(1, len(text)):
        slow.see(model, text, context_begin(i, stride), i, int(owners[i]))
    tally = Tally(T)
    offsets = np.cumsum([0, *LENGTHS])
    whole = stream_loss(model, text, T, stride, 3, tally=tally, offsets=offsets)
    assert whole == pytest.approx(stream_loss(model, text, T, stride, 3))
    slow.check(tally, SIZES)


@pytest.mark.parametrize("stride", [T, 5])
def test_separate_documents_equal_single_tokens(model: LlamaForCausalLM, stride: int) -> None:
    slow, start = Slow(), 7
    for number, document in enumerate(make_documents()):
        text = np.concatenate([[start], document])
        for i in range(1, len(text)):
            slow.see(model, text, context_begin(i, stride), i, number)
    tally = Tally(T)
    documents_loss(model, make_documents(), start, T, stride, batch_size=3, tally=tally)
    slow.check(tally, SIZES)


def test_blocks_equal_single_tokens(model: LlamaForCausalLM) -> None:
    text = np.concatenate(make_documents())
    assert len(text) == 5 * T  # so cut it, for a remainder
    owners = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    slow = Slow()
    for i in range(len(text) - 4):
        if i % T and i < 4 * T:
            slow.see(model, text, i - i % T, i, int(owners[i]))
    tally = Tally(T)
    nats, targets = blocks_loss(
        model, text, T, 3, max_tokens=len(text) - 4, tally=tally, offsets=np.cumsum([0, *LENGTHS])
    )
    assert targets == 4 * (T - 1)
    assert nats == pytest.approx(sum(sum(losses) for losses in slow.at.values()), rel=1e-5)
    slow.check(tally, SIZES)


def test_blocks_equal_the_loss_of_transformers(model: LlamaForCausalLM) -> None:
    """What the paper's code computes: the mean of the model's own loss over equal blocks."""
    text = np.concatenate(make_documents(1))
    blocks = torch.from_numpy(text.reshape(-1, T))
    with torch.no_grad():
        losses = [model(input_ids=b[None], labels=b[None]).loss.item() for b in blocks]
    nats, targets = blocks_loss(model, text, T)
    assert nats / targets == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize(("tokens", "context"), [(T - 1, T), (T, 1)])
def test_what_makes_no_block(model: LlamaForCausalLM, tokens: int, context: int) -> None:
    with pytest.raises(UsageError, match="cannot be cut in blocks"):
        blocks_loss(model, np.zeros(tokens, dtype=np.int64), context)


@settings(deadline=None)
@given(
    context=st.integers(1, 40),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    data=st.data(),
)
def test_any_batches_add_up(context: int, widths: list[int], data: st.DataObject) -> None:
    tally = Tally(context)
    at: dict[int, float] = defaultdict(float)
    of: dict[int, float] = defaultdict(float)
    for width in widths:
        width = min(width, context)
        first = data.draw(st.integers(1, context - width + 1))
        owners = np.array(data.draw(st.lists(
            st.lists(st.integers(-1, 9), min_size=width, max_size=width), min_size=1, max_size=3
        )))  # fmt: skip
        nats = np.arange(owners.size, dtype=np.float32).reshape(owners.shape) + 0.5
        tally.add(nats, owners, first)
        for (_, column), owner in np.ndenumerate(owners):
            if owner >= 0:
                loss = float(nats[_, column])
                at[first + column] += loss
                of[int(owner)] += loss
    for _ in range(10):
        tally.add_document(1, 1)
    bins = tally.by_position()
    assert sum(b["loss"] * b["targets"] for b in bins) == pytest.approx(sum(at.values()))
    for b in bins:
        inside = sum(value for i, value in at.items() if b["from"] <= i <= b["to"])
        assert b["loss"] * b["targets"] == pytest.approx(inside)
        assert b["to"] & (b["to"] - 1) == 0 or b["to"] == context
        assert b["from"] == 1 or b["from"] == (1 << (b["to"] - 1).bit_length() - 1) + 1
    found = tally.by_document()
    assert found["documents"] == len(of)


def test_many_documents_are_told_in_few_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MOST_LISTED", 3)
    tally = Tally(1)
    for number in range(4):
        tally.add(np.array([[number + 1.0]]), np.array([[number]]), 1)
        tally.add_document(1, 10)
    found = tally.by_document()
    assert "each" not in found
    assert [d["document"] for d in found["worst"]] == [3, 2, 1]
    assert Tally(4).by_document() == {"documents": 0}
    assert Tally(4).by_position() == []
