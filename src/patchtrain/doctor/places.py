"""The folder that runs go to: room, speed, locks, memory maps; and where models come from."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from patchtrain.data import hub
from patchtrain.doctor.finding import Finding
from patchtrain.errors import one_line
from patchtrain.files import HeldError, locked, sync

_WRITTEN = 64 * 2**20
_LITTLE_ROOM, _NO_ROOM = 5 * 10**9, 200 * 10**6
_SLOW_DISK = 50e6  # bytes a second; a checkpoint of a small model then takes some seconds
_SETTINGS = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF",
             "PYTORCH_CUDA_ALLOC_CONF", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE",
             "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")  # fmt: skip


def run_folder(folder: Path) -> Iterator[Finding]:
    """Room, and then what becomes of a file there, which is deleted again."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    yield _room(there)
    try:
        with tempfile.TemporaryDirectory(prefix=".patchtrain-doctor-", dir=there) as name:
            yield _speed(Path(name))
            yield _locks(Path(name))
            yield _memory_map(Path(name))
    except OSError as error:
        why = one_line(error.strerror or error)
        yield Finding("writing", "broken", f"{there} cannot be written to: {why}",
                      "name another folder with --dir")  # fmt: skip


def model_cache() -> Finding:
    """Where models and datasets by name come from: the hub, or only what was loaded before."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    text = f"cache {cache}"
    if hub.offline():
        return Finding("hub", "ok", f"offline, as HF_HUB_OFFLINE or the like says; only what is in "
                       f"the {text} can be named")  # fmt: skip
    if not hub.reachable():
        return Finding(
            "hub", "absent", f"the Hugging Face Hub cannot be reached; {text}",
            "name models and datasets by folder, or set HF_HUB_OFFLINE=1 to use the cache at once",
        )  # fmt: skip
    return Finding("hub", "ok", f"the Hugging Face Hub can be reached; {text}")


def settings() -> Finding:
    """Variables of the environment that change how a run goes."""
    found = {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}
    text = ", ".join(f"{name}={one_line(value, 80)}" for name, value in found.items())
    return Finding("environment", "ok", text or "nothing set that changes a run", data=dict(found))


def _room(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{folder} has {free / 1e9:.1f} GB free"
    todo = "a run keeps two checkpoints, of 12 to 16 bytes a parameter each; free some space"
    if free < _NO_ROOM:
        return Finding("disk", "broken", text, todo, {"free": free})
    if free < _LITTLE_ROOM:
        return Finding("disk", "slow", f"{text}, which is little", todo, {"free": free})
    return Finding("disk", "ok", text, data={"free": free})


def _speed(folder: Path) -> Finding:
    """A file, written down to the disk as checkpoints are, and renamed."""
    block = os.urandom(2**20)  # some file systems compress
    begun = time.perf_counter()
    with (folder / "partial").open("wb") as file:
        for _ in range(_WRITTEN // len(block)):
            file.write(block)
    sync(folder / "partial")
    (folder / "partial").rename(folder / "whole")
    sync(folder)
    rate = _WRITTEN / (time.perf_counter() - begun)
    text = f"{rate / 1e6:,.0f} MB/s down to the disk (measured)"
    data = {"bytes_per_s": rate}
    if rate < _SLOW_DISK:
        return Finding("writing", "slow", f"{text}: checkpoints take long",
                       "name a local disk with --dir, or save less often", data)  # fmt: skip
    return Finding("writing", "ok", text, data=data)


def _locks(folder: Path) -> Finding:
    """Whether a lock keeps a second one out, as between two processes."""
    try:
        with locked(folder / "lock"), locked(folder / "lock"):
            pass
    except HeldError:
        return Finding("file locks", "ok", "work: no two processes can write one run")
    return Finding("file locks", "slow", "do not work here: two processes could write one run",
                   "start each run once, or name a local disk")  # fmt: skip


def _memory_map(folder: Path) -> Finding:
    """Token stores are read this way, without being loaded."""
    import numpy as np

    try:
        written = np.arange(1000, dtype=np.uint16)
        written.tofile(folder / "tokens")
        same = bool((np.memmap(folder / "tokens", dtype=np.uint16, mode="r") == written).all())
    except (OSError, ValueError) as error:
        same, why = False, f": {one_line(error)}"
    else:
        why = ": other bytes are read than were written"
    if same:
        return Finding("memory map", "ok", "works: token stores are read without being loaded")
    return Finding("memory map", "broken", f"does not work here{why}",
                   "put token stores on another disk")  # fmt: skip
