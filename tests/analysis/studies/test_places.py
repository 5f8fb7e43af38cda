"""Where runs are trained: as many at a time as there are GPUs, each shown one of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from patchtrain.analysis.studies import places as module
from patchtrain.analysis.studies import runner
from patchtrain.analysis.studies.places import places, runs_at_a_time
from patchtrain.analysis.studies.runner import run_study
from patchtrain.data.prepare import prepare
from tests.analysis.studies.tiny import Pretended, tiny_study
from tests.cli.corpus import write_corpus

ANY: dict[str, Any] = {"training": {}}
ON_CPU: dict[str, Any] = {"training": {"use_cpu": True}}


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with three GPUs."""
    machine(monkeypatch, 3)


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool = False) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(module, "usable_cores", lambda: 5)


def shown(recipe: dict[str, Any], jobs: int) -> list[str | None]:
    return [place.get("CUDA_VISIBLE_DEVICES") for place in places(recipe, jobs)]


@pytest.mark.usefixtures("three")
def test_each_gpu_has_a_run() -> None:
    assert runs_at_a_time(ANY) == 3
    assert shown(ANY, 3) == ["0", "1", "2"]
    assert shown(ANY, 2) == ["0", "1"]
    assert shown(ANY, 5) == ["0", "1", "2", "0", "1"]


@pytest.mark.usefixtures("three")
def test_runs_that_stay_on_the_cpu_have_a_core_each() -> None:
    assert runs_at_a_time(ON_CPU) == 5
    assert shown(ON_CPU, 5) == [None] * 5


def test_of_gpus_that_were_chosen_only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 7")
    assert runs_at_a_time(ANY) == 2
    assert shown(ANY, 3) == ["GPU-a", "7", "GPU-a"]


@pytest.mark.parametrize(("mps", "jobs"), [(False, 5), (True, 1)])
def test_without_a_gpu_of_cuda(mps: bool, jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0, mps)
    assert runs_at_a_time(ANY) == jobs
    assert runs_at_a_time(ON_CPU) == 5
    assert shown(ANY, 2) == [None, None]


def test_a_run_that_ends_makes_place_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, 2)
    store = prepare([write_corpus(tmp_path / "text.txt")], tmp_path / "store",
                    train_tokenizer="byte").path  # fmt: skip
    going: list[str] = []
    given: list[str] = []

    class OnGpu(Pretended):
        """Ends when it is looked at a second time."""

        def __init__(self, command: list[str], log: Any, place: Any) -> None:
            super().__init__(command, log, place)
            self.place, self.looks = place["CUDA_VISIBLE_DEVICES"], 0
            assert self.place not in going
            going.append(self.place)
            given.append(self.place)

        def poll(self) -> Any:
            self.looks += 1
            if self.looks == 2:
                going.remove(self.place)
            return 0 if self.looks >= 2 else None

    monkeypatch.setattr(runner, "_popen", OnGpu)
    monkeypatch.setattr(runner.time, "sleep", lambda seconds: None)
    study = tiny_study(store, seeds=(0, 1, 2))
    study.recipe["training"]["use_cpu"] = False
    found = run_study(study, tmp_path / "study", quiet=True)
    assert found["complete"]
    assert sorted(given) == ["0"] * 3 + ["1"] * 3
