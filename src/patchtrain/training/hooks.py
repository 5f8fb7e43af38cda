"""What ``PatchTrainer`` does before the first step and after each, as callbacks of Trainer's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback

from patchtrain.plan import Plan
from patchtrain.training.processes import most

if TYPE_CHECKING:
    from patchtrain.training.trainer import PatchTrainer


class BeginsRecord(TrainerCallback):
    """Starts the record once the step to begin at is known, before anything is logged."""

    def __init__(self, trainer: PatchTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.check_export()
        self.trainer.begin_record()
        # Trainer would count from here, and the window also holds the steps before the checkpoint.
        self.trainer._globalstep_last_logged = state.global_step - self.trainer.window.steps


class EvaluatesStageEnds(TrainerCallback):
    """Evaluates at the end of every stage, whatever the evaluation interval."""

    def __init__(self, plan: Plan) -> None:
        self.ends = {stage.last_step for stage in plan.stages}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step in self.ends:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        return control


class StopsOnSignal(TrainerCallback):
    """Ends the run after a step, saved, if a signal has asked any of the processes to."""

    def __init__(self, trainer: PatchTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        trainer = self.trainer
        trainer.stopped_by = most(trainer.stop_request.signal, args.device)
        if trainer.stopped_by:
            control.should_save = control.should_training_stop = True
        return control
