"""From the bytes of one source to its documents, in bounded memory, with errors that say where.

Every reader takes ``name``, what the source is called in messages, and raises ``PatchtrainError``
for broken content and ``UsageError`` for a text column that is not there.
"""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from patchtrain.errors import PatchtrainError, UsageError, one_line

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_READ_BYTES = 1 << 20
# Compressed bytes are taken in smaller steps, since each can unfold into a thousand times as many.
_READ_COMPRESSED = 1 << 16
_ENDLESS = 1 << 62


@dataclass
class Counts:
    """What one pass over a corpus met; a progress display may read it from another thread."""

    read_bytes: int = 0
    """Bytes of the files as they lie on the disk."""
    blank: int = 0
    """Documents with nothing but white space, left out."""
    cut: int = 0
    """Documents that were longer than the limit and became several."""
    undecodable: int = 0
    """Files of the standard library that are not UTF-8, left out."""


def read_bytes(
    path: Path | None,
    compression: str | None,
    name: str,
    counts: Counts,
    start: int = 0,
    end: int | None = None,
) -> Iterator[bytes]:
    """The uncompressed content in pieces of about 1 MB; ``path`` None is standard input.

    Of a file that is not compressed, only the bytes from ``start`` up to ``end``, where given.
    """
    before = counts.read_bytes
    try:
        with open_source(path) as file:
            counted = _CountedFile(file, counts)
            if compression is None:
                if start:
                    file.seek(start)
                left = _ENDLESS if end is None else end - start
                while data := counted.read(min(_READ_BYTES, left)):
                    left -= len(data)
                    yield data
            elif compression == "gzip":
                raw: Any = counted
                with gzip.GzipFile(fileobj=raw) as opened:
                    while data := opened.read(_READ_BYTES):
                        yield data
                if counts.read_bytes == before:
                    raise EOFError  # even nothing, compressed, is some bytes
            else:
                yield from (_read_zstd if compression == "zstd" else _read_xz)(counted)
    except EOFError as error:
        raise PatchtrainError(f"{name} is truncated: its {compression} data ends early") from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise PatchtrainError(
            f"{name} is damaged or not {compression} data: {one_line(error)}"
        ) from error
    except OSError as error:
        raise PatchtrainError(f"cannot read {name}: {error.strerror or error}") from error


def open_source(path: Path | None) -> IO[bytes]:
    """The file at ``path``, or standard input for None, unbuffered."""
    if path is not None:
        return path.open("rb", buffering=0)
    try:
        # A raw handle of our own: a thread that dies inside sys.stdin would hold its lock.
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    except (OSError, ValueError, AttributeError):
        return sys.stdin.buffer


class _CountedFile:
    """A file that notes how far it was read."""

    def __init__(self, file: IO[bytes], counts: Counts) -> None:
        self._file, self._counts = file, counts

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._counts.read_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _read_zstd(file: _CountedFile) -> Iterator[bytes]:
    """Frame after frame. The library's own reader takes a truncated file for a whole one."""
    frame: Any = None
    whole = False
    while data := file.read(_READ_COMPRESSED):
        while data:
            if frame is None:
                frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data if frame.eof else b""
            if frame.eof:
                frame, whole = None, True
    if frame is not None or not whole:
        raise EOFError


def _read_xz(file: _CountedFile) -> Iterator[bytes]:
    """Stream after stream. The library's own reader stops without a word where the next is bad."""
    stream: Any = None
    whole = False
    while data := file.read(_READ_COMPRESSED):
        while data:
            if stream is None:
                if whole and not (data := data.lstrip(b"\0")):
                    break  # padding between streams
                stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            yield stream.decompress(data, _READ_BYTES)
            while not (stream.needs_input or stream.eof):
                yield stream.decompress(b"", _READ_BYTES)
            data = stream.unused_data
            if stream.eof:
                stream, whole = None, True
    if stream is not None or not whole:
        raise EOFError


def decode(
    chunks: Iterable[bytes], name: str, start: int = 0, before: Callable[[], int] = int
) -> Iterator[str]:
    """UTF-8 to text, line ends untouched; a byte order mark at the start is dropped.

    ``chunks`` may begin at the byte ``start`` of the file; ``before()`` then says how many line
    ends are before it, and is asked only where an error must say its place.
    """
    rest, offset, lines, first = b"", start, 0, start == 0
    for chunk, final in _with_last(chunks):
        data = rest + chunk
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            line = before() + lines + data[: error.start].count(b"\n") + 1
            raise NotUtf8Error(name, offset + error.start, line, data[error.start]) from error
        rest = data[used:]
        offset += used
        lines += data.count(b"\n", 0, used)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        if text:
            yield text


class NotUtf8Error(PatchtrainError):
    """Bytes that are no UTF-8, and where."""

    def __init__(self, name: str, offset: int, line: int, byte: int) -> None:
        super().__init__(
            f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {offset:,} (line {line:,}); "
            "convert it, for example with iconv, or leave it out"
        )


def count_lines(path: Path, end: int) -> int:
    """Line ends in the first ``end`` bytes of a file."""
    return sum(data.count(b"\n") for data in read_bytes(path, None, str(path), Counts(), 0, end))


def _with_last(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    for chunk in chunks:
        yield chunk, False
    yield b"", True


def split_text(
    chunks: Iterable[str], separator: str | None, limit: int | None, on_cut: Callable[[], None]
) -> Iterator[str]:
    """Documents of a stream of text: parts between ``separator``, cut at ``limit`` characters.

    Nothing but separators gets lost, and how the stream is chunked makes no difference. Memory
    holds one chunk and one document, of at most ``limit`` characters where there is a limit.
    """
    buffer, searched, cut = "", 0, False
    margin = len(separator) - 1 if separator else 0  # a separator's start can end the buffer
    for chunk in chunks:
        buffer += chunk
        start = 0
        while separator:
            end = buffer.find(separator, max(start, searched))
            if end < 0:
                break
            yield from cut_text(buffer[start:end], limit, (lambda: None) if cut else on_cut)
            start, searched, cut = end + len(separator), 0, False
        buffer = buffer[start:]
        start = 0
        while limit and len(buffer) - start > limit + margin:
            end = _cut_point(buffer, start, limit)
            yield buffer[start:end]
            start = end
            if not cut:
                cut = True
                on_cut()
        buffer = buffer[start:]
        searched = max(0, len(buffer) - margin)
    yield from cut_text(buffer, limit, (lambda: None) if cut else on_cut)


def cut_text(text: str, limit: int | None, on_cut: Callable[[], None]) -> Iterator[str]:
    """``text`` in pieces of at most ``limit`` characters; ``on_cut`` is called if it is cut."""
    if limit is None or len(text) <= limit:
        yield text
        return
    on_cut()
    start = 0
    while len(text) - start > limit:
        end = _cut_point(text, start, limit)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut_point(text: str, start: int, limit: int) -> int:
    """Where to cut: after a blank line, else a line end, else a space, else hard."""
    half, end = start + limit // 2, start + limit
    for mark, earliest in (("\n\n", half), ("\n", start), (" ", half)):
        found = text.rfind(mark, earliest, end)
        if found >= 0:
            return found + len(mark)
    return end


def text_size(texts: Iterable[str]) -> tuple[int, int]:
    """``(UTF-8 bytes, words separated by white space)`` of some texts."""
    utf8_bytes = words = 0
    for text in texts:
        utf8_bytes += len(text.encode("utf-8"))
        words += len(text.split())
    return utf8_bytes, words


def read_json(
    chunks: Iterable[bytes], name: str, column: str, before: Callable[[], int] | None = None
) -> Iterator[str | None]:
    """The ``column`` of the objects that ``read_objects`` finds; a null is None."""
    for where, row in read_objects(chunks, name, before):
        yield _json_text(row, where, column)


def read_objects(
    chunks: Iterable[bytes], name: str, before: Callable[[], int] | None = None
) -> Iterator[tuple[object, dict[str, Any]]]:
    """One JSON object a line, or a JSON array of objects; each after its place, for messages.

    An array is read as a whole. ``chunks`` may begin at a later line of the file; ``before()`` then
    says how many lines are before it, and is asked only where an error must say its place.
    """
    lines = _lines(chunks)
    for number, line in enumerate(lines, 1):
        first = number == 1 and before is None
        if first:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        if first and line.lstrip().startswith(b"["):
            rows = _parse_json(b"\n".join([line, *lines]), name, "an array of objects is expected")
            for item, row in enumerate(rows, 1):
                yield _object(row, f"{name}: item {item:,}")
            return
        where = _Line(name, number, before)
        yield _object(_parse_json(line, where, "one object a line is expected"), where)


def _object(row: Any, where: object) -> tuple[object, dict[str, Any]]:
    if not isinstance(row, dict):
        raise PatchtrainError(f"{where} is not a JSON object but {_kind(row)}")
    return where, row


class _Line:
    """The place of a line, put into words only when an error needs them."""

    __slots__ = ("_before", "_name", "_number")

    def __init__(self, name: str, number: int, before: Callable[[], int] | None) -> None:
        self._name, self._number, self._before = name, number, before

    def __str__(self) -> str:
        return f"{self._name}: line {self._number + (self._before() if self._before else 0):,}"


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    if last := b"".join(parts):
        yield last


def _parse_json(data: bytes, where: object, expected: str) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise PatchtrainError(
            f"{where} is not UTF-8 text: byte 0x{data[error.start]:02x} at its offset {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        problem = error.msg.removesuffix(" at")
        raise PatchtrainError(
            f"{where} is not JSON: {problem} at {place}column {error.colno} ({expected})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PatchtrainError(f"{where} cannot be read as JSON: {one_line(error)}") from error


def _json_text(row: dict[str, Any], where: object, column: str) -> str | None:
    if column not in row:
        known = ", ".join(row) or "none"
        raise UsageError(f"{where} has no column '{column}'; it has: {known} (--text-column)")
    return check_text(row[column], where, column)


def check_text(value: Any, where: object, column: str) -> str | None:
    """``value`` if it is text that UTF-8 can hold, or None; else a ``PatchtrainError``."""
    if value is not None and not isinstance(value, str):
        raise UsageError(
            f"{where}: column '{column}' holds {_kind(value)}, not text; name another one with "
            "--text-column"
        )
    if value is not None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PatchtrainError(
                f"{where}: column '{column}' holds half a surrogate pair at character "
                f"{error.start:,}, which is no valid text"
            ) from error
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value)) or ("null" if value is None else "a number")
