"""What ``patchtrain eval`` measures: a run's validation split, or any text by document.

Documents are read in one of three ways:

* ``separate``: each on its own. Of a store each has its end-of-text token; of other text nothing
  is appended. Each starts with the BOS (or EOS) token, which is not scored.
* ``mixed``: as one stream, in which every token but the first is scored, the end-of-text tokens
  between documents too, and a window may reach back over a document's beginning.
* ``blocks``: as the code of arXiv:2407.12665 evaluates WikiText-103. The documents, tokenised with
  the special tokens that the tokenizer adds itself, are strung together and cut in blocks of the
  context length, each on its own. The first token of a block is not scored and a last incomplete
  block is dropped; both count in the bytes as the scored tokens do on average.

A run's validation split is read as in training unless told otherwise, any other text separately.
All divide by the UTF-8 bytes and the words of the text itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain.data.readers import text_size
from patchtrain.data.store import VERIFIED_BYTES, Split, TokenStore
from patchtrain.data.token_files import Pieces
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.perplexity import (
    Progress,
    blocks_loss,
    check_stride,
    documents_loss,
    stream_loss,
)
from patchtrain.evaluation.tally import Tally
from patchtrain.evaluation.text_loss import TextLoss
from patchtrain.plan import CHOICES


@dataclass(frozen=True)
class Window:
    """How a text longer than the context is read; see ``patchtrain.evaluation.perplexity``."""

    context_length: int
    stride: int


@dataclass(frozen=True)
class Measured:
    """The loss of a text, and where in it the model loses."""

    loss: TextLoss
    tally: Tally

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the numbers of the whole, then ``by_position`` and ``by_document``."""
        return {
            **self.loss.to_dict(),
            "by_position": self.tally.by_position(),
            "by_document": self.tally.by_document(),
        }


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
    documents: str,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Score the validation split of ``store``, or its first ``max_tokens``.

    ``documents`` is one of the three ways. A store small enough is verified first.

    ``UsageError``: an empty split, or a store of another tokenizer than the model's.
    ``PatchtrainError``: a damaged store.
    """
    store.verify(at_most=VERIFIED_BYTES)
    tokenizer, own = store.load_tokenizer() if store.has_tokenizer else None, loaded.own_tokenizer
    if tokenizer is not None and own is not None:
        loaded.check_tokenizer(tokenizer, store.path)
    split = store.validation
    if len(split.tokens) < 2:
        raise UsageError(f"the validation split of {store.path} is empty")
    for _ in _spans(split.offsets):
        pass  # raises where they are damaged, before anything is scored
    tally = Tally(window.context_length)
    nats, targets = split_loss(
        loaded.model, split, window, documents, batch_size, progress, max_tokens, tally
    )
    last = len(split.tokens) if max_tokens is None else min(max_tokens, len(split.tokens))
    decoded = [0, 0]
    for begin, end in _spans(split.offsets):
        if begin >= last:
            break
        ids = np.asarray(split.tokens[begin : min(end, last)]).tolist()
        size = (0, 0)
        if tokenizer is not None:
            size = text_size([tokenizer.decode(ids, skip_special_tokens=True)])
        tally.add_document(len(ids), size[0])
        decoded = [decoded[0] + size[0], decoded[1] + size[1]]
    # The store knows the size of the whole split: of a part of it, what was decoded counts.
    sizes = (split.utf8_bytes, split.words) if last == len(split.tokens) else tuple(decoded)
    return Measured(_text_loss(nats, targets, sizes, last, documents), tally)


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
    tally: Tally | None = None,
) -> tuple[float, int]:
    """``(nats, targets)`` of a store's split, its documents read in one of the three ways."""
    tokens, rest = split.tokens, (batch_size, progress)
    if documents != "separate":
        return _joined_loss(
            model, tokens, split.offsets, window, documents, *rest, max_tokens, tally
        )
    last = len(tokens) if max_tokens is None else min(max_tokens, len(tokens))
    texts = (tokens[begin : min(end, last)] for begin, end in _spans(split.offsets) if begin < last)
    if (start_token := split.end_token) is None:
        raise UsageError(
            "documents can only be scored separately where the end-of-text token is known: link "
            "the files again with --end-of-text ID, or score them with --documents mixed"
        )
    return documents_loss(
        model, texts, start_token, window.context_length, window.stride, *rest, tally
    )


def _joined_loss(
    model: Any,
    tokens: np.ndarray | Pieces,
    offsets: np.ndarray,
    window: Window,
    documents: str,
    batch_size: int | None,
    progress: Progress | None,
    max_tokens: int | None,
    tally: Tally | None,
) -> tuple[float, int]:
    """``(nats, targets)`` of documents strung together, as a stream or cut in blocks."""
    if documents == "mixed":
        return stream_loss(
            model, tokens, window.context_length, window.stride, batch_size, progress, max_tokens,
            tally, offsets,
        )  # fmt: skip
    return blocks_loss(
        model, tokens, window.context_length, batch_size, progress, max_tokens, tally, offsets
    )


def _text_loss(
    nats: float, targets: int, sizes: Sequence[int], tokens: int, documents: str
) -> TextLoss:
    """The loss of a text of ``tokens`` and of ``sizes``, its UTF-8 bytes and words."""
    share = targets / tokens if documents == "blocks" else 1.0
    return TextLoss(nats, targets, round(sizes[0] * share), round(sizes[1] * share))


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
    documents: str = "separate",
    text_column: str = "text",
    file_format: str | None = None,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Score the documents of some files; the tally knows how many there were.

    ``files`` are whatever ``patchtrain prepare`` reads: text (one document a file), JSON lines,
    Parquet, also compressed; ``file_format`` is for names that do not tell. ``documents`` is one
    of the three ways. With ``max_tokens`` the document that reaches it is cut there.
    """
    from patchtrain.data.sources import read_documents

    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"the number of tokens to score must be at least 1, not {max_tokens}")
    tokenizer, end = loaded.tokenizer, loaded.tokenizer.eos_token_id
    if documents == "mixed" and end is None:
        raise UsageError(
            f"the tokenizer in {loaded.path} has no EOS token to put between mixed documents"
        )
    texts = read_documents(files, text_column=text_column, format=file_format)
    tally = Tally(window.context_length)
    counts = {"tokens": 0, "bytes": 0, "words": 0}

    def tokens() -> Iterator[list[int]]:
        for text in texts:
            own = documents == "blocks"
            ids = tokenizer(text, add_special_tokens=own, verbose=False)["input_ids"]
            ids = [*ids, end] if documents == "mixed" else ids
            if max_tokens is not None and counts["tokens"] + len(ids) > max_tokens:
                ids = ids[: max_tokens - counts["tokens"]]
                text = tokenizer.decode(ids, skip_special_tokens=True)
            utf8_bytes, words = text_size([text])
            tally.add_document(len(ids), utf8_bytes)
            counts["tokens"] += len(ids)
            counts["bytes"] += utf8_bytes
            counts["words"] += words
            yield ids
            if max_tokens is not None and counts["tokens"] >= max_tokens:
                return

    try:
        if documents == "separate":
            nats, targets = documents_loss(
                loaded.model,
                tokens(),
                loaded.start_token_id,
                window.context_length,
                window.stride,
                batch_size,
                progress,
                tally,
            )
        else:
            parts = [np.asarray(ids, dtype=np.int32) for ids in tokens()]
            stream = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
            offsets = np.cumsum([0, *(len(part) for part in parts)])
            nats, targets = _joined_loss(
                loaded.model, stream, offsets, window, documents, batch_size, progress, None, tally
            )
    except UsageError as error:
        if counts["tokens"]:
            raise
        raise UsageError(f"there is no text to score in {', '.join(map(str, files))}") from error
    sizes = (counts["bytes"], counts["words"])
    return Measured(_text_loss(nats, targets, sizes, counts["tokens"], documents), tally)
