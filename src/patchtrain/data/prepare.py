"""Corpus to token store: read, tokenise on all cores, write, in memory that stays flat.

Three things run at once: a thread reads and hashes the next documents, the tokenizer encodes a
batch on all cores, and this thread turns the batch before it into arrays and writes them. Batches
and queues are bounded by characters, so a corpus of any size needs the same memory.

Which documents are held out for validation depends on their text alone (a hash of it), not on
where they stand: adding files to a corpus moves no document from one split to the other, and a
document that occurs twice is never on both sides.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain import __version__
from patchtrain.data import readers
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.background import Background
from patchtrain.data.progress import Progress
from patchtrain.data.readers import Counts
from patchtrain.data.sources import DOCUMENT_LIMIT, TEXT_LIMIT, Corpus, open_corpus
from patchtrain.data.store import StoreWriter, TokenStore, is_store
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.files import whole_folder

VALIDATION_FRACTION = 0.02
SAMPLE_CHARACTERS = 64_000_000
"""Text that a tokenizer is trained on; more of it changes the vocabulary little."""
_SAMPLE_FILES = 16
# Enough documents for every core, few enough to hold several batches in memory at once.
_BATCH_CHARACTERS = min(max(2_000_000, 200_000 * (os.cpu_count() or 1)), 8_000_000)

_TRIM_BATCHES = 4


def prepare(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    train_tokenizer: str | None = None,
    vocab_size: int | None = None,
    validation_fraction: float = VALIDATION_FRACTION,
    format: str | None = None,
    text_column: str = "text",
    split: str = "train",
    document_separator: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> TokenStore:
    """Tokenise ``sources`` into a token store at ``out`` and open it.

    Args:
        sources: files, folders, globs, ``-``, ``hf:owner/name`` or ``stdlib``.
        out: the folder to make; it appears when it is complete, and not before.
        tokenizer: Hugging Face name, folder, token store or ``tokenizer.json``.
        train_tokenizer: or train one here: ``bpe`` (the default), ``unigram``, ``char``, ``byte``.
        vocab_size: entries of the tokenizer trained here; 8192 for bpe and unigram.
        validation_fraction: share of the documents held out, in [0, 1).
        format: ``text``, ``jsonl`` or ``parquet``, whatever the names of the files say.
        text_column: the column of JSON lines, Parquet and datasets.
        split: the split of a Hugging Face dataset.
        document_separator: what stands between the documents of a text file.
        overwrite: replace a store that is already at ``out``.
        progress: show progress on stderr.

    Raises:
        UsageError: for what cannot be done as asked. PatchtrainError: for broken content.
    """
    started = time.monotonic()
    out = Path(out)
    if not 0 <= validation_fraction < 1:
        raise UsageError(
            f"--validation-fraction is {validation_fraction}, it must be at least 0 and below 1"
        )
    kind = _tokenizer_request(tokenizer, train_tokenizer, vocab_size)
    _check_out(out, overwrite)
    corpus = open_corpus(
        sources,
        format=format,
        text_column=text_column,
        split=split,
        document_separator=document_separator,
    )
    loaded = tokenizers.load(tokenizer) if tokenizer is not None else None
    try:
        with whole_folder(out, replace=overwrite) as folder, Progress(progress) as bar:
            if left_out := corpus.skipped.total():
                endings = ", ".join(ending for ending, _ in corpus.skipped.most_common(5))
                bar.say(f"left out {left_out:,} files of unknown format ({endings})")
            origin: dict[str, Any] = {"source": str(tokenizer)}
            spool = folder / "standard-input.partial"
            if kind is not None:
                if corpus.reads_stdin:  # it is needed twice, but can be read once
                    corpus = _spool_stdin(corpus, spool, bar)
                sample = _Sample(corpus, bar)
                size = tokenizers.check_request(kind, vocab_size)
                why = "" if train_tokenizer else " (no --tokenizer given)"
                bar.start(f"training a {kind} tokenizer with {size:,} entries{why}", None)
                texts = iter(sample)
                if (first := next(texts, None)) is None:
                    raise _no_text(sources, sample.counts)
                loaded = tokenizers.train(kind, itertools.chain([first], texts), vocab_size)
                origin = {"trained": kind, "characters": sample.characters}
            with StoreWriter(folder, loaded) as writer:
                work = _Work(corpus, writer, validation_fraction, bar)
                work.run()
                if not work.documents:
                    raise _no_text(sources, work.counts)
                if validation_fraction:
                    work.hold_out_one()
                spool.unlink(missing_ok=True)
                counts = work.counts
                writer.finish(
                    {
                        "tokenizer": origin,
                        "sources": corpus.records,
                        "made": {
                            "by": f"patchtrain {__version__}",
                            "at": datetime.now(UTC).isoformat(timespec="seconds"),
                            "seconds": round(time.monotonic() - started, 3),
                            "encoding_seconds": round(work.seconds, 3),
                            "validation_fraction": validation_fraction,
                            "text_column": text_column,
                            "split": split,
                            "format": format,
                            "document_separator": document_separator,
                            "longest_document": [TEXT_LIMIT, DOCUMENT_LIMIT],
                            "documents_cut": counts.cut,
                            "blank_documents": counts.blank,
                            "files_left_out": dict(corpus.skipped),
                            "files_not_utf8": counts.undecodable,
                            "unknown_tokens": work.unknown,
                        },
                    }
                )
    except PatchtrainError:
        raise
    except Exception as error:  # the tokenizer library reports a full disk as a bare exception
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error):
            raise PatchtrainError(
                f"the disk is full while writing {out}; free some space and run the command again"
            ) from error
        if isinstance(error, OSError):
            raise PatchtrainError(f"cannot write {out}: {error.strerror or error}") from error
        raise
    return TokenStore.open(out)


def _tokenizer_request(
    tokenizer: str | Path | None, train_tokenizer: str | None, vocab_size: int | None
) -> str | None:
    """The kind of tokenizer to train, or None to load one."""
    if tokenizer is None:
        kind = train_tokenizer or "bpe"
        tokenizers.check_request(kind, vocab_size)
        return kind
    if train_tokenizer is not None:
        raise UsageError("give --tokenizer or --train-tokenizer, not both")
    if vocab_size is not None:
        raise UsageError("--vocab-size is for --train-tokenizer; --tokenizer has its own size")
    return None


def _check_out(out: Path, overwrite: bool) -> None:
    standing = next((parent for parent in out.absolute().parents if parent.exists()), None)
    if standing is not None and not standing.is_dir():
        raise UsageError(f"cannot make {out}: {standing} is not a folder")
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return  # nothing there to lose
    if not overwrite:
        raise UsageError(f"{out} already exists; --overwrite replaces it, or choose another --out")
    if not out.is_dir() or (any(out.iterdir()) and not is_store(out)):
        raise UsageError(f"{out} exists and is not a token store; --overwrite does not replace it")


def _no_text(sources: Sequence[str | Path], counts: Counts) -> PatchtrainError:
    blank = f": only blank documents ({counts.blank:,})" if counts.blank else ""
    return UsageError(f"there is no text in {', '.join(map(str, sources))}{blank}")


def _spool_stdin(corpus: Corpus, spool: Path, bar: Progress) -> Corpus:
    bar.start("keeping standard input in a temporary file", None)
    with readers.open_source(None) as source, spool.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    return corpus.with_stdin_at(spool)


class _Sample:
    """The text a tokenizer is trained on: a bounded part of many files, in hashed order."""

    def __init__(self, corpus: Corpus, bar: Progress) -> None:
        self.corpus, self.bar = corpus, bar
        self.characters = 0
        self.counts = Counts()

    def __iter__(self) -> Iterator[str]:
        # Hashed, so that the first files (one author, one date) do not make the vocabulary alone.
        ordered = sorted(
            self.corpus.sources,
            key=lambda source: hashlib.sha256(os.fsencode(source.name)).digest(),
        )
        share = SAMPLE_CHARACTERS // max(1, min(len(ordered), _SAMPLE_FILES))
        for source in ordered:
            taken = 0
            for text in self.corpus.source_documents(source, self.counts, cut=True):
                yield text
                taken += len(text)
                self.characters += len(text)
                if taken >= share or self.characters >= SAMPLE_CHARACTERS:
                    break
            self.bar.update(self.counts.read_bytes)
            if self.characters >= SAMPLE_CHARACTERS:
                return


@dataclass
class _Batch:
    """Documents that are encoded at once."""

    texts: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    utf8_bytes: list[int] = field(default_factory=list)
    characters: int = 0

    def add(self, text: str) -> None:
        data = text.encode()
        self.texts.append(text)
        self.hashes.append(hashlib.blake2b(data, digest_size=8).digest())
        self.utf8_bytes.append(len(data))
        self.characters += len(text)


class _Work:
    """One pass: batches are read, encoded and written."""

    def __init__(self, corpus: Corpus, writer: StoreWriter, fraction: float, bar: Progress) -> None:
        self.corpus, self.writer, self.bar = corpus, writer, bar
        self.counts = Counts()
        self.unknown = 0
        self.seconds = 0.0
        self._written = 0
        self._encode = tokenizers.encoder(writer.tokenizer).encode_batch_fast
        self._eos = int(writer.tokenizer.eos_token_id)
        unknown = writer.tokenizer.unk_token_id
        self._unknown_id = None if unknown == self._eos else unknown
        # A 64-bit hash below the threshold: held out.
        self._threshold = int(fraction * 2**64).to_bytes(9, "big")
        self._lowest = b"\xff" * 9
        self._lowest_documents: list[int] = []
        self._lowest_size = (0, 0)

    @property
    def documents(self) -> int:
        return self.writer.documents("train") + self.writer.documents("validation")

    def run(self) -> None:
        started = time.monotonic()
        self.bar.start("tokenising", self.corpus.size)
        with Background(self._batches, size=2) as batches, ThreadPoolExecutor(1) as pool:
            before: tuple[_Batch, Future[Any]] | None = None
            for batch in batches:
                future = pool.submit(self._encode, batch.texts, add_special_tokens=False)
                if before:
                    self._write(*before)
                before = batch, future
            if before:
                self._write(*before)
        self.seconds = time.monotonic() - started

    def _batches(self) -> Iterator[_Batch]:
        batch = _Batch()
        for text in self.corpus.documents(self.counts, cut=True):
            batch.add(text)
            if batch.characters >= _BATCH_CHARACTERS:
                yield batch
                batch = _Batch()
        if batch.texts:
            yield batch

    def _write(self, batch: _Batch, encoded: Future[Any]) -> None:
        encodings = encoded.result()
        held_out = [b"\0" + digest < self._threshold for digest in batch.hashes]
        words = [len(text.split()) for text in batch.texts]
        self._note_lowest(batch, words, held_out)
        for name, wanted in (("train", False), ("validation", True)):
            chosen = [i for i, flag in enumerate(held_out) if flag is wanted]
            flat: list[int] = []
            lengths = []
            for i in chosen:
                ids = encodings[i].ids
                flat += ids
                flat.append(self._eos)
                lengths.append(len(ids) + 1)
            tokens = np.array(flat, dtype=self.writer.dtype)
            if self._unknown_id is not None:
                self.unknown += int(np.count_nonzero(tokens == self._unknown_id))
            self.writer.add(
                name,
                tokens,
                np.array(lengths, dtype=np.int64),
                sum(batch.utf8_bytes[i] for i in chosen),
                sum(words[i] for i in chosen),
            )
        self._written += 1
        if self._written % _TRIM_BATCHES == 0:
            _return_free_memory()
        self.bar.update(self.counts.read_bytes, self._note())

    def _note(self) -> str:
        tokens = self.writer.tokens("train") + self.writer.tokens("validation")
        return f"{self.documents:,} documents, {tokens:,} tokens"

    def _note_lowest(self, batch: _Batch, words: list[int], held_out: list[bool]) -> None:
        """Remember the train document with the lowest hash, until one is held out."""
        if self.writer.documents("validation"):
            return
        number = self.writer.documents("train")
        for i, (digest, flag) in enumerate(zip(batch.hashes, held_out, strict=True)):
            if flag:
                continue
            if digest < self._lowest:
                self._lowest, self._lowest_documents, self._lowest_size = digest, [], (0, 0)
            if digest == self._lowest:
                self._lowest_documents.append(number)
                size, count = self._lowest_size
                self._lowest_size = size + batch.utf8_bytes[i], count + words[i]
            number += 1

    def hold_out_one(self) -> None:
        """Where the threshold held out none, move the train document with the lowest hash.

        With few documents that happens, and a run needs both sides.
        """
        if not self.writer.documents("train"):
            raise UsageError(
                "every document fell into the validation split; give a lower --validation-fraction"
            )
        if self.writer.documents("validation"):
            return
        if self.writer.documents("train") <= len(self._lowest_documents):
            raise UsageError(
                f"the corpus has {_plural(self.documents)}, too few to hold one out for "
                "validation; give more text, --document-separator TEXT to split it, or "
                "--validation-fraction 0"
            )
        self.writer.move_to_validation(self._lowest_documents, *self._lowest_size)


def _return_free_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    Encodings are millions of small pieces made by many threads. Freed, they leave the heap full of
    holes, and without this a process keeps growing by some MB for each 100 MB of text.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _plural(documents: int) -> str:
    return "only one document" if documents == 1 else f"{documents:,} documents, all equal"
