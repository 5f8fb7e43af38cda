"""`patchtrain train --resume`, signals, and a disk that is full, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from patchtrain.runs import RunFolder
from patchtrain.training.trainer import PatchTrainer
from tests.cli.corpus import write_corpus
from tests.cli.test_train import full_disk, refused, write_recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_corpus(folder / "corpus.txt")
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="bpe", vocab_size=300)
    return folder / "store"


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal within a training step."""
    plain = PatchTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == step:
            os.kill(os.getpid(), number)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(PatchTrainer, "training_step", training_step)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_the_run_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int,
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    with monkeypatch.context() as patched:
        stop_at(patched, 16, number)
        refused(
            capsys, ["train", recipe, "--quiet"], code,
            f"stopped by {number.name} after step 17 of 30, which is saved as checkpoint-17; "
            f"go on with --resume",
        )  # fmt: skip
    run = RunFolder.open(tmp_path / "run")
    assert run.info()["status"] == "interrupted"
    assert not run.model.exists()
    refused(capsys, ["train", recipe], 2, "go on with it with --resume")
    assert main(["train", recipe, "--quiet", "--resume"]) == 0
    assert "going on after step 17 of 30" in capsys.readouterr().err
    assert run.info()["status"] == "finished"
    assert [entry["step"] for entry in run.info()["resumed"]] == [17]
    other = tmp_path / "other"
    assert main(["train", recipe, "--quiet", f"out={other}"]) == 0
    for name in ("model/model.safetensors", "samples.json"):
        assert (run.path / name).read_bytes() == (other / name).read_bytes()


def test_a_second_signal_ends_a_run_at_once(store: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, store))
    code = (
        "import os, signal, time\n"
        "from patchtrain.training.trainer import PatchTrainer\n"
        "def step(self, *args, **kwargs):\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(2.2)  # no echo of the first\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(100)\n"
        "PatchTrainer.training_step = step\n"
        "from patchtrain.cli.main import main\n"
        f"raise SystemExit(main(['train', {recipe!r}, '--quiet']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90)
    assert done.returncode == 143
    assert done.stderr.splitlines()[-1] == "patchtrain: error: terminated"
    assert RunFolder.open(tmp_path / "run").info()["status"] == "interrupted"


def test_a_finished_run_has_nothing_to_resume(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    assert main(["train", recipe, "--quiet", "plan.steps=5"]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["train", recipe, "--resume", "plan.steps=5"]) == 0
    assert "is finished already; nothing to do" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    refused(capsys, ["train", recipe, "--resume", "plan.steps=6"], 2, "plan.steps is 6 and was 5")


def test_what_resume_cannot_do_is_said(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    refused(capsys, ["train", recipe, "--resume"], 2, "there is no run at")
    refused(capsys, ["train", recipe, "--resume", "--overwrite"], 2, "give one of them")
    refused(capsys, ["train", recipe, "--resume=perhaps"], 2, "takes auto, yes or no")
    refused(capsys, ["train", recipe, "--allow-change", "processes"], 2, "add --resume")
    refused(capsys, ["train", "--resume", recipe], 2, "there is no run at")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    refused(capsys, ["train", recipe, "--resume=auto"], 2, "is not a run folder")
    changes = ["--resume=auto", f"out={tmp_path / 'x'}", "--allow-change", "colour"]
    (tmp_path / "x").mkdir()
    assert main(["train", recipe, "--quiet", "plan.steps=5", *changes[:2]]) == 0
    refused(
        capsys,
        ["train", recipe, "plan.steps=5", *changes],
        2,
        "colour cannot be allowed to change, only learning_rate",
    )


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_scheduler_that_starts_a_run_again_resumes_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], name: str,
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert main(["train", recipe, "--quiet", "plan.steps=8"]) == 143
    monkeypatch.setenv(name, "1")
    assert main(["train", recipe, "--quiet", "plan.steps=8"]) == 0
    assert "going on after step 4 of 8" in capsys.readouterr().err


def test_a_run_is_written_by_one_process_at_a_time(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path, store))
    assert main(["train", recipe, "--quiet", "plan.steps=5"]) == 0
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from patchtrain.runs import RunFolder\n"
         f"with RunFolder(Path({str(tmp_path / 'run')!r})).locked():\n"
         "    print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for option in ("--resume", "--overwrite"):
        words = f"process {holder.pid} on"
        refused(capsys, ["train", recipe, "--quiet", option, "plan.steps=5"], 2, words)
    holder.kill()  # the system lets go of the lock
    holder.wait()
    assert main(["train", recipe, "--quiet", "--overwrite", "plan.steps=5"]) == 0


def test_a_full_disk_keeps_the_older_checkpoint_and_the_run_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    argv = ["train", recipe, "--quiet", "plan.steps=9", "training.save_steps=3"]
    import torch.distributed.checkpoint as dcp

    plain = dcp.save

    def save(*args: Any, **kwargs: Any) -> Any:
        if list((tmp_path / "run").glob("checkpoint-6")):
            full_disk()
        return plain(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(dcp, "save", save)
        refused(capsys, argv, 1, "the disk is full")
    run = RunFolder.open(tmp_path / "run")
    assert run.info()["status"] == "failed"
    assert sorted(path.name for path in run.path.glob("*checkpoint*")) == [
        "checkpoint-3", "checkpoint-6"]  # fmt: skip
    assert main([*argv, "--resume"]) == 0
    assert "going on after step 6 of 9" in capsys.readouterr().err
    assert run.info()["status"] == "finished"


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() != 0,
                    reason="a disk of its own can be mounted by root only")  # fmt: skip
def test_a_disk_that_is_really_full(store: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        recipe = str(write_recipe(tmp_path, store))
        command = [sys.executable, "-m", "patchtrain", "train", recipe, "--quiet", "plan.steps=30",
                   "training.save_steps=1", "training.save_total_limit=99",
                   f"out={disk / 'run'}"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("patchtrain: error: the disk is full")
        steps = sorted(int(path.name.split("-")[1]) for path in disk.glob("run/checkpoint-*"))
        assert len(steps) >= 2
        assert not list(disk.glob("run/.checkpoint*"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"going on after step {steps[-1]} of 30" in done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_killed_after_its_last_step_still_gets_its_model(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    argv = ["train", recipe, "--quiet", "plan.steps=5", "training.keep_stage_models=false"]
    with monkeypatch.context() as patched:
        patched.setattr(PatchTrainer, "export", full_disk)
        assert main(argv) == 1
    assert main([*argv, "--resume"]) == 0
    assert "going on after step 5 of 5" in capsys.readouterr().err
    run = RunFolder.open(tmp_path / "run")
    assert (run.model / "model.safetensors").is_file()
    assert run.info()["result"]["loss"] > 0
    rows = [(row["event"], row["step"]) for row in run.metrics()]
    assert len(set(rows)) == len(rows)


def test_the_recipe_says_what_cannot_change_when_the_store_is_another(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert main(["train", recipe, "--quiet", "plan.steps=8"]) == 143
    write_corpus(tmp_path / "corpus.txt", seed=9)
    prepare([tmp_path / "corpus.txt"], tmp_path / "store", train_tokenizer="bpe", vocab_size=300)
    argv = ["train", recipe, "--quiet", "plan.steps=8", "--resume", f"store={tmp_path / 'store'}"]
    before = json.dumps(RunFolder.open(tmp_path / "run").metrics())
    refused(capsys, argv, 2, "store is '")
    refused(capsys, argv, 2, "tokenizer is '")
    assert json.dumps(RunFolder.open(tmp_path / "run").metrics()) == before


def test_resume_takes_overrides_after_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    recipe = str(write_recipe(tmp_path, store))
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert main(["train", recipe, "plan.steps=8", "--quiet"]) == 143
    argv = ["train", recipe, "--resume", "plan.steps=8", "training.learning_rate=1e-3", "--quiet"]
    refused(capsys, argv, 2, "allow it with --allow-change learning_rate")
    assert main([*argv, "--allow-change", "learning_rate"]) == 0
