"""datatrove (and nanotron, which reads its files): ``NAME.ds``, with ``NAME.ds.index`` beside it.

The ``.ds`` is token ids and nothing else, of two or four bytes. The index has where each document
ends, in tokens (uint64). ``NAME.ds.metadata`` is text: the tokenizer's name, ``|`` and the bytes of
a token; then the number of tokens. Both may be missing. Loss masks (``.ds.loss``) are not read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchtrain.data.formats import bins
from patchtrain.data.token_files import COPY_AGAIN, TokenFile
from patchtrain.errors import UsageError

_DTYPES: dict[int, np.dtype] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


def read(path: Path, dtype: np.dtype | None) -> list[TokenFile]:
    """One ``.ds``; see ``patchtrain.data.formats.read``."""
    index, size = Path(f"{path}.index"), path.stat().st_size
    _, width = _metadata(path)
    if not index.is_file():
        known = _DTYPES.get(width) if width else None
        return bins.read_plain(path, dtype or known)
    if (length := index.stat().st_size) % 8:
        raise UsageError(
            f"{index} is cut off: {length:,} bytes are not a whole number of entries; {COPY_AGAIN}"
        )
    ends = np.fromfile(index, "<u8").astype(np.int64)
    total = int(ends[-1]) if len(ends) else 0
    # The index alone tells the width: it counts the tokens.
    own = next((own for width, own in _DTYPES.items() if total * width == size), None)
    if own is None or (np.diff(ends) < 0).any() or (ends < 0).any():
        raise UsageError(
            f"{path} is cut off or not of its index: it has {size:,} bytes, and {index.name} "
            f"counts {total:,} tokens of 2 or 4 bytes; {COPY_AGAIN}"
        )
    if total and width and _DTYPES.get(width) != own:
        raise UsageError(
            f"{path}.metadata says that a token has {width} bytes, and {index.name} counts "
            f"{total:,} tokens in {size:,} bytes: they are not of one file"
        )
    if dtype is not None and dtype != own:
        raise UsageError(f"{path} has {own.name} tokens by its index: leave --dtype out")
    return [TokenFile(path, own, 0, total, ends)]


def tokenizer_name(path: Path) -> str | None:
    """The tokenizer that the metadata beside a ``.ds`` names, None where it names none."""
    name, _ = _metadata(path)
    return None if name in (None, "", "Unknown Tokenizer") else name


def _metadata(path: Path) -> tuple[str | None, int | None]:
    """Name of the tokenizer and bytes of a token, as far as the metadata says so."""
    try:
        first = Path(f"{path}.metadata").read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return None, None
    name, bar, width = first.rpartition("|")
    name = name.partition("|")[0]
    return (name, int(width)) if bar and width.isdecimal() else (None, None)
