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
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from patchtrain.data.batches import PlanBatches, token_array
from patchtrain.errors import UsageError
from patchtrain.loss_backends import choose
from patchtrain.modeling import (
    PatchLevel,
    check_positions,
    longest_context,
    output_embeddings,
    patch_level,
    vocabulary_size,
)
from patchtrain.plan import Plan
from patchtrain.probing import probe, probe_documents, probe_positions
from patchtrain.sizing import model_size
from patchtrain.stage import Stage
from patchtrain.training.averaging import AveragingWeights, WeightMean
from patchtrain.training.checkpoint import Checkpoints
from patchtrain.training.config import PatchConfig, refuse_unused, save_interval
from patchtrain.training.evaluating import TokenLevelEvaluation, stream
from patchtrain.training.guard import NonfiniteGuard
from patchtrain.training.hooks import BeginsRecord, EvaluatesStageEnds, StopsOnSignal
from patchtrain.training.identity import data_identity, identity
from patchtrain.training.metrics import WritingMetrics
from patchtrain.training.muon import WithMuon
from patchtrain.training.passes import check_takes_labels, count_targets, pass_loss, split_passes
from patchtrain.training.plain_models import WritingPlainModels
from patchtrain.training.processes import ending_with_the_others, most, of_first, together
from patchtrain.training.progress import StageProgress
from patchtrain.training.record import RunRecord, now
from patchtrain.training.resuming import LossWindow, Resuming
from patchtrain.training.sharding import Sharding
from patchtrain.training.signals import StoppedBySignalError, StopRequest
from patchtrain.training.steps import FromCurrentStep, Steps
from patchtrain.training.switching import (
    CheckingMoments,
    check_own_head,
    compiles,
    drop_frozen,
    forget_compiled,
    scale_head,
    switch_optimizer,
)
from patchtrain.training.waiting import CountingDataWait


class PatchTrainer(
    Sharding,
    Resuming,
    TokenLevelEvaluation,
    CountingDataWait,
    WritingMetrics,
    WritingPlainModels,
    WithMuon,
):
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
        refuse_unused(kwargs)
        if type(self).compute_loss is not Trainer.compute_loss:
            raise UsageError("PatchTrainer does not call compute_loss: the loss is the plan's")
        check_takes_labels(model)
        args = copy.copy(args)  # the plan decides some of them: the caller's stay as they were
        bytes_per_token, data = None, None
        if hasattr(train_dataset, "train") and hasattr(train_dataset, "load_tokenizer"):
            store, train_dataset = train_dataset, train_dataset.train
            data = data_identity(store, train_dataset.tokens)
            eval_dataset = store.validation if eval_dataset is None else eval_dataset
            if processing_class is None and store.has_tokenizer:
                processing_class = store.load_tokenizer()
        if eval_dataset is not None and hasattr(eval_dataset, "utf8_bytes"):
            # 0 where the size of the text is unknown: then no bits per byte.
            bytes_per_token = eval_dataset.utf8_bytes / max(len(eval_dataset.tokens), 1) or None
        longest = longest_context(model)
        self.size = model_size(model)
        spec = args.plan_spec(longest).for_model(self.size.parameters)
        tokens = stream(train_dataset, spec)
        self.plan: Plan = spec.resolve(
            store_tokens=len(tokens),
            device_sequences=args.per_device_train_batch_size,
            processes=args.world_size,
        )
        asked = max(self.plan.context_length, *(s.context_length for s in self.plan.stages))
        if longest is not None and asked > longest:
            raise UsageError(
                f"context_length {asked} is beyond the model's max_position_embeddings of {longest}"
            )
        check_positions(model, max(stage.last_position for stage in self.plan.stages))
        data = data or data_identity(train_dataset, tokens)
        data_seed = args.seed if args.data_seed is None else args.data_seed
        self.batches = PlanBatches(tokens, self.plan, data_seed)
        self.bytes_per_token = bytes_per_token
        eval_tokens = None
        if eval_dataset is not None and len(token_array(eval_dataset)) >= 2:
            eval_tokens = stream(eval_dataset, spec)
        if eval_tokens is None:
            args.eval_strategy = "no"
        args.max_steps = self.plan.total_steps
        args.gradient_accumulation_steps = 1  # training_step does it, per stage
        args.ignore_data_skip = True  # the sampler seeks instead
        args.remove_unused_columns = False
        args.logging_nan_inf_filter = False  # a NaN is the guard's affair
        vocabulary = vocabulary_size(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=Steps(self.batches, args.process_index, vocabulary),
            eval_dataset=eval_tokens,
            processing_class=processing_class,
            **kwargs,
        )
        if compiles() and any(stage.token_steps for stage in self.plan.stages):
            raise UsageError(
                "token_share cannot be used with torch_compile or accelerate's dynamo_backend "
                "(ACCELERATE_DYNAMO_BACKEND): compiled code keeps to one level; set one aside"
            )
        self.eval_tokens = eval_tokens
        self.probe = probe(self.model)
        if spec.documents == "separate":
            probe_documents(self.model)
        if any(stage.position_scale > 1 for stage in self.plan.stages):
            probe_positions(self.model)
        if spec.head_scale_at_switch != 1.0:
            check_own_head(self.model)
        self.backend = choose(args.loss_backend, self.probe, output_embeddings(self.model))
        self.record = RunRecord(Path(args.output_dir)) if self.is_world_process_zero() else None
        self.window, self.weight_mean = LossWindow(self.args.device), WeightMean()
        self.stop_request, self.stopped_by = StopRequest(), 0
        # Where more comes after training (``run.py``), the run is not finished with it.
        self.status_after_training = "finished"
        self.identity = identity(
            self.args,
            self.model,
            self.plan,
            {"seed": args.seed, **({} if data_seed == args.seed else {"data_seed": data_seed})},
            data,
        )
        every = args.keep_every and args.keep_every * save_interval(args, self.plan.total_steps)
        self.checkpoints = Checkpoints(Path(args.output_dir), args.save_total_limit, every)
        self._handle: PatchLevel | None = None
        self._stage: Stage | None = None
        self._logged = (0, 0, 0.0)  # tokens, positions and seconds at the last log
        self.remove_callback(ProgressCallback)
        self.remove_callback(PrinterCallback)
        self._progress = StageProgress(self.plan, quiet=args.disable_tqdm)
        self.add_callback(self._progress)
        self.add_callback(BeginsRecord(self))
        self.add_callback(EvaluatesStageEnds(self.plan))
        if self.plan.spec.optimizer_at_switch == "second" and len(self.plan.stages) > 1:
            self.add_callback(CheckingMoments())
        if spec.average_at_switch:
            self.add_callback(AveragingWeights(self))
        self.add_callback(StopsOnSignal(self))
        self._guard = NonfiniteGuard(self)  # last, to know what the others want done after a step
        self.add_callback(self._guard)

    # ---- one run through all stages

    def train(
        self,
        resume_from_checkpoint: str | Path | bool | None = None,
        *args: Any,
        allow_change: Iterable[str] = (),
        **kwargs: Any,
    ) -> Any:
        """Train all stages of the plan.

        Args:
            resume_from_checkpoint: a checkpoint folder to go on from, or True for the newest whole
                one of the run folder; from the start if there is none.
            allow_change: what may differ from the run that made it (``identity.MAY_CHANGE``).
            args, kwargs: as ``Trainer.train``.

        Raises:
            UsageError: the checkpoint is of another run.
            StoppedBySignalError: SIGTERM or SIGINT came; the run is saved and can be resumed.
        """
        with ending_with_the_others(self.checkpoints.run):
            return self._train(resume_from_checkpoint, allow_change, *args, **kwargs)

    def _train(
        self,
        resume_from_checkpoint: str | Path | bool | None,
        allow_change: Iterable[str],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self.window, self.weight_mean = LossWindow(self.args.device), WeightMean()
        self.stop_request, self.stopped_by = StopRequest(), 0
        found = self.find_checkpoint(resume_from_checkpoint, allow_change)
        if found is not None:
            self.args.eval_on_start = False  # that was at the start
            self.tell(f"going on after step {found.step:,} of {self.plan.total_steps:,}")
        elif resume_from_checkpoint:
            self.tell(f"no checkpoint in {self.checkpoints.run} yet: beginning at the start")
        self.checkpoints.set_aside(found.step if found else 0, self.tell)
        self.checkpoints.tidy(found.step if found else 0)
        try:
            with self.stop_request.listening():
                output = super().train(found and str(found.path), *args, **kwargs)
                self._raise_if_stopped()
        except BaseException as error:
            if self.record is not None:
                with contextlib.suppress(OSError):  # the disk may be what failed
                    self.record.stop(error)
            raise
        finally:
            self._leave_stage()
            self._progress.stop()
        step, all_steps = self.state.global_step, self.plan.total_steps
        if step < all_steps:  # Trainer ends quietly where a callback asks it to
            level = "patch" if self.plan.stage_at(max(step - 1, 0)).patch_size > 1 else "token"
            self.tell(f"a callback ended training after step {step:,} of {all_steps:,}, at {level} "
                      f"level")  # fmt: skip
        if self.record is not None:
            self.record.update(
                status=self.status_after_training if step == all_steps else "interrupted",
                finished=now(),
                seconds=self.record.seconds,
                flops=self.size.flops(self.plan, step).total,
            )
        return output

    def _raise_if_stopped(self) -> None:
        """End as a signal asked, also one that came in the last step or its evaluation."""
        step = self.state.global_step
        number = self.stopped_by or most(self.stop_request.signal, self.args.device)
        saved = self.checkpoints.run / f"checkpoint-{step}"
        if number and of_first(saved.is_dir()):
            with together():  # torchrun ends the others as soon as it sees one end
                pass
            raise StoppedBySignalError(
                number,
                f"stopped by {signal.Signals(number).name} after step {step:,} of "
                f"{self.plan.total_steps:,}, which is saved as {saved.name}; go on with --resume",
            )

    def get_train_dataloader(self) -> DataLoader:
        """One item a step, already this process's share: nothing is left for accelerate to shard.

        The sampler begins at the trainer's current step, so resuming is a seek.
        """
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            sampler=FromCurrentStep(self),
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            # Its own: from the global one it would draw a number each time it starts.
            generator=torch.Generator().manual_seed(self.args.seed),
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
        stage = self.plan.stage_at(self.state.global_step).level_at(self.state.global_step)
        self._enter_stage(stage)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        passes = split_passes(inputs, self.plan.pass_rows(stage))
        targets, share = [1.0] * len(passes), 1.0
        if "labels" in inputs:  # the passes differ; counted while they are still on the CPU
            targets = [count_targets(part, stage) for part in passes]
            share = self._global_mean(sum(targets), len(passes))
        losses = []
        for number, (part, count) in enumerate(zip(passes, targets, strict=True), 1):
            # DDP sums gradients over processes once a step. Sharded ones are summed after every
            # pass: kept back, they would lie whole on every device, 28 GB of a 7B model.
            summed = number == len(passes) or self.is_fsdp_enabled
            with contextlib.nullcontext() if summed else self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    # The mean over passes, which DDP and FSDP average over processes, is the sum
                    # over all targets divided once by their number.
                    part = self._prepare_inputs(part)
                    loss = pass_loss(model, part, stage, count, share) / len(passes)
                self.accelerator.backward(loss)
            losses.append(loss.detach().float())
        if parts := self.plan.frozen_at(self.state.global_step):
            drop_frozen(self.plain_model(), parts)
        self._guard.saw(passes, losses)
        self._step_loss = torch.stack(losses).sum()
        return self._step_loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping, for the log; here the guard can still stop the step."""
        norm = self._guard.check(model, super()._get_grad_norm(model, grad_norm))
        if norm is not None:  # else the step is left out
            self.window.add(self._step_loss)
        return norm

    # ---- stages

    def _enter_stage(self, stage: Stage) -> None:
        """Put the model at the stage's patch size; at its first step, do what the switch does."""
        if self._stage == stage:
            return
        self._leave_stage()
        switching = stage.index > 0 and self.state.global_step == stage.first_step
        if switching:
            self.keep_stage_model(self.plan.stages[stage.index - 1])
        plain = self.plain_model()
        if stage.patch_size > 1:
            self._handle = patch_level(
                plain,
                stage.patch_size,
                stage.slot_weights,
                backend=self.backend,
                checked=self.probe,
                **stage.reading(),
            )
        self._stage = stage
        if switching:
            self.switch()
            forget_compiled()
            self._write("switch", {})

    def switch(self) -> None:
        """What becomes of weights and optimizer state where one stage ends and the next begins."""
        self.weight_mean.move_to(self.plain_model())
        if (factor := self.plan.spec.head_scale_at_switch) != 1.0:
            scale_head(self.plain_model(), factor)
        switch_optimizer(self.optimizer, str(self.plan.spec.optimizer_at_switch))

    @property
    def stage_index(self) -> int:
        """Of the stage that the model is in; its switch is behind it."""
        return 0 if self._stage is None else self._stage.index

    def _leave_stage(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._stage = None
