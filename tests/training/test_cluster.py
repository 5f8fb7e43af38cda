"""The recipes for clusters are whole and run: their own commands, on two machines as far as these go.

What the cluster would do is played: Slurm's commands by small scripts on the PATH, the environment
of SkyPilot and of Kubeflow's operator by their variables.
"""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchtrain.runs import RunFolder
from tests.training.machines import ROOT, Machines, Started, surroundings, two_machines, until
from tests.training.test_nodes import LONG, same_as_unbroken
from tests.training.test_processes import Runs, make_recipe

CLUSTER = ROOT / "recipes" / "cluster"
SBATCH = CLUSTER / "slurm.sbatch"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_recipe(tmp_path_factory.mktemp("cluster")))


class Slurm:
    """A cluster of two machines: ``srun``, ``scontrol`` and ``scancel``, as the script uses them."""

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

    def _command(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (self.folder / name).chmod(0o755)

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
        process = subprocess.Popen(
            ["bash", str(SBATCH), *words],
            env={**surroundings(), **environment},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.machines.running.append(process)
        return Started(process, log)

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
        job = slurm.start(words, 1)
        assert job.wait() == 0, job.said
        assert not slurm.requeued
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
    # torchrun must be done with its processes before Slurm is with the job.
    assert "--shutdown-timeout 500" in text
    ended = subprocess.run(["bash", SBATCH], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.startswith("usage: sbatch")) == (2, True)


def skypilot() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    return found


def test_skypilot_runs_the_recipe_on_two_nodes(runs: Runs, tmp_path: Path) -> None:
    task, out = skypilot(), tmp_path / "run"
    common = {
        **task["envs"],
        "HOME": str(tmp_path),
        "RECIPE": str(runs.recipe),
        "STORE": str(runs.recipe.parent / "store"),
        "RUN": str(out),
        "WORDS": " ".join(["--quiet", *LONG]),
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "SKYPILOT_TASK_ID": "sky-2026-01-01-00-00-00-000000_patchtrain_1",
    }
    with two_machines(tmp_path) as machines:
        common["SKYPILOT_NODE_IPS"] = "\n".join(machines.addresses)
        started = [
            machines.start(
                node, ["bash", "-c", task["run"]], f"{node}.txt", SKYPILOT_NODE_RANK=str(node),
                **common,
            )
            for node in range(2)
        ]  # fmt: skip
        assert [one.wait() for one in started] == [0, 0], [one.said for one in started]
    same_as_unbroken(runs, RunFolder(out), None)


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
