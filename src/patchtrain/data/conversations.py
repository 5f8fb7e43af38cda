"""Instruction data: conversations from the files that people tune with, told by their columns.

====================  ==========================================================================
columns               what a row is
====================  ==========================================================================
messages              a list of ``{"role", "content"}``: system, user, assistant
prompt, completion    texts, or two lists of messages
instruction, output   Alpaca's; ``input`` is what the instruction is about, ``system`` may be there
conversations         ShareGPT's: a list of ``{"from", "value"}``: system, human, gpt
====================  ==========================================================================

Files are whatever ``sources`` finds: JSON lines, a JSON array, Parquet, compressed or not, folders,
globs, ``hf:owner/name``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchtrain.chat import ROLES, Messages
from patchtrain.data.parquet import read_parquet_rows
from patchtrain.data.rows import json_rows
from patchtrain.data.sources import Source, open_corpus
from patchtrain.errors import PatchtrainError, UsageError

_FORMS = "messages; prompt and completion; instruction and output; or conversations"
_SHAREGPT = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}


@dataclass(frozen=True)
class Conversation:
    """Messages that end in an answer of the assistant, and the place they come from."""

    messages: Messages
    where: str


@dataclass
class Conversations:
    """All conversations of some files, and how many rows had no answer to learn from."""

    rows: list[Conversation] = field(default_factory=list)
    without_answer: int = 0


def read_conversations(files: Sequence[str | Path], split: str = "train") -> Conversations:
    """The conversations of ``files``, in order; ``split`` is of a dataset on the hub.

    What comes after the last answer of a row is left out.

    Raises:
        UsageError: a source is not there or no instruction data, or there is nothing in it.
        PatchtrainError: a row is not what its columns say, with its file and line.
    """
    found = Conversations()
    for source in open_corpus(files).sources:
        for where, row in _rows(source, split):
            messages = _messages(row, where)
            while messages and messages[-1]["role"] != "assistant":
                messages.pop()
            if any(m["role"] == "assistant" and not m["content"].strip() for m in messages):
                messages = []
            if messages:
                found.rows.append(Conversation(messages, str(where)))
            else:
                found.without_answer += 1
    if not found.rows:
        raise UsageError(f"there is no answer to learn from in {', '.join(map(str, files))}")
    return found


def _rows(source: Source, split: str) -> Iterator[tuple[object, dict[str, Any]]]:
    if source.format == "parquet" and source.path is not None:
        return read_parquet_rows(source.path, source.compression, source.name)
    refusal = "is no instruction data: give JSON, JSON lines or Parquet"
    return json_rows(source, refusal, split)


def _messages(row: dict[str, Any], where: object) -> Messages:
    """The messages of a row of any of the known forms."""

    def has(*columns: str) -> bool:
        return all(row.get(column) is not None for column in columns)

    if has("messages"):
        messages = _listed(row["messages"], where, "messages")
    elif has("conversations"):
        messages = _listed(row["conversations"], where, "conversations", "from", "value")
    elif has("prompt", "completion"):
        messages = _side(row, "prompt", "user", where) + _side(row, "completion", ROLES[2], where)
    elif has("instruction", "output"):
        messages = _alpaca(row, where)
    else:
        columns = ", ".join(map(str, row)) or "none"
        raise UsageError(f"{where} is no instruction data: it needs {_FORMS}; it has: {columns}")
    if any(message["role"] == "system" for message in messages[1:]):
        raise PatchtrainError(f"{where}: a system message can only be the first")
    return messages


def _alpaca(row: dict[str, Any], where: object) -> Messages:
    texts = {
        column: _text(row.get(column) or "", where, column)
        for column in ("system", "instruction", "input", "output")
    }
    asked = "\n\n".join(filter(str.strip, (texts["instruction"], texts["input"])))
    system = [_message("system", texts["system"])] if texts["system"].strip() else []
    return [*system, _message("user", asked), _message("assistant", texts["output"])]


def _side(row: dict[str, Any], column: str, role: str, where: object) -> Messages:
    """A prompt or a completion, which are texts or lists of messages."""
    if isinstance(row[column], list):
        return _listed(row[column], where, column)
    return [_message(role, _text(row[column], where, column))]


def _listed(
    value: Any, where: object, column: str, role_key: str = "role", text_key: str = "content"
) -> Messages:
    if not isinstance(value, list):
        raise PatchtrainError(f"{where}: '{column}' is not a list of messages")
    messages = []
    for number, entry in enumerate(value, 1):
        place = f"message {number} of '{column}'"
        if not isinstance(entry, dict) or not {role_key, text_key} <= entry.keys():
            raise PatchtrainError(f"{where}: {place} does not have '{role_key}' and '{text_key}'")
        known = _SHAREGPT if role_key == "from" else {role: role for role in ROLES}
        role = known.get(entry[role_key]) if isinstance(entry[role_key], str) else None
        if role is None:
            raise PatchtrainError(
                f"{where}: {place} is of {entry[role_key]!r}; known: {', '.join(known)}"
            )
        messages.append(_message(role, _text(entry[text_key], where, f"{text_key} of {place}")))
    return messages


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(value: Any, where: object, what: str) -> str:
    if not isinstance(value, str):
        raise PatchtrainError(f"{where}: the {what} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PatchtrainError(
            f"{where}: the {what} holds half a surrogate pair, which is no valid text"
        ) from error
    return value
