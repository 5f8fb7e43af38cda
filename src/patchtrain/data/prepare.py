"""Corpus to token store: in one pass here, or in shards by many workers, with the same bytes.

``store.json`` says what the store is and what it follows from, and not when or how fast it was
made: the same command gives the same store.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from patchtrain import __version__
from patchtrain.data import readers, sharded
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.readers import Counts
from patchtrain.data.sources import DOCUMENT_LIMIT, TEXT_LIMIT, Corpus, open_corpus
from patchtrain.data.store import StoreWriter, TokenStore, is_store
from patchtrain.data.tokenising import Encoding, Lowest, Tokenising
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.files import whole_folder
from patchtrain.progress import Progress

VALIDATION_FRACTION = 0.02
SAMPLE_CHARACTERS = 64_000_000
"""Text that a tokenizer is trained on; more of it changes the vocabulary little."""
_SAMPLE_FILES = 16


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
    executor: str | None = None,
    workers: int | None = None,
    tasks: int | None = None,
    executor_options: Mapping[str, str] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> TokenStore:
    """Tokenise ``sources`` into a token store at ``out`` and open it.

    The ``meta["made"]`` of what is returned also has ``seconds``, and ``encoding_seconds`` without
    those before and after the pass over the text.

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
        executor: tokenise in shards, on this machine (``local``), ``slurm`` or ``ray``; the store
            is the same, byte for byte. Needs ``patchtrain[cluster]``.
        workers: how many shards at once; one a core, on a cluster as many as it gives.
        tasks: at most so many shards; by the size of the corpus.
        executor_options: for Slurm, by sbatch's names (``partition``); and ``setup``, a command.
        overwrite: replace a store that is already at ``out``.
        progress: show progress on stderr.

    Raises:
        UsageError: for what cannot be done as asked. PatchtrainError: for broken content.
    """
    started = time.monotonic()
    out = Path(out)
    check_fraction(validation_fraction)
    kind = _tokenizer_request(tokenizer, train_tokenizer, vocab_size)
    check_out(out, overwrite)
    corpus = open_corpus(
        sources,
        format=format,
        text_column=text_column,
        split=split,
        document_separator=document_separator,
    )
    engine = _engine(executor, workers, tasks, executor_options)
    if engine is not None:
        engine.check(corpus, out)
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
                # A small text may give fewer entries than were asked for.
                origin = {"trained": kind, "asked_size": size, "characters": sample.characters}
            with StoreWriter(folder, loaded) as writer:
                began = time.monotonic()
                if engine is None:
                    encoding = Encoding.of(loaded, writer.dtype)
                    tally = Tokenising(corpus, writer, encoding, validation_fraction, bar).run()
                else:
                    tally = sharded.tokenise(corpus, writer, out, validation_fraction, engine, bar)
                encoding_seconds = time.monotonic() - began
                if not writer.documents("train") + writer.documents("validation"):
                    raise _no_text(sources, tally.counts)
                if validation_fraction:
                    _hold_out_one(writer, tally.lowest)
                spool.unlink(missing_ok=True)
                writer.finish(
                    {
                        "tokenizer": origin,
                        "sources": corpus.records,
                        "made": {
                            "by": f"patchtrain {__version__}",
                            "validation_fraction": validation_fraction,
                            "text_column": text_column,
                            "split": split,
                            "format": format,
                            "document_separator": document_separator,
                            "longest_document": [TEXT_LIMIT, DOCUMENT_LIMIT],
                            "documents_cut": tally.counts.cut,
                            "blank_documents": tally.counts.blank,
                            "files_left_out": dict(corpus.skipped),
                            "files_not_utf8": tally.counts.undecodable,
                            "unknown_tokens": tally.unknown,
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
    if engine is not None:
        shutil.rmtree(sharded.parts_path(out), ignore_errors=True)
    store = TokenStore.open(out)
    store.meta["made"] |= {
        "seconds": round(time.monotonic() - started, 3),
        "encoding_seconds": round(encoding_seconds, 3),
    }
    return store


def _engine(
    executor: str | None,
    workers: int | None,
    tasks: int | None,
    options: Mapping[str, str] | None,
) -> sharded.Engine | None:
    if executor is not None:
        return sharded.Engine(executor, workers, tasks, options or {})
    for name, value in (("workers", workers), ("tasks", tasks), ("executor-option", options)):
        if value:
            raise UsageError(f"--{name} is for --executor, which is not given")
    return None


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


def check_fraction(fraction: float) -> None:
    """``UsageError`` where so large a share of the documents cannot be held out."""
    if not 0 <= fraction < 1:
        raise UsageError(f"--validation-fraction is {fraction}, it must be at least 0 and below 1")


def check_out(out: Path, overwrite: bool) -> None:
    """``UsageError`` where a store cannot be made at ``out``, or must not take its place."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the name {out} is not UTF-8, which the tokenizer library cannot write to; "
            "choose another --out"
        ) from None
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


def _hold_out_one(writer: StoreWriter, lowest: Lowest) -> None:
    """Where the threshold held out none, move the train document with the lowest hash.

    With few documents that happens, and a run needs both sides.
    """
    documents = writer.documents("train")
    if not documents:
        raise UsageError(
            "every document fell into the validation split; give a lower --validation-fraction"
        )
    if writer.documents("validation"):
        return
    if documents <= len(lowest.documents):
        raise UsageError(
            f"the corpus has {_too_few(documents)}, too few to hold one out for "
            "validation; give more text, --document-separator TEXT to split it, or "
            "--validation-fraction 0"
        )
    writer.move_to_validation(lowest.documents, lowest.utf8_bytes, lowest.words)


def _too_few(documents: int) -> str:
    return "only one document" if documents == 1 else f"{documents:,} documents, all equal"
