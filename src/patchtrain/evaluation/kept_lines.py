"""What was expensive to get, one JSON object a line, so that a killed measurement goes on.

Every line carries the key of what it answers: a hash of all that the answer depends on. A line
counts wherever its key is asked for again, and no other line does.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError, one_line
from patchtrain.files import open_own, write_text


def key_of(*parts: Any) -> str:
    """A hash of plain values."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class KeptLines:
    """The lines of one file, by key; appended to line by line, each on the disk at once."""

    def __init__(self, file: Path) -> None:
        """Read what is there; a last line that a killed process left unfinished is dropped.

        Raises:
            PatchtrainError: another line is broken, or the file is a link.
        """
        self.file = file
        self.rows: dict[str, dict[str, Any]] = {}
        if not file.exists():
            return
        whole, _, rest = file.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                row = json.loads(line)
                self.rows[row["key"]] = row
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise PatchtrainError(
                    f"{file}: line {number:,} is damaged ({one_line(error)}); delete that line, or "
                    "the file to measure anew"
                ) from error
        if rest:
            write_text(file, (whole + b"\n" if whole else b"").decode())

    def get(self, key: str) -> dict[str, Any] | None:
        """The line of a key, if there is one."""
        return self.rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> dict[str, Any]:
        """Append a line and return it."""
        row = {"key": key, **row}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open_own(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[key] = row
        return row
