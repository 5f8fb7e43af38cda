"""How well a model predicts text: loss per token, perplexity, bits per byte.

A text longer than the context is read in windows. A window is a span of at most
``context_length + 1`` tokens: all but its last are fed to the model (so the model never sees more
than ``context_length`` positions) and all but its first are predicted. Windows start ``stride``
tokens apart and each scores only the targets that no window before it scored. So every token of a
text except the very first is scored exactly once, with at least ``context_length + 1 - stride``
tokens of context as soon as the text is that long:

* ``stride == context_length``: neighbours share one token, every position is scored, cheapest;
* ``stride == context_length // 2``: twice the compute, at least half a context for every token.

Sums are kept in float64; only one batch of logits exists at a time.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from patchtrain.errors import UsageError

Progress = Callable[[int], None]

# Logits of one batch, and their float32 copy in one step of the log-softmax, in elements.
_BATCH_LOGITS = 2**27
_CHUNK_LOGITS = 2**24


@dataclass(frozen=True)
class TextLoss:
    """The summed loss of a text and what it is spread over.

    ``nats``: sum of the next-token losses. ``targets``: tokens that were predicted.
    ``utf8_bytes`` and ``words`` (separated by white space): the size of the text itself.
    """

    nats: float
    targets: int
    utf8_bytes: int
    words: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return _ratio(self.nats, self.targets)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float:
        """Per word; infinite where a text without spaces makes it overflow."""
        return _exp(_ratio(self.nats, self.words))

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8: the number that compares across tokenizers."""
        return _ratio(self.nats / math.log(2), self.utf8_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; what is not finite becomes None."""
        values = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "word_perplexity": self.word_perplexity,
            "bits_per_byte": self.bits_per_byte,
            "nats": self.nats,
            "targets": self.targets,
            "utf8_bytes": self.utf8_bytes,
            "words": self.words,
        }
        return {key: value if math.isfinite(value) else None for key, value in values.items()}


def windows(
    length: int, context_length: int, stride: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield ``(begin, end, first_target)`` for a text of ``length`` tokens.

    The model reads ``tokens[begin : end - 1]``; the window scores ``tokens[first_target : end]``.
    ``stride`` is ``context_length`` if None. A text of fewer than two tokens has no window.
    """
    stride = check_stride(context_length, stride)
    begin, first_target = 0, 1
    while first_target < length:
        end = min(begin + context_length + 1, length)
        yield begin, end, first_target
        begin, first_target = begin + stride, end


def check_stride(context_length: int, stride: int | None) -> int:
    """The stride to use; ``UsageError`` if the two numbers make no sliding window."""
    if context_length < 1:
        raise UsageError(f"the context length must be at least 1, not {context_length}")
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise UsageError(
            f"the stride must lie between 1 and the context length {context_length}, not {stride}"
        )
    return stride


def stream_loss(
    model: torch.nn.Module,
    tokens: np.ndarray,
    context_length: int,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    max_tokens: int | None = None,
) -> tuple[float, int]:
    """Next-token loss of one flat stream of token ids, read across document boundaries.

    ``tokens``: shape ``(N,)``, any integer dtype, may be a memmap; only its first ``max_tokens``
    are read. Returns ``(nats, targets)``, one target fewer than tokens read. ``batch_size`` is in
    windows (default: as many as keep the logits near 512 MB). ``progress`` is called with the
    number of targets each batch scored. The model runs in eval mode, is put back into the mode it
    was in, and runs under autocast if its weights are bfloat16 or float16.

    ``UsageError``: fewer than two tokens, a stride that does not fit, a token id outside the
    model's vocabulary.
    """
    stride = check_stride(context_length, stride)
    if max_tokens is not None:
        tokens = tokens[: max(0, max_tokens)]
    if len(tokens) < 2:
        raise UsageError(f"{len(tokens)} tokens cannot be scored: at least 2 are needed")
    spans = (
        (tokens[begin:end], first - begin)
        for begin, end, first in windows(len(tokens), context_length, stride)
    )
    size = _batch_size(model, context_length, batch_size)
    return _loss(model, _equal_batches(spans, size), progress)


def rows_loss(
    model: torch.nn.Module,
    rows: np.ndarray,
    batch_size: int | None = None,
    counted: int | None = None,
) -> tuple[float, int]:
    """Next-token loss of separate spans of equal length, ``(rows, length)`` token ids.

    Each span is scored from its second token. Of the rows only the first ``counted`` count; the
    others are run all the same. Returns ``(nats, targets)``; see ``stream_loss``.
    """
    size = _batch_size(model, rows.shape[1] - 1, batch_size)
    counted = len(rows) if counted is None else counted
    spans = [(row, 1 if number < counted else len(row)) for number, row in enumerate(rows)]
    batches = (spans[begin : begin + size] for begin in range(0, len(spans), size))
    return _loss(model, batches, None)


def packed_loss(
    model: torch.nn.Module, rows: Mapping[str, np.ndarray], batch_size: int | None = None
) -> tuple[float, int]:
    """Next-token loss of rows in which documents are packed and do not see each other.

    ``rows``: ``input_ids``, ``labels`` (not shifted, ``-100`` for no target) and ``position_ids``
    that restart at each document, ``(n, length)`` int64. Returns ``(nats, targets)``.
    """
    check_token_ids(model, int(rows["input_ids"].max()))
    size = _batch_size(model, rows["input_ids"].shape[1], batch_size)
    device, nats = device_of(model), 0.0
    parts = {name: torch.from_numpy(value).split(size) for name, value in rows.items()}
    with evaluating(model):
        for ids, labels, positions in zip(
            parts["input_ids"], parts["labels"], parts["position_ids"], strict=True
        ):
            logits = model(
                input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False
            ).logits[:, :-1]
            nats += _sum_nll(logits.flatten(0, 1), labels[:, 1:].flatten().to(device))
    return nats, int((rows["labels"][:, 1:] != -100).sum())


def documents_loss(
    model: torch.nn.Module,
    documents: Iterable[np.ndarray | Sequence[int]],
    start_token_id: int,
    context_length: int,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> tuple[float, int]:
    """Next-token loss of documents that do not see each other.

    Each document is preceded by ``start_token_id`` (the EOS or BOS token, which is not scored), so
    that each of its own tokens has a prediction; nothing is appended. Windows of several documents
    share a batch, padded on the right. Other arguments, the result and the errors are those of
    ``stream_loss``; empty documents count nothing.
    """
    stride = check_stride(context_length, stride)
    spans = (
        (text[begin:end], first - begin)
        for text in (_preceded(document, start_token_id) for document in documents)
        for begin, end, first in windows(len(text), context_length, stride)
    )
    size = _batch_size(model, context_length, batch_size)
    nats, targets = _loss(model, _padded_batches(spans, size), progress)
    if targets == 0:
        raise UsageError("there is no text to score: every document is empty")
    return nats, targets


def text_size(texts: Iterable[str]) -> tuple[int, int]:
    """``(UTF-8 bytes, words separated by white space)`` of some texts."""
    utf8_bytes = words = 0
    for text in texts:
        utf8_bytes += len(text.encode("utf-8"))
        words += len(text.split())
    return utf8_bytes, words


# A span of tokens and the index in it of the first token to score (at least 1).
_Span = tuple[np.ndarray, int]


def _loss(
    model: torch.nn.Module, batches: Iterable[list[_Span]], progress: Progress | None
) -> tuple[float, int]:
    nats, targets = 0.0, 0
    with evaluating(model):
        for batch in batches:
            batch_nats, batch_targets = _score(model, batch)
            nats, targets = nats + batch_nats, targets + batch_targets
            if progress:
                progress(batch_targets)
    return nats, targets


def _score(model: torch.nn.Module, batch: list[_Span]) -> tuple[float, int]:
    """Sum of losses and number of targets of one batch of windows, padded on the right."""
    width = max(len(span) for span, _ in batch) - 1
    inputs = np.zeros((len(batch), width), dtype=np.int64)
    labels = np.full((len(batch), width), -100, dtype=np.int64)
    mask = np.zeros((len(batch), width), dtype=np.int64)
    for row, (span, first) in enumerate(batch):
        inputs[row, : len(span) - 1] = span[:-1]
        labels[row, first - 1 : len(span) - 1] = span[first:]
        mask[row, : len(span) - 1] = 1
    check_token_ids(model, max(int(inputs.max()), int(labels.max())))

    device = device_of(model)
    arguments: dict[str, Any] = {"use_cache": False}
    if not mask.all():
        arguments["attention_mask"] = torch.from_numpy(mask).to(device)
    keep = width - (min(first for _, first in batch) - 1)
    if keep < width and "logits_to_keep" in inspect.signature(model.forward).parameters:
        # The head is a large part of a small model: only the scored positions need it.
        arguments["logits_to_keep"] = keep
    logits = model(input_ids=torch.from_numpy(inputs).to(device), **arguments).logits
    flat_labels = torch.from_numpy(labels[:, width - logits.shape[1] :].reshape(-1).copy())
    return _sum_nll(logits.flatten(0, 1), flat_labels.to(device)), int((labels != -100).sum())


def _sum_nll(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Sum of the negative log-likelihoods, ``(N, V)`` and ``(N,)``; -100 is ignored."""
    rows = max(1, _CHUNK_LOGITS // logits.shape[-1])
    parts = [
        F.cross_entropy(part.float(), label, ignore_index=-100, reduction="none").double().sum()
        for part, label in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return float(torch.stack(parts).sum())


def _equal_batches(spans: Iterable[_Span], batch_size: int) -> Iterator[list[_Span]]:
    """Neighbouring windows of equal length and equal first target: no row needs padding."""
    batch: list[_Span] = []
    for span in spans:
        same = batch and len(span[0]) == len(batch[0][0]) and span[1] == batch[0][1]
        if batch and (len(batch) == batch_size or not same):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def _padded_batches(spans: Iterable[_Span], batch_size: int) -> Iterator[list[_Span]]:
    """Windows sorted by length within a look-ahead of some batches, so that little is padding."""
    spans = iter(spans)
    while ahead := list(itertools.islice(spans, batch_size * 16)):
        ahead.sort(key=lambda span: len(span[0]), reverse=True)
        for begin in range(0, len(ahead), batch_size):
            yield ahead[begin : begin + batch_size]


def _batch_size(model: torch.nn.Module, context_length: int, batch_size: int | None) -> int:
    if batch_size is not None:
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}")
        return batch_size
    return max(1, min(64, _BATCH_LOGITS // (context_length * _vocab_size(model))))


def _preceded(document: np.ndarray | Sequence[int], start_token_id: int) -> np.ndarray:
    ids = np.asarray(document, dtype=np.int64)
    return np.concatenate([np.asarray([start_token_id], dtype=np.int64), ids])


def _vocab_size(model: torch.nn.Module) -> int:
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def check_token_ids(model: torch.nn.Module, largest: int) -> None:
    """``UsageError`` if ``largest`` is no token of the model.

    Without this it is an IndexError on a CPU and a dead process on a GPU.
    """
    if largest >= (size := _vocab_size(model)):
        raise UsageError(
            f"token id {largest} is outside the model's vocabulary of {size}: "
            "the tokenizer or token store is not this model's"
        )


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No gradients, eval mode (each module's own mode is restored), autocast for half weights."""
    modes = [(module, module.training) for module in model.modules()]
    weights = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    half = weights in (torch.bfloat16, torch.float16)
    precision: AbstractContextManager[object] = (
        torch.autocast(device_of(model).type, dtype=weights) if half else nullcontext()
    )
    model.eval()
    try:
        with torch.no_grad(), precision:
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
