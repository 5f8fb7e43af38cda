"""Several nodes are one run too, also when one of them is lost and comes back."""

import re
from pathlib import Path

import pytest

from patchtrain.runs import RunFolder
from patchtrain.training.checkpoint import Checkpoint
from tests.training.machines import ROOT, Started, free_port, two_machines, until
from tests.training.test_processes import (
    Runs,
    files,
    launched,
    make_recipe,
    rows,
    same_model,
    same_run,
)

LONG = ("plan.steps=60", "training.save_steps=5", "training.eval_steps=30")


def documented(start: str) -> str:
    """The commands of the page on several nodes that have a line which begins so."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)\n```", page, re.DOTALL)
    (found,) = (block for block in blocks if f"\n{start}" in f"\n{block}")
    return str(found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_recipe(tmp_path_factory.mktemp("nodes")))


def test_a_lost_node_comes_back_and_the_run_goes_on(runs: Runs, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with two_machines(tmp_path) as machines:
        endpoint = f"{machines.names[0]}:{free_port()}"
        quick = "--rdzv-conf keep_alive_interval=1,keep_alive_max_attempt=3 -m patchtrain"
        command = documented("torchrun ").replace("FIRST-NODE:29400", endpoint)
        command = command.replace("-m patchtrain", quick).replace("per-node 8", "per-node 1")
        command = command.replace("recipes/small.yaml", str(runs.recipe))
        command += f" --quiet out={out} {' '.join(LONG)}"

        def start(machine: int, log: str) -> Started:
            return machines.start(machine, ["bash", "-c", command], log)

        stays, lost = start(0, "a.txt"), start(1, "b.txt")
        until((out / "checkpoint-5").is_dir, stays, lost)
        lost.lose()
        until(lambda: "another process of this run is gone" in stays.said, stays)
        back = start(1, "back.txt")
        assert [back.wait(), stays.wait()] == [0, 0], stays.said + back.said
    same_as_unbroken(runs, RunFolder(out), 5)
    assert stays.said.count("patchtrain: error:") == 1, stays.said


def test_accelerate_launch_on_two_machines_with_a_copy_on_each(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = documented("accelerate launch ").replace("num_processes 16", "num_processes 4")
    line = line.replace("--multi_gpu", "--use_fsdp --fsdp_version 2")
    lines = [line.replace("machine_rank 0", f"machine_rank {rank}") for rank in range(2)]
    both = [
        launched(*each.replace("\\\n", " ").split()[2:], monkeypatch=monkeypatch) for each in lines
    ]
    for rank, (args, environment) in enumerate(both):
        assert (int(args.nnodes), int(args.node_rank), int(args.nproc_per_node)) == (2, rank, 2)
        assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "FIRST-NODE:29500")
        assert environment == both[0][1]
    copies = "training.fsdp_replicas=nodes"
    found = runs.go("accelerate", 4, copies, environment=both[0][1], nodes=2)
    same_run(found, runs.whole(1))
    written = files(found[0].path / "checkpoint-2", "weights").values()
    (whole,) = files(runs.whole(1)[0].path / "checkpoint-2", "weights").values()
    for name, (size, *_) in whole.items():  # halved, and not in four
        assert sorted(of[name][0] for of in written if name in of) == [size // 2, size - size // 2]


def test_a_checkpoint_is_whole_where_a_node_does_not_list_what_others_just_wrote(
    runs: Runs,
) -> None:
    folder, ended = runs.go("stale", 2, "plan.steps=2", nodes=2, event=("stale listing", -1, -1))
    assert ended.codes == [0, 0], ended.said
    Checkpoint.at(folder.path / "checkpoint-2").verify()
    for part in ("weights", "optimizer"):
        assert len(files(folder.path / "checkpoint-2", part)) == 2


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
