"""Documents to tokens: read, encoded on all cores and written, in memory that stays flat.

Three things run at once: a thread reads and hashes the next documents, the tokenizer encodes a
batch on all cores, and this thread turns the batch before it into arrays and writes them. Batches
and queues are bounded by characters, so a corpus of any size needs the same memory.

Which documents are held out for validation depends on their text alone (a hash of it), not on
where they stand: adding files to a corpus moves no document from one split to the other, and a
document that occurs twice is never on both sides.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchtrain.data.background import Background
from patchtrain.data.readers import Counts
from patchtrain.data.sources import Corpus
from patchtrain.data.split_files import SplitsWriter
from patchtrain.progress import Progress

# Enough documents for every core, few enough to hold several batches in memory at once.
_BATCH_CHARACTERS = min(max(2_000_000, 200_000 * (os.cpu_count() or 1)), 8_000_000)
_TRIM_BATCHES = 4


@dataclass(frozen=True)
class Encoding:
    """What encoding takes of a tokenizer."""

    backend: Any
    """A ``tokenizers.Tokenizer`` that reads special tokens as text."""
    eos: int
    """The id that closes a document."""
    unknown: int | None
    """The id of unknown tokens, None where nothing is unknown."""
    dtype: np.dtype

    @classmethod
    def of(cls, tokenizer: Any, dtype: np.dtype) -> Encoding:
        """That of a ``PreTrainedTokenizerFast``."""
        from patchtrain.data.tokenizer import encoder

        eos, unknown = int(tokenizer.eos_token_id), tokenizer.unk_token_id
        return cls(encoder(tokenizer), eos, None if unknown == eos else unknown, dtype)


@dataclass
class Lowest:
    """The train documents with the lowest hash: equal texts, held out where no other text is."""

    digest: bytes = b"\xff" * 9
    documents: list[int] = field(default_factory=list)
    """Their numbers among the train documents, ascending."""
    utf8_bytes: int = 0
    words: int = 0


@dataclass
class Tally:
    """What a pass over a corpus met, besides what it wrote."""

    counts: Counts = field(default_factory=Counts)
    unknown: int = 0
    lowest: Lowest = field(default_factory=Lowest)
    """Of use only where no document was held out."""


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


class Tokenising:
    """One pass: batches are read, encoded and written."""

    def __init__(
        self,
        corpus: Corpus,
        writer: SplitsWriter,
        encoding: Encoding,
        fraction: float,
        bar: Progress,
    ) -> None:
        self.corpus, self.writer, self.encoding, self.bar = corpus, writer, encoding, bar
        self.tally = Tally()
        self._written = 0
        # A 64-bit hash below the threshold: held out.
        self._threshold = int(fraction * 2**64).to_bytes(9, "big")

    def run(self) -> Tally:
        self.bar.start("tokenising", self.corpus.size)
        encode = self.encoding.backend.encode_batch_fast
        with Background(self._batches, size=2) as batches, ThreadPoolExecutor(1) as pool:
            before: tuple[_Batch, Future[Any]] | None = None
            for batch in batches:
                future = pool.submit(encode, batch.texts, add_special_tokens=False)
                if before:
                    self._write(*before)
                before = batch, future
            if before:
                self._write(*before)
        return self.tally

    def _batches(self) -> Iterator[_Batch]:
        batch = _Batch()
        for text in self.corpus.documents(self.tally.counts, cut=True):
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
                flat.append(self.encoding.eos)
                lengths.append(len(ids) + 1)
            tokens = np.array(flat, dtype=self.encoding.dtype)
            if self.encoding.unknown is not None:
                self.tally.unknown += int(np.count_nonzero(tokens == self.encoding.unknown))
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
        self.bar.update(self.tally.counts.read_bytes, note(self.writer))

    def _note_lowest(self, batch: _Batch, words: list[int], held_out: list[bool]) -> None:
        """Remember the train document with the lowest hash, until one is held out."""
        if self.writer.documents("validation"):
            return
        number = self.writer.documents("train")
        for i, (digest, flag) in enumerate(zip(batch.hashes, held_out, strict=True)):
            if flag:
                continue
            if digest < self.tally.lowest.digest:
                self.tally.lowest = Lowest(digest)
            if digest == self.tally.lowest.digest:
                lowest = self.tally.lowest
                lowest.documents.append(number)
                lowest.utf8_bytes += batch.utf8_bytes[i]
                lowest.words += words[i]
            number += 1


def note(writer: SplitsWriter) -> str:
    """What was written so far, for a progress bar."""
    documents = writer.documents("train") + writer.documents("validation")
    tokens = writer.tokens("train") + writer.tokens("validation")
    return f"{documents:,} documents, {tokens:,} tokens"


def _return_free_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    Encodings are millions of small pieces made by many threads. Freed, they leave the heap full of
    holes, and without this a process keeps growing by some MB for each 100 MB of text.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
