"""Sharded models: FSDP2 through accelerate, where its defaults would not do.

What a user sets is transformers' own: ``training.fsdp`` and ``training.fsdp_config`` in a recipe,
or a configuration of ``accelerate launch``; and for hybrid sharding ``training.fsdp_replicas``.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer


class Sharding(Trainer):
    """The part of ``PatchTrainer`` that sets FSDP up."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        state: Any = self.accelerator.state
        args: Any = self.args
        if state.distributed_type == DistributedType.MULTI_CPU and args.wants_fsdp():
            # accelerate would train with DDP, and not say so.
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))
            self.is_fsdp_enabled = True
        if not self.is_fsdp_enabled:
            return
        if state.mixed_precision == "bf16":
            # accelerate's own would sum gradients over processes in bf16, and round the loss to it.
            state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        if (copies := args.replicas()) > 1:
            # Set here and not when the accelerator is made, where it would refuse CPUs. Launchers
            # number the processes of a node one after the other, so that a copy stays together.
            state.parallelism_config = ParallelismConfig(
                dp_replicate_size=copies,
                dp_shard_size=args.world_size // copies,
                tp_size=1, cp_size=1, sp_size=1,
            )  # fmt: skip
            state.device_mesh = state.parallelism_config.get_device_mesh(args.device.type)

    def gathered_state(self, plain: nn.Module) -> dict[str, torch.Tensor] | None:
        """The whole state dict of a sharded model, complete on the first process; else None.

        Called on all processes. ``plain`` is the model without what is wrapped around it.
        """
        if not self.is_fsdp_enabled:
            return None
        state: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        names: dict[int, str] = {}
        for name, tensor in plain.state_dict(keep_vars=True).items():
            if name in state:  # what was tied comes as copies: one again, to be written once
                state[name] = state[names.setdefault(id(tensor), name)]
        return state
