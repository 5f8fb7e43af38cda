"""``prepare --executor`` with real workers: on this machine, on Ray, and under Slurm's commands.

The bytes are those of one pass, and nothing waits for ever for a worker that was killed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from patchtrain.cli.main import main
from patchtrain.data.parts import Parts
from patchtrain.data.prepare import prepare
from patchtrain.errors import PatchtrainError, UsageError
from tests.data.sharding import contents, lines, parts_of, slurm_tools


@pytest.mark.parametrize("workers", [1, 16])
def test_workers(corpus, tmp_path, tokenizer, workers):
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    store = prepare(
        [corpus], tmp_path / "s", tokenizer=tokenizer, executor="local", workers=workers, tasks=18
    )
    assert contents(store.path) == contents(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "s"]


def call(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "patchtrain", "prepare", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(found, seconds=60):
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return value


def worker_of(parts, shard):
    file = parts / "running" / f"{shard:05d}"
    return int(file.read_text() or 0) if file.is_file() else 0


def stalling(folder):
    """A corpus of two shards, of which the second never ends: a pipe that nobody writes to."""
    (folder / "a.jsonl").write_text(lines(100))
    os.mkfifo(folder / "b.jsonl")
    return folder / "a.jsonl", folder / "b.jsonl"


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


def meanwhile(action):
    """Call ``action`` in a thread, when ``prepare`` has begun in this one."""
    thread = threading.Thread(target=action)
    thread.start()
    return thread


def stalled(out):
    """The worker on the second of two shards, once the first is done."""
    pid = wait_for(lambda: worker_of(parts_of(out), 1))
    wait_for(lambda: (parts_of(out) / "00000").is_dir())
    return pid


@needs_proc
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed(tmp_path, tokenizer, capsys, workers):
    sources, out = stalling(tmp_path), tmp_path / "store"
    argv = ["prepare", *map(str, sources), "--out", str(out), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "local", "--workers", str(workers), "--tasks", "2"]
    killer = meanwhile(lambda: os.kill(stalled(out), signal.SIGKILL))
    assert main(argv) == 1
    killer.join()
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the worker on shard 1 (" in error
    assert "was killed" in error
    assert "memory may have run out" in error
    assert "1 of 2 shards are done and stay in" in error
    assert not out.exists()


@needs_proc
def test_a_command_that_is_terminated(tmp_path, tokenizer, capsys):
    sources, out = stalling(tmp_path), tmp_path / "store"
    argv = ["prepare", *map(str, sources), "--out", str(out), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "local", "--workers", "2", "--tasks", "2"]
    found = []

    def terminate():
        found.append(stalled(out))
        os.kill(os.getpid(), signal.SIGTERM)

    killer = meanwhile(terminate)
    assert main(argv) == 128 + signal.SIGTERM
    killer.join()
    wait_for(lambda: not is_alive(found[0]))
    assert not out.exists()
    assert Parts.open(parts_of(out)).check() == [0]  # what was done stays


@needs_proc
def test_a_command_that_is_killed_takes_its_workers_along(tmp_path, tokenizer):
    sources, out = stalling(tmp_path), tmp_path / "store"
    process = call(*sources, "--out", out, "--tokenizer", tokenizer, "--executor", "local",
                   "--workers", 2, "--tasks", 2)  # fmt: skip
    pid = stalled(out)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not is_alive(pid))
    assert not out.exists()
    assert Parts.open(parts_of(out)).check() == [0]


def test_ray(corpus, tmp_path, tokenizer):
    pytest.importorskip("ray")
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    store = prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="ray", tasks=3)
    assert contents(store.path) == contents(tmp_path / "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "s"]


def test_slurm(corpus, tmp_path, tokenizer, monkeypatch, capsys):
    log = slurm_tools(tmp_path, monkeypatch)
    prepare([corpus], tmp_path / "plain", tokenizer=tokenizer)
    argv = ["prepare", str(corpus), "--out", str(tmp_path / "s"), "--tokenizer", str(tokenizer)]
    argv += ["--executor", "slurm", "--workers", "5", "--tasks", "3"]
    for option in ("partition=cpu", "time=00:10:00", "mem-per-cpu=3G", "setup=export MARK=1"):
        argv += ["--executor-option", option]
    assert main(argv) == 0
    assert "submitted Slurm job 77" in capsys.readouterr().err
    assert contents(tmp_path / "s") == contents(tmp_path / "plain")
    script = (log / "script").read_text()
    asked = {line for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {
        "#SBATCH --array=0-2%5", "#SBATCH --partition=cpu", "#SBATCH --time=00:10:00",
        "#SBATCH --mem-per-cpu=3G", "#SBATCH --cpus-per-task=1",
        "#SBATCH --job-name=patchtrain-prepare",
    } <= asked  # fmt: skip
    assert not any("qos" in line or "None" in line for line in asked)
    assert "export MARK=1" in script
    assert f'export PATH={Path(sys.executable).parent}:"$PATH"' in script
    assert len((log / "sbatch.log").read_text().splitlines()) == 1
    assert not (log / "scancel.log").exists()


def test_slurm_jobs_that_end_without_a_word(corpus, tmp_path, tokenizer, monkeypatch):
    log = slurm_tools(tmp_path, monkeypatch)
    (log / "bin" / "srun").write_text("#!/bin/bash\nexit 9\n")
    with pytest.raises(PatchtrainError, match="Slurm job 77 ended before all shards"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="slurm", tasks=2,
                executor_options={"mem": "8G"})  # fmt: skip
    script = (log / "script").read_text()
    assert "#SBATCH --mem=8G" in script
    assert "mem-per-cpu" not in script


def test_slurm_with_a_shard_that_fails(tmp_path, tokenizer, monkeypatch):
    log = slurm_tools(tmp_path, monkeypatch)
    (tmp_path / "a.jsonl").write_text(lines(50) + "{oops\n")
    with pytest.raises(PatchtrainError, match=r"a\.jsonl: line 51 is not JSON.*1 of 2 shards"):
        prepare([tmp_path / "a.jsonl"], tmp_path / "s", tokenizer=tokenizer, executor="slurm",
                tasks=2)  # fmt: skip
    assert (log / "scancel.log").read_text().split() == ["77"]
    assert not (tmp_path / "s").exists()


def test_slurm_refuses_the_job(corpus, tmp_path, tokenizer, monkeypatch):
    slurm_tools(tmp_path, monkeypatch)
    with pytest.raises(PatchtrainError, match=r"sbatch refused the job \(exit code 1\)"):
        prepare([corpus], tmp_path / "s", tokenizer=tokenizer, executor="slurm", tasks=2,
                executor_options={"refused": "1"})  # fmt: skip


def test_slurm_scripts_hold_plain_paths(corpus, tmp_path, tokenizer, monkeypatch):
    slurm_tools(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match="a Slurm job script cannot hold ' ' in the path"):
        prepare([corpus], tmp_path / "a store", tokenizer=tokenizer, executor="slurm")
