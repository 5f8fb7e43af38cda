"""Token files read through once: the largest id, where documents end, which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from patchtrain.data.token_files import Pieces, TokenFile
from patchtrain.errors import UsageError

Advance = Callable[[int], None]
"""Takes how many bytes were read since the last call."""

_READ_TOKENS = 1 << 22


@dataclass(frozen=True)
class Scanned:
    """Some files, one after the other."""

    files: Sequence[TokenFile]
    offsets: np.ndarray
    """``(documents + 1,)`` int64: where documents begin and end, in tokens of all files."""
    largest: int
    """The largest token id."""
    closed: int
    """Documents that end with the end-of-text token; 0 where that is not known."""


def scan(
    files: Sequence[TokenFile], end: int | None, vocab_size: int | None, advance: Advance
) -> Scanned:
    """Read ``files`` from beginning to end.

    Documents are where the files say. In files that do not, a document ends with the token ``end``
    or with the last file that does not: one may go on in the next file, as those of llm.c do.
    Where each begins with that token instead, the very first one would be a document of its own,
    and is left out.

    Raises:
        UsageError: a token id below 0 or not below ``vocab_size``.
    """
    ends, base, largest = [np.zeros(1, np.int64)], 0, 0
    for number, file in enumerate(files):
        found = []
        for start, part in _parts(file):
            largest = max(largest, _check_ids(file, start, part, vocab_size))
            if file.ends is None and end is not None:
                found.append(np.flatnonzero(part == end) + (base + start + 1))
            advance(part.nbytes)
        marked = [file.ends is not None, number == 0 or files[number - 1].ends is not None]
        if number and any(marked):  # else a document may go on from the file before
            ends.append(np.array([base]))
        ends += found if file.ends is None else [base + file.ends]
        base += file.tokens
    offsets = np.unique(np.concatenate([*ends, [base]]).astype(np.int64))
    if files[0].ends is None and end is not None and len(offsets) > 2 and offsets[1] == 1:
        offsets = offsets[1:]
    return Scanned(files, offsets, largest, _count_closed(files, offsets, end))


def choose(scanned: Scanned, fraction: float, end: int | None, advance: Advance) -> np.ndarray:
    """Which documents to hold out, ``(documents,)`` bool: about ``fraction`` of them, at least one.

    A hash of a document's tokens decides, without the ``end`` that closes it.

    Raises:
        UsageError: there are too few documents.
    """
    threshold = int(fraction * 2**64)
    tokens, offsets = joined(scanned.files), scanned.offsets
    held = np.zeros(len(offsets) - 1, bool)
    lowest: tuple[int, list[int]] = (1 << 64, [])
    for first, last in document_batches(offsets, _READ_TOKENS):
        begin = int(offsets[first])
        part = np.ascontiguousarray(tokens[begin : int(offsets[last])], "<u4")
        bounds = (offsets[first : last + 1] - begin).tolist()
        for number, (low, high) in enumerate(pairwise(bounds), first):
            document = part[low:high]
            text = document[:-1] if document[-1] == end else document
            digest = hashlib.blake2b(text.data, digest_size=8).digest()
            value = int.from_bytes(digest, "big")
            held[number] = value < threshold
            if value < lowest[0]:
                lowest = (value, [])
            if value == lowest[0]:
                lowest[1].append(number)
        advance(part.size * tokens.dtype.itemsize)
    if not held.any():  # with few documents that happens, and a run needs both sides
        held[lowest[1]] = True
    if held.all():
        what = "one document" if len(held) == 1 else f"{len(held):,} documents"
        raise UsageError(
            f"there is only {what} to hold some out of; give --validation FILE, --end-of-text ID "
            f"where the files do not mark their documents, or --validation-fraction 0"
        )
    return held


def document_batches(offsets: np.ndarray, tokens: int) -> Iterator[tuple[int, int]]:
    """Documents ``[first, last)`` with about so many tokens each time, at least one document."""
    first, last_one = 0, len(offsets) - 1
    while first < last_one:
        reach = int(np.searchsorted(offsets, offsets[first] + tokens, side="right")) - 1
        last = min(max(reach, first + 1), last_one)
        yield first, last
        first = last


def joined(files: Sequence[TokenFile]) -> Pieces:
    """All tokens of some files as one array."""
    starts = np.cumsum([0, *(file.tokens for file in files)])
    table = np.stack([starts[:-1], np.arange(len(files)), np.zeros(len(files), np.int64)])
    return Pieces(files, table, int(starts[-1]))


def _parts(file: TokenFile) -> Iterator[tuple[int, np.ndarray]]:
    tokens = file.map()
    for start in range(0, file.tokens, _READ_TOKENS):
        yield start, np.asarray(tokens[start : start + _READ_TOKENS])


def _check_ids(file: TokenFile, start: int, part: np.ndarray, vocab_size: int | None) -> int:
    largest, smallest = int(part.max()), int(part.min())
    if smallest < 0:
        place = start + int(part.argmin())
        raise UsageError(
            f"{file.path}: token {place:,} is {smallest}, below 0: these are no token ids, or not "
            f"of {file.dtype.name}"
        )
    if vocab_size is not None and largest >= vocab_size:
        place = start + int(part.argmax())
        raise UsageError(
            f"{file.path}: token {place:,} is {largest:,}, beyond the vocabulary of "
            f"{vocab_size:,}: the files were made with another tokenizer, or the tokens are not of "
            f"{file.dtype.name}"
        )
    return largest


def _count_closed(files: Sequence[TokenFile], offsets: np.ndarray, end: int | None) -> int:
    if end is None:
        return 0
    tokens, closed = joined(files), 0
    for start in range(1, len(offsets), _READ_TOKENS):
        closed += int((tokens[offsets[start : start + _READ_TOKENS] - 1] == end).sum())
    return closed
