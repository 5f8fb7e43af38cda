"""TRL's SFTTrainer with a run's folder: its record, whole checkpoints, an end by signal."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import SFTTrainer

from patchtrain.files import sync
from patchtrain.progress import LINE_SECONDS, clock
from patchtrain.runs import RunFolder
from patchtrain.training.record import RunRecord
from patchtrain.training.signals import StopRequest


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose checkpoints are whole or not there, and of which the newest one stays."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        out = Path(self.args.output_dir)
        self._saving = Path(tempfile.mkdtemp(prefix=".checkpoint.partial-", dir=out))
        try:
            # Past SFTTrainer's own, which writes a model card into the folder.
            super(SFTTrainer, self)._save_checkpoint(model, trial)
            (written,) = self._saving.iterdir()
            for path in (*sorted(written.rglob("*")), written):
                sync(path)
            older = RunFolder(out).checkpoints()
            written.replace(out / written.name)
            sync(out)
        finally:
            shutil.rmtree(self._saving, ignore_errors=True)
            del self._saving
        for path in older.values():
            shutil.rmtree(path)

    def _get_output_dir(self, trial: Any) -> str:
        return str(getattr(self, "_saving", None) or super()._get_output_dir(trial))


class Recording(TrainerCallback):
    """Writes the run's record, measures held-out answers after each epoch, listens to signals.

    Args:
        record: of the run's folder.
        describe: what ``run.json`` says at the start, given the number of steps.
        before: the loss of the held-out answers before the first step, or None without any.
        measure: what gives that loss now.
        flops_per_position: of forward and backward.
        quiet: no progress on standard error.
    """

    def __init__(
        self,
        record: RunRecord,
        describe: Callable[[int], dict[str, Any]],
        before: float | None,
        measure: Callable[[], float],
        flops_per_position: float,
        quiet: bool,
    ) -> None:
        self.record, self.describe = record, describe
        self.before, self.measure = before, measure
        self.flops_per_position, self.quiet = flops_per_position, quiet
        self.stop = StopRequest()
        self.stopped_by = 0
        self._last_line = self._begun = 0.0
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.start(self.describe(state.max_steps), state.global_step)
        self._begun, self._first_step = time.monotonic(), state.global_step
        if state.global_step == 0 and self.before is not None:
            self._held_out(state, self.before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stop.signal and state.global_step < state.max_steps:
            self.stopped_by = self.stop.signal
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # What ends a run is measured on the model that was written.
        if self.before is None or state.global_step >= state.max_steps or self.stopped_by:
            return
        begun = time.perf_counter()
        loss = self.measure()
        self.record.pause(time.perf_counter() - begun)
        self._held_out(state, loss)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.record.sync()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return
        row = {"event": "train", **self._counters(state)}
        row |= {name: logs.get(name) for name in ("loss", "learning_rate", "grad_norm")}
        self.record.event(row)
        over = state.global_step == state.max_steps
        if not self.quiet and (over or time.monotonic() - self._last_line >= LINE_SECONDS):
            self._last_line = time.monotonic()
            self._say(state, f"loss {logs['loss']:.3f}")

    def _held_out(self, state: Any, loss: float) -> None:
        self.record.event({"event": "eval", **self._counters(state), "loss": loss})
        if not self.quiet:
            self._say(state, f"held-out answers {loss:.3f}")

    def _counters(self, state: Any) -> dict[str, Any]:
        read = int(state.num_input_tokens_seen)
        return {
            "step": state.global_step,
            "stage": 0,
            "patch_size": 1,
            "tokens": read,
            "positions": read,
            "flops": read * self.flops_per_position,
            "seconds": round(self.record.seconds, 3),
        }

    def _say(self, state: Any, what: str) -> None:
        done = state.global_step - self._first_step
        left = ""
        if done > 0 and state.global_step < state.max_steps:
            seconds = (time.monotonic() - self._begun) / done
            left = f", {clock(seconds * (state.max_steps - state.global_step))} left"
        line = f"step {state.global_step:,} of {state.max_steps:,}: {what}{left}"
        print(line, file=sys.stderr, flush=True)
