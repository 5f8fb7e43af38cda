"""Two machines for a test, as far as one machine can be two.

Each has a network of its own with one cable between them, a host name and an address; what it
shares with the other is the disk. Where that is not permitted (not root, or not Linux), the test is
skipped.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT = 240.0  # seconds
_numbers = itertools.count()
# On a machine with mounts of its own: its name, and a file that knows both names.
_ENTER = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'


@dataclass
class Machines:
    """Names of two machines, and how to start a command on one."""

    names: list[str]
    addresses: list[str]
    prefixes: list[list[str]]  # of a command on each
    folder: Path
    running: list[subprocess.Popen] = field(default_factory=list)

    def start(self, machine: int, command: list[str], log: str, **environment: str) -> Started:
        """Start ``command`` on a machine; what it says goes to the file ``log``."""
        return self.run([*self.prefixes[machine], *command], self.folder / log, environment)

    def run(self, command: list[str], log: Path, environment: dict[str, str]) -> Started:
        """Start a command on what both are made of."""
        with log.open("a") as file:
            process = subprocess.Popen(
                command,
                env={**surroundings(), **environment},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return Started(process, log)


@dataclass
class Started:
    """A command on a machine."""

    process: subprocess.Popen
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self) -> int:
        return self.process.wait(LIMIT)

    def lose(self) -> None:
        """Kill everything that runs there: the launcher and what it has started."""
        for process in [self.process.pid, *children(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def surroundings() -> dict[str, str]:
    """The environment of a command: this interpreter's commands first, one thread."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    python = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": paths, "PYTHONPATH": python, "OMP_NUM_THREADS": "1"}


def children(process: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, file.read_text().split()):
            found += [child, *children(child)]
    return found


def until(happened: Callable[[], bool], *running: Started) -> None:
    """Wait for something, as long as those it is expected of still run."""
    end = time.monotonic() + LIMIT
    while not happened():
        for one in running:
            assert one.process.poll() is None, one.said
        assert time.monotonic() < end, [one.said for one in running]
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def two_machines(folder: Path) -> Iterator[Machines]:
    """Two machines that are gone after the block, with all that runs on them."""
    number = f"{os.getpid() % 100_000}-{next(_numbers)}"
    spaces = [f"patchtrain-{number}-{end}" for end in "ab"]
    made = _connect(spaces, [f"pt{number}{end}" for end in "ab"])
    names = ["node-a", "node-b"]
    hosts = folder / "hosts"
    lines = ["127.0.0.1 localhost", f"{_ADDRESSES[0]} node-a", f"{_ADDRESSES[1]} node-b"]
    hosts.write_text("\n".join(lines) + "\n")
    prefixes = [
        ["ip", "netns", "exec", space, "unshare", "--uts", "--mount",
         "sh", "-c", _ENTER, name, str(hosts)]
        for space, name in zip(spaces, names, strict=True)
    ]  # fmt: skip
    made = made and all(_quiet([*prefix, "true"]) for prefix in prefixes)
    machines = Machines(names, list(_ADDRESSES), prefixes, folder)
    try:
        if not made:
            pytest.skip("network namespaces need root on Linux, with ip, unshare and mount")
        yield machines
    finally:
        for process in machines.running:
            if process.poll() is None:
                Started(process, folder).lose()
        for space in spaces:
            _quiet(["ip", "netns", "delete", space])


_ADDRESSES = ("10.213.7.1", "10.213.7.2")


def _connect(spaces: list[str], ends: list[str]) -> bool:
    """Make two network namespaces with a cable between them; False where that is not permitted."""
    if sys.platform != "linux" or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return False
    commands = [["ip", "netns", "add", space] for space in spaces]
    commands += [["ip", "link", "add", ends[0], "netns", spaces[0], "type", "veth",
                  "peer", "name", ends[1], "netns", spaces[1]]]  # fmt: skip
    for space, end, address in zip(spaces, ends, _ADDRESSES, strict=True):
        inside = ["ip", "-n", space]
        commands += [
            [*inside, "address", "add", f"{address}/24", "dev", end],
            [*inside, "link", "set", end, "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    return all(_quiet(command) for command in commands)


def _quiet(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
