"""Token files that other tools have written: found, told apart, and described as ``TokenFile``.

Each module knows one format and nothing else of the tool. Files are read, never changed; nothing in
them is executed (nanoGPT's ``meta.pkl`` is not opened).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchtrain.data.formats import bins, datatrove, litdata, megatron
from patchtrain.data.token_files import TokenFile
from patchtrain.errors import UsageError

Reader = Callable[[Path, np.dtype | None], list[TokenFile]]
READERS: dict[str, Reader] = {
    "nanoGPT": bins.read_plain,
    "llm.c": bins.read_headed,
    "Megatron": megatron.read,
    "litdata": litdata.read,
    "datatrove": datatrove.read,
}
KINDS = (
    "a .bin of nanoGPT or llm.c, a .bin and .idx of Megatron, a folder of litdata (index.json), "
    "or a .ds of datatrove"
)
_VALIDATION = re.compile(r"(^|[^a-z])(val|valid|validation)([^a-z]|$)")
_TEST = re.compile(r"(^|[^a-z])test([^a-z]|$)")


@dataclass(frozen=True)
class Item:
    """One thing to read: a file, a Megatron prefix, or a folder of litdata."""

    format: str
    path: Path


@dataclass(frozen=True)
class Found:
    """What the sources of one command hold."""

    train: list[Item]
    validation: list[Item]
    left_out: list[Item]
    """Test splits."""


def find(sources: Sequence[str | Path]) -> Found:
    """What is in ``sources``: files, prefixes, globs and folders.

    In a folder, names with ``val`` or ``validation`` in them are for validation, those with
    ``test`` are left out; what is named itself is for training.

    Raises:
        UsageError: a source is not there, of no known format, or they are of several.
    """
    train: list[Item] = []
    validation: list[Item] = []
    left_out: list[Item] = []
    for source in sources:
        items = _items(source)
        groups: tuple[list[Item], list[Item], list[Item]] = ([], [], [])
        for item in items:
            name = item.path.name.lower()
            split = 1 if _VALIDATION.search(name) else 2 if _TEST.search(name) else 0
            groups[split if len(items) > 1 else 0].append(item)
        if not groups[0]:  # nothing else there: it was meant
            groups = (items, [], [])
        train += groups[0]
        validation += groups[1]
        left_out += groups[2]
    check_one_format([*train, *validation])
    return Found(train, validation, left_out)


def named_tokenizers(items: Sequence[Item]) -> list[str]:
    """The tokenizers that files say they were made with; only datatrove's do."""
    paths = [item.path for item in items if item.format == "datatrove"]
    return sorted({name for path in paths if (name := datatrove.tokenizer_name(path))})


def check_one_format(items: Sequence[Item]) -> None:
    """``UsageError`` where items are of several formats."""
    first = items[0]
    for item in items:
        if item.format != first.format:
            raise UsageError(
                f"{first.path} is of {first.format} and {item.path} of {item.format}; a store "
                f"links to files of one format"
            )


def read(items: Sequence[Item], dtype: np.dtype | None = None) -> list[TokenFile]:
    """The token files of some items, in their order, those without tokens left out.

    ``dtype`` is for files that do not say it themselves; it is refused where they do.

    Raises:
        UsageError: a file is cut off, damaged or cannot be read in place; or they differ in dtype.
    """
    files = [file for item in items for file in READERS[item.format](item.path, dtype)]
    files = [file for file in files if file.tokens]
    if not files:
        raise UsageError(f"there are no tokens in {', '.join(str(item.path) for item in items)}")
    check_alike(files)
    return files


def check_alike(files: Sequence[TokenFile]) -> None:
    """``UsageError`` where the tokens of some files are of several dtypes."""
    for file in files:
        if file.dtype != files[0].dtype:
            raise UsageError(
                f"{files[0].path} has {files[0].dtype.name} tokens and {file.path} "
                f"{file.dtype.name}; link them to a store each"
            )


def _items(source: str | Path) -> list[Item]:
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file() or Path(f"{path}.idx").is_file():
        return [_file(path)]
    matches = sorted(glob.glob(str(source))) if glob.has_magic(str(source)) else []  # noqa: PTH207
    # A Megatron pair, or datatrove's index beside its tokens, is one thing.
    names = [name for name in matches if Path(name).suffix not in (".idx", ".index", ".metadata")]
    if not names:
        raise UsageError(f"no token files at {source}: give {KINDS}")
    return [item for name in names for item in _items(name)]


def _file(path: Path) -> Item:
    if path.suffix == ".ds":
        return Item("datatrove", path)
    if path.suffix == ".idx" or (path.suffix == ".bin" and path.with_suffix(".idx").is_file()):
        return Item("Megatron", path.with_suffix(""))
    if Path(f"{path}.idx").is_file():
        return Item("Megatron", path)
    if path.name == "index.json":
        return Item("litdata", path.parent)
    if path.suffix == ".bin":
        return Item("llm.c" if bins.has_header(path) else "nanoGPT", path)
    raise UsageError(f"{path} is no token file that is known: give {KINDS}")


def _folder(folder: Path) -> list[Item]:
    indices = sorted([*folder.glob("index.json"), *folder.glob("*/index.json")])
    found = indices or sorted(folder.rglob("*.ds")) or sorted(folder.glob("*.bin"))
    if not found:
        raise UsageError(f"there are no token files in the folder {folder}: give {KINDS}")
    return [_file(path) for path in found]
