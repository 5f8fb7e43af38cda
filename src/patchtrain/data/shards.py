"""A corpus cut into shards: stretches of it that can be tokenised without the others.

Where the cuts are follows from the files alone, never from who does the work, and in a way that
nobody sees in the result: the shards' documents one after the other are exactly the documents of
the whole corpus. So files are cut only where that is known to hold:

- JSON lines after a line end;
- text with ``--document-separator`` at a separator;
- other text where reading it would cut it into documents anyway (it is read once for that);
- compressed files, Parquet and JSON arrays not at all.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from patchtrain.data import readers
from patchtrain.data.readers import Counts
from patchtrain.data.sources import TEXT_LIMIT, Corpus, Source
from patchtrain.errors import PatchtrainError

SMALLEST_SHARD = 16_000_000
"""Bytes: some seconds of work for one core, more than it takes to start a worker."""
MOST_SHARDS = 1000
"""Slurm's job arrays have at most 1,001 tasks unless it is told otherwise."""
_READ_BYTES = 1 << 20


def cut(corpus: Corpus, tasks: int | None = None) -> list[list[Source]]:
    """The shards of ``corpus`` in its order, each a list of files and pieces of files.

    There are at most ``tasks`` of them, or at most 1,000 of at least 16 MB each. All sources must
    be files. Raises ``PatchtrainError`` where a file cannot be read.
    """
    total = corpus.size or 0
    wanted = tasks or min(MOST_SHARDS, total // SMALLEST_SHARD)
    target = max(1, -(-total // max(1, wanted)))
    shards: dict[int, list[Source]] = {}
    begin = 0
    for source in corpus.sources:
        for piece in _pieces(corpus, source, begin, target):
            # By where it begins: shards come out even, and there are never more than asked for.
            shards.setdefault((begin + piece.start) // target, []).append(piece)
        begin += source.size
    # Empty files at the very end begin one shard too late.
    if len(shards) > 1 and (last := max(shards)) * target >= total:
        late = shards.pop(last)
        shards[max(shards)].extend(late)
    return [shards[number] for number in sorted(shards)]


def _pieces(corpus: Corpus, source: Source, begin: int, target: int) -> list[Source]:
    """``source`` whole, or cut after each multiple of ``target`` bytes of the corpus."""
    path = source.path
    if path is None or source.size <= target or source.compression or source.skip_undecodable:
        return [source]
    places = range(-(-(begin + 1) // target) * target - begin, source.size, target)
    try:
        if source.format == "jsonl":
            cuts = [] if _is_array(path) else _line_cuts(path, places)
        elif source.format == "text" and corpus.document_separator:
            cuts = _separator_cuts(path, corpus.document_separator, places)
        elif source.format == "text":
            cuts = _text_cuts(source, path, places)
        else:
            cuts = []
    except OSError as error:
        raise PatchtrainError(f"cannot read {source.name}: {error.strerror or error}") from error
    pieces, start = [], 0
    for end, following in cuts:
        if start < end and following < source.size:
            pieces.append(replace(source, start=start, end=end))
            start = following
    return [*pieces, replace(source, start=start, end=source.size)] if pieces else [source]


def _is_array(path: Path) -> bool:
    """Whether the first line of a JSON file opens an array, which is read as a whole."""
    with path.open("rb") as file:
        data = file.read(_READ_BYTES).removeprefix(codecs.BOM_UTF8)
        while data:
            line, end, _ = data.partition(b"\n")
            if line.strip() or end:
                return line.lstrip().startswith(b"[")
            data = file.read(_READ_BYTES)
    return False


def _line_cuts(path: Path, places: range) -> Iterator[tuple[int, int]]:
    """The first line end at or after each of ``places``: where a piece ends, and the next begins.

    A place that a line begins at is one itself.
    """
    with path.open("rb") as file:
        for place in places:
            if (end := next(_find(file, b"\n", place - 1), None)) is None:
                return
            yield end + 1, end + 1


def _find(file: IO[bytes], wanted: bytes, start: int) -> Iterator[int]:
    """Where ``wanted`` stands at or after ``start``, one after the other."""
    file.seek(start)
    buffer = b""
    while data := file.read(_READ_BYTES):
        buffer += data
        after = 0
        while (found := buffer.find(wanted, after)) >= 0:
            yield start + found
            after = found + len(wanted)
        kept = min(len(wanted) - 1, len(buffer) - after)
        start += len(buffer) - kept
        buffer = buffer[len(buffer) - kept :]


def _separator_cuts(path: Path, separator: str, places: range) -> Iterator[tuple[int, int]]:
    """Separators after ``places``: a piece ends before one, and the next begins after it."""
    try:
        mark = separator.encode()
    except UnicodeEncodeError:  # half a surrogate: in no text
        return
    # Where a separator can overlap itself (blank lines, three line ends), which of them are
    # separators follows from those before: look from the beginning. Else any one found is one.
    overlaps = any(mark.startswith(mark[i:]) for i in range(1, len(mark)))
    begin = _mark_bytes(path)
    with path.open("rb") as file:
        found = _find(file, mark, begin)
        for place in places:
            if not overlaps:
                found = _find(file, mark, max(begin, place))
            if (end := next((at for at in found if at >= place), None)) is None:
                return
            yield end, end + len(mark)


def _text_cuts(source: Source, path: Path, places: range) -> Iterator[tuple[int, int]]:
    """Ends of the documents that a text without separator is cut into, after ``places``.

    A piece must be cut into these same documents when nothing follows it, so it cannot end where
    its last two would be one.
    """
    raw = readers.read_bytes(path, None, source.name, Counts())
    texts = readers.split_text(readers.decode(raw, source.name), None, TEXT_LIMIT, lambda: None)
    position, before, wanted = _mark_bytes(path), TEXT_LIMIT, iter(places)
    place = next(wanted, None)
    for text in texts:
        if place is None:
            return
        position += len(text) if text.isascii() else len(text.encode())
        if position >= place and before + len(text) > TEXT_LIMIT:
            yield position, position
            before = TEXT_LIMIT  # a piece of one document is always the same document
            while place is not None and place <= position:
                place = next(wanted, None)
        else:
            before = len(text)


def _mark_bytes(path: Path) -> int:
    """The length of the byte order mark at the start of a file, 0 where there is none."""
    with path.open("rb") as file:
        return len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
