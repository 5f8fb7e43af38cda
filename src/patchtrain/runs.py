"""The run folder: what a run leaves behind, and all that anything downstream reads.

::

    RUN/recipe.yaml     the recipe as resolved
    RUN/run.json        status, versions, machine, resolved plan, model size, final result
    RUN/metrics.jsonl   one JSON object a line: events "train", "eval", "switch", and "nonfinite" (a
                        step left out) and "rollback" where a loss or gradient was no number
    RUN/nonfinite/      what the steps read whose loss or gradient was no number, one folder each
    RUN/checkpoint-N/   what it takes to go on after step N (``training/checkpoint.py``)
    RUN/model/          the exported plain Hugging Face model with its tokenizer and its card
    RUN/stage-N/        the same as it was at the end of stage N, for each stage but the last
                        (training.keep_stage_models)
    RUN/samples.json    completions of a few prompts by the final model
    RUN/evaluation.json what was measured on the model (``evaluation/record.py``)
    RUN/report.html     the page
    RUN/failure.json    of several processes, the first that failed and why
    RUN/.lock           held by the process that writes the run

Counters in metrics are cumulative over all stages: ``step``, ``tokens``, ``positions``, ``flops``,
``seconds`` (training time, evaluation not counted) and, of these, ``data_seconds`` (the first
process waiting for its next batch). Losses are in nats per token.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchtrain import __version__
from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.files import HeldError, locked, write_json

FORMAT_VERSION = 1
EVALUATION_FORMAT = 1
# The kinds of measurement in evaluation.json: perplexity, zero-shot tasks, following instructions,
# speed by stage, and what goes on inside the model.
EVALUATIONS = ("text", "tasks", "instructions", "throughput", "inside")


@dataclass(frozen=True)
class RunFolder:
    """Paths and readers of one run's folder."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The run folder at ``path``; ``UsageError`` if there is no run there."""
        path = Path(path)
        if not path.is_dir():
            raise UsageError(f"no run folder at {path}; `patchtrain train RECIPE` makes one")
        if not (path / "run.json").is_file():
            raise UsageError(f"{path} is not a run folder: it has no run.json")
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def info_file(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    def stage_model(self, number: int) -> Path:
        """The model at the end of stage ``number``, from 1; kept for each stage but the last."""
        return self.path / f"stage-{number}"

    def stage_models(self) -> dict[int, Path]:
        """Those that are there, by the number of their stage; a run may keep none."""
        found = {}
        for path in self.path.iterdir():
            name = re.fullmatch(r"stage-([1-9]\d{0,3})", path.name)
            if name and (path / "config.json").is_file():
                found[int(name[1])] = path
        return dict(sorted(found.items()))

    def checkpoints(self) -> dict[int, Path]:
        """Those that are there, whole or damaged, by their steps, oldest first."""
        found = {}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            step = checkpoint_step(path.name)
            if step is not None and path.is_dir():
                found[step] = path
        return dict(sorted(found.items()))

    @property
    def samples_file(self) -> Path:
        return self.path / "samples.json"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def failure_file(self) -> Path:
        return self.path / "failure.json"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    def holds_something(self, *aside: str) -> bool:
        """Whether more is there than ``aside`` and what a run that is killed at once leaves."""
        names = [path.name for path in self.path.iterdir()] if self.path.exists() else []
        first = {self.lock_file.name, *aside}
        return any(name not in first and ".partial-" not in name for name in names)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that no two processes write one run.

        Raises:
            UsageError: another process holds it.
            PatchtrainError: the lock is a link to some other file.
        """
        try:
            with locked(self.lock_file) as file:
                if file:
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {platform.node()}")
                    file.flush()
                yield
        except HeldError as held:
            who = str(held) or "another process"
            raise UsageError(f"{who} is still training in {self.path}; stop it first") from None

    def info(self) -> dict[str, Any]:
        """``run.json`` as a dict; ``PatchtrainError`` where it is something else."""
        info = _read_json(self.info_file)
        if not isinstance(info, dict):
            raise PatchtrainError(
                f"{self.info_file}: not a JSON object, so not the record of a run"
            )
        return info

    def part(self, name: str) -> dict[str, Any]:
        """The section ``name`` of ``run.json``, empty if it is not there or nothing of the kind."""
        value = self.info().get(name)
        return value if isinstance(value, dict) else {}

    def write_info(self, info: dict[str, Any]) -> None:
        write_json(self.info_file, info)

    def metrics(self, event: str | None = None) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, all or of one ``event``.

        A last line that a killed process left unfinished is dropped; a broken line elsewhere raises
        ``PatchtrainError``.
        """
        if not self.metrics_file.is_file():
            return []
        lines = _read_text(self.metrics_file).removesuffix("\n").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                raise PatchtrainError(
                    f"{self.metrics_file}: line {number} is not JSON: {one_line(error)}"
                ) from error
            if not isinstance(row, dict):
                raise PatchtrainError(f"{self.metrics_file}: line {number} is not a JSON object")
            rows.append(row)
        return [row for row in rows if event is None or row.get("event") == event]

    def samples(self) -> list[dict[str, str]]:
        """``[{"prompt": ..., "completion": ...}, ...]``, empty where there are none."""
        return _read_json(self.samples_file) if self.samples_file.is_file() else []

    def evaluation(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What was measured on the model, by kind and name; empty where nothing was."""
        return read_evaluation(self.evaluation_file) if self.evaluation_file.is_file() else {}


def checkpoint_step(name: str) -> int | None:
    """N of a folder called ``checkpoint-N``; None of any other."""
    found = re.fullmatch(r"checkpoint-(\d{1,12})", name)
    return int(found[1]) if found else None


def pretrained_name(recipe: str) -> str | None:
    """The model that the run of a resolved recipe went on from; None where it names none."""
    import yaml

    try:
        name = yaml.safe_load(recipe)["model"].get("pretrained")
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None
    return None if name is None else str(name)


def read_evaluation(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The results in a file of ``evaluation/record.py``, by kind and name.

    Raises:
        PatchtrainError: it is no such file, or a later version's.
    """
    content = evaluation_content(file)
    return {kind: content[kind] for kind in EVALUATIONS if kind in content}


def evaluation_content(file: Path) -> dict[str, Any]:
    """All that such a file holds, also what is not known here; raises as ``read_evaluation``."""
    content = _read_json(file)
    if not isinstance(content, dict) or content.get("format_version") != EVALUATION_FORMAT:
        raise PatchtrainError(
            f"{file} is no record of evaluations of version {EVALUATION_FORMAT}; "
            "move it away to measure anew"
        )
    for kind in EVALUATIONS:
        results = content.get(kind, {})
        if not isinstance(results, dict) or not all(isinstance(r, dict) for r in results.values()):
            raise PatchtrainError(f"{file}: '{kind}' does not hold results by name")
    return content


@contextmanager
def of_expected_form(*runs: RunFolder) -> Iterator[None]:
    """A run's file with values of other kinds than a run writes is one clear error."""
    try:
        yield
    except PatchtrainError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        where = " or ".join(str(run.path) for run in runs)
        what = f"{type(error).__name__}: {one_line(error)}"
        raise PatchtrainError(f"{where} has a file of an unexpected form: {what}") from error


def versions() -> dict[str, str]:
    """Of patchtrain and of what its numbers depend on."""
    import torch
    import transformers

    return {
        "patchtrain": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _read_json(file: Path) -> Any:
    try:
        return json.loads(_read_text(file))
    except (ValueError, RecursionError) as error:
        raise PatchtrainError(f"{file}: not valid JSON: {one_line(error)}") from error


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PatchtrainError(
            f"{file}: not UTF-8 text: {error.reason} at byte {error.start}"
        ) from error
