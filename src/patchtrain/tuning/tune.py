"""One instruction tuning, start to finish: data, training, export, held-out loss, page.

It leaves a run's folder, so that everything that reads a run reads it too, with two things more::

    OUT/held_out.jsonl   the conversations that were not trained on
    OUT/run.json         an entry "tuning": settings, data, held-out loss before and after
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from patchtrain import chat
from patchtrain.data.conversations import Conversation, Conversations, read_conversations
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.answer_loss import AnswerLoss, answer_loss, answers_result
from patchtrain.evaluation.answering import Decoding, answer
from patchtrain.evaluation.loading import LoadedModel, load_model
from patchtrain.evaluation.record import record
from patchtrain.extras import require
from patchtrain.files import clear_partial, whole_folder, write_json, write_text
from patchtrain.model_folder import fingerprint, keep_card
from patchtrain.report.card_file import write_card
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder
from patchtrain.sizing import model_size
from patchtrain.training.record import RunRecord
from patchtrain.training.signals import StoppedBySignalError
from patchtrain.tuning.checks import HELD_OUT, check_out, check_same
from patchtrain.tuning.rows import Rows, split_off, training_rows

_PASS_TOKENS = 2048  # of one device pass, where a row is not longer by itself
_WARM_UP = 0.03  # of the steps
_SAMPLES, _SAMPLE_TOKENS = 3, 64


@dataclass(frozen=True)
class Tuning:
    """What to tune with; ``None`` is the model's own context, and no limit on the steps."""

    data: Sequence[str]
    split: str = "train"
    epochs: float = 3.0
    max_steps: int | None = None
    learning_rate: float = 2e-5
    tokens_per_step: int = 16_384
    context_length: int | None = None
    packing: bool = True
    held_out: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "learning_rate", "tokens_per_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, not {value}")


def tune(
    model: str | Path,
    out: str | Path,
    settings: Tuning,
    resume: bool = False,
    quiet: bool = False,
) -> RunFolder:
    """Tune the model of a run or a model folder and write the run's folder ``out``; returns it.

    The loss of the held-out answers before tuning is recorded in the evaluations of the run the
    model came from, the one after it in those of ``out``.

    Raises:
        UsageError: ``out`` is taken, nothing to tune with, or with ``resume`` another tuning.
        PatchtrainError: data or model cannot be read, or the tuned model is broken.
        StoppedBySignalError: a signal ended it after a step; ``resume`` goes on.
    """
    require("trl", "tuning")
    folder = RunFolder(Path(out))
    check_out(Path(model), folder.path, resume)
    loaded = load_model(model)
    data = read_conversations(settings.data, settings.split)
    trained, held_out = split_off(data.rows, settings.held_out, settings.seed)
    template = chat.use_template(loaded.tokenizer)
    context = _context_length(loaded, settings.context_length)
    rows = training_rows(trained, loaded.tokenizer, context)
    identity = {
        **asdict(settings),
        "data": hashlib.sha256(
            json.dumps([row.messages for row in data.rows]).encode("utf-8", "surrogatepass")
        ).hexdigest(),
        "context_length": context,
        "model": fingerprint(loaded.path),
    }
    if resume and folder.info_file.is_file():
        check_same(folder, identity)
        if folder.info().get("status") == "finished":
            print(f"{out} is finished already; nothing to do", file=sys.stderr)
            return folder
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        clear_partial(folder.path)
        tuner = _Tuner(loaded, folder, settings, data, rows, held_out, context, quiet)
        tuner.about = {
            "from": str(loaded.path.resolve()),
            "template": template,
            "files": [str(name) for name in settings.data],
            "identity": identity,
        }
        tuner.run(resume)
    return folder


class _Tuner:
    """What the parts of one tuning share."""

    about: dict[str, Any]

    def __init__(
        self,
        loaded: LoadedModel,
        folder: RunFolder,
        settings: Tuning,
        data: Conversations,
        rows: Rows,
        held_out: list[Conversation],
        context: int,
        quiet: bool,
    ) -> None:
        self.loaded, self.folder, self.settings, self.data = loaded, folder, settings, data
        self.rows, self.held_out, self.context, self.quiet = rows, held_out, context, quiet
        self.size = model_size(loaded.model)
        self.dtype = loaded.model.dtype
        self.record = RunRecord(folder.path)
        self.before: AnswerLoss | None = None

    def run(self, resume: bool) -> None:
        """Train, export, measure, write the page."""
        self._hold_out()
        try:
            self._train(resume)
            model = self._conclude()
            self._samples(model)
            self.record.update(status="finished")
            write_card(self.folder)
            write_page([self.folder], self.folder.report_file)
        except BaseException as error:
            with suppress(OSError):  # the disk may be what failed
                self.record.stop(error)
            raise
        for path in self.folder.checkpoints().values():
            shutil.rmtree(path)

    def _hold_out(self) -> None:
        """Keep the held-out conversations and measure the model on them as it comes."""
        if not self.held_out:
            return
        lines = [
            json.dumps({"messages": row.messages}, ensure_ascii=False) for row in self.held_out
        ]
        write_text(self.folder.path / HELD_OUT, "".join(f"{line}\n" for line in lines))
        self.before = self._measure(self.loaded.model)
        if self.loaded.run is not None:
            self._keep(self.loaded.run, self.loaded.path, self.before)

    def _train(self, resume: bool) -> None:
        from patchtrain.tuning.trainer import AnswerTrainer, Recording

        model = self.loaded.model.float()  # an update of 2e-5 is lost in the rounding of bf16
        recording = Recording(
            self.record,
            self._describe,
            None if self.before is None else self.before.loss,
            lambda: self._measure(model).loss,
            self.size.flops_per_position(self.context).total,
            self.quiet,
        )
        trainer = self._trainer(AnswerTrainer, recording)
        self._row_tokens = sum(map(len, trainer.train_dataset["input_ids"]))
        self._row_count = len(trainer.train_dataset)
        # The first step of a warm-up learns nothing, which matters where it is one of few.
        warm_up = int(_WARM_UP * self._steps(trainer))
        trainer.args.warmup_steps = warm_up if warm_up > 1 else 0
        found = list(self.folder.checkpoints().values()) if resume else []
        if not self.quiet:
            print(self._announcement(), file=sys.stderr, flush=True)
        with recording.stop.listening():
            trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
        if recording.stopped_by:
            raise StoppedBySignalError(
                recording.stopped_by,
                f"stopped after step {trainer.state.global_step:,}; what was tuned so far is "
                f"saved, and --resume goes on",
            )
        model.config.use_cache = True
        with whole_folder(self.folder.model, replace=True) as path:
            keep_card(self.folder.model, path)
            model.to(self.dtype).save_pretrained(path)
            self.loaded.tokenizer.save_pretrained(path)

    def _trainer(self, kind: Any, recording: Any) -> Any:
        from datasets import Dataset
        from datasets.utils.logging import disable_progress_bar
        from transformers.trainer_callback import PrinterCallback
        from trl import SFTConfig

        disable_progress_bar()
        cuda, settings = torch.cuda.is_available(), self.settings
        per_pass = max(1, _PASS_TOKENS // self.context)
        per_step = max(1, settings.tokens_per_step // self.context)
        args = SFTConfig(
            output_dir=str(self.folder.path),
            max_length=self.context,
            packing=settings.packing,
            assistant_only_loss=self.rows.marked,
            completion_only_loss=not self.rows.marked,
            per_device_train_batch_size=min(per_pass, per_step),
            gradient_accumulation_steps=max(1, per_step // per_pass),
            num_train_epochs=settings.epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            logging_steps=1,
            save_strategy="steps",
            save_steps=0.1,
            bf16=cuda and torch.cuda.is_bf16_supported(),
            activation_checkpointing=cuda,
            use_cpu=not cuda,
            include_num_input_tokens_seen="all",
            seed=settings.seed,
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        args._n_gpu = min(args.n_gpu, 1)  # torch's DataParallel would share a pass out once more
        trainer = kind(
            self.loaded.model,
            args,
            train_dataset=Dataset.from_list(self.rows.rows),
            processing_class=self.loaded.tokenizer,
            callbacks=[recording],
        )
        trainer.remove_callback(PrinterCallback)  # a dict a step, on standard output
        return trainer

    def _steps(self, trainer: Any) -> int:
        """Optimizer steps of the whole tuning, counted as Trainer does."""
        passes = -(-self._row_count // trainer.args.per_device_train_batch_size)
        an_epoch = -(-passes // trainer.args.gradient_accumulation_steps)
        return self.settings.max_steps or math.ceil(self.settings.epochs * an_epoch)

    def _describe(self, steps: int) -> dict[str, Any]:
        """What ``run.json`` says of a tuning of so many steps."""
        settings = self.settings
        per_step = (
            self._row_tokens / self._row_count * max(1, settings.tokens_per_step // self.context)
        )
        # The last step of an epoch is smaller, so the count of whole epochs is the better one.
        whole = settings.max_steps is None
        tokens = round(self._row_tokens * settings.epochs if whole else steps * per_step)
        stage = {
            "name": "answers",
            "patch_size": 1,
            "first_step": 0,
            "steps": steps,
            "tokens": tokens,
            "positions": tokens,
            "tokens_per_step": round(per_step),
        }
        plan = {
            "context_length": self.context,
            "schedule": "cosine",
            "stages": [stage],
            "total_tokens": tokens,
            "total_positions": tokens,
            "total_steps": steps,
        }
        return {
            "name": self.folder.name,
            "status": "running",
            "seed": settings.seed,
            "model": {"class": type(self.loaded.model).__name__, **self.size.to_dict()},
            "learning_rate": settings.learning_rate,
            "plan": plan,
            "tuning": {
                **self.about,
                "conversations": len(self.data.rows),
                "without_answer": self.data.without_answer,
                "held_out_conversations": len(self.held_out),
                "rows": len(self.rows.rows),
                "packed_rows": self._row_count if settings.packing else None,
                "cut": self.rows.cut,
                "left_out": self.rows.left_out,
                "before": self.before.to_dict() if self.before else None,
            },
        }

    def _announcement(self) -> str:
        rows, settings = self.rows, self.settings
        packed = f", packed into {self._row_count:,} of {self.context:,} tokens"
        lines = [
            f"{type(self.loaded.model).__name__} of {self.size.parameters:,} parameters, "
            f"chat template: {self.about['template']}",
            f"{len(rows.rows):,} {'conversations' if rows.marked else 'answers'}"
            f"{packed if settings.packing else ''}; {len(self.held_out):,} conversations held out",
        ]
        for number, what in (
            (self.data.without_answer, "rows without an answer were left out"),
            (rows.left_out, "answers begin beyond the context and were left out"),
            (rows.cut, "rows reach beyond the context and are cut there"),
        ):
            if number:
                lines.append(f"{number:,} {what}")
        return "\n".join(lines)

    def _measure(self, model: Any) -> AnswerLoss:
        return answer_loss(model, self.loaded.tokenizer, self.held_out, self.context)

    def _conclude(self) -> LoadedModel:
        """Measure what was written, not what is in memory."""
        exported = load_model(self.folder.path)
        about = {**self.folder.part("tuning"), "after": None}
        if self.held_out:
            after = self._measure(exported.model)
            if not math.isfinite(after.nats):
                raise PatchtrainError(
                    f"the tuned model is broken: its loss is {after.nats}; try a lower "
                    f"--learning-rate than {self.settings.learning_rate:g}"
                )
            about["after"] = after.to_dict()
            assert self.before is not None
            self._keep(self.folder, exported.path, after, self.before)
        self.record.update(tuning=about)
        return exported

    def _keep(
        self, run: RunFolder, model: Path, loss: AnswerLoss, before: AnswerLoss | None = None
    ) -> None:
        """Put the held-out loss into the run's evaluations, as ``eval --answers`` would."""
        file = self.folder.path / HELD_OUT
        result = answers_result(loss, [str(file)], self.context)
        result |= {"template": self.about["template"], "model": {"path": str(model)}}
        if before is not None:
            result["before"] = before.to_dict()
        record(run.evaluation_file, "instructions", f"{self.folder.name}-held_out", result)

    def _samples(self, exported: LoadedModel) -> None:
        """What the tuned model answers to a few questions that it was not trained on."""
        chosen = self.held_out[:_SAMPLES] or self.data.rows[:_SAMPLES]
        samples = []
        for row in chosen:
            asked = row.messages[: 1 + [m["role"] for m in row.messages].index("user")]
            given = answer(exported, asked, Decoding(_SAMPLE_TOKENS))
            samples.append({"prompt": asked[-1]["content"] + "\n\n", "completion": given.text})
        write_json(self.folder.samples_file, samples)


def _context_length(loaded: LoadedModel, asked: int | None) -> int:
    length, limit = asked or loaded.context_length, loaded.position_limit
    if length is None:
        raise UsageError(f"{loaded.path} does not tell its context length; give --context-length")
    if length < 8 or (limit is not None and length > limit):
        most = f" and at most the model's {limit:,}" if limit is not None else ""
        raise UsageError(f"the context length must be at least 8{most}, not {length:,}")
    return length
