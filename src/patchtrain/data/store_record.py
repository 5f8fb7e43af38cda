"""``store.json``, read as if it came from a stranger.

Everything that is computed from has its type and range, what is said twice agrees, and every file
it names lies inside the store's folder. A linked store (``patchtrain.data.linking``) also names the
token files of another tool that it reads, wherever they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, StrictStr, ValidationError

from patchtrain.data.token_files import LINK_AGAIN
from patchtrain.errors import UsageError, first_problem, one_line
from patchtrain.files import is_inside

FORMAT = "patchtrain token store"
FORMAT_VERSION = 1
LINKED_VERSION = 2
"""Of a store whose tokens lie in files of another tool."""
SPLITS = ("train", "validation")
MOST_IDS = 1 << 24
"""Far beyond any vocabulary: the library goes through all ids up to the highest one."""
AGAIN = "copy the store again or make it again with `patchtrain prepare`"
_TOKENIZER = "tokenizer/tokenizer.json"
_KINDS = {FORMAT_VERSION: ("tokens", "offsets"), LINKED_VERSION: ("pieces", "offsets")}

_Count = Annotated[int, Field(strict=True, ge=0)]


class _File(BaseModel):
    bytes: _Count
    sha256: Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]


class _Counts(BaseModel):
    tokens: _Count
    documents: _Count
    utf8_bytes: _Count
    words: _Count


class _Splits(BaseModel):
    train: _Counts
    validation: _Counts


class _Tokenizer(BaseModel):
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=MOST_IDS)]
    eos_token_id: _Count
    fingerprint: StrictStr


class _Record(BaseModel):
    dtype: Literal["uint16", "uint32"]
    splits: _Splits
    files: dict[str, _File]
    tokenizer: _Tokenizer
    fingerprint: StrictStr


class _Linked(BaseModel):
    path: StrictStr
    bytes: _Count
    modified_ns: Annotated[int, Field(strict=True)]
    parts_sha256: Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]
    offset: _Count
    tokens: Annotated[int, Field(strict=True, ge=1)]


class _LinkedTokenizer(_Tokenizer):
    eos_token_id: _Count | None  # type: ignore[assignment]
    fingerprint: StrictStr | None  # type: ignore[assignment]


class _LinkedRecord(_Record):
    dtype: Literal[  # type: ignore[assignment]
        "uint8", "int8", "uint16", "int16", "uint32", "int32", "int64"
    ]
    tokenizer: _LinkedTokenizer
    linked: Annotated[list[_Linked], Field(min_length=1)]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds every id below ``vocab_size``: uint16 or uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def fingerprint(files: Mapping[str, Mapping[str, Any]], facts: Sequence[Any] = ()) -> str:
    """SHA-256 over the checksums of tokens, offsets and ``tokenizer.json``; and some ``facts``."""
    # Not tokenizer_config.json: it differs between versions of transformers.
    content = [name for name in files if name.endswith((".bin", "/tokenizer.json"))]
    checksums: list[Any] = [(name, files[name]["sha256"]) for name in sorted(content)]
    checksums += facts
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


def read_record(path: Path) -> dict[str, Any]:
    """``store.json`` of the store at ``path`` as a dict, checked.

    ``UsageError`` where it is missing, of another version, incomplete, contradicts itself or names
    a file outside the store's folder.
    """
    file = path / "store.json"
    if not file.is_file():
        raise UsageError(
            f"{path} is not a token store: it has no store.json; `patchtrain prepare` makes one"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UsageError(f"{path} is not a token store: its store.json is something else")
    version = record.get("format_version")
    if isinstance(version, bool) or version not in (FORMAT_VERSION, LINKED_VERSION):
        raise UsageError(
            f"{path} has store format {one_line(version, 40)}, this patchtrain reads "
            f"{FORMAT_VERSION} and {LINKED_VERSION}; make it again with `patchtrain prepare`"
        )
    kind = _LinkedRecord if version == LINKED_VERSION else _Record
    try:
        checked = kind.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"{file} is damaged: {first_problem(error)}; {AGAIN}") from error
    if wrong := _contradiction(checked, record):
        raise UsageError(f"{file} contradicts itself: {wrong}; {again(record)}")
    for name in record["files"]:
        if not is_inside(path, name):
            raise UsageError(
                f"{file} names a file outside the store's folder: {name}; a store that does so is "
                f"not opened"
            )
    for file in (path / "tokenizer").glob("[!.]*"):
        if f"tokenizer/{file.name}" not in record["files"]:
            raise UsageError(f"{file} is not of this store: store.json does not name it; {AGAIN}")
    return record


def linked(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files of another tool that a store's tokens lie in; none where it has its own."""
    return list(record["linked"]) if record["format_version"] == LINKED_VERSION else []


def linked_facts(record: Mapping[str, Any]) -> list[Any]:
    """What a linked store is besides its own files: where they lie does not matter, nor when."""
    files = linked(record)
    facts = [[file["parts_sha256"], file["bytes"], file["offset"]] for file in files]
    return [record["dtype"], record["tokenizer"]["eos_token_id"], *facts] if files else []


def again(record: Mapping[str, Any]) -> str:
    """What to do about a damaged store."""
    return LINK_AGAIN if linked(record) else AGAIN


def _contradiction(checked: _Record, record: Mapping[str, Any]) -> str | None:
    files, tokenizer = record["files"], checked.tokenizer
    kinds = _KINDS[record["format_version"]]
    needed = [f"{split}.{kind}.bin" for split in SPLITS for kind in kinds]
    if tokenizer.fingerprint is not None:  # a linked store may have no tokenizer
        needed.append(_TOKENIZER)
    for name in needed:
        if name not in files:
            return f"it does not name the file {name}"
    size, end = tokenizer.vocab_size, tokenizer.eos_token_id
    if not linked(record) and (kept := token_dtype(size).name) != checked.dtype:
        return f"ids of a vocabulary of {size:,} are kept as {kept}, not {checked.dtype}"
    if end is not None and end >= size:
        return f"the end-of-text token {end} is beyond the vocabulary of {size:,}"
    if tokenizer.fingerprint != files.get(_TOKENIZER, {}).get("sha256"):
        return f"tokenizer.fingerprint is not the SHA-256 of {_TOKENIZER}"
    if checked.fingerprint != fingerprint(files, linked_facts(record)):
        return "fingerprint is not that of its files"
    return None
