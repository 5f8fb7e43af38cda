"""What ``patchtrain eval`` measures: a run's validation split, or any text by document.

* A store's split is read as in training. Mixed: as one stream, in which every token but the first
  is scored, the end-of-text tokens between documents too, and a window may reach back over a
  document's beginning. Separate: by document, each with its end-of-text token.
* Text is read by document: each starts with the BOS (or EOS) token, which is not scored, sees no
  other document, and has nothing appended.

Both divide by the UTF-8 bytes and the words of the text itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain.data.store import VERIFIED_BYTES, Split, TokenStore
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.perplexity import (
    Progress,
    TextLoss,
    check_stride,
    documents_loss,
    stream_loss,
    text_size,
)
from patchtrain.plan import CHOICES


@dataclass(frozen=True)
class Window:
    """How a text longer than the context is read; see ``patchtrain.evaluation.perplexity``."""

    context_length: int
    stride: int


def choose_window(loaded: LoadedModel, context_length: int | None, stride: int | None) -> Window:
    """The window asked for, or the context of training as context and stride.

    That is how a run measures its final loss: without options the two numbers agree. A smaller
    stride gives every token more context, costs more, and lowers the loss a little.

    ``UsageError``: a stride that does not fit, a context beyond what the model allows, or no
    context length known.
    """
    if context_length is None:
        context_length = loaded.context_length
    if context_length is None:
        raise UsageError(f"{loaded.path} does not tell its context length; give --context-length")
    limit = loaded.position_limit
    if limit is not None and context_length > limit:
        raise UsageError(
            f"a context length of {context_length} is more than the {limit} positions "
            f"of the model in {loaded.path}"
        )
    return Window(context_length, check_stride(context_length, stride))


def open_run_store(loaded: LoadedModel) -> TokenStore:
    """The token store a run was trained on; ``UsageError`` if there is none to be found."""
    path = loaded.run.part("store").get("path") if loaded.run else None
    if not path or not isinstance(path, str):
        what = "run does not name a token store" if loaded.run else "model folder has no store"
        raise UsageError(f"this {what}: give the text to score with --text FILE")
    if not Path(path).is_dir():
        raise UsageError(
            f"the run's token store is not at {path} any more: "
            "give its place with --store, or a text with --text"
        )
    return TokenStore.open(path)


def evaluate_store(
    loaded: LoadedModel,
    store: TokenStore,
    window: Window,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> TextLoss:
    """Score the validation split of ``store`` as the run was trained, or its first ``max_tokens``.

    A store small enough is verified first.

    ``UsageError``: an empty split, or a store of another tokenizer than the model's.
    ``PatchtrainError``: a damaged store.
    """
    store.verify(at_most=VERIFIED_BYTES)
    tokenizer = store.load_tokenizer()
    if tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UsageError(
            f"the token store {store.path} was made with another tokenizer than the model in "
            f"{loaded.path}: its token ids mean something else"
        )
    split = store.validation
    if len(split.tokens) < 2:
        raise UsageError(f"the validation split of {store.path} is empty")
    nats, targets = split_loss(
        loaded.model, split, window, read_documents_as(loaded), batch_size, progress, max_tokens
    )
    utf8_bytes, words = split.utf8_bytes, split.words
    if max_tokens is not None and max_tokens < len(split.tokens):
        # The store knows the size of the whole split only: decode the part that was scored.
        part = np.asarray(split.tokens[:max_tokens])
        utf8_bytes, words = text_size(_decoded(tokenizer, part, store.eos_token_id))
    return TextLoss(nats, targets, utf8_bytes, words)


def read_documents_as(loaded: LoadedModel) -> str:
    """``mixed`` or ``separate``: how the run of a model read documents (mixed if there is none)."""
    if loaded.run is None:
        return "mixed"
    found = loaded.run.part("plan").get("documents", "mixed")
    if found not in CHOICES["documents"]:
        raise PatchtrainError(
            f"{loaded.run.info_file}: plan.documents is {one_line(repr(found), 40)}, "
            f"not one of {', '.join(CHOICES['documents'])}"
        )
    return str(found)


def split_loss(
    model: Any,
    split: Split,
    window: Window,
    documents: str,
    batch_size: int | None = None,
    progress: Progress | None = None,
    max_tokens: int | None = None,
) -> tuple[float, int]:
    """``(nats, targets)`` of a store's split as one stream, or ``separate`` by document."""
    tokens, rest = split.tokens, (window.context_length, window.stride, batch_size, progress)
    if documents == "mixed":
        return stream_loss(model, tokens, *rest, max_tokens)
    last = len(tokens) if max_tokens is None else min(max_tokens, len(tokens))
    texts = (tokens[begin : min(end, last)] for begin, end in _spans(split.offsets) if begin < last)
    start_token = int(tokens[-1])  # every document ends in the end-of-text token
    return documents_loss(model, texts, start_token, *rest)


def _spans(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where each document begins and ends; a store too large to be verified is checked here."""
    for begin, end in pairwise(offsets):
        if end < begin:
            raise PatchtrainError(
                "the document offsets of the validation split are damaged: they do not grow; "
                "make the store again with `patchtrain prepare`"
            )
        yield int(begin), int(end)


def evaluate_text(
    loaded: LoadedModel,
    files: Sequence[str],
    window: Window,
    text_column: str = "text",
    file_format: str | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> tuple[TextLoss, int]:
    """Score the documents of some files; also returns how many documents there were.

    ``files`` are whatever ``patchtrain prepare`` reads: text (one document a file), JSON lines,
    Parquet, also compressed; ``file_format`` is for names that do not tell. With ``max_tokens``
    the document that reaches it is cut there.
    """
    from patchtrain.data.sources import read_documents

    texts = read_documents(files, text_column=text_column, format=file_format)
    counts = {"documents": 0, "tokens": 0, "bytes": 0, "words": 0}

    def tokens() -> Iterator[list[int]]:
        for text in texts:
            ids = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if max_tokens is not None and counts["tokens"] + len(ids) > max_tokens:
                ids = ids[: max_tokens - counts["tokens"]]
                text = loaded.tokenizer.decode(ids, skip_special_tokens=True)
            utf8_bytes, words = text_size([text])
            counts["documents"] += 1
            counts["tokens"] += len(ids)
            counts["bytes"] += utf8_bytes
            counts["words"] += words
            yield ids
            if max_tokens is not None and counts["tokens"] >= max_tokens:
                return

    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"the number of tokens to score must be at least 1, not {max_tokens}")
    try:
        nats, targets = documents_loss(
            loaded.model,
            tokens(),
            loaded.start_token_id,
            window.context_length,
            window.stride,
            batch_size,
            progress,
        )
    except UsageError as error:
        if counts["tokens"]:
            raise
        raise UsageError(f"there is no text to score in {', '.join(map(str, files))}") from error
    return TextLoss(nats, targets, counts["bytes"], counts["words"]), counts["documents"]


def _decoded(tokenizer: Any, tokens: np.ndarray, eos_token_id: int) -> Iterator[str]:
    ends = [*(np.flatnonzero(tokens == eos_token_id) + 1).tolist(), len(tokens)]
    begin = 0
    for end in ends:
        yield tokenizer.decode(tokens[begin:end].tolist(), skip_special_tokens=True)
        begin = end
