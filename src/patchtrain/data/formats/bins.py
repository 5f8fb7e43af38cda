"""nanoGPT and llm.c: one flat ``.bin``, with or without a header; documents are not marked.

nanoGPT's ``prepare.py`` writes token ids and nothing else, as uint16. llm.c and modded-nanogpt put
256 int32 before them: a magic number, a version, the number of tokens. In both, an end-of-text
token is what tells documents apart; nanoGPT puts it after each, llm.c before each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from patchtrain.data.token_files import COPY_AGAIN, TokenFile, check_dtype
from patchtrain.errors import UsageError

_HEADER = np.dtype(("<i4", 256))
_DTYPES = {20240520: "<u2", 20240801: "<u4"}
_EVALUATION = 20240522
_SAMPLED = 1 << 20


def has_header(path: Path) -> bool:
    """Whether a ``.bin`` begins with one of llm.c's magic numbers."""
    with path.open("rb") as file:
        start = file.read(4)
    return int.from_bytes(start, "little") in (*_DTYPES, _EVALUATION)


def read_headed(path: Path, dtype: np.dtype | None) -> list[TokenFile]:
    """A file of llm.c or modded-nanogpt; see ``patchtrain.data.formats.read``."""
    size = path.stat().st_size
    if size < _HEADER.itemsize:
        raise UsageError(
            f"{path} is cut off: {size:,} bytes are less than the header of llm.c; {COPY_AGAIN}"
        )
    magic, version, count = (int(number) for number in np.fromfile(path, "<i4", 3))
    if magic == _EVALUATION:
        raise UsageError(
            f"{path} has multiple-choice questions of llm.c in it, no text to train on"
        )
    own = np.dtype(_DTYPES[magic])
    check_dtype(path, own, dtype)
    found = size - _HEADER.itemsize
    if count < 0 or found != count * own.itemsize:
        raise UsageError(
            f"{path} is cut off or damaged: its header (version {version}) counts {count:,} "
            f"{own.name} tokens, but {found:,} bytes follow it, not {count * own.itemsize:,}; "
            f"{COPY_AGAIN}"
        )
    return [TokenFile(path, own, _HEADER.itemsize, count)]


def read_plain(path: Path, dtype: np.dtype | None) -> list[TokenFile]:
    """A file without a header, of uint16 unless ``dtype`` says otherwise."""
    chosen, size = dtype or np.dtype("<u2"), path.stat().st_size
    if size % chosen.itemsize:
        raise UsageError(
            f"{path} is cut off, or not of {chosen.name}: {size:,} bytes are not a whole number of "
            f"tokens of {chosen.itemsize} bytes; {COPY_AGAIN}, or name another --dtype"
        )
    file = TokenFile(path, chosen, 0, size // chosen.itemsize)
    if dtype is None and file.tokens and _is_wider(file.map()[:_SAMPLED]):
        raise UsageError(
            f"{path} looks like uint32 tokens, not uint16: every second number is next to nothing; "
            f"say so with --dtype uint32"
        )
    return [file]


def _is_wider(tokens: np.ndarray) -> bool:
    """Whether uint16 tokens are the halves of uint32 ones, whose upper halves are tiny."""
    lower, upper = tokens[0::2], tokens[1::2]
    return len(upper) >= 32 and int(upper.max()) < 16 and int(lower.max()) >= 16
