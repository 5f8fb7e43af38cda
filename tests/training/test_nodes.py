"""Several nodes are one run too, also when one of them is lost and comes back."""

import sys
from pathlib import Path

import pytest

from patchtrain.runs import RunFolder
from tests.training.machines import Started, free_port, two_machines, until
from tests.training.test_processes import Runs, make_recipe, rows, same_model

LONG = ("plan.steps=40", "training.save_steps=5", "training.eval_steps=20")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_recipe(tmp_path_factory.mktemp("nodes")))


def test_a_lost_node_comes_back_and_the_run_goes_on(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with two_machines(tmp_path) as machines:
        port = free_port()

        def start(machine: int, log: str) -> Started:
            return machines.start(
                machine,
                [sys.executable, "-m", "torch.distributed.run",
                 "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3",
                 "--rdzv-backend=c10d", "--rdzv-id=lost", f"--rdzv-endpoint={machines.names[0]}:{port}",
                 "--rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=2",
                 "-m", "patchtrain", "train", str(runs.recipe), "--quiet", "--resume=auto",
                 f"out={out}", *LONG],
                log,
            )  # fmt: skip

        stays, lost = start(0, "a.txt"), start(1, "b.txt")
        until((out / "checkpoint-5").is_dir, stays, lost)
        lost.lose()
        until(lambda: "another process of this run is gone" in stays.said, stays)
        back = start(1, "back.txt")
        assert [back.wait(), stays.wait()] == [0, 0], stays.said + back.said
    same_as_unbroken(runs, RunFolder(out), 5)
    assert stays.said.count("patchtrain: error:") == 1, stays.said


def same_as_unbroken(runs: Runs, folder: RunFolder, step: int) -> None:
    """A run that was resumed at ``step`` or later ends as one of one process does."""
    expected, _ = runs.whole(1, *LONG)
    assert folder.info()["status"] == "finished"
    assert [again["step"] >= step for again in folder.info()["resumed"]] == [True]
    names = ("step", "loss", "grad_norm")
    assert rows(folder, "train", *names) == pytest.approx(rows(expected, "train", *names), rel=1e-4)
    same_model(folder.model, expected.model)
    assert not list(folder.path.glob(".*partial*"))
