"""What a run writes down while it trains: ``run.json`` and ``metrics.jsonl``."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patchtrain.errors import NonfiniteError, PatchtrainError, one_line
from patchtrain.files import open_own, sync, write_text
from patchtrain.machine import cpu_model
from patchtrain.runs import FORMAT_VERSION, RunFolder, versions
from patchtrain.training.signals import StoppedBySignalError


class RunRecord:
    """Writer of one run's folder. Only the first process should have one.

    The training clock counts from ``start`` and stands still while ``pause`` says so, so that
    evaluation does not count as training time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(Path(folder))
        self._started = time.perf_counter()
        self._paused = 0.0
        self._info: dict[str, Any] = {}
        self._before = 0.0  # seconds of training before a resume
        self.data_seconds = 0.0
        """Of the training time, what the loop spent waiting for its next batch."""

    def start(self, info: dict[str, Any], step: int = 0) -> None:
        """Begin the record, or with ``step`` > 0 go on with the one up to that step."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        kept = [row for row in self.folder.metrics() if row["step"] <= step] if step else []
        # A switch is written at the first step of its stage, which is still to come.
        kept = [row for row in kept if row["event"] != "switch" or row["step"] < step]
        self._before = max((row["seconds"] for row in kept), default=0.0)
        # An earlier version did not count these.
        self.data_seconds = max((row.get("data_seconds", 0.0) for row in kept), default=0.0)
        write_text(self.folder.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))
        resumed = self._resumes(step)
        self._info = {**describe_process(), **info, "resumed": resumed}
        self.folder.write_info(self._info)
        self._started = time.perf_counter()
        self._paused = 0.0

    def _resumes(self, step: int) -> list[dict[str, Any]]:
        """The steps at which the run was taken up again, this one included."""
        if not step:
            return []
        try:
            earlier = self.folder.info().get("resumed", [])
        except (OSError, PatchtrainError, AttributeError):
            earlier = []
        return [*(entry for entry in earlier if entry["step"] < step), {"step": step, "at": now()}]

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.perf_counter() - self._started - self._paused

    def pause(self, seconds: float) -> None:
        """Take ``seconds`` that just passed out of the training time."""
        self._paused += seconds

    def waited(self, seconds: float) -> None:
        """Add ``seconds`` that the training loop just waited for its next batch."""
        self.data_seconds += seconds

    def event(self, row: dict[str, Any]) -> None:
        """Append one line to ``metrics.jsonl``."""
        with open_own(self.folder.metrics_file, "a") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Wait until the metrics are on the disk: a checkpoint must not be newer than they are."""
        if self.folder.metrics_file.is_file():
            sync(self.folder.metrics_file)

    def stop(self, error: BaseException) -> None:
        """Say in ``run.json``, if there is one, that the run did not get to its end."""
        if self._info:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit | StoppedBySignalError)
            why = {"diverged": one_line(error.what)} if isinstance(error, NonfiniteError) else {}
            self.update(status="interrupted" if interrupted else "failed", finished=now(), **why)

    def update(self, **values: Any) -> None:
        """Change entries of ``run.json``."""
        self._info.update(values)
        self.folder.write_info(self._info)


def describe_process() -> dict[str, Any]:
    """Command, time, versions and machine: what a reader needs to place a result."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "format_version": FORMAT_VERSION,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": now(),
        "finished": None,
        "versions": versions(),
        "machine": {
            "platform": f"{platform.system()} {platform.machine()}",
            "processor": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        },
        "process": {"host": platform.node(), "id": os.getpid()},
        "result": None,
    }


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
