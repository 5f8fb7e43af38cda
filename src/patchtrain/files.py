"""Whole files or none: everything is written under a temporary name and renamed.

A process that dies leaves at most a folder or file whose name says it is partial.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO, Any

from patchtrain.errors import PatchtrainError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class HeldError(Exception):
    """Another process holds a lock; as text, what that process wrote into its file."""


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, which is either replaced whole or left as it was."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, allow_nan: bool = True) -> None:
    """Write ``value`` as JSON to ``path``, readable by people; see ``write_text``."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan) + "\n"
    # Half surrogates, which stand for bytes of a file's name that are no UTF-8, become the very
    # escapes that JSON has for them.
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that becomes ``path`` if the block succeeds."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that becomes ``path`` if the block succeeds.

    The temporary folder is on the same file system (a rename must not copy) and is removed if the
    block fails, as are the folders made to hold it. With ``replace``, a folder that already stands
    at ``path`` makes way at the end.
    """
    path = Path(path)
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~umask())
        if replace and path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-old-", dir=path.parent))
            path.replace(old / "old")
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # somebody else uses it by now
                folder.rmdir()
        raise


def check_place(file: Path, what: str) -> None:
    """``UsageError`` if ``what`` cannot be written to ``file``: to be asked before it is made."""
    if file.is_dir():
        raise UsageError(f"cannot write {what} to {file}: it is a folder; name a file")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"cannot write {what} to {file}: there is no folder {file.parent}")


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_inside(folder: Path, name: str) -> bool:
    """Whether ``name``, as a file of ``folder`` names it, lies in it, also by way of links."""
    pure = PurePath(name)
    try:
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a null byte, links in a circle
        return False
    return inside and not pure.is_absolute() and ".." not in pure.parts


def open_own(path: Path, mode: str) -> IO[str]:
    """Open a text file to write on in place, which must not be a link.

    A folder from a stranger may hold a link of the name that is about to be written, and what it
    points to would be written instead.

    Raises:
        PatchtrainError: ``path`` is a link.
    """
    if path.is_symlink():
        raise PatchtrainError(
            f"{path} is a link to another file, which would be written instead; delete the link"
        )
    return open(path, mode, encoding="utf-8", opener=_open_no_link)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def locked(path: Path) -> Iterator[IO[str] | None]:
    """Hold the lock of the file at ``path``, which is made if need be, and yield the file.

    The system lets go of it when the process ends, however it ends. Where a file system has no
    locks (some network ones) nothing is held; where the system has none, None is yielded too.

    Raises:
        HeldError: another process holds it.
        PatchtrainError: ``path`` is a link.
    """
    if fcntl is None:
        yield None
        return
    with open_own(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise HeldError(file.read().strip()) from None
        except OSError:
            pass
        yield file


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Wait for the lock of a folder itself and hold it: for a moment, and no file is left of it.

    Nothing is held where the system or the file system has no such locks.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_partial(folder: Path) -> None:
    """Delete what a killed process left half written in ``folder`` (not in folders below)."""
    for path in folder.glob(".*.partial-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def umask() -> int:
    """The bits that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def claim_folder(folder: Path, marker: str) -> None:
    """Mark ``folder`` by a file of the name ``marker``, so that nothing else is ever written over.

    Raises as ``check_claim``.
    """
    check_claim(folder, marker)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()


def check_claim(folder: Path, marker: str) -> None:
    """Refuse what ``claim_folder`` would not mark.

    Raises:
        UsageError: it is a file, or a folder with other things in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise UsageError(f"--out {folder} holds something else; name a new folder")
