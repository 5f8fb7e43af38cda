"""What happens when a loss or a gradient is no number any more: none of it reaches the weights.

The guard looks at every step when its gradients are there and the optimizer has not taken them
yet. Where the loss of a device pass or the norm of the gradient is nan or infinite, it writes down
what the step read, and ``training.on_nonfinite`` decides:

* ``stop``: the run ends with an error; weights and checkpoints are as before the step.
* ``skip``: the step is left out. Without gradients an optimizer changes neither weights nor state;
  the schedule and the data go on.
* ``rollback``: the same, and weights, optimizer state and random numbers become those of the
  newest whole checkpoint. What was learned since is undone. The order of the data is a function of
  the step, so the run goes on with data it has not read yet.

On several processes all take part in the decision, by one all-reduce of two numbers a step. Every
step waits once for the device to know whether its numbers are finite.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from patchtrain.errors import NonfiniteError, warning_line
from patchtrain.files import write_text
from patchtrain.stage import Stage

# Bad data or a rare overflow spoils a step or two. Ten in a row mean that the weights or the rate
# are at fault, and that going on would only read the data away.
MOST_IN_A_ROW = 10
# Each time the same weights were given other data: after three, the data is not the cause.
MOST_ROLLBACKS = 3
MOST_IDS = 1 << 18  # token ids that a process writes down of a step: a few megabytes


class NonfiniteGuard(TrainerCallback):
    """Guards the steps of one ``PatchTrainer``, by its ``args.on_nonfinite``.

    The trainer tells it what a step read (``saw``) and asks it before the optimizer's step
    (``check``). A step whose gradient was finite can still be too large, so it also looks at the
    weights before a checkpoint, an evaluation and the end, and at the validation loss
    (``evaluated``). Such a step cannot be left out any more: it is rolled back, or the run stops.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._passes: Sequence[Mapping[str, Tensor]] = ()
        self._losses: Sequence[Tensor] = ()
        self._logged_before: Tensor | None = None  # summed losses since the last log
        self._in_a_row = 0
        self._rollbacks: Counter[int] = Counter()
        self._event: tuple[str, dict[str, Any]] | None = None

    def saw(self, passes: Sequence[Mapping[str, Tensor]], losses: Sequence[Tensor]) -> None:
        """The inputs of each device pass of a step, ``(B, S)`` each, and its part of the loss."""
        self._passes, self._losses = passes, losses

    def check(self, model: nn.Module, grad_norm: Tensor | float | None) -> Tensor | float | None:
        """Look at a step that the optimizer is about to take; called on all processes.

        Returns:
            The norm of the gradient for the log, None where the step is left out.

        Raises:
            NonfiniteError: the run must not go on; names what, where, and the ways on.
        """
        norm = torch.as_tensor(grad_norm, device=self._losses[0].device)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded
        finite = torch.stack(
            [torch.stack(list(self._losses)).isfinite().all(), norm.isfinite().all()]
        )
        bad_loss, bad_gradient = self._of_any(~finite)
        if not (bad_loss or bad_gradient):
            self._in_a_row = 0
            return grad_norm
        what, batch = self._write_down("loss" if bad_loss else "gradient", float(norm))
        if self.trainer.args.on_nonfinite == "stop":
            self._stop(what, batch)
        if self.trainer.args.on_nonfinite == "rollback":
            self._roll_back(what, batch)
        else:
            self._skip(what, batch)
        model.zero_grad(set_to_none=True)
        # The step is not in the mean that is logged next. Where it was the only one, nothing is.
        self.trainer._tr_loss = self._logged_before
        self.trainer._globalstep_last_logged += 1
        return None

    def evaluated(self, loss: float) -> bool:
        """Whether a validation loss, the same on all processes, is fit to be logged.

        Raises:
            NonfiniteError: as ``check``.
        """
        if math.isfinite(loss) or not self.trainer.is_in_train:
            return True
        self._too_late(f"validation loss became {loss} after")
        self._write_event()
        return False

    def state(self) -> dict[str, Any]:
        """For a checkpoint: how often it has let the run go on already. JSON types."""
        rollbacks = {str(step): count for step, count in self._rollbacks.items()}
        return {"in_a_row": self._in_a_row, "rollbacks": rollbacks}

    def load(self, state: Mapping[str, Any]) -> None:
        """The opposite of ``state``."""
        self._in_a_row = state["in_a_row"]
        self._rollbacks = Counter({int(step): n for step, n in state["rollbacks"].items()})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._logged_before = self.trainer._tr_loss.clone()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        over = state.global_step == self.trainer.plan.total_steps
        if over or control.should_save or control.should_evaluate:
            self._check_weights()
        self._write_event()  # only now, when the step counts as done

    # ---- what is to be done

    def _stop(self, what: str, batch: Path | None, because: str = "") -> NoReturn:
        where = f"; what the step read is in {batch}" if batch else ""
        ways = ["training.on_nonfinite=skip (leaves such steps out)"] if batch else []
        ways.append(
            "training.on_nonfinite=rollback (back to the newest checkpoint, on with new data)"
        )
        rate = self.trainer.args.learning_rate / 2
        ways.append(f"a lower rate (training.learning_rate={rate:g} --allow-change learning_rate)")
        raise NonfiniteError(
            f"{what}{because}",
            f"{where}. Check the data, then resume with {', or '.join(ways)}",
        )

    def _skip(self, what: str, batch: Path) -> None:
        self._in_a_row += 1
        if self._in_a_row > MOST_IN_A_ROW:
            self._stop(what, batch, f", after {MOST_IN_A_ROW} steps in a row were left out")
        self._tell(f"{what}; the step is left out, what it read is in {batch}")
        self._event = ("nonfinite", {"what": what, "action": "skip", "batch": _within_run(batch)})

    def _roll_back(self, what: str, batch: Path | None) -> None:
        trainer = self.trainer
        to = trainer.roll_back()
        if to is None:
            self._stop(what, batch, ", and there is no checkpoint to roll back to")
        self._rollbacks[to] += 1
        if self._rollbacks[to] > MOST_ROLLBACKS:
            self._stop(what, batch, f", after {MOST_ROLLBACKS} rollbacks to checkpoint-{to}")
        # The checkpoint may be of a stage before: what was done at the switches since is undone.
        for stage in trainer.plan.stages[1 : trainer.stage_index + 1]:
            if to <= stage.first_step:
                trainer.switch()
        self._tell(f"{what}; rolled back to checkpoint-{to}, going on with the next data")
        values = {"what": what, "to_step": to, "batch": _within_run(batch)}
        self._event = ("rollback", values)

    def _check_weights(self) -> None:
        """Let no weights that are no numbers into a checkpoint, an evaluation or the export."""
        bad = next((name for name, weight in self._weights() if not weight.isfinite().all()), None)
        (anywhere,) = self._of_any(torch.tensor([bad is not None], device=self.trainer.args.device))
        if not anywhere:
            return
        name = next(name for name in gather_object([bad]) if name is not None)
        self._too_late(f"the weights ({name}) became nan or infinite in")

    def _too_late(self, what: str) -> None:
        """Undo a step that has been taken, or stop."""
        step = self.trainer.state.global_step
        what = f"{what} step {step} ({self.trainer.plan.stage_at(step - 1).name})"
        if self.trainer.args.on_nonfinite == "rollback":
            self._roll_back(what, None)
        else:
            self._stop(what, None, ", though its loss and gradient were finite")

    def _weights(self) -> list[tuple[str, Tensor]]:
        """Names and this process's part of the weights."""
        return [
            (name, weight.to_local() if hasattr(weight, "to_local") else weight)
            for name, weight in self.trainer.model.named_parameters()
        ]

    def _write_event(self) -> None:
        if self._event is not None:
            self.trainer._write(*self._event)
            self._event = None

    def _of_any(self, flags: Tensor) -> list[bool]:
        """Which flags, ``(N,)``, are true on any process."""
        numbers = flags.float()
        if self.trainer.args.world_size > 1:
            numbers = self.trainer.accelerator.reduce(numbers, "sum")
        return [bool(number) for number in numbers.tolist()]

    def _tell(self, text: str) -> None:
        if self.trainer.is_world_process_zero():
            self.trainer._progress.say(warning_line(text))

    # ---- what the step read

    def _write_down(self, what: str, norm: float) -> tuple[str, Path]:
        """Write this process's part of the step, if it is to blame.

        Returns:
            What became nan or infinite, at which step, as the same words on all processes; and the
            folder of the step.
        """
        trainer = self.trainer
        step = trainer.state.global_step + 1  # as metrics count: the first step is 1
        stage = trainer.plan.stage_at(step - 1)
        # Each is the pass's part of a mean over the passes.
        losses = [float(loss) * len(self._losses) for loss in self._losses]
        bad = [number for number, loss in enumerate(losses) if not math.isfinite(loss)]
        value = norm if what == "gradient" else losses[bad[0]] if bad else None
        if what == "gradient":  # nobody knows which pass it came from
            bad = list(range(len(losses)))
        batch = Path(trainer.args.output_dir) / "nonfinite" / f"step-{step}"
        if bad:
            content = {
                "step": step,
                "stage": stage.index,
                "patch_size": stage.patch_size,
                "learning_rate": trainer.optimizer.param_groups[0]["lr"],
                "nonfinite": what,
                "gradient_norm": _plain(norm),
                "pass_losses": [_plain(loss) for loss in losses],
                **self._sequences(bad),
            }
            try:
                batch.mkdir(parents=True, exist_ok=True)
                file = batch / f"process-{trainer.args.process_index}.json"
                write_text(file, json.dumps(content, ensure_ascii=False) + "\n")
            except OSError as error:  # what the run must say next is more important
                trainer._progress.say(warning_line(f"cannot write {batch}: {error}"))
        # Gathered when all have written: the first to stop may end the others.
        found = gather_object([(trainer.args.process_index, value)])
        return _words(what, [pair for pair in found if pair[1] is not None], step, stage), batch

    def _sequences(self, bad: Sequence[int]) -> dict[str, Any]:
        """The sequences of some passes as ids and text, as far as ``MOST_IDS`` reaches."""
        decode = getattr(self.trainer.processing_class, "decode", None)
        rows = [(number, row) for number in bad for row in _rows(self._passes[number])]
        kept = max(1, MOST_IDS // len(rows[0][1]["input_ids"]))
        sequences = []
        for number, row in rows[:kept]:
            entry = {"pass": number, "ids": row["input_ids"]}
            if "labels" in row:
                entry["labels"] = row["labels"]
            if decode is not None:
                entry["text"] = decode(row["input_ids"])
            sequences.append(entry)
        return {"sequences": sequences, "sequences_left_out": len(rows) - len(sequences)}


def _rows(inputs: Mapping[str, Tensor]) -> list[dict[str, list[int]]]:
    """The rows of a pass, each with its part of every input."""
    lists = {name: values.tolist() for name, values in inputs.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _words(what: str, found: Sequence[tuple[int, float]], step: int, stage: Stage) -> str:
    """``loss became nan on process 1 at step 7 (patches of 4), before the optimizer step``."""
    where = ""
    if what == "loss" and torch.distributed.is_initialized():
        numbers = ", ".join(str(process) for process, _ in found)
        where = f" on process{'es' if len(found) > 1 else ''} {numbers}"
    when = f" at step {step} ({stage.name}), before the optimizer step"
    return f"{what} became {_plain(found[0][1])}{where}{when}"


def _within_run(batch: Path | None) -> str | None:
    """The path as seen from the run folder, which may be moved."""
    return None if batch is None else f"{batch.parent.name}/{batch.name}"


def _plain(value: float) -> float | str:
    """A number that JSON can hold, or ``"nan"``, ``"inf"``, ``"-inf"``."""
    return value if math.isfinite(value) else str(value)
