"""``prepare --executor``: shards are cut, tokenised by workers, and merged in their order.

The calling process cuts the corpus, writes the plan into ``STORE.parts``, has the missing parts
made and merges them. Workers share nothing but that folder: it must be one that all of them see.
What they made stays there when something fails, and the next call goes on with it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from patchtrain.data import shards
from patchtrain.data.merging import merge
from patchtrain.data.parts import Parts, held
from patchtrain.data.sources import Corpus
from patchtrain.data.store import StoreWriter
from patchtrain.data.tokenising import Encoding, Tally
from patchtrain.errors import PatchtrainError, UsageError, nearest
from patchtrain.extras import require
from patchtrain.machine import usable_cores
from patchtrain.progress import Progress

EXECUTORS = ("local", "slurm", "ray")
_LOOK_SECONDS = 0.5
_ASK_SECONDS = 10.0
_LAG_SECONDS = 30.0
"""How long a network file system may take to show what another machine wrote."""


@dataclass(frozen=True)
class Engine:
    """Who tokenises shards: what ``--executor`` and the options beside it ask for."""

    executor: str
    workers: int | None = None
    """At most so many at once; None: one a core, on a cluster as many as it gives."""
    tasks: int | None = None
    """At most so many shards; None: by the size of the corpus."""
    options: Mapping[str, str] = field(default_factory=dict)
    """For Slurm, by sbatch's names of its options; and ``setup``, a shell command."""

    def check(self, corpus: Corpus, out: Path) -> None:
        """``UsageError`` for what cannot be done as asked."""
        if self.executor not in EXECUTORS:
            known = nearest(self.executor, list(EXECUTORS))
            raise UsageError(f"no executor '{self.executor}'{known}")
        for name, value in (("workers", self.workers), ("tasks", self.tasks)):
            if value is not None and value < 1:
                raise UsageError(f"--{name} is {value}, it must be at least 1")
        require("datatrove", "--executor", "or leave it out")
        if self.executor == "ray":
            require("ray", "--executor ray")
        for source in corpus.sources:
            if source.format == "dataset":
                raise UsageError(
                    f"dataset '{source.name}' is streamed and cannot be cut into shards; download "
                    "its files and give these, or leave --executor out"
                )
            if source.path is None:
                raise UsageError(
                    "standard input cannot be cut into shards; give files, or leave --executor out"
                )
        if self.executor == "slurm":
            self._check_slurm(out)
        elif self.options:
            raise UsageError(f"--executor-option is for slurm; {self.executor} takes none")

    def _check_slurm(self, out: Path) -> None:
        for key, value in self.options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", key) or "\n" in value:
                raise UsageError(
                    f"--executor-option {key}={value}: give one of sbatch's long options without "
                    "its dashes, such as partition=cpu or time=02:00:00, or setup=COMMAND"
                )
            if key == "array":
                raise UsageError("--executor-option array: --tasks and --workers decide about it")
        if shutil.which("sbatch") is None:
            raise UsageError("no sbatch here: call --executor slurm on a machine that submits jobs")
        if bad := re.search(r"[^\w./@%+=:,-]", str(out.absolute())):
            raise UsageError(
                f"{out}: a Slurm job script cannot hold {bad[0]!r} in the path; choose another "
                "--out"
            )


def parts_path(out: Path) -> Path:
    """Where the shards of a store are tokenised into: beside it."""
    out = out.absolute()
    return out.with_name(f"{out.name}.parts")


def tokenise(
    corpus: Corpus, writer: StoreWriter, out: Path, fraction: float, engine: Engine, bar: Progress
) -> Tally:
    """Write the corpus into ``writer`` as one pass over it would, through parts of its shards.

    Raises:
        PatchtrainError: what the first failing shard raised, or that a worker died. The parts that
            were made stay in ``parts_path(out)``.
    """
    path = parts_path(out)
    with held(path):
        parts = None
        try:
            bar.start("cutting the corpus into shards", None)
            cut = shards.cut(corpus, engine.tasks)
            encoding = Encoding.of(writer.tokenizer, writer.dtype)
            parts = Parts.create(path, corpus, cut, encoding, fraction)
            _make_missing(parts, engine, bar)
            return merge(parts, writer, bar)
        except BaseException as error:
            if not any(path.glob("[0-9]*")):
                shutil.rmtree(path, ignore_errors=True)
            elif parts and isinstance(error, PatchtrainError):
                kind = UsageError if error.exit_code == 2 else PatchtrainError
                raise kind(
                    f"{error}; {len(parts.there()):,} of {len(cut):,} shards are done and stay in "
                    f"{path}: the same command goes on with them"
                ) from error
            raise


def _make_missing(parts: Parts, engine: Engine, bar: Progress) -> None:
    from patchtrain.data.engine import mark_completed

    total, done = len(parts.shards), len(parts.check())
    if done:
        bar.say(f"{done:,} of {total:,} shards are there already")
    if done == total:
        return
    mark_completed(parts)
    bar.start(
        f"tokenising {total:,} shards", sum(parts.bytes_of(number) for number in range(total))
    )
    if engine.executor == "slurm":
        _run_slurm(parts, engine, bar)
    else:
        _run_child(parts, engine, total - done, bar)
    if failure := parts.failure():
        raise failure
    if missing := total - len(parts.there()):
        raise PatchtrainError(
            f"{missing:,} of {total:,} shards were not tokenised, and no worker said why; "
            f"{parts.engine} has the logs"
        )


def _show(parts: Parts, bar: Progress) -> bool:
    """Update the bar; whether all parts are there."""
    there = parts.there()
    done = sum(parts.bytes_of(number) for number in there)
    bar.update(done, f"{len(there):,} of {len(parts.shards):,} shards")
    return len(there) == len(parts.shards)


def _run_child(parts: Parts, engine: Engine, missing: int, bar: Progress) -> None:
    """Run datatrove in a process of its own, which can be ended together with its workers."""
    cores = usable_cores()
    most = missing if engine.executor == "ray" else cores
    workers = min(engine.workers or most, missing)
    environment = dict(os.environ)
    # Each worker's tokenizer would start a thread for every core.
    environment.setdefault("RAYON_NUM_THREADS", str(max(1, cores // workers)))
    command = [sys.executable, "-m", "patchtrain.data.engine"]
    log = parts.engine / "log.txt"
    with log.open("wb") as file:
        child = subprocess.Popen(
            [*command, str(parts.path), engine.executor, str(workers)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
        )
    try:
        while not _show(parts, bar) and child.poll() is None and parts.failure() is None:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_LOOK_SECONDS)
    finally:
        _end(child)
    if child.returncode and parts.failure() is None and not _show(parts, bar):
        parts.note_death(child.pid, child.returncode)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started, at once: what is half written is never taken."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    elif child.poll() is None:
        child.kill()
    child.wait()


def _run_slurm(parts: Parts, engine: Engine, bar: Progress) -> None:
    """Submit a job array and wait for it; it is cancelled when a shard or this command fails."""
    from loguru import logger

    from patchtrain.data.engine import SlurmShards

    logger.disable("datatrove")
    executor = SlurmShards(parts, engine.workers, engine.options)
    with _cancelled(executor.jobs):
        try:
            executor.launch_job()
        except subprocess.CalledProcessError as error:
            raise PatchtrainError(
                f"sbatch refused the job (exit code {error.returncode}); its script is "
                f"{parts.engine}/launch_script.slurm"
            ) from error
        bar.say(f"submitted Slurm job {', '.join(executor.jobs)}")
        asked = time.monotonic()
        while not _show(parts, bar):
            if failure := parts.failure():
                raise failure
            if time.monotonic() - asked >= _ASK_SECONDS:
                asked = time.monotonic()
                if not _is_queued(executor.jobs):
                    break
            time.sleep(_LOOK_SECONDS)
        until = time.monotonic() + _LAG_SECONDS
        while not _show(parts, bar) and parts.failure() is None and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
        if not _show(parts, bar) and parts.failure() is None:
            raise PatchtrainError(
                f"Slurm job {', '.join(executor.jobs)} ended before all shards were tokenised; "
                f"`sacct -j {executor.jobs[-1]}` and {parts.engine}/slurm_logs say why"
            )


@contextmanager
def _cancelled(jobs: list[str]) -> Iterator[None]:
    """Cancel the jobs where the block fails or is interrupted."""
    try:
        yield
    except BaseException:
        if jobs:
            with suppress(OSError):
                subprocess.run(["scancel", *jobs], capture_output=True, check=False)
        raise


def _is_queued(jobs: list[str]) -> bool:
    """Whether one of the jobs waits or runs. Slurm soon forgets the id of one that has ended."""
    command = ["squeue", "--noheader", "--jobs", ",".join(jobs)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return "invalid job id" not in answer.stderr.lower()
    return bool(answer.stdout.strip())
