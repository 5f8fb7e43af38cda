"""The model as plain Hugging Face folders: when asked, and at the end of each stage but the last.

``RUN/stage-1/`` is the model that was trained on patches and has not seen a token-level step: what
it takes to say what the token-level stage did. It is written at the switch, when the stage's last
step has passed the guard, its evaluation and its checkpoint, so a run killed after the switch has
it, and one that goes on from before the switch writes it again.
"""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, Trainer

from patchtrain.errors import UsageError, one_line
from patchtrain.files import whole_folder
from patchtrain.model_folder import keep_card
from patchtrain.runs import RunFolder
from patchtrain.stage import Stage
from patchtrain.training.processes import together
from patchtrain.training.record import RunRecord


def sound_generation(config: GenerationConfig | None) -> GenerationConfig | None:
    """Generation settings as transformers agrees to save them.

    Many models on the hub come with a temperature and without ``do_sample``, which it reads and
    does not write. They were meant for sampling, so sampling is what the copy does.

    Raises:
        UsageError: they are wrong in another way too.
    """
    for sampled in (False, True):
        tried = copy.deepcopy(config)
        if tried is None:
            return None
        if sampled:
            tried.do_sample = True
        try:
            tried.validate(strict=True)
        except ValueError as error:
            why = one_line(error)
        else:
            return tried
    raise UsageError(f"the model's generation_config cannot be saved, so mend it first: {why}")


class WritingPlainModels(Trainer):
    """The part of ``PatchTrainer`` that writes them; it uses the trainer's tokenizer and record."""

    record: RunRecord | None

    def export(self, path: str | Path) -> Path:
        """Write the model as a plain Hugging Face checkpoint, with its tokenizer if there is one.

        Nothing of patches is in it. Called on all processes (a sharded model is gathered).
        """
        path = Path(path)
        plain: Any = self.plain_model()
        state = self.gathered_state(plain)
        with together():
            if self.is_world_process_zero():
                # Off while training, which may go on; a reader wants fast generation.
                cached, plain.config.use_cache = getattr(plain.config, "use_cache", None), True
                generation = getattr(plain, "generation_config", None)
                try:
                    if generation is not None:
                        plain.generation_config = sound_generation(generation)
                    with whole_folder(path, replace=True) as folder:
                        keep_card(path, folder)
                        plain.save_pretrained(folder, state_dict=state)
                        if self.processing_class is not None:
                            self.processing_class.save_pretrained(folder)
                finally:
                    plain.config.use_cache = cached
                    if generation is not None:
                        plain.generation_config = generation
        return path

    def check_export(self) -> None:
        """Refuse, before anything is trained, a model that could not be written afterwards."""
        sound_generation(getattr(self.plain_model(), "generation_config", None))

    def keep_stage_model(self, stage: Stage) -> None:
        """Write the model at the end of ``stage``, if it is wanted. Called on all processes.

        The time it takes is not training time. What an earlier attempt at the run left there makes
        way in either case: it may be of other weights.
        """
        folder = RunFolder(Path(self.args.output_dir)).stage_model(stage.index + 1)
        begin = time.perf_counter()
        if self.args.keep_stage_models:
            self.export(folder)
        else:
            with together():
                if self.is_world_process_zero() and folder.is_dir():
                    shutil.rmtree(folder)
        if self.record is not None:
            self.record.pause(time.perf_counter() - begin)
