"""The Hugging Face Hub, asked politely: reachable or not is known in seconds, and said in one line.

The libraries retry an unreachable hub for most of a minute and then fail with a long traceback.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse

from patchtrain.errors import PatchtrainError, UsageError, one_line

_TIMEOUT_SECONDS = 5.0


def offline() -> bool:
    """Whether the environment forbids the network (``HF_HUB_OFFLINE`` and its like)."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def reachable() -> bool:
    """Whether the hub (``HF_ENDPOINT``) takes a connection; asked once, in at most 5 seconds."""
    if offline():
        return False
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy")):
        return True  # only the proxy can tell
    address = urlparse(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), _TIMEOUT_SECONDS).close()
    except OSError:
        return False
    return True


def unreachable() -> bool:
    """Whether the hub may be asked, and does not answer."""
    return not offline() and not reachable()


def looks_like_path(name: str) -> bool:
    """Whether ``name``, which is neither file nor folder, was meant as one and not as the hub's."""
    return name.startswith((".", "/", "~")) or name.endswith(".json") or name.count("/") > 1


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' own log lines and progress bars off the terminal."""
    import logging

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def stream_texts(name: str, split: str, column: str) -> Iterator[Any]:
    """The values of ``column`` in one split of a dataset, streamed; see ``stream_rows``."""
    for row in stream_rows(name, split, column):
        yield row[column]


def stream_rows(name: str, split: str, column: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one split of a dataset, streamed, with all columns or with one.

    ``name`` is ``owner/name`` or ``owner/name:config``, or a local folder. Without network (set
    ``HF_HUB_OFFLINE=1``) a copy in the local cache is used.
    """
    path, _, config = name.partition(":")
    local = os.path.isdir(path)  # noqa: PTH112 - an owner/name is no path
    if not local and unreachable():
        raise PatchtrainError(
            f"dataset '{path}': the Hugging Face Hub cannot be reached; check the name and the "
            "network, or set HF_HUB_OFFLINE=1 to use a copy in the local cache"
        )
    import datasets

    with quiet():
        try:
            rows = datasets.load_dataset(
                path, config or None, split=split, streaming=local or not offline()
            )
            rows = iter(rows if column is None else _select(rows, column, name))
            row = next(rows, None)
        except PatchtrainError:
            raise
        except Exception as error:  # the library lets many kinds through
            raise _failed(name, error) from error
    while row is not None:
        yield row
        try:
            row = next(rows, None)
        except Exception as error:
            raise _failed(name, error) from error


def _select(rows: Any, column: str, name: str) -> Any:
    columns = rows.column_names
    if columns is None:  # a stream that does not declare its columns: its first row knows
        columns = list(next(iter(rows), {column: None}))
    if column not in columns:
        raise UsageError(
            f"dataset '{name}' has no column '{column}'; it has: {', '.join(columns)} "
            "(--text-column)"
        )
    return rows.select_columns([column])


def _failed(name: str, error: Exception) -> PatchtrainError:
    if "config" in str(error).lower() and "pick one" in str(error).lower():
        return UsageError(
            f"dataset '{name}' has several configurations, write hf:{name}:CONFIG "
            f"({one_line(error)})"
        )
    return PatchtrainError(f"dataset '{name}' could not be read: {one_line(error)}")
