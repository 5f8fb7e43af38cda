"""``checkpoint.json`` and ``trainer_state.json``, read as if they came from a stranger.

Everything that is computed from has its type and range, what is said twice agrees, and every file
it names lies inside the checkpoint's folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, ValidationError

from patchtrain.errors import PatchtrainError, first_problem, one_line
from patchtrain.files import is_inside

FORMAT, FORMAT_VERSION = "patchtrain checkpoint", 1

_Count = Annotated[int, Field(strict=True, ge=0)]
_Scalar = None | bool | int | float | str


class DamagedError(PatchtrainError):
    """A checkpoint is not as it was written. One that only cannot be read is another matter."""


class _File(BaseModel):
    bytes: _Count
    sha256: Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]


class _Window(BaseModel):
    total: FiniteFloat
    steps: _Count


class _Optimizer(BaseModel):
    state: dict[str, _Scalar]
    groups: list[dict[str, _Scalar | list[_Scalar]]]
    tensors: dict[str, str]


class _Guard(BaseModel):
    in_a_row: _Count
    rollbacks: dict[Annotated[str, Field(pattern="^[0-9]{1,18}$")], _Count]


class _Record(BaseModel):
    step: _Count
    processes: Annotated[int, Field(strict=True, ge=1)]
    identity: dict[str, Any]
    window: _Window
    optimizer: _Optimizer
    scheduler: dict[str, Any] | None
    guard: _Guard
    averaged: _Count = 0  # steps in the mean of the weights; checkpoints of before had none
    files: dict[str, _File]


class _State(BaseModel):
    """What Trainer and our own loop compute from; the rest only has to be known to Trainer."""

    model_config = ConfigDict(extra="allow")

    global_step: _Count
    max_steps: _Count
    train_batch_size: Annotated[int, Field(strict=True, ge=1)]
    epoch: FiniteFloat | None
    num_train_epochs: StrictInt
    total_flos: FiniteFloat
    log_history: list[dict[str, Any]]
    stateful_callbacks: dict[str, Any]
    num_input_tokens_seen: _Count
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None


def read_record(path: Path, step: int) -> dict[str, Any]:
    """``checkpoint.json`` of the checkpoint at ``path``, checked.

    Raises:
        DamagedError: it is missing, damaged, of another step, or names a file that is not the
            checkpoint's own.
        PatchtrainError: it cannot be read, or is of another version.
    """
    file = path / "checkpoint.json"
    record = _read_json(file, f"{path} is not whole: it has no checkpoint.json")
    if record.get("format") != FORMAT:
        raise DamagedError(f"{file} is not of a checkpoint of patchtrain")
    version = record.get("format_version")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise PatchtrainError(
            f"{path} has checkpoint format {one_line(version, 40)}, this patchtrain reads "
            f"{FORMAT_VERSION}"
        )
    if record.get("checksum") != checksum(record):
        raise DamagedError(f"{file} is damaged: its own checksum is not right")
    try:
        checked = _Record.model_validate(record)
    except ValidationError as error:
        raise DamagedError(f"{file} is damaged: {first_problem(error)}") from error
    if checked.step != step:
        raise DamagedError(f"{file} is of step {checked.step}, not {step}")
    if "trainer_state.json" not in record["files"]:
        raise DamagedError(f"{file} does not name trainer_state.json")
    for name in record["files"]:
        if not is_inside(path, name):
            raise DamagedError(f"{file} names a file outside of the checkpoint: {name}")
    return record


def check_state(path: Path, step: int) -> None:
    """Refuse a ``trainer_state.json`` that Trainer could not go on from, or of another step.

    Raises:
        DamagedError: naming what is wrong with it.
        PatchtrainError: it cannot be read, or is of another version of transformers.
    """
    from transformers import TrainerState

    file = path / "trainer_state.json"
    state = _read_json(file, f"{file} is missing")
    try:
        checked = _State.model_validate(state)
    except ValidationError as error:
        raise DamagedError(f"{file} is damaged: {first_problem(error)}") from error
    known = {field.name for field in dataclasses.fields(TrainerState) if field.init}
    if unknown := sorted(state.keys() - known):
        raise PatchtrainError(
            f"{file} has an entry that this version of transformers does not know: "
            f"{one_line(unknown[0], 60)}"
        )
    if checked.global_step != step:
        raise DamagedError(f"{file} is of step {checked.global_step}, not {step}")


def checksum(record: Mapping[str, Any]) -> str:
    """SHA-256 of all of ``checkpoint.json`` but the checksum itself."""
    rest = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_json(file: Path, missing: str) -> dict[str, Any]:
    if not file.is_file():
        raise DamagedError(missing)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:  # the file may be as good as ever
        raise PatchtrainError(f"{file} cannot be read: {one_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{file} is not what it should be: no mapping")
    return value
