"""The doctor on this machine, and on machines where something is missing."""

import errno
import json
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchtrain import machine
from patchtrain.cli.main import main
from patchtrain.doctor import devices, packages, places, speed, training
from patchtrain.doctor.finding import Finding, verdict
from patchtrain.doctor.speed import Rates
from patchtrain.evaluation import throughput
from patchtrain.loss_backends import LOSSES
from patchtrain.machine import Cores, Memory

AREAS = ["versions", "devices", "training", "speed", "places"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtrain.data.hub.reachable", lambda: False)


def test_this_machine_from_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.01)
    monkeypatch.setitem(throughput.MATRIX_SIDE, "cpu", 64)
    words = ["doctor", "--dir", str(tmp_path / "runs" / "mine")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["verdict", *AREAS]
    assert found["verdict"] in ("ok", "slow")
    by_name = {entry["name"]: entry for area in AREAS for entry in found[area]}
    assert by_name["packages"]["data"]["torch"] == metadata.version("torch")
    assert by_name["patch loss"]["data"]["chosen"] == "chunked"
    assert by_name["file locks"]["status"] == by_name["memory map"]["status"] == "ok"
    assert by_name["fp32"]["data"]["all"]["fp32"] > 0
    assert list(tmp_path.iterdir()) == []  # what it wrote is gone
    assert main([*words, "--no-measure"]) == 0
    printed = capsys.readouterr().out
    assert "speed" not in printed.splitlines()
    assert printed.splitlines()[0] == "versions"
    assert "  ok      patch loss        chunked (" in printed


def test_something_broken_is_told_with_what_to_do_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        if name == "tokenizers":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "transformers" else there(name)

    there = metadata.version
    monkeypatch.setattr(metadata, "version", missing)
    assert main(["doctor", "--dir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "tokenizers is missing" in printed
    assert "transformers is 0.1 and must be " in printed
    assert "-> pip install --upgrade patchtrain" in printed
    assert "\nbroken: packages\n" in printed


def test_extras_that_are_missing_name_their_pip_line() -> None:
    requirements = [
        "torch>=2", 'lm-eval>=0.4; extra == "eval"', 'ruff; extra == "dev"',
        'uvloop; extra == "fast" and python_version < "3"', 'colour; python_version < "3"',
    ]  # fmt: skip

    def version(name: str) -> str:
        if name != "torch":
            raise metadata.PackageNotFoundError(name)
        return "2.13.0+cpu"

    _, needed, *extras = packages.python_and_packages(version, requirements)
    assert (needed.status, needed.text) == ("ok", "torch 2.13.0+cpu")
    assert [(one.name, one.status, one.todo) for one in extras] == [
        ("extra eval", "absent", "pip install 'patchtrain[eval]'")
    ]
    _, unknown = packages.python_and_packages(version, [])
    assert unknown.status == "absent"


def fake_torch(**values: Any) -> Any:
    """What the doctor asks of torch, on a machine with one A100."""
    there = SimpleNamespace(is_available=lambda: True)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda index: SimpleNamespace(name="NVIDIA A100-SXM4-80GB"),
        get_device_capability=lambda index: (8, 0),
        mem_get_info=lambda index: (80 * 10**9, 85 * 10**9),
        is_bf16_supported=lambda including_emulation: True,
    )
    for name, value in values.items():
        setattr(cuda, name, value)
    cpu = SimpleNamespace(get_cpu_capability=lambda: "AVX512")
    backends = SimpleNamespace(mkl=there, mkldnn=there, openmp=there, cpu=cpu,
                               mps=SimpleNamespace(is_available=lambda: False))  # fmt: skip
    version = SimpleNamespace(cuda="12.8", hip=None)
    return SimpleNamespace(__version__="2.13.0", version=version, backends=backends, cuda=cuda)


def test_a_gpu_is_described(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("NVRM version: NVIDIA Module  550.54.15  Tue\n")
    (found,) = devices.accelerators(fake_torch(), tmp_path / "version")
    assert found.status == "ok"
    for words in ("A100", "85.0 GB", "capability 8.0", "bf16 yes", "550.54.15", "--device a100"):
        assert words in found.text
    assert packages.torch_build(fake_torch()).text.startswith("2.13.0, built for CUDA 12.8; MKL")


def broken_driver() -> bool:
    raise RuntimeError("The NVIDIA driver on your system is too old")


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({"is_bf16_supported": lambda including_emulation: False}, "slow", "bf16 no"),
        ({"mem_get_info": lambda index: (10**9, 85 * 10**9)}, "slow", "another process"),
        ({"is_available": lambda: False}, "slow", "none that torch can use"),
        ({"is_available": broken_driver}, "broken", "too old"),
    ],
)
def test_gpus_that_are_not_well(values: dict[str, Any], status: str, words: str) -> None:
    (found,) = devices.accelerators(fake_torch(**values))
    assert found.status == status
    assert words in found.text
    assert found.todo


def test_a_torch_that_cannot_use_the_gpu(tmp_path: Path) -> None:
    torch_of_cpu = fake_torch()
    torch_of_cpu.version.cuda = None
    (tmp_path / "version").touch()
    found = packages.torch_build(torch_of_cpu, tmp_path / "version")
    assert (found.status, found.todo) == (
        "slow", "install a CUDA build: https://pytorch.org/get-started"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "threads", "status", "words"),
    [
        (Cores(8, 8, None), 8, "ok", "8 of 8"),
        (Cores(8, 8, 2.0), 8, "slow", "torch starts 8 threads"),
        (Cores(8, 4, None), 1, "slow", "held to 1 thread"),
    ],
)
def test_threads_that_do_not_fit_the_cores(
    found: Cores, threads: int, status: str, words: str
) -> None:
    told = devices.processor(threads, found, "Chip")
    assert told.status == status
    assert words in told.text
    assert status == "ok" or f"OMP_NUM_THREADS={found.usable}" in told.todo


def test_memory_by_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.main_memory(Memory(16 * 10**9, None, 9 * 10**9)).status == "ok"
    told = devices.main_memory(Memory(16 * 10**9, 10**9, 10**9))
    assert told.status == "slow"
    assert "1.0 GB in this control group, of 16.0 GB" in told.text
    monkeypatch.setattr(machine, "memory", lambda: None)
    monkeypatch.setattr(devices, "memory", lambda: None)
    assert devices.main_memory().status == "absent"


def test_a_loss_backend_that_fails_its_check_is_not_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = training.losses("cpu", torch.float32)
    assert found.status == "ok"
    assert set(found.data["usable"]) >= {"chunked", "torch", "plain"}
    assert any(line.startswith("liger: it runs on a GPU") for line in found.data["unusable"])

    def wrong(states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return 2 * LOSSES["plain"](states, *args, **kwargs)

    monkeypatch.setitem(LOSSES, "chunked", wrong)
    with pytest.warns(UserWarning, match="taken from full logits"):
        (found,) = training.losses("cpu", torch.float32)
    assert (found.status, found.data["chosen"]) == ("slow", "plain")
    assert "chunked: it failed its check" in found.text


def test_attention_kernels_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "math" in training.attention("cpu", torch.float32).data["sdpa"]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no available kernel")

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail)
    assert training.attention("cpu", torch.float32).status == "broken"


def test_a_compiler_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    told = training.compiler()
    assert (told.status, "no-such-compiler" in told.text) == ("absent", True)
    bad = tmp_path / "cxx"
    bad.write_text("#!/bin/sh\necho 'Python.h: No such file' >&2\nexit 1\n")
    bad.chmod(0o755)
    monkeypatch.setenv("CXX", str(bad))
    told = training.compiler()
    assert "Python.h: No such file" in told.text
    assert "python3-dev" in told.todo
    bad.write_text("#!/bin/sh\nexit 0\n")
    assert training.compiler().status == "ok"


def usage(free: int) -> Any:
    return lambda path: SimpleNamespace(total=10**12, used=0, free=free)


@pytest.mark.parametrize(("free", "disk", "shm"), [
    (10**8, "broken", "slow"), (10**9, "slow", "ok"), (10**11, "ok", "ok"),
])  # fmt: skip
def test_room_on_disk_and_in_shared_memory(
    free: int, disk: str, shm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", usage(free))
    found = next(places.run_folder(tmp_path / "new" / "run"))
    assert found.status == disk
    assert str(tmp_path) in found.text
    assert training.shared_memory(tmp_path).status == shm
    monkeypatch.setattr("shutil.disk_usage", lambda path: Path("/no/such/place").stat())
    assert training.shared_memory().status == "absent"


def test_a_disk_that_is_slow_has_no_locks_and_maps_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def unlocked(path: Path) -> Any:
        yield None

    monkeypatch.setattr(places, "_SLOW_DISK", float("inf"))
    monkeypatch.setattr(places, "locked", unlocked)
    monkeypatch.setattr("numpy.memmap", lambda *args, **kwargs: 0)
    found = {one.name: one.status for one in places.run_folder(tmp_path)}
    found.pop("disk")
    assert found == {"writing": "slow", "file locks": "slow", "memory map": "broken"}


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    _, found = places.run_folder(tmp_path)
    assert found.status == "broken"
    assert "read-only file system" in found.text.lower()


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert "HF_HUB_OFFLINE=1" in places.model_cache().todo
    monkeypatch.setattr("patchtrain.data.hub.reachable", lambda: True)
    assert places.model_cache().status == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert places.model_cache().text.startswith("offline")
    assert places.settings().data["HF_HUB_OFFLINE"] == "1"


def judged(rates: Rates) -> dict[str, Finding]:
    return {found.name: found for found in speed.judged(rates)}


def test_what_is_fast_and_slow_follows_from_what_is_measured() -> None:
    half = {"fp32": 1e11, "bf16": 1e10}
    found = judged(Rates("cpu", 2, one=half, all=half))
    assert found["bf16"].status == "slow"
    assert "0.1 times fp32" in found["bf16"].text
    assert (found["threads"].status, found["fp32"].status) == ("slow", "ok")
    assert "1,667 tokens a second" in found["fp32"].text  # 1e11 / (6 * 1e7)
    both = {"fp32": 1.9e11, "bf16": 8e11}
    found = judged(Rates("cpu", 2, one=half, all=both))
    assert (found["threads"].status, found["bf16"].status) == ("ok", "ok")
    assert "training.bf16=true will be faster" in found["bf16"].text
    assert set(judged(Rates("cpu", 1, one=half, all=half))) == {"fp32", "bf16"}


def test_a_gpu_far_below_its_peak_is_slow() -> None:
    name = "NVIDIA A100-SXM4-80GB"
    fine = judged(Rates("cuda", 8, {}, {"fp32": 19e12, "bf16": 250e12}, name))["matrices"]
    assert (fine.status, "80%" in fine.text) == ("ok", True)
    shared = judged(Rates("cuda", 8, {}, {"fp32": 19e12, "bf16": 30e12}, name))["matrices"]
    assert shared.status == "slow"
    unknown = judged(Rates("cuda", 8, {}, {"fp32": 1e12, "bf16": 1e12}, "Some GPU"))["matrices"]
    assert (unknown.status, "peak" in unknown.text) == ("ok", False)


def test_measuring_leaves_the_threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    monkeypatch.setitem(throughput.MATRIX_SIDE, "cpu", 32)
    before, steps = torch.get_num_threads(), []
    rates = speed.measure("cpu", 2, steps.append)
    assert torch.get_num_threads() == before
    assert len(steps) == 4
    assert all(value > 0 for kind in (rates.one, rates.all) for value in kind.values())


def test_the_worst_is_the_verdict() -> None:
    def of(*statuses: Any) -> str:
        return verdict(Finding("x", status, "") for status in statuses)

    assert (of("ok", "absent"), of("ok", "slow"), of("slow", "broken")) == ("ok", "slow", "broken")
