"""Rows of named values, as instruction data and prompts are kept: JSON, or a dataset of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from patchtrain.data import hub
from patchtrain.data.readers import Counts, read_bytes, read_objects
from patchtrain.data.sources import Source, open_corpus
from patchtrain.errors import UsageError


def file_rows(file: str, refusal: str) -> Iterator[tuple[object, dict[str, Any]]]:
    """Every row of what ``file`` names, a dataset on the hub too; see ``json_rows``."""
    for source in open_corpus([file]).sources:
        yield from json_rows(source, refusal)


def json_rows(
    source: Source, refusal: str, split: str = "train"
) -> Iterator[tuple[object, dict[str, Any]]]:
    """Every row of a source with where it stands; ``split`` is of a dataset on the hub.

    Raises:
        UsageError: the source is of another format; ``refusal`` says what was wanted.
        PatchtrainError: a line is no JSON object.
    """
    if source.format == "dataset":
        for number, row in enumerate(hub.stream_rows(source.name, split), 1):
            yield f"dataset '{source.name}': row {number:,}", row
    elif source.format == "jsonl":
        chunks = read_bytes(source.path, source.compression, source.name, Counts())
        yield from read_objects(chunks, source.name)
    else:
        raise UsageError(f"{source.name} {refusal}")
