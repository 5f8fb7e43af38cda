"""The two files of each split, ``NAME.tokens.bin`` and ``NAME.offsets.bin``: written and mapped.

A token store has them, and so has each part that shards are tokenised into.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from patchtrain.data.store_record import SPLITS

COPY_BYTES = 4 << 20


class SplitWriter:
    """Two growing files with their checksums, and the counts of one split."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        self.documents = self.total = self.utf8_bytes = self.words = 0
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {kind: hashlib.sha256() for kind in ("tokens", "offsets")}
        for kind in self._hashes:
            self._files[kind] = (folder / f"{name}.{kind}.bin").open("wb")
        self._write("offsets", np.zeros(1, "<i8"))

    def add(self, tokens: np.ndarray, lengths: np.ndarray, utf8_bytes: int, words: int) -> None:
        if lengths.sum() != len(tokens):
            raise ValueError(f"lengths add up to {lengths.sum()}, but there are {len(tokens)} ids")
        if not len(lengths):
            return
        limit = np.iinfo(self.dtype).max
        if len(tokens) and int(tokens.max()) > limit:
            raise ValueError(f"token id {tokens.max()} does not fit {self.dtype.name}")
        self._write("tokens", tokens.astype(self.dtype, copy=False))
        self._write("offsets", self.total + np.cumsum(lengths, dtype="<i8"))
        self.total += len(tokens)
        self.documents += len(lengths)
        self.utf8_bytes += utf8_bytes
        self.words += words

    def copy(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        """Append the documents between the first and the last of ``offsets``, piece by piece."""
        step = COPY_BYTES // self.dtype.itemsize
        if len(offsets) < 2:
            return
        first, last = int(offsets[0]), int(offsets[-1])
        for start in range(first, last, step):
            self._write("tokens", np.asarray(tokens[start : min(start + step, last)]))
        rows = COPY_BYTES // 8
        for start in range(1, len(offsets), rows):
            self._write("offsets", offsets[start : start + rows] - first + self.total)
        self.total += last - first
        self.documents += len(offsets) - 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and offsets as written; the files must be closed."""
        return (
            map_file(self.folder / f"{self.name}.tokens.bin", self.dtype),
            map_file(self.folder / f"{self.name}.offsets.bin", np.dtype("<i8")),
        )

    def rename(self, name: str) -> None:
        """Take the place of the files of another split, which must be closed."""
        for kind in self._hashes:
            (self.folder / f"{self.name}.{kind}.bin").replace(self.folder / f"{name}.{kind}.bin")
        self.name = name

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Close the files; their sizes and checksums by name."""
        files = {}
        for kind, file in self._files.items():
            size = file.tell()
            file.flush()
            os.fsync(file.fileno())
            file.close()
            digest = self._hashes[kind].hexdigest()
            files[f"{self.name}.{kind}.bin"] = {"bytes": size, "sha256": digest}
        return files

    def counts(self) -> dict[str, int]:
        return {
            "tokens": self.total,
            "documents": self.documents,
            "utf8_bytes": self.utf8_bytes,
            "words": self.words,
        }

    def _write(self, kind: str, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).data.cast("B")
        self._hashes[kind].update(data)
        self._files[kind].write(data)


class SplitsWriter:
    """Writes the files of both splits into ``folder``, documents as they come.

    Nothing is kept in memory: tokens and offsets go to disk at once, checksums are taken on the
    way. Leaving the block closes the files.
    """

    def __init__(self, folder: Path, dtype: np.dtype) -> None:
        self.folder = folder
        self.dtype = dtype
        self._splits = {name: SplitWriter(folder, name, dtype) for name in SPLITS}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.close()

    def add(
        self, split: str, tokens: Any, lengths: Any, utf8_bytes: int = 0, words: int = 0
    ) -> None:
        """Append documents: their ``tokens`` end to end, ``(N,)``, and the ``lengths`` of each.

        Each document must already end with the end-of-text token; ``lengths`` add up to N.
        """
        self._splits[split].add(np.asarray(tokens), np.asarray(lengths), utf8_bytes, words)

    def documents(self, split: str) -> int:
        return self._splits[split].documents

    def tokens(self, split: str) -> int:
        return self._splits[split].total

    def counts(self) -> dict[str, dict[str, int]]:
        return {name: split.counts() for name, split in self._splits.items()}

    def finish_files(self) -> dict[str, dict[str, Any]]:
        """Close the files; their sizes and checksums by name."""
        files: dict[str, dict[str, Any]] = {}
        for split in self._splits.values():
            files |= split.finish()
        return files


def map_file(file: Path, dtype: np.dtype) -> np.ndarray:
    if file.stat().st_size == 0:  # an empty file cannot be mapped
        empty = np.empty(0, dtype)
        empty.flags.writeable = False
        return empty
    return np.memmap(file, dtype, mode="r")
