"""Train what of a study is not trained yet, one run a process, and write down what came out.

Each run is a ``patchtrain train`` of its own with one thread, on a GPU or a core of its own: small
models do not fill two cores, and two of them do. What is finished is left alone, what was cut short
goes on from its newest checkpoint, and a run that fails is kept and told while the others go on. So
the same call again continues, whatever ended the first.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from patchtrain.analysis.studies import results
from patchtrain.analysis.studies.equal import measured
from patchtrain.analysis.studies.places import places, runs_at_a_time
from patchtrain.analysis.studies.study import (
    Arm,
    Study,
    claim,
    refuse_another_study,
    refuse_too_many,
    run_folder,
    run_name,
)
from patchtrain.errors import PatchtrainError, one_line
from patchtrain.files import write_json, write_text
from patchtrain.progress import Lines, clock
from patchtrain.runs import RunFolder, versions

Say = Callable[[str], None]
# What is left of a finished run: all but its checkpoints, or only its record and metrics.
Keep = Literal["models", "results"]
_POLL_SECONDS = 0.2


@dataclass
class _Child:
    """A run that is being trained."""

    name: str
    folder: RunFolder
    process: subprocess.Popen[bytes]
    log: Path
    place: dict[str, str]


@dataclass
class _Progress:
    """How much of the study's compute is done, and how long the rest takes at this pace."""

    total: float  # FLOPs of all runs
    done: float  # of those that are finished
    say: Say
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    lines: Lines | None = None

    def tell(self, children: list[_Child], finished: int, runs: int, at_once: bool = False) -> None:
        if self.lines is not None and not at_once and not self.lines.due():
            return
        now = time.monotonic()
        self.lines = self.lines or Lines()  # the first line comes at once
        done = self.done + sum(flops_so_far(child.folder) for child in children)
        if self.first is None:
            self.first = done
        new = done - self.first
        left = clock((now - self.begun) / new * (self.total - done)) if new > 0 else "?"
        names = ", ".join(child.name for child in children)
        self.say(
            f"{finished} of {runs} runs, {done / self.total:.0%} of the compute, {left} left"
            + (f" (now {names})" if names else "")
        )


def run_study(
    study: Study,
    folder: Path,
    jobs: int | None = None,
    *,
    say: Say = print,
    quiet: bool = False,
    keep: Keep = "models",
) -> dict[str, Any]:
    """Train, count, and write ``results.json`` and ``report.html``; returns the results.

    Args:
        study: as resolved.
        folder: the study's folder, made if it is not there.
        jobs: runs at a time; one a GPU, else one a core, if None.
        say: is given a line where something begins, ends or fails, and now and then on progress.
        quiet: no lines on progress.
        keep: what is left of a run that is finished.

    Raises:
        UsageError: the folder holds something else, or another study is running in it.
        PatchtrainError: every run failed.
    """
    refuse_too_many(len(study.runs()))
    claim(folder)
    refuse_another_study(study, folder)
    failed: dict[str, str] = {}
    with concluding(folder, failed, lambda: conclude(study, folder, failed)) as found:
        write_json(folder / "study.json", {**study.to_dict(), "versions": versions()})
        jobs = jobs or runs_at_a_time(study.recipe)
        train_runs(study, folder, jobs, failed, say, quiet, keep=keep)
    return found


@contextmanager
def concluding(
    folder: Path, failed: Mapping[str, str], conclude: Callable[[], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Hold a study's folder for a block that trains its runs, and conclude however that ends.

    Yields the dict that the results are in after the block: what ``conclude`` returns.

    Raises:
        UsageError: another study is running in the folder.
        PatchtrainError: runs have ``failed``, and none got to its end.
    """
    found: dict[str, Any] = {}
    with RunFolder(folder).locked():
        for name in ("recipes", "runs", "logs"):
            (folder / name).mkdir(exist_ok=True)
        try:
            yield found
        finally:
            found.update(conclude())
    if failed and not any(arm["runs"] for arm in found["arms"]):
        name, reason = next(iter(failed.items()))
        raise PatchtrainError(f"no run of the study got to its end; {name}: {reason}")


def conclude(study: Study, folder: Path, failed: dict[str, str]) -> dict[str, Any]:
    """Count what is finished and write it down, with the page."""
    from patchtrain.report.study_page import write_study_page

    found = results.collect(study, folder, failed)
    write_json(folder / "results.json", found)
    write_study_page(found, folder / "report.html")
    return found


def is_finished(run: RunFolder) -> bool:
    """Whether a run got to its end: its result is there, and its model unless it was given up."""
    try:
        info = run.info()
    except (OSError, PatchtrainError):
        return False
    whole = info.get("kept") == "results" or (run.model / "config.json").is_file()
    return info.get("status") == "finished" and whole


def flops_so_far(run: RunFolder) -> float:
    """Of a run that is going on, by the last whole line of its metrics."""
    try:
        with run.metrics_file.open("rb") as file:
            file.seek(max(0, run.metrics_file.stat().st_size - 4096))
            lines = file.read().split(b"\n")
        return float(json.loads(lines[-2])["flops"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return 0.0


def train_runs(
    study: Study,
    folder: Path,
    jobs: int,
    failed: dict[str, str],
    say: Say,
    quiet: bool,
    chosen: Sequence[tuple[Arm, int]] | None = None,
    keep: Keep = "models",
) -> None:
    """Train what is not finished of all runs of a study, or of those ``chosen``.

    Runs that fail are added to ``failed``, with the reason by name.
    """
    waiting = []
    finished, done, total = 0, 0.0, 0.0
    asked = study.runs() if chosen is None else chosen
    costs = {name: _flops(study, arm) for name, arm in {arm.name: arm for arm, _ in asked}.items()}
    for arm, seed in asked:
        flops = costs[arm.name]
        run, name = run_folder(folder, arm, seed), run_name(arm, seed)
        if what := results.diverged(run):
            if name not in failed:
                failed[name] = f"{what}, and would again; delete {run.path} to train it once more"
                say(f"{name} failed before: {failed[name]}")
            continue
        total += flops
        if is_finished(run):
            finished, done = finished + 1, done + flops
            continue
        recipe = folder / "recipes" / f"{name}.yaml"
        write_text(recipe, study.recipe_of(arm, seed, folder).to_yaml())
        waiting.append((name, run, recipe, flops))
    runs = finished + len(waiting)
    if finished:
        say(f"{finished} of {runs} runs are there already")
    progress = _Progress(total, done, say)
    children: list[tuple[_Child, float]] = []
    free = places(study.recipe, jobs)
    try:
        while waiting or children:
            while waiting and free:
                name, run, recipe, flops = waiting.pop(0)
                children.append((_start(name, run, recipe, folder / "logs", free.pop(0)), flops))
            for entry in [entry for entry in children if entry[0].process.poll() is not None]:
                children.remove(entry)
                child, flops = entry
                free.append(child.place)
                progress.done += flops
                if reason := _outcome(child):
                    failed[child.name] = reason
                    say(f"{child.name} failed: {reason}")
                else:
                    finished += 1
                    tidy(child.folder, keep)
                    if not quiet:
                        progress.tell([c for c, _ in children], finished, runs, at_once=True)
            if not quiet and children:
                progress.tell([child for child, _ in children], finished, runs)
            time.sleep(_POLL_SECONDS)
    except BaseException:
        say(f"stopping; the same command goes on with {folder}")
        raise
    finally:
        for child, _ in children:
            if child.process.poll() is None:
                child.process.terminate()  # it finishes the step and saves
        for child, _ in children:
            child.process.wait()


def _flops(study: Study, arm: Arm) -> float:
    """What a run of an arm costs."""
    if study.held_equal == "compute" and arm.name in study.equality:
        return study.equality[arm.name].actual
    return measured(study, arm, "compute")


def _start(name: str, run: RunFolder, recipe: Path, logs: Path, place: dict[str, str]) -> _Child:
    command = [sys.executable, "-m", "patchtrain", "train", str(recipe), "--resume=auto", "--quiet"]
    log = logs / f"{name}.txt"
    with log.open("ab") as file:
        process = _popen(command, file, place)
    return _Child(name, run, process, log, place)


def _popen(command: list[str], log: IO[bytes], place: Mapping[str, str]) -> subprocess.Popen[bytes]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.Popen(
        command,
        env={**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", **place},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
    )


def _end_with_parent() -> Callable[[], None]:
    """What makes a child get SIGTERM when its parent is killed: a study leaves nothing running."""
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGTERM)


def _outcome(child: _Child) -> str | None:
    """None of a run that is finished, and else the reason, from what it said last."""
    code = child.process.returncode
    if code == 0 and is_finished(child.folder):
        return None
    if what := results.diverged(child.folder):
        return f"{what}; a lower rate may do ({child.log})"
    lines = child.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = lines[-1].removeprefix("patchtrain: error: ") if lines else ""
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return one_line(f"{said or 'it said nothing'} ({ended}; {child.log})", 400)


def tidy(run: RunFolder, keep: Keep = "models") -> None:
    """Delete what a finished run is not asked to keep; its checkpoints always.

    With ``"results"`` the record says that the model was given up before anything is deleted, so
    that a study killed in between still knows the run as finished.
    """
    if keep == "results":
        write_json(run.info_file, {**run.info(), "kept": keep})
        kept = (run.info_file, run.recipe_file, run.metrics_file)
        gone = [path for path in run.path.iterdir() if path not in kept]
    else:
        gone = list(run.path.glob("checkpoint-*"))
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif keep == "results":
            path.unlink()
