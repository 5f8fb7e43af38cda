"""Checkpoints that are whole or not there, and that any number of processes can open.

::

    RUN/checkpoint-N/                what a run needs to go on after N steps
        weights/*.safetensors        by the names of the model's own state dict
        optimizer/*.safetensors      by parameter: "layers.0.weight exp_avg"
        average/*.safetensors        a mean of weights that is being taken, if any
        random/P.safetensors         the random numbers of process P
        trainer_state.json           transformers' own
        checkpoint.json              step, what the run is, size and SHA-256 of every other file

A checkpoint is written under another name, synced to disk, and renamed; ``checkpoint.json`` comes
last. Opening one executes nothing: it is JSON and safetensors (``state.py``).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchtrain.errors import PatchtrainError
from patchtrain.files import sha256, sync, write_text
from patchtrain.runs import RunFolder, checkpoint_step
from patchtrain.training.checkpoint_record import (
    FORMAT,
    FORMAT_VERSION,
    DamagedError,
    check_state,
    checksum,
    read_record,
)
from patchtrain.training.processes import (
    gather,
    of_first,
    rank,
    same_on_all,
    share,
    share_out,
    together,
)

_PARTIAL = re.compile(r"\.checkpoint-\d+(\.old)?\.partial")
_PARTS = ("weights", "optimizer", "random")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint folder that is there, whole or damaged."""

    path: Path
    step: int

    @classmethod
    def at(cls, path: str | Path) -> Checkpoint:
        """The checkpoint at ``path``; ``PatchtrainError`` if the folder is not named like one."""
        path = Path(path)
        step = checkpoint_step(path.resolve().name)
        if step is None or not path.is_dir():
            raise PatchtrainError(f"{path} is not a checkpoint: no folder of the name checkpoint-N")
        return cls(path, step)

    def info(self) -> dict[str, Any]:
        """``checkpoint.json``, checked (``checkpoint_record.read_record``)."""
        return read_record(self.path, self.step)

    def verify(self) -> None:
        """Read every file and compare its size and SHA-256; the processes share the work.

        Raises:
            DamagedError: on all processes, in the same words, naming a file that is missing, cut
                short, damaged or too many.
            PatchtrainError, OSError: a file cannot be read, or is of another version.
        """
        damage = None
        with together():
            try:
                self._verify_share()
            except DamagedError as error:  # the others may find their files whole
                damage = str(error)
        if found := next(filter(None, gather(damage)), None):
            raise same_on_all(DamagedError(found))

    def _verify_share(self) -> None:
        """What ``verify`` does on each process."""
        files = self.info()["files"]
        here = {str(file.relative_to(self.path)) for file in _files(self.path)}
        if more := sorted(here - files.keys() - {"checkpoint.json"}):
            raise DamagedError(f"{self.path / more[0]} is not of this checkpoint")
        for name, entry in share(sorted(files.items())):
            file = self.path / name
            if not file.is_file():
                raise DamagedError(f"{file} is missing")
            if (size := file.stat().st_size) != entry["bytes"]:
                raise DamagedError(f"{file} has {size:,} of {entry['bytes']:,} bytes")
            if sha256(file) != entry["sha256"]:
                raise DamagedError(f"{file} is damaged: its SHA-256 is not right")
        check_state(self.path, self.step)

    def stays(self) -> bool:
        """Whether it was written as one to be kept for good."""
        try:
            return bool(json.loads((self.path / "checkpoint.json").read_text("utf-8"))["stays"])
        except (OSError, ValueError, KeyError, TypeError):
            return False


class Checkpoints:
    """The checkpoints of a run folder.

    Args:
        run: the run folder.
        keep: how many of the newest stay; None or less than 1 keeps all.
        every: those whose step is a multiple of this stay for good; None keeps no more.
    """

    def __init__(self, run: Path, keep: int | None = None, every: int | None = None) -> None:
        self.run = run
        self.keep = keep if keep and keep > 0 else None
        self.every = every

    def all(self) -> list[Checkpoint]:
        """What is there, oldest first. Folders that are not checkpoints of ours are left out."""
        found = RunFolder(self.run).checkpoints()
        return [Checkpoint(path, step) for step, path in found.items()]

    def newest_whole(
        self, tell: Callable[[str], None], most: int | None = None
    ) -> Checkpoint | None:
        """The newest checkpoint whose files are all as they were written; None if there is none.

        Args:
            tell: is given a line for every newer one that is damaged, and why.
            most: leave out those of later steps than this.

        Raises:
            PatchtrainError: there are checkpoints and all are damaged, or one cannot be read: to
                begin anew would throw away what may yet be saved.
        """
        steps = of_first([checkpoint.step for checkpoint in reversed(self._ours())])
        steps = [step for step in steps if most is None or step <= most]
        why = ""
        for step in steps:
            checkpoint = Checkpoint(self.run / f"checkpoint-{step}", step)
            try:
                checkpoint.verify()
            except DamagedError as error:
                tell(f"{checkpoint.path.name} is left out: {error}")
                why = str(error)
                continue
            return checkpoint
        if steps:
            raise same_on_all(
                PatchtrainError(
                    f"no checkpoint in {self.run} is whole ({why}); put a whole one back, or start "
                    f"anew with --overwrite or another out=FOLDER"
                )
            )
        return None

    def set_aside(self, step: int, tell: Callable[[str], None]) -> None:
        """Rename the checkpoints of later steps, which a run that goes on from ``step`` makes anew.

        They are not deleted: the user may have meant to go back only to look. The first process
        does it.
        """
        if rank() != 0:
            return
        for checkpoint in self._ours(lambda other: other > step):
            aside = checkpoint.path.with_name(f"{checkpoint.path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.path.rename(aside)
            tell(f"{checkpoint.path.name} is of what came later, and now called {aside.name}")

    def write(self, step: int, parts: Mapping[str, Callable[[Path], None]], info: Any) -> Path:
        """Write a checkpoint of ``step``; called on all processes.

        Args:
            step: optimizer steps done.
            parts: writers by name; each is given the folder and called on every process.
            info: what else ``checkpoint.json`` holds, JSON types; the first process's counts.

        Raises:
            PatchtrainError, OSError: on all processes, with nothing left of the new checkpoint and
                the older ones untouched.
        """
        path = self.run / f"checkpoint-{step}"
        partial = self.run / f".checkpoint-{step}.partial"
        first = rank() == 0
        try:
            with together():
                if first:
                    self.clear()
                    for part in _PARTS:  # here, so that no part fails on one process alone
                        (partial / part).mkdir(parents=True)
            for write_part in parts.values():
                with together():
                    write_part(partial)
            with together():
                here = [str(file.relative_to(partial)) for file in _files(partial)]
            mine = share_out(here)
            entries: list[tuple[str, dict[str, Any]]] = []
            with together():
                for name in mine:
                    sync(partial / name)
                    size = (partial / name).stat().st_size
                    entries.append((name, {"bytes": size, "sha256": sha256(partial / name)}))
            known = dict(entry for part in gather(entries) for entry in part)
            with together():
                if first:
                    self._finish(partial, path, {**info, "step": step, "files": known})
        except BaseException:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        self.tidy(step)
        return path

    def clear(self) -> None:
        """Delete what processes that were killed left of checkpoints they had not finished."""
        for path in self.run.iterdir() if self.run.is_dir() else ():
            if _PARTIAL.fullmatch(path.name):
                shutil.rmtree(path)

    def _finish(self, partial: Path, path: Path, info: dict[str, Any]) -> None:
        stays = bool(self.every and info["step"] % self.every == 0)
        info = {"format": FORMAT, "format_version": FORMAT_VERSION, "stays": stays, **info}
        info = json.loads(json.dumps(info))  # as it will be read
        info["checksum"] = checksum(info)
        write_text(partial / "checkpoint.json", json.dumps(info, indent=1) + "\n")
        for folder in (partial, *(entry for entry in partial.iterdir() if entry.is_dir())):
            sync(folder)
        if path.exists():  # of this very step, damaged or made before
            old = path.with_name(f".{path.name}.old.partial")
            path.rename(old)
            partial.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            partial.rename(path)
        sync(self.run)

    def tidy(self, step: int) -> None:
        """Delete the checkpoints up to ``step`` that need not stay; only the first process does.

        A run that was killed in between may have left one too many.
        """
        if not self.keep or rank() != 0:
            return
        for checkpoint in self._ours(lambda other: other <= step)[: -self.keep]:
            if not checkpoint.stays():
                _remove(checkpoint.path)

    def _ours(self, of_step: Callable[[int], bool] = lambda step: True) -> list[Checkpoint]:
        """Those of some steps, oldest first, that are not another tool's."""
        return [
            checkpoint
            for checkpoint in self.all()
            if of_step(checkpoint.step)
            and ((checkpoint.path / "checkpoint.json").exists() or _has_parts(checkpoint.path))
        ]


# ---- files


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; renamed first, so that a process killed in between leaves no half."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.old.partial")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _has_parts(checkpoint: Path) -> bool:
    """Whether it looks like one of ours whose ``checkpoint.json`` is gone."""
    return all((checkpoint / part).is_dir() for part in _PARTS)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
