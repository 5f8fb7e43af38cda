"""A study of seconds, and ways to run it without a process for each of its runs."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from patchtrain.analysis.studies.equal import at_compute
from patchtrain.analysis.studies.study import Arm, Study
from patchtrain.cli.main import main
from patchtrain.files import write_json
from patchtrain.planning import planned_recipe
from patchtrain.recipe import Recipe
from patchtrain.runs import RunFolder

MODEL = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip


def recipe(store: Path, **plan: Any) -> dict[str, Any]:
    return {
        "store": str(store),
        "model": {"config": dict(MODEL)},
        "plan": {
            "preset": "superposition", "context_length": 16, "tokens_per_step": 256, "steps": 12,
            "max_epochs": 50, **plan,
        },
        "training": {
            "learning_rate": 1e-2, "use_cpu": True, "logging_steps": 5, "eval_steps": 0.25,
            "eval_tokens": 512, "per_device_train_batch_size": 16,
        },
    }  # fmt: skip


def tiny_study(store: Path, seeds: tuple[int, ...] = (0, 1), **plan: Any) -> Study:
    """Tokens against patches."""
    tokens = {"plan.stages": [{"patch_size": 1, "share": 1.0}]}
    patches = {
        "plan.stages": [{"patch_size": 2, "share": 0.4}, {"patch_size": 1, "share": 0.6}],
        "plan.share_of": "steps",
    }
    arms = (
        Arm("tokens", "tokens throughout", tokens),
        Arm("patches", "patches, then <b>tokens</b>", patches, ("tokens",)),
    )
    study = Study("tiny", "A <tiny> study", recipe(store, **plan), arms, seeds, "compute")
    return at_compute(study, "tokens")


class Here:
    """A run in this process, as the runner sees a child: it has ended when it is started."""

    def __init__(self, command: list[str], log: IO[bytes], place: Mapping[str, str]) -> None:
        with (
            Path(log.name).open("a", encoding="utf-8") as text,
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
        ):
            self.returncode = main(command[3:])

    def poll(self) -> int:
        return self.returncode

    def terminate(self) -> None:
        raise AssertionError("it has ended")

    def wait(self) -> int:
        return self.returncode


def failing(name: str) -> Callable[[list[str], IO[bytes], Mapping[str, str]], Any]:
    """As ``Here``, but the runs of one arm fail."""

    def start(command: list[str], log: IO[bytes], place: Mapping[str, str]) -> Any:
        if f"{name}-seed" not in command[4]:
            return Here(command, log, place)
        log.write(b"some lines\npatchtrain: error: the disk is full\n")
        log.flush()
        child = Here.__new__(Here)
        child.returncode = 1
        return child

    return start


class Pretended(Here):
    """A run that was finished at once: what it would train is checked and counted, not trained."""

    def __init__(self, command: list[str], log: IO[bytes], place: Mapping[str, str]) -> None:
        recipe = Recipe.load(command[4])
        run = planned_recipe(recipe)
        write_finished(
            RunFolder(recipe.out),
            2.0 + recipe.seed / 10,
            {
                "flops": run.size.flops(run.plan).total,
                "plan": run.plan.to_dict() | {"epochs": 0.5},
                "model": run.size.to_dict(),
            },
        )
        self.returncode = 0


def write_finished(run: RunFolder, bits_per_byte: float, values: dict[str, Any]) -> None:
    """What the study reads of a finished run."""
    (run.path / "model").mkdir(parents=True)
    (run.model / "config.json").write_text("{}")
    result = {"bits_per_byte": bits_per_byte, "loss": bits_per_byte * math.log(2)}
    common = {"status": "finished", "seconds": 60.0, "learning_rate": 1e-3, "result": result,
              "versions": {"torch": "x"}, "machine": {"cores": 2}}  # fmt: skip
    write_json(run.info_file, {**common, **values})
    rows = [
        {"event": "eval", "step": i, "flops": values["flops"] * i / 2, "seconds": 1, "loss": 1,
         "bits_per_byte": bits_per_byte + 2 - i}
        for i in (1, 2)
    ]  # fmt: skip
    run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
