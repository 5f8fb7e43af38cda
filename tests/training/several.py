"""Runs of several processes, as torchrun starts them, but forked from a server that is warm."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchtrain.errors import PatchtrainError
from tests.training.killing import context

LIMIT = 60.0  # seconds


@dataclass
class Ended:
    """What processes said and ended with, by rank, and the token ids each read, by step."""

    codes: list[int]
    said: list[str]
    read: list[dict[int, list]]

    @property
    def errors(self) -> list[str]:
        """The lines of all processes that say an error."""
        lines = [line for text in self.said for line in text.splitlines()]
        return [line for line in lines if line.startswith("patchtrain: error:")]

    def data(self) -> dict[int, list]:
        """Rows of token ids of each step, all processes together, in order."""
        return {
            step: [row for part in self.read for row in part[step]] for step in sorted(self.read[0])
        }


def run(
    count: int,
    argv: list[str],
    folder: Path,
    event: tuple[str, int, int] | None = None,
    environment: dict[str, str] | None = None,
    nodes: int = 1,
) -> Ended:
    """Run ``patchtrain`` in ``count`` processes and wait for all of them.

    Args:
        count: of processes; 1 is no group at all.
        argv: the arguments of ``patchtrain``.
        folder: for what they say.
        event: what happens (see ``_happens``), to which process (-1: all), in which step (-1:
            before the first).
        environment: what a launcher would set besides.
        nodes: that the processes think they are on, as many on each.
    """
    codes, said = _all_of(count, _child, (argv, str(folder), event), folder, environment, nodes)
    read = [_read(folder / f"{rank}.jsonl") for rank in range(count)]
    return Ended(codes, said, read)


def call(count: int, function: Callable[[Path], None], folder: Path) -> None:
    """Call a function of a module with ``folder`` in ``count`` processes, as a script would be.

    Raises:
        AssertionError: not all of them came to the end of it.
    """
    codes, said = _all_of(count, _calling, (function, folder), folder.parent / "said")
    assert codes == [0] * count, said


def _calling(rank: int, function: Callable[[Path], None], folder: Path) -> None:
    function(folder)


def _all_of(
    count: int,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    folder: Path,
    environment: dict[str, str] | None = None,
    nodes: int = 1,
) -> tuple[list[int], list[str]]:
    """Exit codes of processes that call ``target`` with rank and arguments, and what they said."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"OMP_NUM_THREADS": "1", **(environment or {})}
    if count > 1:
        common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count // nodes),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    children = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank % (count // nodes))} if count > 1 else {}
        output = str(folder / f"{rank}.txt")
        children.append(
            context().Process(
                target=_begin, args=(target, (rank, *arguments), output, {**common, **own})
            )
        )
    for child in children:
        child.start()
    deadline = time.monotonic() + LIMIT
    for child in children:
        child.join(max(deadline - time.monotonic(), 0))
    hanging = [rank for rank, child in enumerate(children) if child.exitcode is None]
    for rank in hanging:
        os.kill(children[rank].pid, signal.SIGUSR1)  # it says where it is
        time.sleep(1)
    for rank in hanging:
        children[rank].kill()
        children[rank].join()
    said = [(folder / f"{rank}.txt").read_text() for rank in range(count)]
    if hanging:
        raise AssertionError(f"processes {hanging} hang; they said: {said}")
    return [child.exitcode or 0 for child in children], said


def _begin(
    target: Callable[..., Any], arguments: tuple[Any, ...], said: str, environment: dict[str, str]
) -> None:
    """What a process does first, and that it ends without waiting for threads of libraries."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    try:
        code = target(*arguments) or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read(file: Path) -> dict[int, list]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {row["step"]: row["ids"] for row in rows}


def _child(rank: int, argv: list[str], folder: str, event: Any) -> int:
    from patchtrain.cli.main import main
    from patchtrain.training import checkpoint, processes
    from patchtrain.training.trainer import PatchTrainer

    step = PatchTrainer.training_step
    with Path(folder, f"{rank}.jsonl").open("w") as read:

        def noted(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            now = self.state.global_step
            ids = inputs["input_ids"].tolist()
            read.write(json.dumps({"step": now, "ids": ids}) + "\n")
            read.flush()
            if event is not None and event[1] in (rank, -1) and event[2] == now:
                _happens(event[0])
            return step(self, model, inputs, *args, **kwargs)

        PatchTrainer.training_step = noted  # type: ignore[method-assign]
        if event is not None and event[0] == "own disk":
            processes.SEEN_WITHIN = 0.3
            if event[1] == rank:  # the same path there is another folder
                argv = [f"{word}-there" if word.startswith("out=") else word for word in argv]
        elif event is not None and event[0] == "stale listing":
            checkpoint._files = _without_files_of_others(rank, checkpoint._files)
        elif event is not None and event[1] == rank and event[2] < 0:
            _happens(event[0])
        code = main(argv)
    print("CPU", time.process_time(), file=sys.stderr)
    return code


def _happens(what: str) -> None:
    """Something goes wrong in this process, now or when it writes its part of a checkpoint."""
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # passed on by the launcher
    elif what == "fails":
        raise RuntimeError("this step fails")
    elif what == "damaged store":
        from patchtrain.data.store import TokenStore

        TokenStore.verify = _raising(PatchtrainError("train.bin is damaged"))  # type: ignore
    else:
        from torch.distributed.checkpoint import HuggingFaceStorageWriter as Writer

        if what == "full disk":
            Writer.write_data = _raising(OSError(errno.ENOSPC, "No space left on device"))  # type: ignore
        elif what == "killed writing":
            Writer.write_data = lambda *args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore


def _without_files_of_others(rank: int, files: Callable[[Path], list[Path]]) -> Any:
    """A listing as a network file system may give it: what other nodes just wrote is not there."""
    own = f"shard-{rank + 1:05}-"

    def listed(folder: Path) -> list[Path]:
        found = files(folder)
        if not folder.name.endswith(".partial"):
            return found
        return [file for file in found if "shard-" not in file.name or own in file.name]

    return listed


def _raising(error: Exception) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail
