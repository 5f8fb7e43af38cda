"""``RUN/evaluation.json``: all that was ever measured on a run's model, in one file.

::

    {"format_version": 1, "text": {NAME: result, ...}, "tasks": {...}, ...}

The first key is the kind of measurement, the second the name of one, so that measuring the same
thing again replaces what stood there and nothing else. A model without a run has the same file,
under the name its user gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError
from patchtrain.files import locked_folder, write_json
from patchtrain.runs import EVALUATION_FORMAT, EVALUATIONS, evaluation_content


def record(file: Path, kind: str, name: str, result: dict[str, Any]) -> Path:
    """Put ``result`` into ``file`` as ``kind`` / ``name``; what else stands there stays.

    ``file`` is a run's ``evaluation_file`` or any other; it is replaced whole. Two commands may
    record at a time: each waits for the other.

    Raises:
        PatchtrainError: the file is there and is no such record, is a link, or ``result`` holds a
            number that is none.
    """
    if kind not in EVALUATIONS:
        raise ValueError(f"kind is {kind!r}, not one of {', '.join(EVALUATIONS)}")
    if file.is_symlink():
        raise PatchtrainError(f"{file} is a link to another file; delete the link")
    with locked_folder(file.parent):
        content: dict[str, Any] = {"format_version": EVALUATION_FORMAT}
        if file.exists():
            content = evaluation_content(file)
        content[kind] = {**content.get(kind, {}), name: result}
        try:
            write_json(file, content, allow_nan=False)
        except ValueError as error:
            raise PatchtrainError(
                f"the {kind} result '{name}' holds a number that is not finite, so it is not kept: "
                "the model may be broken"
            ) from error
    return file
