"""What the page needs to know of one run, read from its folder and forgiving about gaps.

A run that is still running, failed early or has no evaluations has a summary too: what is missing
is None or empty, and ``gaps`` says so in words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from patchtrain.evaluation.throughput import in_order, spent
from patchtrain.report.formats import count, is_number
from patchtrain.report.spikes import Spike, Switch, find_spikes, find_switches
from patchtrain.runs import RunFolder
from patchtrain.stage import stage_name

Row = dict[str, Any]


@dataclass(frozen=True)
class StageSummary:
    """One stage: what was planned, and what the metrics say was done (None before it began)."""

    index: int
    name: str
    patch_size: int
    planned_steps: int | None
    done: dict[str, float] | None
    """Steps, tokens, positions, flops, seconds and, where they are known, data_seconds spent in
    this stage so far."""
    learning_rates: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RunSummary:
    """One run as read from its folder. ``rows`` are its metrics, in the order of the steps."""

    name: str
    info: Row
    rows: list[Row]
    stages: list[StageSummary]
    samples: list[dict[str, str]]
    evaluation: dict[str, dict[str, Row]]
    """What was measured on the model, by kind and name."""
    recipe: str | None

    @classmethod
    def read(cls, run: RunFolder) -> RunSummary:
        """Read everything the folder has; ``PatchtrainError`` only for a file that is broken."""
        info = run.info()
        rows = in_order(run.metrics())
        recipe = (
            run.recipe_file.read_text("utf-8", "replace") if run.recipe_file.is_file() else None
        )
        return cls(
            name=str(info.get("name") or run.name),
            info=info,
            rows=rows,
            stages=_stages(info, rows),
            samples=_checked_samples(run),
            evaluation=run.evaluation(),
            recipe=recipe,
        )

    def events(self, event: str) -> list[Row]:
        return [row for row in self.rows if row.get("event") == event]

    @property
    def status(self) -> str:
        return str(self.info.get("status") or "unknown")

    def part(self, name: str) -> Row:
        """A part of run.json such as ``model`` or ``store``; empty if it is not there."""
        value = self.info.get(name)
        return value if isinstance(value, dict) else {}

    def measured(self, kind: str) -> dict[str, Row]:
        """What was measured of one ``kind``, by name; empty if nothing was."""
        return self.evaluation.get(kind, {})

    @property
    def plan(self) -> Row:
        return self.part("plan")

    @property
    def result(self) -> Row:
        """The final validation result, empty if there is none yet."""
        return self.part("result")

    @cached_property
    def spikes(self) -> list[Spike]:
        """Rises of the training loss that nothing planned explains."""
        return find_spikes(self.rows)

    @cached_property
    def switches(self) -> list[Switch]:
        """The switches to smaller patches, and how the stages made up for them."""
        return find_switches(self.rows, self.plan)

    @property
    def token_level(self) -> bool:
        """Whether every stage reads single tokens."""
        return bool(self.stages) and all(stage.patch_size == 1 for stage in self.stages)

    @property
    def tuned_on_all(self) -> bool:
        """Whether this is an instruction tuning that held nothing out."""
        return self.part("tuning").get("held_out_conversations") == 0

    def total(self, counter: str) -> float | None:
        """What the whole run has spent of ``tokens``, ``positions``, ``flops``, ``seconds``."""
        if is_number(self.info.get(counter)):
            return float(self.info[counter])
        last = next((row for row in reversed(self.rows) if is_number(row.get(counter))), None)
        return float(last[counter]) if last else None

    @property
    def gaps(self) -> str:
        """One sentence on what a reader might look for and will not find; empty if all is there."""
        lacks = {
            "training metrics": bool(self.events("train")),
            "validation curve": bool(self.events("eval")),
            "final validation result": bool(self.result),
            "samples": bool(self.samples),
            "recipe": self.recipe is not None,
        }
        if self.part("tuning"):  # which has its held-out answers, and settings in place of a recipe
            del lacks["final validation result"], lacks["recipe"]
            lacks["validation curve"] |= self.tuned_on_all
        missing = [f"no {what}" for what, there in lacks.items() if not there]
        parts = []
        if self.status == "running":
            done, total = self.total("step"), self.plan.get("total_steps")
            at = f", at step {count(done)} of {count(total)}" if is_number(total) else ""
            parts.append(f"is not finished (“running”{at})")
        elif self.status != "finished":
            parts.append(f"did not finish (“{self.status}”)")
        if missing:
            parts.append(f"has {', '.join(missing)}")
        return f"{self.name} {' and '.join(parts)}." if parts else ""


def _checked_samples(run: RunFolder) -> list[dict[str, str]]:
    samples = run.samples()
    if not all(isinstance(row["prompt"] + row["completion"], str) for row in samples):
        raise TypeError("samples.json must hold texts")
    return samples


def _stages(info: Row, rows: list[Row]) -> list[StageSummary]:
    stages = []
    for index, stage in enumerate((info.get("plan") or {}).get("stages") or []):
        patch_size = int(stage.get("patch_size", 1))
        rates = [
            float(row["learning_rate"])
            for row in rows
            if row.get("event") == "train"
            and row.get("stage") == index
            and is_number(row.get("learning_rate"))
        ]
        name = str(stage.get("name") or stage_name(patch_size))
        stages.append(
            StageSummary(index, name, patch_size, stage.get("steps"), spent(index, rows), rates)
        )
    return stages
