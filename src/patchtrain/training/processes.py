"""Several processes that train one model: agreeing, and failing together.

One process is the case in which everything here does nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from patchtrain.errors import PatchtrainError
from patchtrain.runs import RunFolder
from patchtrain.training.signals import StoppedBySignalError


def several() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if several() else 0


def is_first_process() -> bool:
    """Whether this is the only process, or the first of torchrun's; also before they connect."""
    return int(os.environ.get("RANK", "0")) == 0


def restarted() -> bool:
    """Whether a scheduler or torchrun has started this run before and starts it again."""
    counts = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    return any(os.environ.get(name, "0") not in ("", "0") for name in counts)


def share(items: list[Any]) -> list[Any]:
    """This process's part of ``items``, which are the same on all of them."""
    return items[rank() :: dist.get_world_size()] if several() else items


def share_out(here: list[str]) -> list[str]:
    """This process's part of all that any of them has, each to one that has it.

    For files that the processes have just written: on a network file system a node may not list
    those of another yet. Called on all processes.
    """
    having = gather(sorted(here))
    mine = []
    for number, name in enumerate(sorted({name for names in having for name in names})):
        able = [process for process, names in enumerate(having) if name in names]
        if able[number % len(able)] == rank():
            mine.append(name)
    return mine


def gather(value: Any) -> list[Any]:
    """``value`` of every process, by rank. Called on all of them."""
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def most(value: int, device: torch.device) -> int:
    """The largest ``value`` of all processes: one small reduction, cheap enough for every step."""
    if not several():
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def of_first(value: Any) -> Any:
    """``value`` of the first process, on all of them."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails in the block on one process fails on all, so that none waits for another.

    The error is said by the first process that has one: on the others it has ``told`` set.

    Raises:
        PatchtrainError: on the processes where the block itself succeeded.
    """
    error: BaseException | None = None
    try:
        yield
    except CheckpointException as wrapped:
        # All processes raise it, a BaseException, with the errors of those that have one.
        error = wrapped.failures[rank()][0] if rank() in wrapped.failures else None
    except Exception as raised:
        error = raised
    try:
        failures = gather(None if error is None else _in_words(error))
    except Exception as lost:  # another process is gone meanwhile; what went wrong here comes first
        raise error or lost from None
    first = next((process for process, failure in enumerate(failures) if failure), None)
    if first is None:
        return
    if error is None:
        reason, code = failures[first]
        error = PatchtrainError(f"process {first} failed: {reason}")
        error.exit_code = code
    error.told = first != rank()  # type: ignore[attr-defined]
    raise error


def part() -> None:
    """Leave the other processes, at the end of a run that went well.

    What still connects them when the interpreter ends can abort it (a thread of gloo's that nobody
    has joined), and a whole run would look like a failed one.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def same_on_all(error: PatchtrainError) -> PatchtrainError:
    """``error``, which every process is about to raise: said by the first one alone."""
    error.told = rank() > 0  # type: ignore[attr-defined]
    return error


def _in_words(error: BaseException) -> tuple[str, int]:
    """What went wrong, and the exit code."""
    name = "" if isinstance(error, PatchtrainError) else f"{type(error).__name__}: "
    return f"{name}{error}", getattr(error, "exit_code", 1)


# Seconds for another node to see a file: network file systems take their time.
SEEN_WITHIN = 10.0


def check_shared(run: Path) -> None:
    """Make sure that all processes see the run folder of the first one. Called on all of them.

    Each reads a word that the first one leaves there. The nodes of a run write their parts of a
    checkpoint into one folder; where each has a disk of its own, nobody would have a whole one.

    Raises:
        PatchtrainError: naming the hosts that do not see it.
    """
    if not several():
        return
    name, word = of_first((f".seen-{secrets.token_hex(8)}", secrets.token_hex(16)))
    token = run / name
    with together():
        if rank() == 0:
            run.mkdir(parents=True, exist_ok=True)
            token.write_text(word, encoding="utf-8")
    try:
        seen = gather((platform.node(), _reads(token, word)))
    finally:
        if rank() == 0:
            token.unlink(missing_ok=True)
    blind = [f"{host} (process {process})" for process, (host, sees) in enumerate(seen) if not sees]
    if blind:
        raise same_on_all(
            PatchtrainError(
                f"the run folder {run} is not on a file system that all nodes share: what "
                f"{seen[0][0]} (process 0) writes there is not seen by {', '.join(blind[:8])}"
                f"{' and others' if len(blind) > 8 else ''}; choose a shared one with out=FOLDER"
            )
        )


def _reads(file: Path, word: str) -> bool:
    until = time.monotonic() + SEEN_WITHIN
    while True:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if file.read_text(encoding="utf-8") == word:
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


_ending_together = False


@contextlib.contextmanager
def ending_with_the_others(run: Path) -> Iterator[None]:
    """Make a failure in the block end all processes, with one message for all.

    The first process to fail leaves ``RUN/failure.json`` and says why. The others lose contact with
    it, find the file, and end without a word of their own (``told`` is set on their errors). Where
    the first one was killed and could not speak, the first to miss it does. A block within a block
    does nothing.

    Raises:
        PatchtrainError: in place of the error of a collective whose other side is gone; or the
            processes do not share ``run`` (``check_shared``).
    """
    global _ending_together
    if not several() or _ending_together:
        yield
        return
    check_shared(run)
    with together():
        if rank() == 0:
            RunFolder(run).failure_file.unlink(missing_ok=True)
    _ending_together = True
    try:
        yield
    except StoppedBySignalError as stopped:  # on all of them
        stopped.told = rank() > 0  # type: ignore[attr-defined]
        raise
    except BaseException as error:
        raised, cause = error, error.__cause__
        if _lost_contact(error):
            raised, cause = (
                PatchtrainError(
                    f"another process of this run is gone, so process {rank()} cannot go on; its "
                    f"own messages, if it had any, say why; go on with --resume"
                ),
                error,
            )
        told = getattr(raised, "told", None)
        if not told:
            first = _first_to_fail(run, str(raised) or type(raised).__name__)
            raised.told = not first if told is None else told  # type: ignore[attr-defined]
        raise raised from cause
    finally:
        _ending_together = False


def _lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because a peer went away."""
    if isinstance(error, PatchtrainError | OSError):
        return False
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def _first_to_fail(run: Path, message: str) -> bool:
    """Leave ``RUN/failure.json``; False where another process has left one already."""
    entry = {
        "process": rank(),
        "host": platform.node(),
        "pid": os.getpid(),
        "error": message,
    }
    try:
        with RunFolder(run).failure_file.open("x", encoding="utf-8") as file:
            file.write(json.dumps(entry, indent=2) + "\n")
    except FileExistsError:
        return False
    except OSError:  # the disk may be what failed
        return True
    return True
