"""Runs with a known pace, cut off at any step as they would look at that moment."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from patchtrain.runs import RunFolder

STARTED = 1_700_000_000.0


@dataclass(frozen=True)
class Pretended:
    """A run whose steps take a known time; stages are (K, steps, positions and seconds of one)."""

    stages: tuple[tuple[int, int, int, float], ...] = ((4, 100, 64, 0.5), (1, 200, 64, 0.5))
    log_every: int = 10
    eval_every: int = 0
    eval_seconds: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def total_steps(self) -> int:
        return sum(stage[1] for stage in self.stages)

    def rows(self, steps: int, first: int = 0, before: float = 0.0) -> list[dict[str, Any]]:
        """The lines of the first ``steps`` steps; those after ``first`` begin at ``before`` s."""
        rows, step, seconds, flops, tokens, positions = [], 0, before, 0.0, 0, 0
        for index, (k, count, size, time) in enumerate(self.stages):
            for i in range(count):
                row = {"stage": index, "patch_size": k}
                if index and i == 0 and step < steps and step >= first:
                    rows.append(_row("switch", step, tokens, positions, flops, seconds, row))
                step, tokens, positions = step + 1, tokens + size * k, positions + size
                flops += size * 1000.0
                if step <= first:
                    continue
                seconds += time
                if step > steps:
                    return rows
                if step % self.log_every == 0 or step == 1:
                    more = {**row, "loss": 9 - step / 100, "learning_rate": 1e-3}
                    rows.append(_row("train", step, tokens, positions, flops, seconds, more))
                if self.eval_every and step % self.eval_every == 0:
                    more = {**row, "loss": 9.5 - step / 100, "bits_per_byte": 2.0}
                    rows.append(_row("eval", step, tokens, positions, flops, seconds, more))
        return rows

    def write(self, folder: Path, steps: int, status: str = "running", **info: Any) -> RunFolder:
        """The run after ``steps`` steps, its last line written at the moment that it came."""
        folder.mkdir(parents=True, exist_ok=True)
        run, rows = RunFolder(folder), self.rows(steps)
        run.write_info({**self._info(folder, status), **self.info, **info})
        run.metrics_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        wall = rows[-1]["seconds"] if rows else 0.0
        wall += self.eval_seconds * sum(row["event"] == "eval" for row in rows)
        os.utime(run.metrics_file, (STARTED + wall, STARTED + wall))
        return run

    def left(self, steps: int) -> float:
        """Seconds from the last line after ``steps`` steps to the end."""
        rows = self.rows(steps)
        done = rows[-1]["step"] if rows else 0
        whole = self.rows(self.total_steps)
        evals = [row for row in whole if row["event"] == "eval" and row["step"] > done]
        trained = rows[-1]["seconds"] if rows else 0.0
        total = sum(count * time for _, count, _, time in self.stages)
        return total - trained + self.eval_seconds * len(evals)

    def _info(self, folder: Path, status: str) -> dict[str, Any]:
        stages, first = [], 0
        for k, steps, size, _ in self.stages:
            stages.append(
                {"name": "tokens" if k == 1 else f"patches of {k}", "patch_size": k,
                 "first_step": first, "steps": steps, "tokens": steps * size * k,
                 "positions": steps * size}
            )  # fmt: skip
            first += steps
        return {
            "name": folder.name,
            "status": status,
            "started": datetime.fromtimestamp(STARTED, UTC).isoformat(),
            "process": {"host": "another-machine", "id": 1},
            "plan": {"stages": stages, "total_steps": first},
        }


def here(number: int) -> dict[str, Any]:
    """The entry of ``run.json`` of a process of this machine."""
    return {"host": platform.node(), "id": number}


def _row(
    event: str,
    step: int,
    tokens: int,
    positions: int,
    flops: float,
    seconds: float,
    more: dict[str, Any],
) -> dict[str, Any]:
    counters = {"tokens": tokens, "positions": positions, "flops": flops, "seconds": seconds}
    return {"event": event, "step": step, **counters, "data_seconds": seconds / 10, **more}
