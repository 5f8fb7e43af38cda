"""Parts: the shards of a corpus, each tokenised into a folder of its own.

::

    STORE.parts/patchtrain-parts.json   the plan: the shards, how to read them, the tokenizer
    STORE.parts/tokenizer.json          what encodes
    STORE.parts/00000/                  the first shard, whole: token files as a store has them
    STORE.parts/00000/part.json         what it was made of, its counts and checksums
    STORE.parts/failed/00003.json       why a shard could not be tokenised
    STORE.parts/running/00004           the process that works on a shard
    STORE.parts/engine/                 what the engine keeps

A part appears under its name when it is whole. It is used again only if it was made of the very
same files by the very same tokenizer and settings, and its files still have their checksums.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from patchtrain import __version__
from patchtrain.data.sources import DOCUMENT_LIMIT, PARTS_RECORD, TEXT_LIMIT, Corpus, Source
from patchtrain.data.split_files import SplitsWriter
from patchtrain.data.store_record import SPLITS
from patchtrain.data.tokenising import Encoding, Tokenising
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.files import (
    HeldError,
    clear_partial,
    locked,
    sha256,
    whole_folder,
    write_json,
    write_text,
)
from patchtrain.progress import Progress

FORMAT = "patchtrain parts"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Parts:
    """The folder of parts and its plan; every worker opens it by its path."""

    path: Path
    plan: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Parts:
        """The folder as ``create`` left it."""
        return cls(path, json.loads((path / PARTS_RECORD).read_text(encoding="utf-8")))

    @classmethod
    def create(
        cls,
        path: Path,
        corpus: Corpus,
        shards: list[list[Source]],
        encoding: Encoding,
        fraction: float,
    ) -> Parts:
        """Write the plan into ``path``; what was there of an earlier one stays where it fits."""
        backend = encoding.backend.to_str()
        plan = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "by": f"patchtrain {__version__}",
            "tokenizer": {
                "sha256": hashlib.sha256(backend.encode()).hexdigest(),
                "eos": encoding.eos,
                "unknown": encoding.unknown,
                "dtype": encoding.dtype.name,
            },
            "reading": {
                "text_column": corpus.text_column,
                "split": corpus.split,
                "document_separator": corpus.document_separator,
            },
            "longest_document": [TEXT_LIMIT, DOCUMENT_LIMIT],
            "validation_fraction": fraction,
            "shards": [[_describe(source) for source in shard] for shard in shards],
        }
        path.mkdir(parents=True, exist_ok=True)
        clear_partial(path)
        for name in ("failed", "running"):
            shutil.rmtree(path / name, ignore_errors=True)
            (path / name).mkdir()
        write_text(path / "tokenizer.json", backend)
        write_json(path / PARTS_RECORD, plan)
        parts = cls(path, plan)
        for folder in path.glob("[0-9]*"):  # of an earlier plan with more shards
            if folder.name not in parts.names:
                shutil.rmtree(folder)
        return parts

    @property
    def shards(self) -> list[list[dict[str, Any]]]:
        return self.plan["shards"]

    @cached_property
    def names(self) -> set[str]:
        return {_name(number) for number in range(len(self.shards))}

    @property
    def engine(self) -> Path:
        """Where the engine keeps its logs, and which shards are done."""
        return self.path / "engine"

    def folder(self, number: int) -> Path:
        return self.path / _name(number)

    def bytes_of(self, number: int) -> int:
        """Bytes of input of one shard."""
        return sum(entry["end"] - entry["start"] for entry in self.shards[number])

    def there(self) -> list[int]:
        """The shards that have a part, by the names in the folder alone."""
        names = {path.name for path in self.path.iterdir()}
        return [number for number in range(len(self.shards)) if _name(number) in names]

    def check(self) -> list[int]:
        """Take away the parts that are damaged or of another plan; which shards have one then."""
        for number in self.there():
            if self.record(number) is None:
                shutil.rmtree(self.folder(number))
        return self.there()

    def made_of(self, number: int) -> str:
        """SHA-256 over all that a part follows from."""
        settings = {key: value for key, value in self.plan.items() if key != "shards"}
        written = json.dumps([settings, self.shards[number]], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()

    def record(self, number: int) -> dict[str, Any] | None:
        """``part.json``, if the part is whole and of this plan; its files are read for that."""
        folder = self.folder(number)
        try:
            record = json.loads((folder / "part.json").read_text(encoding="utf-8"))
            if record["made_of"] != self.made_of(number):
                return None
            for name in (
                f"{split}.{kind}.bin" for split in SPLITS for kind in ("tokens", "offsets")
            ):
                if sha256(folder / name) != record["files"][name]["sha256"]:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return record

    def describe(self, number: int) -> str:
        """The shard and its files, for messages."""
        names = [entry["name"] for entry in self.shards[number]]
        rest = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        return f"shard {number} ({names[0]}{rest})"

    def make(self, number: int) -> None:
        """Tokenise one shard into its part, and write down why where that fails."""
        running = self.path / "running" / _name(number)
        try:
            running.write_text(str(os.getpid()), encoding="utf-8")
            self._make(number)
        except BaseException as error:
            if isinstance(error, Exception):
                self._note_failure(number, error)
            raise
        finally:
            running.unlink(missing_ok=True)

    def _make(self, number: int) -> None:
        entries = self.shards[number]
        sources = [_source(entry) for entry in entries]
        corpus = Corpus(sources, [], **self.plan["reading"])
        encoding = _encoding(str(self.path), self.plan["tokenizer"])
        for entry in entries:
            _check_unchanged(entry)
        with whole_folder(self.folder(number), replace=True) as folder:
            with SplitsWriter(folder, encoding.dtype) as writer:
                work = Tokenising(
                    corpus, writer, encoding, self.plan["validation_fraction"], Progress(False)
                )
                tally = work.run()
                files = writer.finish_files()
            for entry in entries:
                _check_unchanged(entry)
            lowest = tally.lowest
            record = {
                "made_of": self.made_of(number),
                "input": entries,
                "tokenizer": self.plan["tokenizer"]["sha256"],
                "splits": writer.counts(),
                "counts": asdict(tally.counts),
                "unknown": tally.unknown,
                "lowest": None
                if writer.documents("validation")
                else {**asdict(lowest), "digest": lowest.digest.hex()},
                "files": files,
            }
            write_json(folder / "part.json", record)

    def _note_failure(self, number: int, error: Exception) -> None:
        code = error.exit_code if isinstance(error, PatchtrainError) else 1
        if isinstance(error, PatchtrainError):
            message = str(error)
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            message = f"the disk is full while writing {self.path}; free some space"
        else:
            reason = "memory ran out" if isinstance(error, MemoryError) else one_line(error)
            kind = type(error).__name__
            message = f"{self.describe(number)}: {kind}: {reason} ({self.engine} has more)"
        with suppress(OSError):  # a full disk, say: the engine's own log has it
            self.note_failure(number, message, code)

    def note_failure(self, number: int | None, message: str, code: int = 1) -> None:
        """Write down why a shard, or a worker of unknown shard, failed."""
        name = "worker" if number is None else _name(number)
        file = self.path / "failed" / f"{name}.json"
        write_json(file, {"message": message, "exit_code": code})

    def note_death(self, process: int, code: int | None) -> None:
        """Write down that a worker ended; with its exit code where known, below 0 by a signal."""
        number = self.running().get(process)
        where = "a worker" if number is None else f"the worker on {self.describe(number)}"
        how = f"ended with exit code {code}" if code and code > 0 else "was killed"
        how += f" by signal {-code}" if code and code < 0 else ""
        why = " (memory may have run out: give fewer --workers)" if code in (None, -9) else ""
        self.note_failure(number, f"{where} {how}{why}")

    def failure(self) -> PatchtrainError | None:
        """Why the first of the shards that failed did."""
        for file in sorted((self.path / "failed").glob("*.json")):
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # not yet to be seen on a network file system
                continue
            kind = UsageError if record["exit_code"] == 2 else PatchtrainError
            return kind(record["message"])
        return None

    def running(self) -> dict[int, int]:
        """The ids of the processes that are at work, with the shard that each works on."""
        found = {}
        for file in (self.path / "running").glob("[0-9]*"):
            with suppress(OSError, ValueError):  # done by now, or not yet written
                found[int(file.read_text(encoding="utf-8"))] = int(file.name)
        return found


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a folder of parts, so that no two commands work in it.

    Raises:
        UsageError: another command holds it, or it is not a folder of parts.
    """
    if path.exists() and (
        not path.is_dir() or (any(path.iterdir()) and not (path / PARTS_RECORD).is_file())
    ):
        raise UsageError(
            f"{path} is where shards would be tokenised, but holds something else; move it away or "
            "choose another --out"
        )
    path.mkdir(parents=True, exist_ok=True)
    if not any(path.iterdir()):
        write_json(path / PARTS_RECORD, {"format": FORMAT})
    try:
        with locked(path / ".lock"):
            yield
    except HeldError:
        raise UsageError(
            f"another `patchtrain prepare` is working in {path}; wait for it or stop it"
        ) from None


def _name(number: int) -> str:
    return f"{number:05d}"


def _describe(source: Source) -> dict[str, Any]:
    """All of a source that its documents follow from, and where workers find it."""
    assert source.path is not None
    path = source.path.absolute()
    return {
        "name": source.name,
        "path": str(path),
        "format": source.format,
        "compression": source.compression,
        "size": source.size,
        "modified": path.stat().st_mtime_ns,
        "skip_undecodable": source.skip_undecodable,
        "start": source.start,
        "end": source.size if source.end is None else source.end,
        "whole": source.end is None,
    }


def _source(entry: dict[str, Any]) -> Source:
    keys = ("name", "format", "compression", "size", "skip_undecodable", "start")
    kept = {key: entry[key] for key in keys}
    return Source(path=Path(entry["path"]), end=None if entry["whole"] else entry["end"], **kept)


def _check_unchanged(entry: dict[str, Any]) -> None:
    try:
        now = Path(entry["path"]).stat()
    except OSError as error:
        reason = error.strerror or error
        raise PatchtrainError(f"cannot read {entry['name']}: {reason}") from error
    if (now.st_size, now.st_mtime_ns) != (entry["size"], entry["modified"]):
        raise PatchtrainError(
            f"{entry['name']} was changed while shards were tokenised; run the command again when "
            "it stays as it is"
        )


_LOADED: dict[tuple[str, str], Encoding] = {}
"""The encoding of the last shard: a worker makes one after another."""


def _encoding(path: str, described: dict[str, Any]) -> Encoding:
    from tokenizers import Tokenizer

    key = path, described["sha256"]
    if key not in _LOADED:
        text = (Path(path) / "tokenizer.json").read_text(encoding="utf-8")
        if hashlib.sha256(text.encode()).hexdigest() != described["sha256"]:
            raise PatchtrainError(f"{path}/tokenizer.json was changed; run the command again")
        backend = Tokenizer.from_str(text)
        backend.encode_special_tokens = True
        dtype = np.dtype(described["dtype"]).newbyteorder("<")
        _LOADED.clear()
        _LOADED[key] = Encoding(backend, described["eos"], described["unknown"], dtype)
    return _LOADED[key]
