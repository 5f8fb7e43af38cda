"""The tokens of a linked store's split: which stretches of which files, mapped as one array.

``SPLIT.pieces.bin`` is ``(3, P)`` int64, as ``Pieces`` takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain.data.split_files import map_file
from patchtrain.data.token_files import LINK_AGAIN, Pieces, TokenFile, tokens_of
from patchtrain.errors import UsageError


def linked_files(record: Mapping[str, Any]) -> list[TokenFile]:
    """The files that a checked ``store.json`` names."""
    dtype = np.dtype(record["dtype"]).newbyteorder("<")
    return [
        TokenFile(Path(entry["path"]), dtype, entry["offset"], entry["tokens"])
        for entry in record["linked"]
    ]


def linked_tokens(
    path: Path, name: str, files: list[TokenFile], length: int, dtype: np.dtype
) -> np.ndarray | Pieces:
    """The tokens of the split called ``name``; nothing but the table of pieces is read.

    ``UsageError`` where that table or a file's entry is damaged: nothing outside of the tokens of
    the named files is ever read.
    """
    file = path / f"{name}.pieces.bin"
    table = map_file(file, np.dtype("<i8"))
    fits = len(table) % 3 == 0 and _is_sound(table.reshape(3, -1), files, length)
    ends = [linked.offset + linked.tokens * dtype.itemsize for linked in files]
    if any(linked.path.stat().st_size < end for linked, end in zip(files, ends, strict=True)):
        fits = False
    if not fits:
        raise UsageError(
            f"{file} is damaged: its pieces do not make {length:,} tokens of the linked files; "
            f"{LINK_AGAIN}"
        )
    return tokens_of(files, table.reshape(3, -1), length, dtype)


def _is_sound(table: np.ndarray, files: list[TokenFile], length: int) -> bool:
    begins, file, there = np.asarray(table)
    if len(begins) == 0:
        return length == 0
    lengths = np.diff(np.append(begins, length))
    if begins[0] != 0 or (lengths <= 0).any() or file.min() < 0 or file.max() >= len(files):
        return False
    tokens = np.array([linked.tokens for linked in files])
    return bool((there >= 0).all() and (there <= tokens[file] - lengths).all())
