"""Token files of another tool to a linked store: read in place, not copied and not tokenised.

::

    STORE/store.json               names the files, with size, time of change, checksum of parts
    STORE/train.pieces.bin         which stretches of which files the split is (``Pieces``)
    STORE/train.offsets.bin        as in any store: where its documents begin and end
    STORE/validation.*.bin         the same for the documents held out
    STORE/tokenizer/               where one was named

Everything is read once to find the largest token id and, where the format does not mark them, the
documents; once more where documents are held out, by a hash of their tokens. So a document that
occurs twice is never on both sides, and files that are added move none from one side to the other.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain import __version__
from patchtrain.data import formats
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.prepare import VALIDATION_FRACTION, check_fraction, check_out
from patchtrain.data.readers import text_size
from patchtrain.data.scanning import Advance, Scanned, choose, document_batches, scan
from patchtrain.data.store import TokenStore, save_tokenizer, vocabulary_of
from patchtrain.data.store_record import (
    FORMAT,
    LINKED_VERSION,
    MOST_IDS,
    SPLITS,
    fingerprint,
    linked_facts,
)
from patchtrain.data.token_files import Pieces, TokenFile, cut, describe, tokens_of
from patchtrain.errors import UsageError
from patchtrain.files import whole_folder, write_json
from patchtrain.progress import Progress

_DECODED_TOKENS = 1 << 20


@dataclass(frozen=True)
class _Vocabulary:
    """What is known of the token ids."""

    tokenizer: Any | None
    size: int | None
    end: int | None

    @classmethod
    def of(
        cls, name: str | Path | None, end_of_text: int | None, vocab_size: int | None
    ) -> _Vocabulary:
        for option, value in (("end-of-text", end_of_text), ("vocab-size", vocab_size)):
            if value is not None and not 0 <= value < MOST_IDS:
                raise UsageError(f"--{option} {value} is not between 0 and {MOST_IDS - 1:,}")
        loaded = None
        if name is not None:
            if vocab_size is not None:
                raise UsageError("--vocab-size is for files of an unknown tokenizer; --tokenizer "
                                 "has its own size")  # fmt: skip
            loaded = tokenizers.load(name)
            vocab_size = vocabulary_of(loaded)
        if end_of_text is not None and vocab_size is not None and end_of_text >= vocab_size:
            raise UsageError(
                f"--end-of-text {end_of_text} is beyond the vocabulary of {vocab_size:,}"
            )
        if loaded is not None and end_of_text is None:
            end_of_text = int(loaded.eos_token_id)
        elif loaded is not None and end_of_text != loaded.eos_token_id:
            loaded.eos_token = loaded.convert_ids_to_tokens(end_of_text)
        return cls(loaded, vocab_size, end_of_text)


@dataclass(frozen=True)
class _Split:
    """Stretches of all files end to end, and the documents they are."""

    begins: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, offsets: np.ndarray, chosen: np.ndarray) -> _Split:
        """The documents ``chosen`` (bool) of those between ``offsets``."""
        begins, ends = offsets[:-1][chosen], offsets[1:][chosen]
        new = np.cumsum([0, *(ends - begins)]) if len(begins) else np.zeros(1, np.int64)
        apart = np.flatnonzero(begins[1:] != ends[:-1]) + 1
        if len(begins):
            begins, ends = begins[np.append(0, apart)], ends[np.append(apart - 1, len(ends) - 1)]
        return cls(begins, ends, new.astype("<i8"))

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])


def link(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    end_of_text: int | None = None,
    vocab_size: int | None = None,
    validation: Sequence[str | Path] = (),
    validation_fraction: float | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> TokenStore:
    """Make a store at ``out`` that reads the token files in ``sources`` where they are; open it.

    Args:
        sources: files, Megatron prefixes, globs and folders, all of one format
            (``patchtrain.data.formats``).
        out: the folder to make; it appears when it is complete, and not before.
        tokenizer: the one they were made with: Hugging Face name, folder, token store or
            ``tokenizer.json``. None: unknown, and with it the size of the text.
        end_of_text: id of the token between documents; by default the tokenizer's.
        vocab_size: where the tokenizer is unknown; by default the largest id plus one.
        validation: as ``sources``, for validation. By default what a folder or glob in ``sources``
            has under such a name; where there is none, a share of the documents is held out.
        validation_fraction: that share, in [0, 1); 0.02.
        dtype: of the tokens, where files do not say it: ``uint16`` (the default) or another.
        overwrite: replace a store that is already at ``out``.
        progress: show progress on stderr.

    Raises:
        UsageError: for what cannot be done as asked, or a file that is not what it should be.
    """
    out = Path(out)
    check_out(out, overwrite)
    found = formats.find(sources)
    given = formats.find(validation) if validation else None
    held_out = [*given.train, *given.validation] if given else found.validation
    formats.check_one_format([*found.train, *held_out])
    fraction = _fraction(validation_fraction, held_out)
    asked = None if dtype is None else np.dtype(dtype).newbyteorder("<")
    files = formats.read(found.train, asked)
    train_files = len(files)
    if held_out:
        files += formats.read(held_out, asked)
        formats.check_alike(files)
        _check_apart(files[:train_files], files[train_files:])
    known = _Vocabulary.of(tokenizer, end_of_text, vocab_size)
    with whole_folder(out, replace=overwrite) as folder, Progress(progress) as bar:
        for item in found.left_out:
            bar.say(f"left out {item.path}: by its name it is a test split")
        reading = _reading(bar, f"checking the tokens of {len(files):,} files", files)
        parts = [part for part in (files[:train_files], files[train_files:]) if part]
        scans = [scan(part, known.end, known.size, reading) for part in parts]
        splits = _splits(scans, fraction, known.end, bar)
        size = known.size or max(max(s.largest for s in scans), known.end or 0) + 1
        record: dict[str, Any] = {
            "format": FORMAT,
            "format_version": LINKED_VERSION,
            "dtype": files[0].dtype.name,
            "splits": {},
            "tokenizer": {
                "vocab_size": size,
                "eos_token_id": known.end,
                "fingerprint": None,
                "source": None if tokenizer is None else str(tokenizer),
            },
            "made": {
                "by": f"patchtrain {__version__}",
                "format": found.train[0].format,
                "validation_fraction": fraction,
                "documents_closed": sum(s.closed for s in scans),
                "largest_token": max(s.largest for s in scans),
                "named_tokenizers": formats.named_tokenizers(found.train),
            },
        }
        entries: dict[str, dict[str, Any]] = {}
        for name, split in zip(SPLITS, splits, strict=True):
            table = cut(files, split.begins, split.ends)
            entries[f"{name}.pieces.bin"] = _write(folder / f"{name}.pieces.bin", table)
            entries[f"{name}.offsets.bin"] = _write(folder / f"{name}.offsets.bin", split.offsets)
            utf8_bytes = words = 0
            if name == "validation" and known.tokenizer is not None:
                tokens = tokens_of(files, table, split.tokens, files[0].dtype)
                texts = _decoded(known.tokenizer, tokens, split.offsets, bar)
                utf8_bytes, words = text_size(texts)
            record["splits"][name] = {
                "tokens": split.tokens,
                "documents": len(split.offsets) - 1,
                "utf8_bytes": utf8_bytes,
                "words": words,
            }
        if known.tokenizer is not None:
            entries |= save_tokenizer(known.tokenizer, folder)
            record["tokenizer"] |= {
                "eos_token": known.tokenizer.eos_token,
                "fingerprint": entries["tokenizer/tokenizer.json"]["sha256"],
            }
        record |= {"linked": [describe(file) for file in files], "files": entries}
        record["fingerprint"] = fingerprint(entries, linked_facts(record))
        write_json(folder / "store.json", record)
    return TokenStore.open(out)


def _fraction(asked: float | None, held_out: Sequence[formats.Item]) -> float:
    if asked is not None:
        check_fraction(asked)
    if held_out and asked:
        raise UsageError(
            f"there are files for validation ({held_out[0].path}) and --validation-fraction: leave "
            f"that out, or name the training files themselves instead of their folder"
        )
    if held_out:
        return 0.0
    return VALIDATION_FRACTION if asked is None else asked


def _check_apart(train: Sequence[TokenFile], validation: Sequence[TokenFile]) -> None:
    paths = {file.path.resolve() for file in train}
    for file in validation:
        if file.path.resolve() in paths:
            raise UsageError(f"{file.path} is named for training and for validation")


def _splits(
    scans: Sequence[Scanned], fraction: float, end: int | None, bar: Progress
) -> tuple[_Split, _Split]:
    """Training and validation; of all files end to end, first those for training."""
    train = scans[0]
    everything = np.ones(len(train.offsets) - 1, bool)
    if len(scans) > 1:
        after = sum(file.tokens for file in train.files) + scans[1].offsets
        return _Split.of(train.offsets, everything), _Split.of(after, np.ones(len(after) - 1, bool))
    if not fraction:
        return _Split.of(train.offsets, everything), _Split.of(train.offsets, ~everything)
    held = choose(train, fraction, end, _reading(bar, "holding documents out", train.files))
    return _Split.of(train.offsets, ~held), _Split.of(train.offsets, held)


def _decoded(
    tokenizer: Any, tokens: np.ndarray | Pieces, offsets: np.ndarray, bar: Progress
) -> Iterator[str]:
    """The text of a split's documents; of a long one in several parts."""
    bar.start("measuring the text of validation", len(tokens) * tokens.dtype.itemsize)
    for first, last in document_batches(offsets, _DECODED_TOKENS):
        ids = []
        for begin, end in zip(offsets[first:last], offsets[first + 1 : last + 1], strict=True):
            # A document may be all there is: then it is decoded bit by bit.
            for start in range(int(begin), int(end), _DECODED_TOKENS):
                part = tokens[start : min(start + _DECODED_TOKENS, int(end))]
                ids.append(np.asarray(part).tolist())
        yield from tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=True)
        bar.update(int(offsets[last]) * tokens.dtype.itemsize)


def _reading(bar: Progress, job: str, files: Sequence[TokenFile]) -> Advance:
    """A bar for a job that reads all of ``files``."""
    bar.start(job, sum(file.tokens * file.dtype.itemsize for file in files))
    return bar.advance


def _write(path: Path, array: np.ndarray) -> dict[str, Any]:
    """Write an array as it is; its entry in ``store.json``."""
    data = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": data.nbytes, "sha256": hashlib.sha256(data).hexdigest()}
