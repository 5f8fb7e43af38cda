"""``PatchLevelCallback``: patch level for the first steps of any transformers Trainer.

The Trainer, its data and its arguments stay as they are. The model is at patch level only while a
step of the first stage is computed: what happens between steps (evaluation, checkpoints, another
callback that generates) and all that comes after the switch sees the plain model.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback

from patchtrain.errors import UsageError
from patchtrain.modeling import PatchLevel, Probe, patch_level
from patchtrain.patch_settings import is_number, shown
from patchtrain.probing import probe
from patchtrain.stage import SlotWeights, slot_weights
from patchtrain.training.config import UNSUPPORTED
from patchtrain.training.switching import forget_compiled

_REFUSED = ("fp16", "deepspeed", "label_smoothing_factor", "use_liger_kernel")


class PatchLevelCallback(TrainerCallback):
    """Trains the first ``patch_fraction`` of the steps on patches of K tokens, the rest on tokens.

    Rows keep their length S in both stages, so the share of the steps is also the share of the
    tokens, and a patch-level step costs 1 / K of a token-level one (the transformer sees S / K
    positions). S must be a multiple of K: pack the text into such rows, or have the collator pad
    to one (``pad_to_multiple_of``). The optimizer's state is carried over the switch, and the
    learning rate follows the Trainer's one schedule; ``PatchTrainer`` has the papers' others.

    The loss must be the model's own: no ``compute_loss_func``. A Trainer that takes another one, as
    TRL's SFTTrainer does, has to leave that ``at_patch_level`` (see ``examples/trl_sft.py``).
    Logged losses before the switch are patch losses; evaluation is at token level throughout. A log
    never mixes the two: one is written at the switch. The Trainer's own ``total_flos`` counts a
    patch-level step as a token-level one.

    Args:
        patch_size: K, at least 2.
        patch_fraction: share of the steps at patch level, above 0 and below 1; rounded to whole
            steps, of which each stage has at least one.
        weights: slot weights (see ``stage.slot_weights``); uniform if not given.

    Raises:
        UsageError: where the arguments, the Trainer's settings or the model do not fit.
    """

    def __init__(
        self, patch_size: int, patch_fraction: float, weights: SlotWeights | None = None
    ) -> None:
        self.weights = slot_weights(patch_size, "uniform" if weights is None else weights)
        if patch_size < 2:
            raise UsageError(f"patch_size must be at least 2, not {patch_size}")
        if not is_number(patch_fraction) or not 0 < patch_fraction < 1:
            raise UsageError(
                f"patch_fraction must be above 0 and below 1, not {shown(patch_fraction)}: "
                f"a run has to end at token level"
            )
        self.patch_size = patch_size
        self.patch_fraction = patch_fraction
        self._last_step = 0  # the first step that is no longer at patch level
        self._handle: PatchLevel | None = None
        self._between_steps = ExitStack()
        self._in_step = False
        self._checked: Probe | None = None  # None if added to a Trainer that is there already

    @property
    def at_patch_level(self) -> bool:
        """Whether the model is at patch level right now: within a step of the first stage."""
        return self._handle is not None and self._in_step

    def on_init_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        # Before mixed precision is wrapped around the model: its rounding would look like a
        # difference between the loss that skips the head and the one from full logits.
        self._checked = probe(model)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        for name in _REFUSED:
            if getattr(args, name, None):
                raise UsageError(f"PatchLevelCallback cannot work with {name}: {UNSUPPORTED[name]}")
        if args.n_gpu > 1:
            raise UsageError(
                "PatchLevelCallback cannot work with torch's DataParallel; start one process a "
                "GPU (torchrun or accelerate launch)"
            )
        self._leave()  # an earlier train() may have been interrupted
        self._last_step = self._switch(state.max_steps)
        if state.global_step < self._last_step:  # not so where a run is resumed after the switch
            plain = extract_model_from_parallel(model, keep_torch_compile=False)
            self._handle = patch_level(plain, self.patch_size, self.weights, checked=self._checked)
            self._pause()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._in_step = True
        self._between_steps.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._handle is None:
            return
        if state.global_step < self._last_step:
            self._pause()
            return
        self._leave()
        forget_compiled()
        control.should_log = args.logging_strategy != "no"

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._leave()

    def _switch(self, steps: int) -> int:
        """The first step of a run of so many that is at token level; each stage has one at least.

        Raises:
            UsageError: rounding would leave a stage without a step.
        """
        switch = round(self.patch_fraction * steps)
        if 0 < switch < steps:
            return switch
        level, other = ("token", "smaller") if switch else ("patch", "larger")
        of = "1 step" if steps == 1 else f"{steps} steps"
        instead = "" if steps == 1 else f", or take a {other} patch_fraction"
        raise UsageError(
            f"patch_fraction {self.patch_fraction:g} of {of} leaves none at {level} level; "
            f"train for more steps{instead}"
        )

    def _pause(self) -> None:
        assert self._handle is not None
        self._in_step = False
        self._between_steps.enter_context(self._handle.paused())

    def _leave(self) -> None:
        self._between_steps.close()
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
