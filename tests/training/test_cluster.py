"""The recipes for clusters are whole, and their own commands train on two nodes.

What a cluster does is played: Slurm's commands are small scripts on the PATH, SkyPilot and
Kubeflow's operator are the variables they set. Slurm's first job runs with real launchers on two
machines. The other commands are run up to torchrun, whose own parser says what it would start.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch.distributed.run
import yaml

from patchtrain.runs import RunFolder
from tests.training.machines import ROOT, Machines, Started, surroundings, two_machines, until
from tests.training.several import Ended, run
from tests.training.test_nodes import LONG, same_as_unbroken
from tests.training.test_processes import Runs, make_recipe, same_run

CLUSTER = ROOT / "recipes" / "cluster"
SBATCH = CLUSTER / "slurm.sbatch"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_recipe(tmp_path_factory.mktemp("cluster")))


def command(folder: Path, name: str, text: str) -> None:
    """Put a command into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


class Slurm:
    """A cluster of two machines: the commands of Slurm that the script uses."""

    def __init__(self, machines: Machines, folder: Path) -> None:
        self.machines, self.folder = machines, folder
        folder.mkdir()
        nodes = "".join(
            f'{shlex.join(prefix)} "$@" & echo $! >> {folder}/steps\n'
            for prefix in machines.prefixes
        )
        names = " ".join(machines.names)
        self._command(
            "srun",
            f"while [[ $1 == --* ]]; do echo $1 >> {folder}/options; shift; done\n"
            f"code=0; rm -f {folder}/steps\n{nodes}"
            f"for step in $(cat {folder}/steps); do wait $step || code=$?; done\nexit $code",
        )
        self._command(
            "scontrol",
            f'case "$1 $2" in\n"show hostnames") printf "%s\\n" {names};;\n'
            f'"requeue 4242") echo requeued >> {folder}/requeued;;\n*) exit 1;;\nesac',
        )
        self._command(
            "scancel",
            f'[[ "$*" == "--signal=TERM 4242" ]] || exit 1\nkill -TERM $(cat {folder}/steps)',
        )

    def only_write_down(self) -> None:
        """From now on ``srun`` starts nothing and writes its words to the file ``torchrun``."""
        self._command(
            "srun",
            "while [[ $1 == --* ]]; do shift; done\n"
            f"printf '%s\\0' \"$@\" > {self.folder}/torchrun",
        )

    def _command(self, name: str, text: str) -> None:
        command(self.folder, name, text)

    def start(self, words: list[str], restarts: int) -> Started:
        """What Slurm does with a batch script: it starts it on the first node."""
        environment = {
            "PATH": f"{self.folder}{os.pathsep}{surroundings()['PATH']}",
            "SLURM_JOB_ID": "4242",
            "SLURM_JOB_NODELIST": "node-[a-b]",
            "SLURM_JOB_NUM_NODES": "2",
            **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        }
        log = self.folder / f"job-{restarts}.txt"
        return self.machines.run(["bash", str(SBATCH), *words], log, environment)

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def test_slurm_saves_before_the_limit_and_goes_on_in_the_next_job(
    runs: Runs, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = [str(runs.recipe), "--quiet", f"out={out}", *LONG, "training.save_steps=1000"]
    with two_machines(tmp_path) as machines:
        slurm = Slurm(machines, tmp_path / "slurm")
        job = slurm.start(words, 0)
        until(lambda: steps_done(out) > 2, job)
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait() != 0
        assert "stopped by SIGTERM after step" in job.said, job.said
        assert "the run is saved and the job is queued again" in job.said
        assert job.said.count("patchtrain: error:") == 1, job.said
        assert slurm.requeued
        (slurm.folder / "requeued").unlink()
        slurm.only_write_down()
        job = slurm.start(words, 1)
        assert job.wait() == 0, job.said
        assert not slurm.requeued
        parsed = torchrun((tmp_path / "slurm" / "torchrun").read_text().split("\0")[:-1])
    assert (parsed.rdzv_id, parsed.rdzv_endpoint) == ("4242-1", f"{machines.names[0]}:24242")
    _, ended = trained(runs, [parsed, parsed], out)
    assert ended.codes == [0, 0], ended.said
    same_as_unbroken(runs, RunFolder(out), 3, "training.save_steps=1000")


def test_the_slurm_script_is_one() -> None:
    assert subprocess.run(["bash", "-n", SBATCH], check=False).returncode == 0
    asked = [line for line in SBATCH.read_text().splitlines() if line.startswith("#SBATCH ")]
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in asked)
    assert options == {
        "job-name": "patchtrain", "nodes": "2", "gpus-per-node": "8", "cpus-per-task": "64",
        "time": "24:00:00", "output": "%x-%j.out", "ntasks-per-node": "1", "requeue": "",
        "open-mode": "append", "signal": "B:USR1@600",
    }  # fmt: skip
    # Slurm reads them up to the first command.
    text = SBATCH.read_text()
    assert text.rindex("#SBATCH") < text.index("\nset -uo pipefail")
    # srun does not take it over by itself.
    assert "export SRUN_CPUS_PER_TASK" in text
    # torchrun must be done with its processes before Slurm is with the job.
    assert "--shutdown-timeout 500" in text
    ended = subprocess.run(["bash", SBATCH], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.startswith("usage: sbatch")) == (2, True)


def skypilot() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    return found


def test_skypilot_runs_the_recipe_on_two_nodes(runs: Runs, tmp_path: Path) -> None:
    task, out = skypilot(), tmp_path / "run"
    bin_folder = tmp_path / "patchtrain" / "bin"
    command(bin_folder, "torchrun", "printf '%s\\0' torchrun \"$@\" > $HOME/$SKYPILOT_NODE_RANK")
    parsed = []
    for node in range(2):
        environment = {
            **os.environ,
            **task["envs"],
            "HOME": str(tmp_path),
            "RECIPE": str(runs.recipe),
            "STORE": str(runs.recipe.parent / "store"),
            "RUN": str(out),
            "WORDS": "--quiet plan.warmup_steps=1",
            "SKYPILOT_NODE_RANK": str(node),
            "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5",
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NUM_GPUS_PER_NODE": "2",
            "SKYPILOT_TASK_ID": "sky-managed-2026-01-01-00-00-00-000000_patchtrain_1-0",
        }
        subprocess.run(["bash", "-c", task["run"]], env=environment, check=True)
        parsed.append(torchrun((tmp_path / str(node)).read_text().split("\0")[:-1]))
    assert [one.local_addr for one in parsed] == ["10.0.0.4", "10.0.0.5"]
    assert [one.rdzv_conf for one in parsed] == ["is_host=true", "is_host=false"]
    assert {one.rdzv_endpoint for one in parsed} == {"10.0.0.4:29400"}
    same_run(trained(runs, parsed, out), runs.whole(1))


def torchrun(words: list[str]) -> argparse.Namespace:
    """What torchrun would do with its words, as its own parser has it."""
    assert words.pop(0) == "torchrun"
    parsed = torch.distributed.run.parse_args(words)
    assert (parsed.module, parsed.training_script) == (True, "patchtrain")
    assert parsed.training_script_args[0] == "train"
    assert parsed.max_restarts == 3
    assert parsed.rdzv_backend == "c10d"
    return parsed


def trained(runs: Runs, nodes: list[argparse.Namespace], out: Path) -> tuple[RunFolder, Ended]:
    """The processes that the torchruns of two nodes would start, to the end."""
    first, second = nodes
    assert first.nnodes == second.nnodes == "2"
    assert first.nproc_per_node == second.nproc_per_node
    assert first.training_script_args == second.training_script_args
    count = 2 * int(first.nproc_per_node)
    return RunFolder(out), run(count, first.training_script_args, out.parent / "said", nodes=2)


def kubernetes() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "pytorchjob.yaml").read_text())
    return found


def test_the_pytorchjob_runs_the_recipe_on_two_nodes(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator gives torchrun what is in the job's ``elasticPolicy`` as PET_* variables."""
    spec, out = kubernetes()["spec"], tmp_path / "run"
    elastic = spec["elasticPolicy"]
    for name, value in {
        "RDZV_BACKEND": elastic["rdzvBackend"],
        "RDZV_ENDPOINT": "patchtrain-worker-0:23456",
        "RDZV_ID": "patchtrain",
        "NPROC_PER_NODE": "2",
        "NNODES": f"{elastic['minReplicas']}:{elastic['maxReplicas']}",
        "MAX_RESTARTS": str(elastic["maxRestarts"]),
    }.items():
        monkeypatch.setenv(f"PET_{name}", value)
    (container,) = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"]
    parsed = torchrun([*container["command"], *container["args"]])
    assert parsed.nnodes == "2:2"
    assert parsed.shutdown_timeout == 500
    parsed.nnodes = "2"
    words = parsed.training_script_args
    assert words[2:] == [
        "recipes/small.yaml",
        "store=/shared/stores/text",
        "out=/shared/runs/small",
    ]
    store = runs.recipe.parent / "store"
    words[2:] = [str(runs.recipe), f"store={store}", f"out={out}", "--quiet"]
    same_run(trained(runs, [parsed, parsed], out), runs.whole(1))


def test_the_pytorchjob_is_one() -> None:
    job = kubernetes()
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["metadata"]["name"] == "patchtrain"
    spec = job["spec"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    elastic = spec["elasticPolicy"]
    assert worker["replicas"] == elastic["minReplicas"] == elastic["maxReplicas"]
    assert worker["restartPolicy"] == "OnFailure"
    assert spec["runPolicy"]["backoffLimit"] > 0
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch"  # the operator knows it by this name
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == spec["nprocPerNode"]
    assert pod["terminationGracePeriodSeconds"] > 500
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_skypilot_task_is_one() -> None:
    task = skypilot()
    assert task.keys() == {
        "name", "num_nodes", "resources", "envs", "volumes", "workdir", "setup", "run",
    }  # fmt: skip
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert all(isinstance(value, str) for value in task["envs"].values())
    for part in ("setup", "run"):
        check = subprocess.run(["bash", "-n"], input=task[part], text=True, check=False)
        assert check.returncode == 0
    shared = next(iter(task["volumes"]))
    assert task["envs"]["STORE"].startswith(f"{shared}/")
    assert task["envs"]["RUN"].startswith(f"{shared}/")
