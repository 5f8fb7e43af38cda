"""What a user names as a corpus, and the stream of documents behind it.

A source is a file, a folder, a glob, ``-`` (standard input), a Hugging Face dataset
(``hf:owner/name``, ``hf:owner/name:config``) or ``stdlib`` (the Python standard library's own
sources, a small corpus that is on every machine). Files are text, JSON lines or Parquet by their
name, each also with ``.gz``, ``.xz`` or ``.zst``.
"""

from __future__ import annotations

import glob
import hashlib
import os
import platform
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from patchtrain.data import hub, readers
from patchtrain.data.parquet import read_parquet
from patchtrain.data.readers import COMPRESSIONS, Counts
from patchtrain.data.store import is_store
from patchtrain.errors import PatchtrainError, UsageError

PARTS_RECORD = "patchtrain-parts.json"
"""The file that marks a folder of parts, which shards are tokenised into; no source, as a store."""
FORMATS = ("text", "jsonl", "parquet")
TEXT_LIMIT = 16_384
"""Characters of a document cut from plain text that has no separator: 64 documents from 1 MB, so
that even one file has something to hold out, and memory stays flat on a file without line ends."""
DOCUMENT_LIMIT = 262_144
"""Characters of any other document; longer ones are cut, a book becomes a few long parts."""

_TEXT_ENDINGS = """
    .txt .text .md .markdown .rst .tex .org .adoc .html .htm .xml .css .toml .yaml .yml .ini .cfg
    .py .pyi .js .jsx .ts .tsx .c .h .cc .cpp .hpp .cu .java .kt .scala .go .rs .rb .php .pl .lua
    .sh .sql .r .jl .swift .cs .hs .ml .el .lisp .clj .ex .erl .vue .proto .cmake .log
    """.split()  # noqa: SIM905 - a list of 50 strings reads worse
_ENDINGS = {
    **dict.fromkeys(_TEXT_ENDINGS, "text"),
    **{".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"},
    **{".parquet": "parquet", ".pq": "parquet"},
}
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One stream of documents: a file, standard input (``path`` None) or a dataset."""

    name: str
    """What messages call it."""
    path: Path | None = None
    format: str = "text"
    """``text``, ``jsonl``, ``parquet`` or ``dataset``."""
    compression: str | None = None
    size: int = 0
    """Bytes on the disk, 0 where that is not known."""
    skip_undecodable: bool = False
    start: int = 0
    """The first byte to read of a file that is not compressed."""
    end: int | None = None
    """Where to stop; None is the end of the file. See ``patchtrain.data.shards``."""


@dataclass(frozen=True)
class Corpus:
    """All sources of one command in the order given, and how to read documents from them."""

    sources: list[Source]
    records: list[dict[str, Any]]
    """One a source as named by the user, for ``store.json``."""
    text_column: str = "text"
    split: str = "train"
    document_separator: str | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    """Files in folders that were left out, by the ending of their name."""

    @property
    def size(self) -> int | None:
        """Bytes on the disk of all sources, or None where that is not known."""
        sizes = [source.size for source in self.sources]
        known = all(source.path is not None for source in self.sources)
        return sum(sizes) if known else None

    @property
    def reads_stdin(self) -> bool:
        return any(source.path is None and source.format != "dataset" for source in self.sources)

    def with_stdin_at(self, path: Path) -> Corpus:
        """This corpus with standard input replaced by a copy of it at ``path``."""
        size = path.stat().st_size
        moved = [
            replace(source, path=path, size=size)
            if source.path is None and source.format != "dataset"
            else source
            for source in self.sources
        ]
        return replace(self, sources=moved)

    def documents(self, counts: Counts | None = None, cut: bool = False) -> Iterator[str]:
        """All documents that are not blank, in order.

        With ``cut``, long ones come in several parts (``TEXT_LIMIT``, ``DOCUMENT_LIMIT``), and
        memory stays flat whatever the size of a text file. Raises ``PatchtrainError`` for what
        cannot be read.
        """
        counts = counts or Counts()
        for source in self.sources:
            yield from self.source_documents(source, counts, cut)

    def source_documents(self, source: Source, counts: Counts, cut: bool) -> Iterator[str]:
        """The documents of one of the sources, as in ``documents``."""

        def count_cut() -> None:
            counts.cut += 1

        on_cut: Callable[[], None] = count_cut
        try:
            if source.format == "text":
                limit = DOCUMENT_LIMIT if self.document_separator else TEXT_LIMIT
                if source.end is not None and not self.document_separator:
                    # A piece of a document that is cut: its first piece counts for all of them.
                    counts.cut += source.start == 0
                    on_cut = _nothing
                raw, before = self._bytes(source, counts), self._lines_before(source) or int
                chunks = readers.decode(raw, source.name, source.start, before)
                parts = readers.split_text(
                    chunks, self.document_separator, limit if cut else None, on_cut
                )
                if source.skip_undecodable:
                    parts = iter(list(parts))  # all of the file or nothing
                yield from self._not_blank(parts, counts)
                return
            for text in self._values(source, counts):
                longest = DOCUMENT_LIMIT if cut else None
                yield from self._not_blank(readers.cut_text(text or "", longest, on_cut), counts)
        except readers.NotUtf8Error:
            if not source.skip_undecodable:
                raise
            counts.undecodable += 1

    def _values(self, source: Source, counts: Counts) -> Iterator[str | None]:
        column = self.text_column
        if source.format == "dataset":
            rows = hub.stream_texts(source.name, self.split, column)
            for number, value in enumerate(rows, 1):
                where = f"dataset '{source.name}': row {number:,}"
                yield readers.check_text(value, where, column)
        elif source.format == "parquet":
            if source.path is None:
                raise UsageError("Parquet cannot be read from standard input; give the file")
            yield from read_parquet(source.path, source.compression, source.name, column, counts)
        else:
            raw, before = self._bytes(source, counts), self._lines_before(source)
            yield from readers.read_json(raw, source.name, column, before)

    @staticmethod
    def _bytes(source: Source, counts: Counts) -> Iterator[bytes]:
        return readers.read_bytes(
            source.path, source.compression, source.name, counts, source.start, source.end
        )

    @staticmethod
    def _lines_before(source: Source) -> Callable[[], int] | None:
        if not source.start or source.path is None:
            return None
        return partial(readers.count_lines, source.path, source.start)

    @staticmethod
    def _not_blank(texts: Iterator[str], counts: Counts) -> Iterator[str]:
        for text in texts:
            if not text or text.isspace():
                counts.blank += 1
            else:
                yield text


def _nothing() -> None:
    pass


def open_corpus(
    sources: Sequence[str | Path],
    *,
    format: str | None = None,
    text_column: str = "text",
    split: str = "train",
    document_separator: str | None = None,
) -> Corpus:
    """Find everything that ``sources`` name; nothing is read yet.

    ``format`` says how to read all of them, whatever their names say. ``UsageError`` where a
    source is not there, has no readable file, or has a name that does not tell its format.
    """
    if format is not None and format not in FORMATS:
        raise UsageError(f"no format '{format}'; known: {', '.join(FORMATS)}")
    if document_separator == "":
        raise UsageError("--document-separator is empty; leave it out or give a text")
    if not sources:
        raise UsageError("no source given: name a file, folder, glob, dataset, stdlib or -")
    corpus = Corpus([], [], text_column, split, document_separator)
    for argument in map(str, sources):
        found, extra = _resolve(argument, format, corpus.skipped)
        if argument == "-" and corpus.reads_stdin:
            raise UsageError("standard input (-) can be given only once")
        corpus.sources.extend(found)
        corpus.records.append({"source": argument, **extra})
    return corpus


def read_documents(sources: Sequence[str | Path], **options: Any) -> Iterator[str]:
    """The documents of ``sources`` one by one, whole, blank ones left out.

    ``options`` are those of ``open_corpus``. What is not there raises at once, not at the first
    document.
    """
    return open_corpus(sources, **options).documents()


def _resolve(
    argument: str, format: str | None, skipped: Counter[str]
) -> tuple[list[Source], dict[str, Any]]:
    """The sources behind one argument, and what to record of it."""
    path = Path(os.path.expanduser(argument))  # noqa: PTH111 - leaves an unknown user alone
    if argument == "-":
        if format is None:
            raise UsageError(
                "standard input has no name that tells its format; give --format text or jsonl"
            )
        if format == "parquet":
            raise UsageError("Parquet cannot be read from standard input; give the file")
        return [Source("standard input", format=format)], {"kind": "standard input"}
    if argument.startswith("hf:"):
        return _dataset(argument.removeprefix("hf:"))
    if path.is_dir():
        files = _folder(path, format, skipped)
    elif path.exists():
        files = [_file(path, format)]
    elif argument == "stdlib":
        return _stdlib()
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - may be absolute
        if not matches:
            raise UsageError(f"no file matches '{argument}'")
        files = []
        for match in map(Path, matches):
            files += _folder(match, format, skipped) if match.is_dir() else [_file(match, format)]
    elif _may_be_dataset(argument):
        return _dataset(argument)
    else:
        hint = "" if path.suffix or "/" in argument else f" (a dataset of that name: hf:{argument})"
        raise UsageError(f"no file or folder {argument}{hint}")
    return files, {"kind": "files", "files": len(files), "bytes": sum(f.size for f in files)}


def _dataset(name: str) -> tuple[list[Source], dict[str, Any]]:
    if not name or name.startswith(":"):
        raise UsageError("hf: needs the name of a dataset, such as hf:roneneldan/TinyStories")
    return [Source(name, format="dataset")], {"kind": "dataset"}


def _may_be_dataset(argument: str) -> bool:
    """``owner/name`` with no folder called ``owner`` here and no known ending."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", argument):
        return False
    return not Path(argument).parent.exists() and _format(Path(argument))[0] is None


def _format(path: Path) -> tuple[str | None, str | None]:
    """Format and compression by the name of a file; a format of None is unknown."""
    name = path.name.lower()
    stem, ending = os.path.splitext(name)  # noqa: PTH122
    compression = COMPRESSIONS.get(ending)
    if compression:
        ending = os.path.splitext(stem)[1]  # noqa: PTH122
    return _ENDINGS.get(ending), compression


def _file(path: Path, format: str | None) -> Source:
    found, compression = _format(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder")
    if (format or found) is None:
        raise UsageError(
            f"{path}: the name does not tell the format; --format text, jsonl or parquet does"
        )
    size = path.stat().st_size
    return Source(str(path), path, format or found or "text", compression, size)


def _folder(folder: Path, format: str | None, skipped: Counter[str]) -> list[Source]:
    """Every known file below ``folder``, sorted; hidden ones, stores and parts are left out."""
    files, left_out = [], Counter[str]()
    for path in sorted(_walk(folder)):
        if format is None and _format(path)[0] is None:
            left_out["".join(path.suffixes[-1:]) or "no ending"] += 1
        else:
            files.append(_file(path, format))
    if not files:
        found = ", ".join(f"{n} x {ending}" for ending, n in left_out.most_common(5))
        raise UsageError(
            f"no readable file in {folder}: "
            + (f"found {found}; --format text reads them as text" if found else "it is empty")
        )
    skipped.update(left_out)
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, onerror=_cannot_list):
        if is_store(Path(root)) or Path(root, PARTS_RECORD).is_file():
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(root, name)
            for name in files
            if not name.startswith(".") and Path(root, name).is_file()
        )


def _cannot_list(error: OSError) -> None:
    raise PatchtrainError(f"cannot list {error.filename}: {error.strerror}")


def _stdlib() -> tuple[list[Source], dict[str, Any]]:
    """The ``.py`` files of the running Python's standard library, without its tests.

    They differ between versions of Python, so their fingerprint is recorded: SHA-256 over names
    and contents in sorted order.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path
        for path in root.rglob("*.py")
        if path.is_file() and not _STDLIB_SKIPPED.intersection(path.relative_to(root).parts)
    )
    if not files:
        raise UsageError(f"this Python has no sources of its standard library in {root}")
    digest, sources = hashlib.sha256(), []
    for path in files:
        name, content = path.relative_to(root).as_posix(), path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
        sources.append(Source(f"stdlib/{name}", path, size=len(content), skip_undecodable=True))
    return sources, {
        "kind": "Python standard library",
        "python": platform.python_version(),
        "fingerprint": digest.hexdigest(),
        "files": len(sources),
        "bytes": sum(source.size for source in sources),
    }
