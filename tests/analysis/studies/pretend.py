"""Runs that are written down instead of trained: what a comparison makes of given ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from patchtrain.analysis.studies.equal import plan_of
from patchtrain.analysis.studies.results import diverged
from patchtrain.analysis.studies.runner import Say, is_finished
from patchtrain.analysis.studies.study import Arm, Study, run_folder, run_name
from patchtrain.recipe import Recipe

RECIPE: dict[str, Any] = {
    "store": "no-store",
    "out": "none",
    "model": {
        "config": {
            "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        }
    },
    "plan": {
        "preset": "superposition", "patch_size": 4, "step_fraction": 0.25, "context_length": 16,
        "tokens_per_step": 64, "steps": 200,
    },
    "training": {"learning_rate": 1e-3},
}  # fmt: skip

End = Callable[[Arm, int], float | None]  # bits per byte of a run; nan: it diverges; None: it fails


def recipe(**plan: Any) -> Recipe:
    return Recipe.check({**RECIPE, "plan": {**RECIPE["plan"], **plan}})


class Pretend:
    """Stands for ``train_runs``; ``trained`` are the runs that were not there yet."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.trained: list[tuple[str, int]] = []
        self.stop_after: int | None = None

    def __call__(
        self,
        study: Study,
        folder: Path,
        jobs: int,
        failed: dict[str, str],
        say: Say,
        quiet: bool,
        chosen: Sequence[tuple[Arm, int]] | None = None,
        keep: str = "models",
    ) -> None:
        for arm, seed in study.runs() if chosen is None else chosen:
            run = run_folder(folder, arm, seed)
            if is_finished(run) or diverged(run):
                continue
            if self.stop_after is not None and len(self.trained) >= self.stop_after:
                raise KeyboardInterrupt
            self.trained.append((arm.name, seed))
            ended = self.end(arm, seed)
            if ended is None:
                failed[run_name(arm, seed)] = "it fell over"
                continue
            if math.isnan(ended):
                run.path.mkdir(parents=True)
                run.write_info({"status": "failed", "diverged": "loss became nan"})
                continue
            run.model.mkdir(parents=True)
            (run.model / "config.json").write_text("{}")
            planned = plan_of(study, arm)
            flops = planned.size.flops(planned.plan).total
            run.write_info(
                {
                    "status": "finished",
                    "result": {"bits_per_byte": ended, "loss": ended},
                    "flops": flops,
                    "seconds": flops / 1e6,
                    "plan": planned.plan.to_dict(),
                    "model": {"parameters": 100, "body_parameters": 90, "vocab_size": 64},
                    "learning_rate": planned.recipe.training["learning_rate"],
                    "versions": {},
                    "machine": {},
                }
            )
            rows = [
                {"event": "eval", "flops": share * flops, "bits_per_byte": ended / share**0.1}
                for share in (0.25, 0.5, 1.0)
            ]
            run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
