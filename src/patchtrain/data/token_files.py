"""Token files of other tools, read in place: what one is, whether it is unchanged, many as one.

A ``TokenFile`` is a flat run of integers somewhere in a file. ``Pieces`` makes one array of many of
them, or of stretches of them, without a copy: only what is read comes into memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain.errors import PatchtrainError, UsageError

COPY_AGAIN = "copy it again from where it was made, or make it again"
LINK_AGAIN = "link the files again with `patchtrain link`"
# A map keeps its file open, and many systems allow a process 1,024 open files.
_OPEN_FILES = 256
_PARTS = 16
_PART_BYTES = 1 << 14


@dataclass(frozen=True)
class TokenFile:
    """Where the tokens of one file are."""

    path: Path
    dtype: np.dtype
    offset: int
    """Bytes before the first token."""
    tokens: int
    ends: np.ndarray | None = None
    """``(documents,)`` int64, where each document ends, in tokens from the file's first; None where
    the file does not say."""

    def map(self) -> np.ndarray:
        """The tokens, ``(tokens,)``, memory-mapped and read-only."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.tokens,))


class Pieces:
    """One flat array of token ids that lies in pieces of several files; reads like numpy's own.

    It can be indexed with integers, slices and arrays of integers of any shape, and gives what
    ``np.concatenate`` of the pieces would give.

    Args:
        files: of one dtype, opened as they are needed.
        table: ``(3, P)`` int64; piece p begins at token ``table[0, p]`` of this array and lies in
            file ``table[1, p]`` from its token ``table[2, p]`` on.
        length: tokens in all.
    """

    ndim = 1

    def __init__(self, files: Sequence[TokenFile], table: np.ndarray, length: int) -> None:
        self.files = list(files)
        self.table = table
        self.dtype = self.files[0].dtype
        self._begins, self._file, self._there = table
        self._length = length
        self._map = lru_cache(_OPEN_FILES)(lambda number: self.files[number].map())

    def __len__(self) -> int:
        return self._length

    @property
    def shape(self) -> tuple[int]:
        return (self._length,)

    def __reduce__(self) -> tuple[Any, ...]:  # maps are opened again, not copied
        return Pieces, (self.files, np.asarray(self.table), self._length)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            begin, end, step = key.indices(self._length)
            if step == 1:
                return self._stretch(begin, max(begin, end))
            key = np.arange(begin, end, step)
        index = np.asarray(key)
        if index.dtype.kind not in "iu":
            raise IndexError(f"token ids are found by integers, not {index.dtype}")
        index = index.astype(np.int64)
        index = np.where(index < 0, index + self._length, index)
        if index.size and (index.min() < 0 or index.max() >= self._length):
            raise IndexError(f"there are {self._length} tokens")
        found = self._gather(index.ravel()).reshape(index.shape)
        return found if index.ndim else found[()]

    def _stretch(self, begin: int, end: int) -> np.ndarray:
        """``[begin, end)``: a view where it lies in one piece, else a copy."""
        if begin == end:
            return np.empty(0, self.dtype)
        first = int(np.searchsorted(self._begins, begin, side="right")) - 1
        last = int(np.searchsorted(self._begins, end, side="left"))
        bounds = [begin, *(int(place) for place in self._begins[first + 1 : last]), end]
        parts = []
        for piece, low, high in zip(range(first, last), bounds[:-1], bounds[1:], strict=True):
            there = int(self._there[piece]) + low - int(self._begins[piece])
            parts.append(self._map(int(self._file[piece]))[there : there + high - low])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _gather(self, index: np.ndarray) -> np.ndarray:
        piece = np.searchsorted(self._begins, index, side="right") - 1
        file, there = self._file[piece], self._there[piece] + index - self._begins[piece]
        found = np.empty(len(index), self.dtype)
        # By file in one sort: looking through all of a batch for each of many files is slow.
        order = np.argsort(file, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(file[order])) + 1):
            if len(part):
                found[part] = self._map(int(file[part[0]]))[there[part]]
        return found


def check_dtype(file: Path, own: np.dtype, asked: np.dtype | None) -> None:
    """``UsageError`` where a ``file`` that says its dtype is asked to have another one."""
    if asked is not None and asked != own:
        raise UsageError(f"{file} says itself that its tokens are {own.name}: leave --dtype out")


def tokens_of(
    files: Sequence[TokenFile], table: np.ndarray, length: int, dtype: np.dtype
) -> np.ndarray | Pieces:
    """The array of ``Pieces``; a plain map where there is only one piece."""
    if length == 0:
        return np.empty(0, dtype)
    if table.shape[1] == 1:
        begin = int(table[2, 0])
        return files[int(table[1, 0])].map()[begin : begin + length]
    return Pieces(files, table, length)


def cut(files: Sequence[TokenFile], begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The pieces that stretches of the files end to end lie in, as ``Pieces`` takes them.

    Args:
        files: none is empty.
        begins, ends: ``(n,)`` int64, ascending: stretches, in tokens from the first file's first.
    """
    if not len(begins):
        return np.zeros((3, 0), "<i8")
    starts = np.cumsum([0, *(file.tokens for file in files)])
    owner = np.searchsorted(begins, starts[:-1], side="right") - 1
    inside = (owner >= 0) & (starts[:-1] > begins[owner]) & (starts[:-1] < ends[owner])
    low = np.sort(np.concatenate([begins, starts[:-1][inside]]))
    file = np.searchsorted(starts, low, side="right") - 1
    stretch = np.searchsorted(begins, low, side="right") - 1
    high = np.minimum(ends[stretch], starts[file + 1])
    lengths = high - low
    return np.stack([np.cumsum(lengths) - lengths, file, low - starts[file]]).astype("<i8")


def parts_digest(path: Path) -> str:
    """SHA-256 of a file's parts: 16 of 16 KB, evenly apart, first and last among them.

    Of a file of up to 256 KB, of all of it. Raises ``PatchtrainError`` where it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            whole = size <= _PARTS * _PART_BYTES
            for part in range(1 if whole else _PARTS):
                file.seek(0 if whole else part * (size - _PART_BYTES) // (_PARTS - 1))
                digest.update(file.read(size if whole else _PART_BYTES))
    except OSError as error:
        raise PatchtrainError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def describe(file: TokenFile) -> dict[str, Any]:
    """The entry of a file in ``store.json``; ``check_unchanged`` takes it."""
    status = file.path.stat()
    return {
        "path": str(file.path.absolute()),
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "parts_sha256": parts_digest(file.path),
        "offset": file.offset,
        "tokens": file.tokens,
    }


def check_unchanged(entry: dict[str, Any], store: Path, read: bool = False) -> None:
    """Refuse a file that is not what it was when it was linked.

    Its size must be the same, and its time of change or the checksum of its parts: a file that was
    only copied is still the same. With ``read`` the checksum must be, whatever the time.

    Raises:
        UsageError: naming the file, the store that reads it, and what to do.
    """
    path = Path(entry["path"])
    if not path.is_file():
        raise UsageError(
            f"{path} is missing, which the store {store} reads in place; put it back, or "
            f"{LINK_AGAIN}"
        )
    status = path.stat()
    if status.st_size != entry["bytes"]:
        raise UsageError(
            f"{path} has changed since {store} was linked to it: it has {status.st_size:,} bytes, "
            f"not {entry['bytes']:,}; {LINK_AGAIN}"
        )
    same_time = status.st_mtime_ns == entry["modified_ns"]
    if (read or not same_time) and parts_digest(path) != entry["parts_sha256"]:
        raise UsageError(
            f"{path} has changed since {store} was linked to it: parts of it have another "
            f"checksum; {LINK_AGAIN}"
        )
