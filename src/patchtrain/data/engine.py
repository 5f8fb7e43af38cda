"""Shards through datatrove: one of its tasks a shard, on this machine, Slurm or Ray.

datatrove starts the workers, gives each its tasks, and knows which are complete. What a task does
is ours (``Parts.make``), so that a store is the same bytes whoever makes it. Imported only where
``prepare --executor`` is used: datatrove comes with ``pip install 'patchtrain[cluster]'``.

    python -m patchtrain.data.engine PARTS local|ray WORKERS

is the process that ``prepare`` starts to run shards on this machine or on Ray. It ends with all of
its workers when ``prepare`` does, and on this machine when a worker dies (Ray starts it again).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from patchtrain.data.parts import Parts

_WATCH_SECONDS = 0.2


class TokeniseShard(PipelineStep):
    """Task number ``rank`` makes the part of shard number ``rank``."""

    type = "patchtrain"
    name = "tokenise a shard"

    def __init__(self, parts: str) -> None:
        super().__init__()
        self.parts = parts

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        parts = Parts.open(Path(self.parts))
        parts.make(rank)
        record = parts.record(rank)
        for split, counts in (record["splits"] if record else {}).items():
            self.stat_update(f"{split} documents", value=counts["documents"])
            self.stat_update(f"{split} tokens", value=counts["tokens"])


class SlurmShards(SlurmPipelineExecutor):
    """datatrove's job array, with sbatch's own names for its options.

    Values that are not given are left to Slurm. ``jobs`` are the ids of what was submitted.
    """

    def __init__(self, parts: Parts, workers: int | None, options: Mapping[str, str]) -> None:
        given = dict(options)
        setup = given.pop("setup", "")
        self.jobs: list[str] = []
        # Slurm starts the job with the environment of this command, but not in its venv.
        path = f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'
        super().__init__(
            [TokeniseShard(str(parts.path))],
            tasks=len(parts.shards),
            time=given.pop("time", ""),
            partition=given.pop("partition", ""),
            qos=given.pop("qos", ""),
            workers=workers or -1,
            job_name=given.pop("job-name", "patchtrain-prepare"),
            env_command=f"{path}\n{setup}",
            sbatch_args=given,
            logging_dir=str(parts.engine),
            job_id_retriever=self._note_job,
        )

    def _note_job(self, printed: str) -> str:
        found = re.search(r"batch job (\d+)", printed)
        job = found[1] if found else printed.split()[-1]
        self.jobs.append(job)
        return job

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        args = super().get_sbatch_args(max_array)
        if "mem" in args:  # the two exclude one another
            args.pop("mem-per-cpu")
        return {key: value for key, value in args.items() if value or key == "requeue"}

    def launch_merge_stats(self) -> None:
        """Nothing: one more job, which would wait for ever where the array fails."""


def mark_completed(parts: Parts) -> None:
    """Let datatrove see as complete the tasks whose part is there, and no others."""
    folder = parts.engine / "completions"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in parts.there():
        (folder / f"{number:05d}").touch()


def main() -> None:
    path, executor, workers = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    parts = Parts.open(path)
    if hasattr(os, "killpg"):
        arguments = parts, os.getppid(), executor == "local"
        threading.Thread(target=_watch, args=arguments, daemon=True).start()
    (run_ray if executor == "ray" else run_local)(parts, workers)


def run_local(parts: Parts, workers: int) -> None:
    method = "spawn" if os.name == "nt" else "forkserver"
    if method == "forkserver":  # workers start with everything imported
        multiprocess.set_forkserver_preload(["patchtrain.data.engine", "tokenizers"])
    LocalPipelineExecutor(
        [TokeniseShard(str(parts.path))],
        tasks=len(parts.shards),
        workers=workers,
        logging_dir=str(parts.engine),
        start_method=method,
    ).run()


def run_ray(parts: Parts, workers: int) -> None:
    """On the cluster that ``RAY_ADDRESS`` names or this machine has, else on one started here."""
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    # A task has one CPU; its tokenizer would start a thread for each core of the machine.
    ray.init(log_to_driver=False, runtime_env={"env_vars": {"RAYON_NUM_THREADS": "1"}})
    RayPipelineExecutor(
        [TokeniseShard(str(parts.path))],
        tasks=len(parts.shards),
        workers=workers,
        logging_dir=str(parts.engine),
    ).run()


def _watch(parts: Parts, caller: int, pool: bool) -> None:
    """End this process and its workers when ``prepare`` is gone or a worker of the pool has died.

    A pool of processes waits for ever for what a killed one was doing.
    """
    seen: dict[int, Any] = {}
    while True:
        time.sleep(_WATCH_SECONDS)
        if os.getppid() != caller:
            os.killpg(0, signal.SIGKILL)
        if not pool:
            continue
        with suppress(RuntimeError):  # the pool has just replaced one
            seen |= {child.pid: child for child in multiprocess.active_children()}
        codes = {pid: child.exitcode for pid, child in seen.items()}
        # A worker that lived for less than a glance was not seen, but says what it works on.
        dead = [pid for pid in parts.running() if not _is_alive(pid) and pid in parts.running()]
        dead += [pid for pid, code in codes.items() if code not in (None, 0)]
        # The pool ends its workers itself, once all is done or one of them has raised.
        if dead and parts.failure() is None and len(parts.there()) < len(parts.shards):
            parts.note_death(dead[0], codes.get(dead[0]))
            os.killpg(0, signal.SIGKILL)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    main()
