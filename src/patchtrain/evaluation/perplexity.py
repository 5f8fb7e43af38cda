"""How well a model predicts text: loss per token, perplexity, bits per byte.

A text longer than the context is read in windows. A window is a span of at most
``context_length + 1`` tokens: all but its last are fed to the model (so the model never sees more
than ``context_length`` positions) and all but its first are predicted. Windows start ``stride``
tokens apart and each scores only the targets that no window before it scored. So every token of a
text except the very first is scored exactly once, with at least ``context_length + 1 - stride``
tokens of context as soon as the text is that long:

* ``stride == context_length``: neighbours share one token, every position is scored, cheapest;
* ``stride == context_length // 2``: twice the compute, at least half a context for every token.

``blocks_loss`` reads a text otherwise, as the code of arXiv:2407.12665 does. Sums are kept in
float64; only one batch of logits exists at a time. A ``Tally`` that is handed in also gets the loss
of every single token.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from patchtrain.data.token_files import Pieces
from patchtrain.errors import UsageError
from patchtrain.evaluation.tally import Tally
from patchtrain.modeling import vocabulary_size

Progress = Callable[[int], None]

# Logits of one batch, and their float32 copy in one step of the log-softmax, in elements.
_BATCH_LOGITS = 2**27
_CHUNK_LOGITS = 2**24


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
    tokens: np.ndarray | Pieces,
    context_length: int,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    max_tokens: int | None = None,
    tally: Tally | None = None,
    offsets: np.ndarray | None = None,
) -> tuple[float, int]:
    """Next-token loss of one flat stream of token ids, read across document boundaries.

    ``tokens``: shape ``(N,)``, any integer dtype, may be a memmap; only its first ``max_tokens``
    are read. Returns ``(nats, targets)``, one target fewer than tokens read. ``batch_size`` is in
    windows (default: as many as keep the logits near 512 MB). ``progress`` is called with the
    number of targets each batch scored. ``offsets``: ``(documents + 1,)``, where the documents of
    the stream begin and end, for the ``tally``; without them the stream is one document. The model
    runs in eval mode, is put back into the mode it was in, and runs under autocast if its weights
    are bfloat16 or float16.

    ``UsageError``: fewer than two tokens, a stride that does not fit, a token id outside the
    model's vocabulary.
    """
    stride = check_stride(context_length, stride)
    if max_tokens is not None:
        tokens = tokens[: max(0, max_tokens)]
    if len(tokens) < 2:
        raise UsageError(f"{len(tokens)} tokens cannot be scored: at least 2 are needed")
    spans = (
        _Span(tokens[begin:end], first - begin, _owners(offsets, begin, end) if tally else 0)
        for begin, end, first in windows(len(tokens), context_length, stride)
    )
    size = _batch_size(model, context_length, batch_size)
    return _loss(model, _equal_batches(spans, size), progress, tally)


def blocks_loss(
    model: torch.nn.Module,
    tokens: np.ndarray | Pieces,
    context_length: int,
    batch_size: int | None = None,
    progress: Progress | None = None,
    max_tokens: int | None = None,
    tally: Tally | None = None,
    offsets: np.ndarray | None = None,
) -> tuple[float, int]:
    """Next-token loss of a stream cut in blocks of ``context_length`` tokens, each on its own.

    That is how the code of arXiv:2407.12665 evaluates: the first token of a block is not scored,
    what is left after the last whole block is dropped, and a token in the middle of a block sees
    half of it only. Arguments and result are those of ``stream_loss``.

    ``UsageError``: as there, and a text of less than one block or blocks of one token.
    """
    check_stride(context_length, None)
    if max_tokens is not None:
        tokens = tokens[: max(0, max_tokens)]
    if context_length < 2 or len(tokens) < context_length:
        raise UsageError(
            f"{len(tokens):,} tokens cannot be cut in blocks of {context_length:,}: at least one "
            "whole block of two tokens or more is needed"
        )
    spans = (
        _Span(tokens[begin:end], 1, _owners(offsets, begin, end) if tally else 0)
        for begin, end in itertools.pairwise(range(0, len(tokens) + 1, context_length))
    )
    size = _batch_size(model, context_length, batch_size)
    return _loss(model, _equal_batches(spans, size), progress, tally)


def rows_loss(
    model: torch.nn.Module, rows: np.ndarray, counted: int | None = None
) -> tuple[float, int]:
    """Next-token loss of separate spans of equal length, ``(rows, length)`` token ids.

    Each span is scored from its second token. Of the rows only the first ``counted`` count; the
    others are run all the same. Returns ``(nats, targets)``; see ``stream_loss``.
    """
    size = _batch_size(model, rows.shape[1] - 1)
    counted = len(rows) if counted is None else counted
    spans = [_Span(row, 1 if number < counted else len(row)) for number, row in enumerate(rows)]
    batches = (spans[begin : begin + size] for begin in range(0, len(spans), size))
    return _loss(model, batches, None)


def packed_loss(model: torch.nn.Module, rows: Mapping[str, np.ndarray]) -> tuple[float, int]:
    """Next-token loss of rows in which documents are packed and do not see each other.

    ``rows``: ``input_ids``, ``labels`` (not shifted, ``-100`` for no target) and ``position_ids``
    that restart at each document, ``(n, length)`` int64. Returns ``(nats, targets)``.
    """
    check_token_ids(model, int(rows["input_ids"].max()))
    size = _batch_size(model, rows["input_ids"].shape[1])
    device, nats = device_of(model), 0.0
    parts = {name: torch.from_numpy(value).split(size) for name, value in rows.items()}
    with evaluating(model):
        for ids, labels, positions in zip(
            parts["input_ids"], parts["labels"], parts["position_ids"], strict=True
        ):
            logits = model(
                input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False
            ).logits[:, :-1]
            losses = _nll(logits.flatten(0, 1), labels[:, 1:].flatten().to(device))
            nats += float(losses.double().sum())
    return nats, int((rows["labels"][:, 1:] != -100).sum())


def documents_loss(
    model: torch.nn.Module,
    documents: Iterable[np.ndarray | Sequence[int]],
    start_token_id: int,
    context_length: int,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    tally: Tally | None = None,
) -> tuple[float, int]:
    """Next-token loss of documents that do not see each other.

    Each document is preceded by ``start_token_id`` (the EOS or BOS token, which is not scored), so
    that each of its own tokens has a prediction; nothing is appended. Windows of several documents
    share a batch, padded on the right. Other arguments, the result and the errors are those of
    ``stream_loss``; empty documents count nothing.
    """
    stride = check_stride(context_length, stride)
    texts = (_preceded(document, start_token_id) for document in documents)
    spans = (
        _Span(text[begin:end], first - begin, number)
        for number, text in enumerate(texts)
        for begin, end, first in windows(len(text), context_length, stride)
    )
    size = _batch_size(model, context_length, batch_size)
    nats, targets = _loss(model, _padded_batches(spans, size), progress, tally)
    if targets == 0:
        raise UsageError("there is no text to score: every document is empty")
    return nats, targets


@dataclass(frozen=True)
class _Span:
    """What the model sees at a time.

    ``tokens``: ``(n,)`` token ids. ``first``: the index of the first one to score, at least 1.
    ``owner``: the document of each token, or of all.
    """

    tokens: np.ndarray
    first: int
    owner: np.ndarray | int = 0


def _owners(offsets: np.ndarray | None, begin: int, end: int) -> np.ndarray | int:
    """The document of each of the tokens from ``begin`` to ``end``."""
    if offsets is None:
        return 0
    return np.searchsorted(offsets, np.arange(begin, end), side="right") - 1


def _loss(
    model: torch.nn.Module,
    batches: Iterable[list[_Span]],
    progress: Progress | None,
    tally: Tally | None = None,
) -> tuple[float, int]:
    nats, targets = 0.0, 0
    with evaluating(model):
        for batch in batches:
            batch_nats, batch_targets = _score(model, batch, tally)
            nats, targets = nats + batch_nats, targets + batch_targets
            if progress:
                progress(batch_targets)
    return nats, targets


def _score(
    model: torch.nn.Module, batch: list[_Span], tally: Tally | None = None
) -> tuple[float, int]:
    """Sum of losses and number of targets of one batch of windows, padded on the right."""
    width = max(len(span.tokens) for span in batch) - 1
    inputs = np.zeros((len(batch), width), dtype=np.int64)
    labels = np.full((len(batch), width), -100, dtype=np.int64)
    mask = np.zeros((len(batch), width), dtype=np.int64)
    for row, span in enumerate(batch):
        inputs[row, : len(span.tokens) - 1] = span.tokens[:-1]
        labels[row, span.first - 1 : len(span.tokens) - 1] = span.tokens[span.first :]
        mask[row, : len(span.tokens) - 1] = 1
    check_token_ids(model, max(int(inputs.max()), int(labels.max())))

    device = device_of(model)
    arguments: dict[str, Any] = {"use_cache": False}
    if not mask.all():
        arguments["attention_mask"] = torch.from_numpy(mask).to(device)
    keep = width - (min(span.first for span in batch) - 1)
    if keep < width and "logits_to_keep" in inspect.signature(model.forward).parameters:
        # The head is a large part of a small model: only the scored positions need it.
        arguments["logits_to_keep"] = keep
    logits = model(input_ids=torch.from_numpy(inputs).to(device), **arguments).logits
    left_out = width - logits.shape[1]
    labels = np.ascontiguousarray(labels[:, left_out:])
    losses = _nll(logits.flatten(0, 1), torch.from_numpy(labels.reshape(-1)).to(device))
    if tally is not None:
        owners = np.full((len(batch), width), -1, dtype=np.int64)
        for row, span in enumerate(batch):
            own = span.owner[span.first :] if isinstance(span.owner, np.ndarray) else span.owner
            owners[row, span.first - 1 : len(span.tokens) - 1] = own
        # The first column of the inputs predicts from one token.
        tally.add(losses.reshape(labels.shape).cpu().numpy(), owners[:, left_out:], left_out + 1)
    return float(losses.double().sum()), int((labels != -100).sum())


def _nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The negative log-likelihoods of ``(N,)`` labels under ``(N, V)`` logits; 0 for -100."""
    rows = max(1, _CHUNK_LOGITS // logits.shape[-1])
    parts = [
        F.cross_entropy(part.float(), label, ignore_index=-100, reduction="none")
        for part, label in zip(logits.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _equal_batches(spans: Iterable[_Span], batch_size: int) -> Iterator[list[_Span]]:
    """Neighbouring windows of equal length and equal first target: no row needs padding."""
    batch: list[_Span] = []
    for span in spans:
        same = batch and len(span.tokens) == len(batch[0].tokens) and span.first == batch[0].first
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
        ahead.sort(key=lambda span: len(span.tokens), reverse=True)
        for begin in range(0, len(ahead), batch_size):
            yield ahead[begin : begin + batch_size]


def _batch_size(model: torch.nn.Module, context_length: int, batch_size: int | None = None) -> int:
    if batch_size is not None:
        if batch_size < 1:
            raise UsageError(f"the batch size must be at least 1, not {batch_size}")
        return batch_size
    return max(1, min(64, _BATCH_LOGITS // (context_length * vocabulary_size(model))))


def _preceded(document: np.ndarray | Sequence[int], start_token_id: int) -> np.ndarray:
    ids = np.asarray(document, dtype=np.int64)
    return np.concatenate([np.asarray([start_token_id], dtype=np.int64), ids])


def check_token_ids(model: torch.nn.Module, largest: int) -> None:
    """``UsageError`` if ``largest`` is no token of the model.

    Without this it is an IndexError on a CPU and a dead process on a GPU.
    """
    if largest >= (size := vocabulary_size(model)):
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
