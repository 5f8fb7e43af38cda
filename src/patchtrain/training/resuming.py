"""The part of ``PatchTrainer`` that saves, resumes and rolls back.

Trainer's loop is left as it is; its own checkpoints are replaced by whole ones (``checkpoint.py``),
and what a resumed run must have in common with the one before is checked (``identity.py``). After a
resume on one process every number is bit by bit what it would have been: weights, optimizer state,
random numbers, the loss summed since the last log, the learning rate (a function of the step) and
the data (a function of seed and step, so that going on is a seek and not a replay).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, set_seed
from transformers.trainer_callback import ExportableState

from patchtrain.errors import PatchtrainError, one_line
from patchtrain.training.averaging import WeightMean
from patchtrain.training.checkpoint import Checkpoint, Checkpoints
from patchtrain.training.identity import refuse_changes
from patchtrain.training.processes import gather, together
from patchtrain.training.state import (
    read_optimizer,
    read_random,
    read_weights,
    write_optimizer,
    write_random,
    write_weights,
)


class Resuming(Trainer):
    """Whole checkpoints in the place of Trainer's own; uses the trainer's plan and record."""

    checkpoints: Checkpoints
    identity: dict[str, Any]
    weight_mean: WeightMean

    def find_checkpoint(
        self, wanted: str | Path | bool | None, allow_change: Iterable[str] = ()
    ) -> Checkpoint | None:
        """The checkpoint to go on from, verified, of this very run. Called on all processes.

        Args:
            wanted: a checkpoint folder; True for the newest whole one of the run folder (None if
                there is no checkpoint at all); False or None for none.
            allow_change: names of ``identity.MAY_CHANGE`` that may differ.

        Raises:
            UsageError: it is of another run; every difference is named.
            PatchtrainError: the one asked for is not whole.
        """
        if not wanted:
            return None
        if wanted is True:
            found = self.checkpoints.newest_whole(self.tell)
            if found is None:
                return None
        else:
            with together():
                found = Checkpoint.at(wanted)
            found.verify()
        with together():
            before = found.info()["identity"]
            refuse_changes(before, self.identity, allow_change, str(found.path))
        return found

    def roll_back(self) -> int | None:
        """Weights, optimizer and random numbers as the newest whole checkpoint has them; its step.

        The run itself stays at its step: what came after the checkpoint is undone, and its data
        is not read again. None, and nothing changed, where there is no checkpoint.
        """
        found = self.checkpoints.newest_whole(self.tell, most=self.state.global_step)
        if found is None:
            return None
        self._load_from_checkpoint(str(found.path))
        self._read_optimizer(found)
        self._load_rng_state(str(found.path))
        return found.step

    def plain_model(self) -> nn.Module:
        """The model without what accelerate and the compiler put around it."""
        plain: nn.Module = self.accelerator.unwrap_model(
            self.model_wrapped, keep_torch_compile=False
        )
        return plain

    def tell(self, message: str) -> None:
        """A line on standard error, from the first process."""
        if self.is_world_process_zero():
            print(message, file=sys.stderr, flush=True)

    def _read_optimizer(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Take the optimizer's state and the mean of weights from there; returns its record."""
        plain = self.plain_model()
        with together():
            info = checkpoint.info()
            read_optimizer(plain, self.optimizer, checkpoint.path, info["optimizer"])
            self.weight_mean.read(plain, checkpoint.path, info.get("averaged", 0))
        return info

    def _foreign_scheduler(self) -> dict[str, Any] | None:
        """The state of a scheduler that the user brought; the plan's own is computed."""
        if self._created_lr_scheduler:
            return None
        state = dict(self.lr_scheduler.state_dict())
        try:
            kept = json.loads(json.dumps(state)) == state
        except TypeError:
            kept = False
        if not kept:
            raise PatchtrainError(
                f"the state of the scheduler {type(self.lr_scheduler).__name__} cannot be kept in "
                f"a checkpoint; leave the schedule to the plan, or set save_strategy=no"
            )
        return state

    def _load_foreign(self, state: dict[str, Any]) -> None:
        try:
            self.lr_scheduler.load_state_dict(state)
        except Exception as error:  # it may be of any class
            raise PatchtrainError(
                f"the checkpoint's scheduler is another than {type(self.lr_scheduler).__name__}: "
                f"{one_line(error)}"
            ) from error

    def _set_rate(self) -> None:
        """The scheduler as it stands after the trainer's steps, at the peak rate of now."""
        scheduler, step = self.lr_scheduler, self.state.global_step
        scheduler.last_epoch, scheduler._step_count = step, step + 1
        rates = [base * self.plan.rate_at(step) for base in scheduler.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates

    # ---- Trainer's own hooks

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.store_flos()
        plain = self.plain_model()
        rest_of_optimizer: dict[str, Any] = {}
        info = {
            "identity": self.identity,
            "processes": self.args.world_size,
            "window": self.window.state(),
            "optimizer": rest_of_optimizer,
            "guard": self._guard.state(),
            "averaged": self.weight_mean.count,
            "scheduler": self._foreign_scheduler(),
        }

        def optimizer(folder: Path) -> None:
            rest_of_optimizer.update(write_optimizer(plain, self.optimizer, folder))

        def rest(folder: Path) -> None:
            write_random(folder)
            if self.record is not None:  # the first process
                self._export_callbacks()
                state = copy.copy(self.state)
                # As they were asked for: Trainer compares them with what is asked for next time.
                for name in ("logging_steps", "eval_steps", "save_steps"):
                    setattr(state, name, getattr(self.args, name))
                state.save_to_json(str(folder / "trainer_state.json"))
                self.record.sync()

        parts = {"weights": lambda folder: write_weights(plain, folder),
                 "average": self.weight_mean.write,
                 "optimizer": optimizer, "rest": rest}  # fmt: skip
        self.checkpoints.write(self.state.global_step, parts, info)

    def _export_callbacks(self) -> None:
        """The state of callbacks that have one, as Trainer's own checkpoints hold it."""
        states: dict[str, Any] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                name = type(callback).__name__
                if isinstance(self.state.stateful_callbacks.get(name), list):
                    states.setdefault(name, []).append(callback.state())
                else:
                    states[name] = callback.state()
        self.state.stateful_callbacks.update(states)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with together():
            read_weights(self.plain_model(), Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        info = self._read_optimizer(Checkpoint.at(checkpoint))
        if info["scheduler"] is None:
            self._set_rate()
        else:
            self._load_foreign(info["scheduler"])
            rates = self.lr_scheduler.get_last_lr()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self.window.load(info["window"])
        self._guard.load(info["guard"])
        # Trainer takes the intervals from the checkpoint: a change that is allowed would be lost.
        self.state.compute_steps(self.args, self.state.max_steps)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not read_random(Path(checkpoint)):
            # Another number of processes: this one had no random numbers of its own yet.
            set_seed(self.args.seed + self.state.global_step + self.args.process_index)


class LossWindow:
    """The mean training loss since the last log, on all processes.

    Trainer has its own, which a checkpoint between two logs would lose.
    """

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.steps = 0

    def add(self, loss: torch.Tensor) -> None:
        """A step's mean loss of this process."""
        self.total += loss
        self.steps += 1

    def drain(self) -> float:
        """The mean over steps and processes since the last call. Called on all processes."""
        state = self.state()
        self.load({"total": 0.0, "steps": 0})
        return state["total"] / state["steps"] if state["steps"] else float("nan")

    def state(self) -> dict[str, Any]:
        """For a checkpoint; ``total`` is the mean over the processes. Called on all of them."""
        totals = gather(self.total.item())
        return {"total": sum(totals) / len(totals), "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.total.fill_(float(state["total"]))  # JSON has whole numbers that torch has not
        self.steps = state["steps"]
