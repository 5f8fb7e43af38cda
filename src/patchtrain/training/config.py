"""``PatchConfig``: transformers' TrainingArguments and a plan."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode

from patchtrain.errors import UsageError, nearest, one_line
from patchtrain.extras import require
from patchtrain.plan import PlanSpec

# What a recipe must not set, and where to look instead.
DERIVED = {
    "output_dir": "set out",
    "max_steps": "set plan.steps",
    "num_train_epochs": "set plan.epochs",
    "gradient_accumulation_steps": "it follows from plan.tokens_per_step",
    "lr_scheduler_type": "set plan.schedule",
    "lr_scheduler_kwargs": "set plan.schedule",
    "warmup_steps": "set plan.warmup_steps",
    "seed": "set seed at the top level",
    "run_name": "the run is named after its folder",
    "ignore_data_skip": "the data is always sought, never replayed",
    "train_sampling_strategy": "the order of the data is a function of the seed",
    "resume_from_checkpoint": "use --resume",
}
# What Trainer offers and a patch-level stage cannot honour, and why.
UNSUPPORTED = {
    "fp16": "the loss takes its gradients before fp16's loss scaling; use bf16",
    "deepspeed": "use FSDP through accelerate",
    "label_smoothing_factor": "the K-target loss has no smoothing",
    "use_liger_kernel": "it replaces the forward that patch level replaces",
    "auto_find_batch_size": "device passes must be equal in all stages; set "
    "per_device_train_batch_size",
    "load_best_model_at_end": "the weights at the end of the plan are the result",
    "save_only_model": "a checkpoint is for resuming; the run's model is exported at its end",
    "push_to_hub": "push the exported model folder when the run is finished",
    "enable_jit_checkpoint": "SIGTERM saves a checkpoint anyway",
    "parallelism_config": "set fsdp and fsdp_replicas",
}
# What ``Trainer`` takes beside its arguments and ``PatchTrainer`` would leave unused, and why.
UNUSED = {
    "compute_loss_func": "the loss is the plan's",
    "data_collator": "rows are cut from one stream of tokens, without padding",
    "compute_metrics": "evaluation is the loss; patchtrain eval measures a finished model",
    "preprocess_logits_for_metrics": "evaluation is the loss",
}
# The plan's schedule for transformers' names of it; ``linear`` is what nobody asked for.
_SCHEDULES = {
    "linear": None,
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "warmup_stable_decay": "wsd",
}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "learning_rate": (lambda rate: rate > 0, "above 0"),
    "muon_rate": (
        lambda rate: not isinstance(rate, bool) and isinstance(rate, int | float)
        and 0 <= rate <= 1024,
        "from 0 to 1,024",
    ),
    "adam_beta1": (lambda beta: 0 <= beta < 1, "at least 0 and below 1"),
    "adam_beta2": (lambda beta: 0 <= beta < 1, "at least 0 and below 1"),
    "dataloader_num_workers": (lambda workers: 0 <= workers <= 256, "from 0 to 256"),
}  # fmt: skip
ON_NONFINITE = ("stop", "skip", "rollback")  # what the guard can do (``guard.py``)
# What ``fsdp_config`` takes, with or without ``fsdp_`` in front.
FSDP_KEYS = (
    "version", "reshard_after_forward", "auto_wrap_policy", "transformer_layer_cls_to_wrap",
    "min_num_params", "cpu_offload", "activation_checkpointing", "cpu_ram_efficient_loading",
    "state_dict_type",
)  # fmt: skip


def wrong_values(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of settings, as far as each can be told alone."""
    problems = []
    for name, (fits, what) in _RANGES.items():
        if name in values and not fits(values[name]):
            problems.append(f"{name} must be {what}, not {one_line(repr(values[name]), 40)}")
    if (choice := values.get("on_nonfinite", "stop")) not in ON_NONFINITE:
        problems.append(f"on_nonfinite is '{choice}'; choose {', '.join(ON_NONFINITE)}")
    optimizers = [str(name.value) for name in OptimizerNames]
    if (optim := values.get("optim", optimizers[0])) not in optimizers:
        problems.append(
            f"optim '{optim}' is no optimizer of transformers{nearest(optim, optimizers)}"
        )
    return problems


@dataclass
class PatchConfig(TrainingArguments):
    """Everything ``transformers.TrainingArguments`` takes, and ``plan``.

    ``plan`` is a ``PlanSpec`` or a dict of its fields. What it leaves open is derived from the
    ordinary arguments: ``context_length`` from the model's longest context, ``tokens_per_step``
    from batch size times accumulation, the length from ``max_steps`` or ``num_train_epochs``, the
    schedule from ``lr_scheduler_type`` where it is not ``linear``, its default; the rest from the
    preset, so an existing script needs no plan, or ``plan={"patch_size": 4}``.
    ``per_device_train_batch_size`` is the most sequences a device takes at a time; accumulation
    follows from the plan, in each stage its own.

    Defaults differ from TrainingArguments where pretraining does: the papers' AdamW (betas 0.9 and
    0.95, weight decay 0.1, clipping at 1), evaluation every 5 % of the steps and a checkpoint
    every 10 %, of which two are kept.
    """

    plan: dict[str, Any] | PlanSpec | None = field(
        default=None, metadata={"help": "The stages of the run: a PlanSpec or its fields."}
    )
    eval_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Validation tokens scored at each evaluation during training. Default: 1 % of "
            "the run's positions, between 8,192 and 131,072."
        },
    )
    keep_every: int | None = field(
        default=None,
        metadata={
            "help": "Keep every M-th checkpoint for good, besides the last save_total_limit."
        },
    )
    keep_stage_models: bool = field(
        default=True,
        metadata={
            "help": "Keep the model as it is at each switch, as output_dir/stage-N, to be measured "
            "against the final one. Costs the disk space of one model a switch."
        },
    )
    loss_backend: str = field(
        default="auto",
        metadata={
            "help": "How the patch loss is computed: auto, or one of loss_backends.LOSSES to "
            "force (chunked, torch, liger, cce, plain)."
        },
    )
    on_nonfinite: str = field(
        default="stop",
        metadata={
            "help": "What to do where a loss or gradient becomes nan or infinite, before the "
            "optimizer step: stop, skip the step, or rollback to the newest checkpoint."
        },
    )
    muon_rate: float = field(
        default=0.0,
        metadata={
            "help": "Train the matrices of hidden linear layers by torch's Muon, at so many times "
            "the learning rate (about 1), and embeddings, head, norms, routers and stacked experts "
            "by AdamW. 0: all by optim. Not with FSDP."
        },
    )
    # transformers declares it as text, which a recipe's `fsdp: true` is not.
    fsdp: bool | str | None = field(
        default=None, metadata={"help": "Shard the model over the processes with FSDP2."}
    )
    fsdp_replicas: int | str = field(
        default=1,
        metadata={
            "help": "Hybrid sharding: how many whole copies of the sharded model there are, each "
            "on as many processes; 'nodes' for one on each node."
        },
    )
    learning_rate: float = 3e-4
    adam_beta2: float = 0.95
    weight_decay: float = 0.1
    logging_steps: float = 10
    logging_first_step: bool = True
    eval_strategy: str = "steps"
    eval_steps: float | None = 0.05
    save_steps: float = 0.1
    save_total_limit: int | None = 2

    def __post_init__(self) -> None:
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name):
                raise UsageError(f"{name} is not supported: {reason}")
        if problems := wrong_values(vars(self)):
            raise UsageError("; ".join(problems))
        if self._schedule_name() not in _SCHEDULES:
            raise UsageError(
                f"lr_scheduler_type={self._schedule_name()} is not supported; leave it out, or "
                f"choose {', '.join(_SCHEDULES)}, or set the plan's schedule"
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # so that bf16 is allowed there too
        if self.fsdp:
            check_fsdp(self.fsdp_config)
        elif self.wants_fsdp():
            check_fsdp({"version": int(os.environ.get("FSDP_VERSION", 2))})
        if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
            raise UsageError(
                "accelerate's parallelism config is not read; leave it out, and set "
                "training.fsdp_replicas for hybrid sharding"
            )
        # `accelerate launch` sets it unasked: weights on the first process only, where all need
        # them to try the model.
        os.environ.pop("FSDP_CPU_RAM_EFFICIENT_LOADING", None)
        super().__post_init__()
        if self.fsdp and self.parallel_mode != ParallelMode.DISTRIBUTED:
            self.fsdp = self.fsdp_plugin_args = None  # one process has nothing to shard
        if self.muon_rate and self.wants_fsdp() and self.world_size > 1:
            raise UsageError("muon_rate cannot be used with fsdp: Muon needs whole matrices")
        self.replicas()  # refuses what cannot be
        if "tensorboard" in self.report_to:
            require("tensorboard", "report_to tensorboard")
        if self.eval_tokens is not None and self.eval_tokens < 2:
            raise UsageError(f"eval_tokens must be at least 2, not {self.eval_tokens}")
        for name in ("save_strategy", "eval_strategy", "logging_strategy"):
            if (value := str(getattr(getattr(self, name), "value", getattr(self, name)))) not in (
                "no",
                "steps",
            ):
                raise UsageError(f"{name}={value} is not supported: a run counts steps; use steps")
        if self.keep_every is not None and self.keep_every < 1:
            raise UsageError(f"keep_every must be at least 1, not {self.keep_every}")
        # One device pass is one sequence batch of this process: torch's DataParallel would share
        # it out once more. Several GPUs are used through torchrun or accelerate.
        self._n_gpu = min(self.n_gpu, 1)

    def _schedule_name(self) -> str:
        return str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))

    def wants_fsdp(self) -> bool:
        """Whether the recipe or ``accelerate launch`` asks for FSDP."""
        launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        return bool(self.fsdp) or launched

    def replicas(self) -> int:
        """How many whole copies of a sharded model there are; 1 on one process.

        Raises:
            UsageError: the processes cannot be shared out so.
        """
        asked, processes = self.fsdp_replicas, self.world_size
        number = isinstance(asked, int) and not isinstance(asked, bool) and asked > 0
        if not number and asked != "nodes":
            raise UsageError(f"fsdp_replicas must be a number of at least 1 or nodes, not {asked}")
        if self.parallel_mode != ParallelMode.DISTRIBUTED:
            return 1
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or processes)
        copies = int(asked) if number else max(processes // here, 1)
        if copies == 1:
            return 1
        if not self.wants_fsdp():
            raise UsageError(f"fsdp_replicas is {asked}, but nothing is sharded: set fsdp: true")
        if processes % copies:
            raise UsageError(
                f"fsdp_replicas is {copies}, which does not divide the {processes} processes"
            )
        if processes == copies:
            raise UsageError(
                f"fsdp_replicas is {copies}, as many as there are processes, so nothing is left to "
                f"shard; leave out fsdp and fsdp_replicas, or take fewer replicas"
            )
        return copies

    def plan_spec(self, longest_context: int | None) -> PlanSpec:
        """The plan asked for, completed from the ordinary training arguments."""
        if isinstance(self.plan, PlanSpec):
            return self.plan
        values = dict(self.plan or {})
        if longest_context is not None:
            values.setdefault("context_length", longest_context)
        context_length = values.get("context_length")
        if isinstance(context_length, int):
            sequences = self.per_device_train_batch_size * self.gradient_accumulation_steps
            values.setdefault("tokens_per_step", sequences * self.world_size * context_length)
        if not {"steps", "tokens", "epochs"} & values.keys():
            if self.max_steps > 0:
                values["steps"] = self.max_steps
            else:
                values["epochs"] = self.num_train_epochs
        if schedule := _SCHEDULES[self._schedule_name()]:
            values.setdefault("schedule", schedule)
        if self.warmup_steps >= 1:
            values.setdefault("warmup_steps", int(self.warmup_steps))
        elif self.warmup_steps > 0 and "warmup_steps" not in values:
            raise UsageError(
                f"warmup_steps={self.warmup_steps} as a share of the run does not say of which "
                f"stage; give a number of steps, or plan.warmup_steps"
            )
        return PlanSpec.from_dict(values)


def refuse_unused(given: Mapping[str, Any]) -> None:
    """Refuse what ``Trainer`` takes and ``PatchTrainer`` would not use, rather than drop it.

    Raises:
        UsageError: naming it.
    """
    for name, reason in UNUSED.items():
        if given.get(name) is not None:
            raise UsageError(f"PatchTrainer does not use {name}: {reason}; leave it out")


def check_fsdp(config: Any) -> None:
    """Refuse what ``fsdp_config`` cannot have; transformers drops keys that it does not know.

    Raises:
        UsageError: naming the key.
    """
    if not isinstance(config, Mapping):
        return  # none, or a file
    for name in config:
        key = name.removeprefix("fsdp_")
        if key not in FSDP_KEYS:
            raise UsageError(f"fsdp_config: no key '{name}'{nearest(key, list(FSDP_KEYS))}")
    values = {name.removeprefix("fsdp_"): value for name, value in config.items()}
    if values.get("version", 2) != 2:
        raise UsageError(f"fsdp_version {values['version']} is not supported; use 2")
    if values.get("cpu_ram_efficient_loading"):
        raise UsageError(
            "fsdp_config: cpu_ram_efficient_loading is not supported: every process tries the "
            "model before it is sharded, and needs its weights"
        )


def save_interval(args: TrainingArguments, total_steps: int) -> int:
    """Steps between two checkpoints; below 1, ``save_steps`` is a share of all steps."""
    steps = args.save_steps
    return max(math.ceil(steps * total_steps) if steps < 1 else int(steps), 1)
