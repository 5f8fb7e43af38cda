"""Progress of a run: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from transformers.trainer_callback import TrainerCallback

from patchtrain.plan import Plan
from patchtrain.progress import LINE_SECONDS, clock, live

_SECONDS_BETWEEN_EVALUATION_LINES = 5.0


class StageProgress(TrainerCallback):
    """Names the stage, the loss, the speed and the time left, on standard error.

    The time left counts positions, not steps: steps of different stages may cost differently.
    """

    def __init__(self, plan: Plan, quiet: bool = False) -> None:
        self.plan = plan
        self.quiet = quiet
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.started = 0.0
        self.first_position = 0
        self.last_line = 0.0
        self.last: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or self.quiet:
            return
        self.started = time.monotonic()
        self.first_position = self.plan.positions_before(state.global_step)
        self.last_line = 0.0
        if live():
            self.bar = Progress(
                TextColumn("{task.fields[stage]}"),
                BarColumn(),
                TextColumn("{task.fields[step]}"),
                TextColumn("{task.fields[numbers]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left"),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(
                "train", total=self.plan.total_positions, **self._fields(state)
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None and self.task is not None:
            done = self.plan.positions_before(state.global_step)
            self.bar.update(self.task, completed=done, **self._fields(state))

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or self.quiet or not logs:
            return
        self.last.update(logs)
        evaluated = "eval_loss" in logs
        if self.bar is not None:
            if evaluated:
                self.bar.console.print(self._line(state), highlight=False)
        elif evaluated or "loss" in logs:
            between = _SECONDS_BETWEEN_EVALUATION_LINES if evaluated else LINE_SECONDS
            over = state.global_step == self.plan.total_steps
            if over or time.monotonic() - self.last_line >= between:
                self.last_line = time.monotonic()
                print(self._line(state), file=sys.stderr, flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def say(self, text: str) -> None:
        """A line above the bar; also where the progress itself is not wanted."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Take the bar off the terminal, also when the run failed."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _fields(self, state: Any) -> dict[str, Any]:
        stage = self.plan.stage_at(state.global_step)
        count = len(self.plan.stages)
        return {
            "stage": f"stage {stage.index + 1}/{count} ({stage.name})",
            "step": f"{state.global_step}/{self.plan.total_steps}",
            "numbers": self._numbers(),
            "left": self._left(state),
        }

    def _line(self, state: Any) -> str:
        # After a stage's last step its numbers still belong to it.
        stage = self.plan.stage_at(max(state.global_step - 1, 0))
        where = f"step {state.global_step}/{self.plan.total_steps}, {stage.name}"
        return f"{where}: {self._numbers()}, {self._left(state)} left"

    def _numbers(self) -> str:
        parts = []
        if "loss" in self.last:
            parts.append(f"loss {self.last['loss']:.3f}")
        if "eval_loss" in self.last:
            parts.append(f"validation {self.last['eval_loss']:.3f}")
        if "tokens_per_s" in self.last:
            parts.append(f"{self.last['tokens_per_s']:,.0f} tokens/s")
        return ", ".join(parts) or "starting"

    def _left(self, state: Any) -> str:
        done = self.plan.positions_before(state.global_step)
        new = done - self.first_position
        if new <= 0:
            return "?"
        elapsed = time.monotonic() - self.started
        return clock(elapsed / new * (self.plan.total_positions - done))
