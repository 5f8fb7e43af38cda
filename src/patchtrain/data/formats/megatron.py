"""Megatron-LM and NeMo: ``PREFIX.bin`` with the tokens and ``PREFIX.idx`` that says what they are.

The index, little endian: ``MMIDIDX`` and two zero bytes; the version, 1 (uint64); a code for the
dtype (uint8); the number of sequences S and of entries of the document index D (uint64); then the
lengths of the sequences (S int32, in tokens), where each begins (S int64, in bytes), and the
document index (D int64): document d is the sequences from entry d up to entry d + 1. Data of other
kinds than text has one more byte for each sequence.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from patchtrain.data.token_files import COPY_AGAIN, TokenFile, check_dtype
from patchtrain.errors import UsageError

_MAGIC = b"MMIDIDX\0\0"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def read(prefix: Path, dtype: np.dtype | None) -> list[TokenFile]:
    """The pair at a prefix; see ``patchtrain.data.formats.read``."""
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    if not index.is_file() or not data.is_file():
        raise UsageError(f"{prefix} is not whole: Megatron has a .bin and an .idx of that name")
    with index.open("rb") as file:
        head = file.read(_HEADER.size)
    if head[: len(_MAGIC)] != _MAGIC or len(head) < _HEADER.size:
        old = " (an old one of Megatron, TNTIDX: preprocess again)" if head[:6] == b"TNTIDX" else ""
        raise UsageError(f"{index} is no index of Megatron{old}: it does not begin as one does")
    _, version, code, sequences, entries = _HEADER.unpack(head)
    if version != 1:
        raise UsageError(f"{index} is of version {version}; version 1 of Megatron's index is known")
    if code not in _DTYPES:
        raise UsageError(
            f"{index} says that its numbers are of type {code}: those are no token ids"
        )
    own = np.dtype(_DTYPES[code])
    check_dtype(index, own, dtype)
    lengths, begins, documents = _arrays(index, sequences, entries)
    ends = np.cumsum(lengths, dtype=np.int64)
    if (lengths < 0).any() or (begins != (ends - lengths) * own.itemsize).any():
        raise UsageError(
            f"{index} cannot be read in place: its sequences do not follow one another"
        )
    if (
        not len(documents)
        or documents[0] != 0
        or documents[-1] != sequences
        or (np.diff(documents) < 0).any()
    ):
        raise UsageError(
            f"{index} is damaged: its documents do not span its sequences; {COPY_AGAIN}"
        )
    total = int(ends[-1]) if sequences else 0
    if (size := data.stat().st_size) != total * own.itemsize:
        raise UsageError(
            f"{data} is cut off or not of this index: it has {size:,} bytes, and {index.name} "
            f"counts {total:,} {own.name} tokens, {total * own.itemsize:,} bytes; {COPY_AGAIN}"
        )
    bounds = np.concatenate([[0], ends])
    return [TokenFile(data, own, 0, total, bounds[documents[1:]])]


def _arrays(index: Path, sequences: int, entries: int) -> tuple[np.ndarray, ...]:
    size = index.stat().st_size
    wanted = _HEADER.size + 12 * sequences + 8 * entries
    if size not in (wanted, wanted + sequences):
        raise UsageError(
            f"{index} is cut off or damaged: it has {size:,} bytes, not the {wanted:,} of "
            f"{sequences:,} sequences and {max(entries - 1, 0):,} documents; {COPY_AGAIN}"
        )
    whole = np.fromfile(index, np.uint8, offset=_HEADER.size)
    kinds = whole[wanted - _HEADER.size :]
    if kinds.any():
        raise UsageError(f"{index} has sequences that are no text: only text can be trained on")
    first, second = 4 * sequences, 12 * sequences
    return (
        whole[:first].view("<i4").astype(np.int64),
        whole[first:second].view("<i8"),
        whole[second : second + 8 * entries].view("<i8"),
    )
