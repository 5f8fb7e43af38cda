"""Several nodes are one run too, also when one of them is lost and comes back."""

import sys
from pathlib import Path

import pytest

from patchtrain.runs import RunFolder
from tests.training.machines import Started, free_port, two_machines, until
from tests.training.test_processes import Runs, make_recipe, rows, same_model

LONG = ("plan.steps=60", "training.save_steps=5", "training.eval_steps=30")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_recipe(tmp_path_factory.mktemp("nodes")))


def test_a_lost_node_comes_back_and_the_run_goes_on(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with two_machines(tmp_path) as machines:
        endpoint = f"{machines.names[0]}:{free_port()}"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
            "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=lost",
            f"--rdzv-endpoint={endpoint}",
            "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=3",
            "-m", "patchtrain", "train", str(runs.recipe), "--quiet", "--resume=auto",
            f"out={out}", *LONG,
        ]  # fmt: skip

        def start(machine: int, log: str) -> Started:
            return machines.start(machine, command, log, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")

        stays, lost = start(0, "a.txt"), start(1, "b.txt")
        until((out / "checkpoint-5").is_dir, stays, lost)
        lost.lose()
        until(lambda: "another process of this run is gone" in stays.said, stays)
        back = start(1, "back.txt")
        assert [back.wait(), stays.wait()] == [0, 0], stays.said + back.said
    same_as_unbroken(runs, RunFolder(out), 5)
    assert stays.said.count("patchtrain: error:") == 1, stays.said


def same_as_unbroken(runs: Runs, folder: RunFolder, step: int | None, *overrides: str) -> None:
    """A run that was resumed once, at ``step`` or later (None: never), ends as an unbroken one."""
    expected, _ = runs.whole(1, *LONG, *overrides)
    assert folder.info()["status"] == "finished"
    resumed = [again["step"] for again in folder.info().get("resumed", [])]
    assert [again >= (step or 0) for again in resumed] == ([] if step is None else [True])
    names = ("step", "loss", "grad_norm")
    assert rows(folder, "train", *names) == pytest.approx(rows(expected, "train", *names), rel=1e-4)
    same_model(folder.model, expected.model)
    assert not list(folder.path.glob(".*partial*"))
