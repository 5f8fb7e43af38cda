"""Runs that are killed at a chosen moment, and taken up again until they are finished.

A child process does what ``patchtrain train RECIPE --resume=auto`` does and counts its events:
every file it opens, makes, renames or deletes and every training step it begins. At the event it is
told to, it sends itself SIGKILL: nothing is flushed, no handler runs. So every moment can be met
and repeated, those inside the writing of a checkpoint and those at the switch too.

    python -m tests.training.killing --seeds 1000     more moments than a test has time for
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

_CLOCK = ("seconds", "data_seconds", "tokens_per_s", "positions_per_s")
_EVENTS = ("open", "os.", "shutil.")


def context() -> ForkServerContext:
    """Processes that start with everything imported and nothing computed."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.training.killing_child"])
    return found


def train(recipe: Path, kill_at: int | None = None, overrides: tuple[str, ...] = ()) -> list[str]:
    """Train in a child, killed at event number ``kill_at``; the events it had, if it ended.

    Raises:
        RuntimeError: the child failed by itself.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as events:
        child = context().Process(
            target=_child, args=(str(recipe), kill_at, overrides, events.name)
        )
        child.start()
        child.join(240)
        if child.exitcode is None:
            child.kill()
            raise RuntimeError(f"the run hangs (killed at {kill_at})")
        if child.exitcode == -signal.SIGKILL and kill_at is not None:
            return []
        if child.exitcode != 0:
            raise RuntimeError(f"the run ended with {child.exitcode} (killed at {kill_at})")
        found: list[str] = json.loads(Path(events.name).read_text())
        return found


def _child(recipe: str, kill_at: int | None, overrides: tuple[str, ...], events_file: str) -> None:
    from patchtrain.cli.main import main
    from patchtrain.training.trainer import PatchTrainer

    torch.set_num_threads(1)
    run = str(Path(yaml.safe_load(Path(recipe).read_text())["out"]).resolve())
    events: list[str] = []

    def happened(name: str) -> None:
        events.append(name)
        if len(events) - 1 == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name: str, args: tuple[Any, ...]) -> None:
        if name.startswith(_EVENTS) and args and run in str(args[0]):
            happened(f"{name} {Path(str(args[0])).name}")

    step: Callable[..., Any] = PatchTrainer.training_step

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        happened(f"step {self.state.global_step}")
        return step(self, *args, **kwargs)

    PatchTrainer.training_step = counted  # type: ignore[method-assign]
    sys.addaudithook(audit)
    code = main(["train", recipe, "--resume=auto", "--quiet", *overrides])
    if code == 0:
        Path(events_file).write_text(json.dumps(events))
    os._exit(code)


def outcome(run: Path) -> dict[str, Any]:
    """All that must be equal bit by bit: model, checkpoints, samples, metrics but for time."""
    found: dict[str, Any] = {}
    for file in sorted(run.rglob("*")):
        name = str(file.relative_to(run))
        if file.suffix == ".safetensors":  # by tensor: in the file they may stand in any order
            for key, tensor in load_file(file).items():
                data = tensor.flatten().view(torch.uint8).numpy().tobytes()
                found[f"{name} {key}"] = hashlib.sha256(data).hexdigest()
        elif "partial" in name:
            found[name] = "left behind"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [
        {key: value for key, value in row.items() if key not in _CLOCK} for row in rows
    ]
    info = json.loads((run / "run.json").read_text())
    found |= {name: info[name] for name in ("result", "status")}
    found["samples"] = (run / "samples.json").read_text()
    found["page"] = (run / "report.html").is_file()
    return found


def survives(recipe: Path, run: Path, events: int, whole: dict[str, Any], seed: int) -> None:
    """Kill a run once to three times at random events, let it end, and compare it.

    Raises:
        AssertionError: it is not what the run that nothing happened to was.
    """
    rng = random.Random(seed)
    moments = [rng.randrange(events) for _ in range(rng.randint(1, 3))]
    for moment in moments:
        train(recipe, moment)
    train(recipe)
    found = outcome(run)
    different = [key for key in sorted(whole.keys() | found.keys())
                 if whole.get(key) != found.get(key)]  # fmt: skip
    assert not different, f"seed {seed}, killed at {moments}: {different[:3]} and more"


def main() -> None:
    from tests.training.test_killing import make_recipe

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    seeds = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        recipe = make_recipe(Path(name))
        run = recipe.parent / "run"
        events = train(recipe)
        whole = outcome(run)
        for seed in range(seeds.first, seeds.first + seeds.seeds):
            run.rename(recipe.parent / f"done-{seed}")
            survives(recipe, run, len(events), whole, seed)
            print(f"seed {seed}: as if nothing had happened", flush=True)
            shutil.rmtree(recipe.parent / f"done-{seed}")


if __name__ == "__main__":
    main()
