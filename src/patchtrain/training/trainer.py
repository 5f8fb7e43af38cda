"""``PatchTrainer``: all stages of a plan in one ``train()`` of transformers' Trainer.

To the Trainer, one item of the data set is one optimizer step: all sequences this process reads
in it. ``training_step`` cuts them into device passes, which have the same number of positions in
every stage, and sums the loss over them, divided once by the true number of targets. What the
Trainer then sees is a plain run of ``plan.total_steps`` steps: its optimizer, checkpoints,
logging, callbacks, DDP, FSDP, compilation and mixed precision are left as they are.
"""

from __future__ import annotations

import contextlib
import copy
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback

from patchtrain.cost import model_size
from patchtrain.data.batches import PlanBatches, read_rows, spread, spread_starts, token_array
from patchtrain.data.documents import AlignedDocuments, aligned_documents
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.perplexity import evaluating, packed_loss, rows_loss
from patchtrain.files import whole_folder
from patchtrain.loss_backends import choose
from patchtrain.modeling import PatchLevel, output_embeddings, patch_level
from patchtrain.plan import Plan, PlanSpec, Stage
from patchtrain.probing import probe, probe_documents
from patchtrain.training.config import PatchConfig
from patchtrain.training.guard import NonfiniteGuard
from patchtrain.training.passes import count_targets, pass_loss, split_passes
from patchtrain.training.progress import StageProgress
from patchtrain.training.record import RunRecord, now


class PatchTrainer(Trainer):
    """Trains a causal LM through the stages of ``args.plan``.

    Args:
        model: any transformers causal LM on which patch level is exact (``probing.probe``).
        args: a ``PatchConfig``.
        train_dataset: tokens: a ``TokenStore`` or its split, a ``datasets.Dataset`` with a column
            ``input_ids``, or a flat array of token ids. Of a store, the validation split is taken
            for evaluation and its tokenizer goes into the exported model.
        eval_dataset: the same for validation.
        kwargs: what else ``Trainer`` takes (``callbacks``, ``optimizers``, ...).

    Raises:
        UsageError: where plan, data and model do not fit, before anything is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        args: PatchConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        if train_dataset is None:
            raise UsageError("PatchTrainer needs a train_dataset")
        args = copy.copy(args)  # the plan decides some of them: the caller's stay as they were
        bytes_per_token = None
        if hasattr(train_dataset, "train") and hasattr(train_dataset, "load_tokenizer"):
            store, train_dataset = train_dataset, train_dataset.train
            eval_dataset = store.validation if eval_dataset is None else eval_dataset
            processing_class = processing_class or store.load_tokenizer()
        if eval_dataset is not None and hasattr(eval_dataset, "utf8_bytes"):
            bytes_per_token = eval_dataset.utf8_bytes / max(len(eval_dataset.tokens), 1)
        longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        spec = args.plan_spec(longest)
        tokens = _stream(train_dataset, spec)
        self.plan: Plan = spec.resolve(
            store_tokens=len(tokens),
            device_sequences=args.per_device_train_batch_size,
            processes=args.world_size,
        )
        if longest is not None and self.plan.context_length > longest:
            raise UsageError(
                f"context_length {self.plan.context_length} is beyond the model's "
                f"max_position_embeddings of {longest}"
            )
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self.batches = PlanBatches(tokens, self.plan, data_seed)
        self.bytes_per_token = bytes_per_token
        eval_tokens = None
        if eval_dataset is not None and len(token_array(eval_dataset)) >= 2:
            eval_tokens = _stream(eval_dataset, spec)
        if eval_tokens is None:
            args.eval_strategy = "no"
        args.max_steps = self.plan.total_steps
        args.gradient_accumulation_steps = 1  # training_step does it, per stage
        args.ignore_data_skip = True  # the sampler seeks instead
        args.remove_unused_columns = False
        args.logging_nan_inf_filter = False  # a NaN is the guard's affair
        super().__init__(
            model=model,
            args=args,
            train_dataset=_Steps(self.batches, args.process_index, _rows(model)),
            eval_dataset=eval_tokens,
            processing_class=processing_class,
            **kwargs,
        )
        self.eval_tokens = eval_tokens
        self.probe = probe(self.model)
        if spec.documents == "separate":
            probe_documents(self.model)
        self.backend = choose(args.loss_backend, self.probe, output_embeddings(self.model))
        self.size = model_size(self.model)
        self.flops_per_position = self.size.flops_per_position(self.plan.context_length)
        self.record = RunRecord(Path(args.output_dir)) if self.is_world_process_zero() else None
        self._handle: PatchLevel | None = None
        self._stage: Stage | None = None
        self._logged = (0, 0, 0.0)  # tokens, positions and seconds at the last log
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self._progress = StageProgress(self.plan, quiet=args.disable_tqdm)
        self.add_callback(self._progress)
        self.add_callback(_Begin(self))
        self.add_callback(_StageEnds(self.plan))
        self._guard = NonfiniteGuard(self)  # last, to know what the others want done after a step
        self.add_callback(self._guard)

    # ---- one run through all stages

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train all stages; arguments as ``Trainer.train``. The model ends at token level."""
        try:
            output = super().train(*args, **kwargs)
        except BaseException as error:
            if self.record is not None:
                self._drop_half_checkpoint()  # which may make room for what the record says
                with contextlib.suppress(OSError):  # the disk may be what failed
                    self.record.stop(error)
            raise
        finally:
            self._leave_stage()
            self._progress.stop()
        if self.record is not None:
            self.record.update(
                status="finished",
                finished=now(),
                seconds=self.record.seconds,
                flops=self.plan.total_positions * self.flops_per_position,
            )
        return output

    def _drop_half_checkpoint(self) -> None:
        """Delete the checkpoint of this step if its state, which is written last, is missing."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)

    def get_train_dataloader(self) -> DataLoader:
        """One item a step, already this process's share: nothing is left for accelerate to shard.

        The sampler begins at the trainer's current step, so resuming is a seek.
        """
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            sampler=_FromCurrentStep(self),
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_total_train_batch_size(self, args: Any) -> int:
        """Sequences of a step, on average over the stages (only Trainer's own messages use it)."""
        sequences = sum(stage.steps * stage.sequences_per_step for stage in self.plan.stages)
        return round(sequences / self.plan.total_steps)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """The plan's rate at every step: restarted or continuous is the plan's affair."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.plan.rate_at)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """All device passes of one optimizer step; returns the step's mean loss of this process."""
        self._enter_stage(self.plan.stage_at(self.state.global_step))
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        stage = self.plan.stage_at(self.state.global_step)
        passes = split_passes(inputs, self.plan.pass_sequences)
        targets, share = [1.0] * len(passes), 1.0
        if "labels" in inputs:  # the passes differ; counted while they are still on the CPU
            targets = [count_targets(part, stage) for part in passes]
            share = self._global_mean(sum(targets), len(passes))
        losses = []
        for number, (part, count) in enumerate(zip(passes, targets, strict=True), 1):
            last = number == len(passes)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    # The mean over passes, which DDP and FSDP average over processes, is the sum
                    # over all targets divided once by their number.
                    part = self._prepare_inputs(part)
                    loss = pass_loss(model, part, stage, count, share) / len(passes)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
        self._guard.saw(passes, losses)
        return torch.stack(losses).sum()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping, for the log; here the guard can still stop the step."""
        return self._guard.check(model, super()._get_grad_norm(model, grad_norm))

    # ---- stages

    def _enter_stage(self, stage: Stage) -> None:
        """Put the model at the stage's patch size; at its first step, do what the switch does."""
        if self._stage is stage:
            return
        self._leave_stage()
        plain = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        if stage.patch_size > 1:
            self._handle = patch_level(
                plain,
                stage.patch_size,
                stage.slot_weights,
                backend=self.backend,
                checked=self.probe,
            )
        self._stage = stage
        if stage.index > 0 and self.state.global_step == stage.first_step:
            if self.plan.spec.optimizer_at_switch == "reset":
                self.optimizer.state.clear()
            if self.args.torch_compile:
                torch.compiler.reset()  # compiled code has the other stage's forward inlined
            self._write("switch", {})

    def _leave_stage(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._stage = None

    def begin_record(self) -> None:
        """Start the run's record, or on resuming go on with the one that is there."""
        if self.record is not None:
            self.record.start(self._describe(), self.state.global_step)
            self._logged = (*self._counted(), self.record.seconds)

    def _describe(self) -> dict[str, Any]:
        return {
            "name": self.args.run_name or Path(self.args.output_dir).resolve().name,
            "status": "running",
            "seed": self.args.seed,
            "model": {"class": type(self.model).__name__, **self.size.to_dict()},
            "flops_per_position": self.flops_per_position,
            "learning_rate": self.args.learning_rate,
            "loss_backend": {"name": self.backend.name, "reason": self.backend.reason},
            "plan": self.plan.to_dict(),
            "documents": self.documents(),
        }

    def documents(self) -> dict[str, Any]:
        """How documents are read, and what keeping them separate adds to the training tokens."""
        tokens = self.batches.tokens
        if not isinstance(tokens, AlignedDocuments):
            return {"read": "mixed"}
        return {"read": "separate", "stream_tokens": len(tokens), "added_tokens": tokens.added}

    # ---- counting and logging

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> float:
        """FLOPs of this process's share of a step, by positions: a patch costs one token."""
        stage = self.plan.stage_at(self.state.global_step)
        return stage.positions_per_step / self.plan.processes * self.flops_per_position

    def _counted(self) -> tuple[int, int]:
        step = self.state.global_step
        return self.plan.tokens_before(step), self.plan.positions_before(step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds stage, tokens, positions and throughput; writes metrics."""
        if "loss" in logs:
            stage = self.plan.stage_at(self.state.global_step - 1)
            tokens, positions = self._counted()
            logs.update(stage=stage.index, patch_size=stage.patch_size, tokens=tokens)
            if self.record is not None:
                before_tokens, before_positions, before = self._logged
                seconds = self.record.seconds
                elapsed = max(seconds - before, 1e-9)
                logs["tokens_per_s"] = (tokens - before_tokens) / elapsed
                logs["positions_per_s"] = (positions - before_positions) / elapsed
                self._logged = (tokens, positions, seconds)
            self._write("train", logs, stage)
        elif "eval_loss" in logs:
            if not self._guard.evaluated(logs["eval_loss"]):
                return
            self._write("eval", {key.removeprefix("eval_"): value for key, value in logs.items()})
        super().log(logs, start_time)

    def _write(self, event: str, values: Mapping[str, Any], stage: Stage | None = None) -> None:
        if self.record is None:
            return
        stage = stage or self._stage or self.plan.stage_at(self.state.global_step)
        tokens, positions = self._counted()
        self.record.event(
            {
                **{key: value for key, value in values.items() if key != "epoch"},
                "event": event,
                "step": self.state.global_step,
                "stage": stage.index,
                "patch_size": stage.patch_size,
                "tokens": tokens,
                "positions": positions,
                "flops": positions * self.flops_per_position,
                "seconds": self.record.seconds,
            }
        )

    # ---- evaluation and result

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Token-level loss on validation text, and at patch level the patch loss too.

        The loss is over windows of the context length, spread evenly over the text, of about
        ``args.eval_tokens`` tokens; the processes share them. It is in nats per token and the same
        for the same weights in every stage and plan.
        """
        tokens = self.eval_tokens
        if eval_dataset is not None:
            tokens = _stream(eval_dataset, self.plan.spec)
        if tokens is None or len(tokens) < 2:
            raise UsageError("there is no validation text to evaluate on")
        begin = time.perf_counter()
        with self._at_token_level():
            loss = self._global_mean(*self._token_loss(tokens))
        metrics = {"loss": loss}
        if self.bytes_per_token and eval_dataset is None:
            metrics["bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        if self._handle is not None and self._stage is not None:
            length = self._stage.sequence_tokens
            if len(tokens) >= length:
                starts = self._share(spread_starts(len(tokens), self._eval_wanted(), length))
                metrics["patch_loss"] = self._patch_loss(tokens, starts, self._stage)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        if self.record is not None:
            self.record.pause(time.perf_counter() - begin)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]
            metrics,
        )
        return metrics

    def _eval_wanted(self) -> int:
        # 1 % of the positions at every 5 % of the steps: some 7 % on top of the training time.
        derived = min(max(self.plan.total_positions // 100, 8_192), 131_072)
        return self.args.eval_tokens or derived

    def _share(self, rows: np.ndarray) -> np.ndarray:
        """This process's part of ``rows``: equal parts, so that sharded models stay in step."""
        share = len(rows) // self.plan.processes
        return rows[self.args.process_index * share :][:share] if share else rows

    def _token_loss(self, tokens: np.ndarray | AlignedDocuments) -> tuple[float, int]:
        """Summed next-token loss on this process's rows of the text, and their targets."""
        length = self.plan.context_length
        if isinstance(tokens, np.ndarray):
            # A window's last token is only predicted, its first only read.
            return rows_loss(
                self.model, self._share(spread(tokens, self._eval_wanted(), length + 1))
            )
        starts = spread_starts(len(tokens), self._eval_wanted(), length)
        starts = self._share(starts) if len(starts) else np.zeros(1, dtype=np.int64)
        return packed_loss(self.model, tokens.read(starts, length, 1))

    @torch.no_grad()
    def _patch_loss(
        self, tokens: np.ndarray | AlignedDocuments, starts: np.ndarray, stage: Stage
    ) -> float:
        """The stage's own loss on whole sequences."""
        rows = read_rows(tokens, starts, stage.sequence_tokens, stage.patch_size)
        inputs = {name: torch.from_numpy(value) for name, value in rows.items()}
        total = targets = 0.0
        with evaluating(self.model):
            for part in split_passes(inputs, self.plan.pass_sequences):
                count = count_targets(part, stage)
                with self.accelerator.autocast():
                    loss = pass_loss(self.model, self._prepare_inputs(part), stage, count, count)
                total += float(loss) * count
                targets += count
        return self._global_mean(total, targets)

    def _global_mean(self, total: float, count: float) -> float:
        pair = torch.tensor([total, count], dtype=torch.float64).to(
            self.args.device, torch.float64 if self.args.device.type != "mps" else torch.float32
        )
        total, count = self.accelerator.reduce(pair, "sum").tolist()
        return total / count if count else math.nan

    @contextlib.contextmanager
    def _at_token_level(self) -> Iterator[None]:
        if self._handle is None:
            yield
            return
        with self._handle.paused():
            yield

    def export(self, path: str | Path) -> Path:
        """Write the model as a plain Hugging Face checkpoint, with its tokenizer if there is one.

        Nothing of patches is in it. Called on all processes (a sharded model is gathered).
        """
        path = Path(path)
        plain = self.accelerator.unwrap_model(self.model_wrapped, keep_torch_compile=False)
        # Gathered only where it is sharded: a compiled model's state dict has names of its own.
        state = None
        if self.is_fsdp_enabled:
            state = self.accelerator.get_state_dict(self.model_wrapped)
        if self.is_world_process_zero():
            plain.config.use_cache = True  # off while training; a reader wants fast generation
            with whole_folder(path, replace=True) as folder:
                plain.save_pretrained(folder, state_dict=state)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(folder)
        self.accelerator.wait_for_everyone()
        return path


class _Steps(Dataset):
    """Item i is what this process reads in optimizer step i."""

    def __init__(self, batches: PlanBatches, process: int, vocabulary: int) -> None:
        self.batches = batches
        self.process = process
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        inputs = self.batches.inputs(step, self.process)
        ids = inputs["input_ids"]
        if int(ids.max()) >= self.vocabulary:
            raise PatchtrainError(
                f"token id {ids.max()} in step {step} is beyond the model's vocabulary of "
                f"{self.vocabulary}: the tokens are damaged, or of another tokenizer"
            )
        return {name: torch.from_numpy(value) for name, value in inputs.items()}


def _stream(dataset: Any, spec: PlanSpec) -> np.ndarray | AlignedDocuments:
    """What a user trains on as one stream of tokens, its documents apart if asked for."""
    if spec.documents == "separate":
        return aligned_documents(dataset, spec.alignment())
    return token_array(dataset)


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


class _FromCurrentStep(Sampler):
    """All steps from the trainer's current one on."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def __len__(self) -> int:
        return len(self.trainer.train_dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.trainer.state.global_step, len(self)))


class _Begin(TrainerCallback):
    """Starts the record once the step to begin at is known, before anything is logged."""

    def __init__(self, trainer: PatchTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_record()


class _StageEnds(TrainerCallback):
    """Evaluates at the end of every stage, whatever the evaluation interval."""

    def __init__(self, plan: Plan) -> None:
        self.ends = {stage.last_step for stage in plan.stages}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step in self.ends:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        return control
