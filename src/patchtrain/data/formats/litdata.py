"""litdata (also LitGPT's): a folder of chunks, ``index.json`` says which, for its ``TokensLoader``.

A chunk, little endian: the number of items n (uint32), where each begins and the last ends (n + 1
uint32, in bytes from the chunk's beginning), and the items. Where an item is one flat tensor or
array, it is nothing but its numbers: the chunk's tokens lie end to end. ``data_format`` in the
index names the dtype by a number. An item is taken for a document, which is how LitGPT writes text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, StrictStr, ValidationError

from patchtrain.data.token_files import COPY_AGAIN, TokenFile, check_dtype
from patchtrain.errors import UsageError, first_problem, one_line
from patchtrain.files import is_inside

# torch's integer types and numpy's, by litdata's numbers.
_TENSORS = {
    11: "|u1", 12: "|i1", 13: "<i2", 14: "<i2", 15: "<i4", 16: "<i4", 17: "<i8", 18: "<i8",
    20: "<u2",
}  # fmt: skip
_ARRAYS = {0: "|i1", 1: "<i2", 2: "<i4", 3: "<i8", 4: "|u1", 5: "<u2", 6: "<u4"}

_Count = Annotated[int, Field(strict=True, ge=0)]


class _Chunk(BaseModel):
    filename: StrictStr
    chunk_bytes: _Count
    """Of the file, or in older versions of its items alone."""
    chunk_size: _Count
    """Items."""
    dim: _Count | None = None
    """Tokens, where the items are flat."""


class _Config(BaseModel):
    compression: Any = None
    ipc_compression: Any = None
    encryption: Any = None
    data_format: list[StrictStr]


class _Index(BaseModel):
    chunks: list[_Chunk]
    config: _Config


def read(folder: Path, dtype: np.dtype | None) -> list[TokenFile]:
    """The chunks of a folder; see ``patchtrain.data.formats.read``."""
    file = folder / "index.json"
    try:
        index = _Index.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise UsageError(f"{file} is no index of litdata: {first_problem(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {one_line(error)}") from error
    config = index.config
    compression = config.compression or config.ipc_compression
    for what, value in (("compressed", compression), ("encrypted", config.encryption)):
        if value:
            raise UsageError(
                f"the chunks in {folder} are {what} ({one_line(value, 40)}) and cannot be read in "
                f"place; write them without, as optimize(..., compression=None) of litdata does"
            )
    own = _dtype(file, config.data_format)
    check_dtype(file, own, dtype)
    for chunk in index.chunks:
        if not is_inside(folder, chunk.filename):
            raise UsageError(f"{file} names a chunk outside its folder: {chunk.filename}")
    return [_chunk(folder / chunk.filename, chunk, own) for chunk in index.chunks]


def _dtype(file: Path, data_format: list[str]) -> np.dtype:
    kind, _, number = data_format[0].partition(":") if len(data_format) == 1 else ("", "", "")
    known = {"no_header_tensor": _TENSORS, "no_header_numpy": _ARRAYS}.get(kind, {})
    if not number.isdecimal() or int(number) not in known:
        raise UsageError(
            f"{file} is not of flat token ids: its data_format is "
            f"{one_line(', '.join(data_format), 60)}, not no_header_tensor or no_header_numpy of "
            f"integers, which litdata writes where each item is one flat tensor of them"
        )
    return np.dtype(known[int(number)])


def _chunk(path: Path, chunk: _Chunk, dtype: np.dtype) -> TokenFile:
    if not path.is_file():
        raise UsageError(
            f"{path} is missing, which {path.parent / 'index.json'} names; {COPY_AGAIN}"
        )
    header = 4 * (chunk.chunk_size + 2)
    if chunk.dim is None:
        raise UsageError(
            f"{path} is not of flat token ids: index.json counts no tokens in it; litdata does so "
            f"where optimize(..., item_loader=TokensLoader()) wrote it"
        )
    size, wanted = path.stat().st_size, header + chunk.dim * dtype.itemsize
    if size != wanted or chunk.chunk_bytes not in (size, size - header):
        raise UsageError(
            f"{path} is cut off or damaged: it has {size:,} bytes, and {chunk.chunk_size:,} items "
            f"of {chunk.dim:,} {dtype.name} tokens, which index.json counts, have {wanted:,}; "
            f"{COPY_AGAIN}"
        )
    numbers = np.fromfile(path, "<u4", chunk.chunk_size + 2).astype(np.int64)
    ends = (numbers[2:] - header) // dtype.itemsize
    whole = numbers[0] == chunk.chunk_size and numbers[1] == header and numbers[-1] == size
    if not whole or (np.diff(numbers) < 0)[1:].any():
        raise UsageError(f"{path} is damaged: its items do not follow one another; {COPY_AGAIN}")
    return TokenFile(path, dtype, header, chunk.dim, ends)
