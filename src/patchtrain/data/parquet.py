"""From a Parquet file to its rows, a few at a time, with errors that say where."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patchtrain.data.readers import Counts, check_text, read_bytes
from patchtrain.errors import PatchtrainError, UsageError, one_line

_ROWS = 64


def read_parquet(
    path: Path, compression: str | None, name: str, column: str, counts: Counts
) -> Iterator[str | None]:
    """The ``column`` of a Parquet file, a few rows at a time."""
    with _opened(path, compression, name) as file:
        _check_column(file.schema_arrow, name, column)
        size, rows = path.stat().st_size, max(file.metadata.num_rows, 1)
        start, seen = counts.read_bytes, 0
        try:
            for batch in _batches(file, name, [column]):
                for value in batch.column(0).to_pylist():
                    seen += 1
                    yield check_text(value, f"{name}: row {seen:,}", column)
                counts.read_bytes = start + size * seen // rows
        except UnicodeDecodeError as error:
            raise PatchtrainError(f"{name}: column '{column}' is not UTF-8 text") from error
        counts.read_bytes = start + size


def read_parquet_rows(
    path: Path, compression: str | None, name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file with all their columns, each after its place, for messages."""
    with _opened(path, compression, name) as file:
        seen = 0
        try:
            for batch in _batches(file, name, None):
                for row in batch.to_pylist():
                    seen += 1
                    yield f"{name}: row {seen:,}", row
        except UnicodeDecodeError as error:
            raise PatchtrainError(f"{name}: row {seen + 1:,} is not UTF-8 text") from error


@contextmanager
def _opened(path: Path, compression: str | None, name: str) -> Iterator[Any]:
    """A ``ParquetFile``; whatever is wrong with it is one clear error."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as unpacked:
        source: Any = path
        if compression:  # Parquet is read from its end: unpack it first
            for chunk in read_bytes(path, compression, name, Counts()):
                unpacked.write(chunk)
            unpacked.seek(0)
            source = unpacked
        try:
            with pq.ParquetFile(source, memory_map=False, page_checksum_verification=True) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise PatchtrainError(
                f"{name} is no readable Parquet file: {one_line(error)}"
            ) from error


def _batches(file: Any, name: str, columns: list[str] | None) -> Iterator[Any]:
    """All rows in batches; an error where there are not as many as the head of the file says."""
    seen = 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
        seen += batch.num_rows
        yield batch
    if seen != file.metadata.num_rows:
        raise PatchtrainError(
            f"{name} is damaged: it has {seen:,} rows, and its head says {file.metadata.num_rows:,}"
        )


def _check_column(schema: Any, name: str, column: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        raise UsageError(
            f"{name} has no column '{column}'; it has: {', '.join(schema.names)} (--text-column)"
        )
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_kind(kind) for is_kind in text) and not pa.types.is_null(kind):
        raise UsageError(
            f"{name}: column '{column}' holds {kind}, not text; name another one with --text-column"
        )
