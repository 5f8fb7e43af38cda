"""Cores and memory, on made-up machines."""

import platform
from pathlib import Path

import pytest

from patchtrain.machine import Cores, cores, cpu_model, cpu_vendor, memory, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Fast   Chip 9000\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:    9000000 kB\nHugePages: 0\n",
}
VERSION_2 = {
    "proc/self/cgroup": "0::/jobs/mine\n",
    "sys/fs/cgroup/jobs/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/jobs/mine/cpu.max": "max 100000\n",
    "sys/fs/cgroup/jobs/memory.max": "max\n",
    "sys/fs/cgroup/jobs/mine/memory.max": "4000000000\n",
}
VERSION_1 = {
    "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
    "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4000000000\n",
}


@pytest.mark.parametrize("groups", [VERSION_1, VERSION_2])
def test_a_container_may_use_what_its_groups_allow(tmp_path: Path, groups: dict[str, str]) -> None:
    root = write(tmp_path, {**MACHINE, **groups})
    found = cores(root)
    assert found.quota == 1.5
    assert found.usable == min(2, found.allowed)
    room = memory(root)
    assert room is not None
    assert (room.total, room.limit, room.usable) == (16_384_000_000, 4 * 10**9, 4 * 10**9)
    assert room.available == 4 * 10**9
    assert cpu_model(root) == "Fast Chip 9000"


def test_a_machine_without_groups_is_used_whole(tmp_path: Path) -> None:
    found, room = cores(write(tmp_path, MACHINE)), memory(tmp_path)
    assert found.quota is None
    assert found.usable == found.allowed <= found.total
    assert room is not None
    assert (room.limit, room.usable) == (None, room.total)
    assert cpu_model(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("cpuinfo", "processor", "vendor"),
    [
        ("vendor_id\t: AuthenticAMD\nmodel name\t: Fast Chip\n", "", "AuthenticAMD"),
        ("", "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AuthenticAMD"),
        ("CPU implementer\t: 0x41\n", "arm", None),
    ],
)
def test_who_made_the_processor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpuinfo: str,
    processor: str,
    vendor: str | None,
) -> None:
    monkeypatch.setattr(platform, "processor", lambda: processor)
    assert cpu_vendor(write(tmp_path, {"proc/cpuinfo": cpuinfo})) == vendor


def test_there_is_always_one_core() -> None:
    assert Cores(8, 8, 0.1).usable == 1
    assert Cores(8, 3, 5.0).usable == 3
    assert usable_cores() >= 1
