"""The token store: a corpus tokenised once, read memory-mapped by every run after that.

::

    STORE/store.json               what is in it and how it was made (written last)
    STORE/train.tokens.bin         flat token ids, uint16 or uint32, little endian
    STORE/train.offsets.bin        int64, documents + 1 entries: document i is tokens[o[i]:o[i+1]]
    STORE/validation.tokens.bin    the same for the documents held out
    STORE/validation.offsets.bin
    STORE/tokenizer/               the tokenizer, which the exported model carries on

Every document ends with the tokenizer's end-of-text token. Nothing here is a format of its own:
``numpy.fromfile`` reads the arrays and any Hugging Face tool reads the tokenizer.

A linked store has the tokens in files of another tool instead (``patchtrain.data.linking``), may
lack the tokenizer, and whether its documents end with an end-of-text token is up to those files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain.data.hub import quiet
from patchtrain.data.linked_split import linked_files, linked_tokens
from patchtrain.data.split_files import COPY_BYTES, SplitsWriter, SplitWriter, map_file
from patchtrain.data.store_record import (
    FORMAT,
    FORMAT_VERSION,
    SPLITS,
    again,
    fingerprint,
    linked,
    read_record,
    token_dtype,
)
from patchtrain.data.token_files import Pieces, check_unchanged
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.files import sha256, write_json

VERIFIED_BYTES = 1 << 30
"""Stores up to this size are verified before each use: about a second."""


@dataclass(frozen=True)
class Split:
    """One side of the store, memory-mapped and read-only."""

    name: str
    """``train`` or ``validation``."""
    tokens: np.ndarray | Pieces
    """``(N,)`` uint16 or uint32; of a linked store whatever integers its files have."""
    offsets: np.ndarray
    """``(documents + 1,)`` int64; document i is ``tokens[offsets[i]:offsets[i + 1]]``."""
    utf8_bytes: int
    """Bytes of the documents' text as UTF-8; the end-of-text tokens are not counted. 0: unknown."""
    words: int
    """Words of the documents' text as ``str.split()`` counts them. 0: unknown."""
    end_token: int | None
    """The end-of-text token, which starts a document that is read on its own; None: unknown."""

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class TokenStore:
    """An opened store. ``meta`` is ``store.json`` as a dict."""

    path: Path
    meta: dict[str, Any]
    train: Split
    validation: Split

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """The store at ``path``, its arrays mapped, not read.

        ``UsageError`` where there is no store, one of another format version, or one with a file
        whose size is not what ``store.json`` says. The contents are checked by ``verify``.
        """
        path = Path(path)
        if not path.is_dir():
            raise UsageError(f"no token store at {path}; `patchtrain prepare` makes one")
        meta = read_record(path)
        for name, entry in meta["files"].items():
            file = path / name
            size = file.stat().st_size if file.is_file() else None
            if size != entry["bytes"]:
                found = "is missing" if size is None else f"has {size:,} bytes"
                raise UsageError(
                    f"{file} {found}, but store.json says {entry['bytes']:,} bytes; {again(meta)}"
                )
        for entry in linked(meta):
            check_unchanged(entry, path)
        return cls(path, meta, *(_open_split(path, name, meta) for name in SPLITS))

    def split(self, name: str) -> Split:
        """The split called ``train`` or ``validation``."""
        if name not in SPLITS:
            raise UsageError(f"no split '{name}' in a token store; there are: {', '.join(SPLITS)}")
        return self.train if name == "train" else self.validation

    def verify(self, at_most: int | None = None) -> None:
        """Read every file and refuse what training or evaluation would stumble over.

        Checked are the SHA-256 of each file, token ids below the vocabulary's size, and documents
        that follow one another and end with the end-of-text token (not of a linked store). A store
        of more than ``at_most`` bytes is left unread: what reads it checks each batch by itself.
        Of linked files the checksums of parts are taken always.

        Raises:
            PatchtrainError: naming the first bad file.
        """
        files, others = self.meta["files"], linked(self.meta)
        for entry in others:
            check_unchanged(entry, self.path, read=True)
        total = sum(entry["bytes"] for entry in [*files.values(), *others])
        if at_most is not None and total > at_most:
            return
        for name, entry in files.items():
            file = self.path / name
            if not file.is_file():
                raise PatchtrainError(f"{file} is missing from the token store")
            if sha256(file) != entry["sha256"]:
                raise PatchtrainError(
                    f"{file} is damaged: its SHA-256 is not the one in store.json; {self._again}"
                )
        for split in (self.train, self.validation):
            self._verify_split(split)

    def _verify_split(self, split: Split) -> None:
        rows = COPY_BYTES // 8
        for start in range(0, len(split.tokens), rows):
            part = split.tokens[start : start + rows]
            largest, smallest = int(part.max()), int(part.min())
            if largest >= self.vocab_size or smallest < 0:
                raise PatchtrainError(
                    f"{self.path}: the {split.name} split has the token id "
                    f"{smallest if smallest < 0 else largest}, beyond the vocabulary of "
                    f"{self.vocab_size:,} in store.json; {self._again}"
                )
        for start in range(0, split.documents, rows):
            offsets = np.asarray(split.offsets[start : start + rows + 1])
            # From 0 up to the last token, which is known already: none is outside the tokens.
            if (offsets[1:] <= offsets[:-1]).any() or offsets[-1] > len(split.tokens):
                raise PatchtrainError(
                    f"{self.path / split.name}.offsets.bin is damaged: its documents do not "
                    f"follow one another; {self._again}"
                )
            open_ones = split.tokens[offsets[1:] - 1] != self.eos_token_id
            if open_ones.any() and not linked(self.meta):
                raise PatchtrainError(
                    f"{self.path / split.name}.offsets.bin is damaged: a document does not end "
                    f"with the end-of-text token {self.eos_token_id}; {self._again}"
                )

    @property
    def has_tokenizer(self) -> bool:
        """Whether the store has its tokenizer; a linked store may be made without."""
        return self.tokenizer_fingerprint is not None

    def load_tokenizer(self) -> Any:
        """The store's own tokenizer, a ``transformers.PreTrainedTokenizerFast``.

        ``PatchtrainError`` where it cannot be read or is not the one that store.json describes,
        ``UsageError`` where there is none.
        """
        if not self.has_tokenizer:
            raise UsageError(
                f"the store {self.path} was linked without a tokenizer, which this needs; link it "
                f"again with `patchtrain link ... --tokenizer NAME`"
            )
        from transformers import PreTrainedTokenizerFast

        folder = self.path / "tokenizer"
        try:
            with quiet():
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            largest = max(tokenizer.get_vocab().values())
            end = tokenizer.eos_token_id
            tokenizer.decode(tokenizer("a text", verbose=True)["input_ids"])
        except Exception as error:  # of many kinds, bare ones from Rust among them
            raise PatchtrainError(
                f"the tokenizer in {folder} cannot be read: {one_line(error)}; {self._again}"
            ) from error
        if largest + 1 != self.vocab_size or end != self.eos_token_id:
            raise PatchtrainError(
                f"the tokenizer in {folder} has ids up to {largest} and the end-of-text token "
                f"{end}, but store.json says {self.vocab_size - 1} and {self.eos_token_id}; "
                f"{self._again}"
            )
        return tokenizer

    @property
    def _again(self) -> str:
        return again(self.meta)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the checksums of the data: the same for the same tokens and tokenizer."""
        return self.meta["fingerprint"]

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """SHA-256 of ``tokenizer.json``: equal where the token ids mean the same. None: unknown."""
        return self.meta["tokenizer"]["fingerprint"]

    @property
    def vocab_size(self) -> int:
        """The highest token id the tokenizer can produce, plus one; else the highest there is."""
        return self.meta["tokenizer"]["vocab_size"]

    @property
    def eos_token_id(self) -> int | None:
        """The id that closes every document; None where a linked store does not know it."""
        return self.meta["tokenizer"]["eos_token_id"]


def is_store(path: Path) -> bool:
    """Whether ``path`` is a folder that holds a token store, whole or damaged."""
    try:
        file = path / "store.json"
        return file.is_file() and json.loads(file.read_text("utf-8")).get("format") == FORMAT
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


class StoreWriter(SplitsWriter):
    """Writes a store into an existing empty ``folder``, documents as they come.

    ``finish`` writes ``store.json``, and only then does the folder count as a store. Use it inside
    ``patchtrain.files.whole_folder``::

        with whole_folder(out) as folder, StoreWriter(folder, tokenizer) as writer:
            writer.add("train", token_ids, lengths=[len(token_ids)], utf8_bytes=9, words=2)
            writer.finish({})

    ``tokenizer`` is a ``PreTrainedTokenizerFast`` with an end-of-text token.
    """

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise UsageError("the tokenizer has no end-of-text (EOS) token; a store needs one")
        self.tokenizer = tokenizer
        self.vocab_size = vocabulary_of(tokenizer)
        super().__init__(folder, token_dtype(self.vocab_size))

    def append(
        self, split: str, tokens: np.ndarray, offsets: np.ndarray, utf8_bytes: int, words: int
    ) -> None:
        """Append documents from another place, piece by piece; see ``Split`` for the arrays."""
        writer = self._splits[split]
        writer.copy(tokens, offsets)
        writer.utf8_bytes += utf8_bytes
        writer.words += words

    def move_to_validation(self, documents: list[int], utf8_bytes: int, words: int) -> None:
        """Take the train documents with these (ascending) numbers out and append them there."""
        old = self._splits["train"]
        old.close()
        tokens, offsets = old.arrays()
        new = SplitWriter(self.folder, "train.rest", self.dtype)
        start = 0
        for number in [*documents, old.documents]:
            new.copy(tokens, offsets[start : number + 1])
            if number < old.documents:
                self._splits["validation"].copy(tokens, offsets[number : number + 2])
            start = number + 1
        new.utf8_bytes, new.words = old.utf8_bytes - utf8_bytes, old.words - words
        held_out = self._splits["validation"]
        held_out.utf8_bytes += utf8_bytes
        held_out.words += words
        new.rename("train")
        self._splits["train"] = new

    def finish(self, meta: dict[str, Any]) -> None:
        """Save the tokenizer and write ``store.json``; ``meta`` adds to what is recorded there."""
        files = self.finish_files() | save_tokenizer(self.tokenizer, self.folder)
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "splits": self.counts(),
            "tokenizer": {
                "vocab_size": self.vocab_size,
                "eos_token": self.tokenizer.eos_token,
                "eos_token_id": self.tokenizer.eos_token_id,
                "fingerprint": files["tokenizer/tokenizer.json"]["sha256"],
                **meta.get("tokenizer", {}),
            },
            **{key: value for key, value in meta.items() if key != "tokenizer"},
            "fingerprint": fingerprint(files),
            "files": files,
        }
        write_json(self.folder / "store.json", record)


def vocabulary_of(tokenizer: Any) -> int:
    """The highest token id that a tokenizer can produce, plus one."""
    # len() counts the entries; ids with holes between them can lie above it.
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def save_tokenizer(tokenizer: Any, store: Path) -> dict[str, dict[str, Any]]:
    """Save a tokenizer into a store's folder; the entries of its files in ``store.json``."""
    tokenizer.save_pretrained(store / "tokenizer")
    return {
        f"tokenizer/{file.name}": {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted((store / "tokenizer").iterdir())
    }


def _open_split(path: Path, name: str, meta: dict[str, Any]) -> Split:
    counts = meta["splits"][name]
    dtype = np.dtype(meta["dtype"]).newbyteorder("<")
    token_file, offset_file = path / f"{name}.tokens.bin", path / f"{name}.offsets.bin"
    token_bytes = counts["tokens"] * dtype.itemsize
    whole = linked(meta) or token_file.stat().st_size == token_bytes
    if not whole or offset_file.stat().st_size != 8 * (counts["documents"] + 1):
        raise UsageError(
            f"{path}: the {name} files do not hold the {counts['documents']:,} documents and "
            f"{counts['tokens']:,} tokens that store.json counts"
        )
    tokens: np.ndarray | Pieces
    if linked(meta):
        tokens = linked_tokens(path, name, linked_files(meta), counts["tokens"], dtype)
    else:
        tokens = map_file(token_file, dtype)
    offsets = map_file(offset_file, np.dtype("<i8"))
    if offsets[0] != 0 or offsets[-1] != len(tokens):
        raise UsageError(f"{offset_file} is damaged: it does not span the tokens")
    end_token = meta["tokenizer"]["eos_token_id"]
    return Split(name, tokens, offsets, counts["utf8_bytes"], counts["words"], end_token)
