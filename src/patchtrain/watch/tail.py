"""The lines of a file that another process is writing: each read once, when it is whole.

``metrics.jsonl`` grows by a line now and then. A resumed run replaces it with the lines up to its
checkpoint, so what was read may not be there any more; then the reading begins again. Nothing here
raises for what a killed process or a full disk leaves behind: a half line waits for its other half,
a broken one is counted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MARK = 256  # bytes before the place reached, by which a replaced file is known


class Tail:
    """Reads the JSON objects of ``file`` as they come, one a line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.broken = 0
        """Whole lines that are no JSON object."""
        self._offset = 0
        self._mark = b""

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether all that was read before is void, and what is new.

        A file that is not there has no lines; ``OSError`` where it cannot be read.
        """
        try:
            with self.file.open("rb") as file:
                replaced = self._is_another(file)
                if replaced:
                    self._offset, self._mark, self.broken = 0, b"", 0
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            replaced = self._offset > 0
            self._offset, self._mark, self.broken = 0, b"", 0
            return replaced, []
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._mark = (self._mark + whole)[-_MARK:]
        rows = [self._row(line) for line in whole.splitlines() if line.strip()]
        return replaced, [row for row in rows if row is not None]

    def _is_another(self, file: Any) -> bool:
        """Whether the bytes before the place reached are no longer those that were read."""
        file.seek(self._offset - len(self._mark))
        return bool(file.read(len(self._mark)) != self._mark)

    def _row(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            return row
        self.broken += 1
        return None
