"""Muon for the hidden matrices, AdamW for the rest, as one optimizer: ``training.muon_rate``.

Muon (torch's own) makes the momentum of a matrix orthogonal before it is taken as a step; it is
for matrices between hidden states only, so embeddings, head, norms, biases and routers stay with
AdamW, and so do a mixture's experts where they are stacked in one weight. One optimizer means one
state: it is carried or reset at a switch, saved, resumed and given its rate as any other. The steps
are scaled to the size of AdamW's (``match_rms_adamw``), so that one learning rate and one weight
decay do for both, and ``muon_rate`` is near 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import Trainer
from transformers.pytorch_utils import Conv1D

from patchtrain.errors import UsageError, warning_line
from patchtrain.modeling import input_embeddings, output_embeddings


class MuonAndAdamW(Optimizer):
    """Takes the steps of both, each on its own parameter groups.

    Args:
        adamw: with the parameters that are not Muon's; its groups come first, so that the rate
            that is logged is AdamW's.
        muon: with the others.
    """

    def __init__(self, adamw: AdamW, muon: Muon) -> None:
        self._parts = (adamw, muon)
        groups = [
            {**group, "muon": part is muon} for part in self._parts for group in part.param_groups
        ]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            # Anew at each step: loading a checkpoint puts other groups and another state here.
            part.state = self.state
            of_muon = part is self._parts[1]
            part.param_groups = [group for group in self.param_groups if group["muon"] == of_muon]
            part.step()
        return loss


class WithMuon(Trainer):
    """The part of ``PatchTrainer`` that makes this optimizer where it is asked for."""

    optimizer: Any
    _progress: Any

    def create_optimizer(self, model: Any = None) -> Optimizer:
        args: Any = self.args
        if args.muon_rate and self.optimizer is None:
            self.optimizer = self._muon_and_adamw(self.model if model is None else model)
        made: Optimizer = super().create_optimizer(model)
        return made

    def _muon_and_adamw(self, model: nn.Module) -> Optimizer:
        args: Any = self.args
        kind, kwargs = self.get_optimizer_cls_and_kwargs(args, model)
        if kind is not AdamW:
            raise UsageError(
                f"muon_rate needs AdamW for embedding, head and norms, not {args.optim.value}; "
                f"leave training.optim out, or set it to adamw_torch"
            )
        hidden = hidden_matrices(model)
        if (left := stacks_left_out(model)) and self.is_world_process_zero():
            self._progress.say(warning_line(left))
        ours = {id(weight) for weight in hidden}
        decayed = set(self.get_decay_parameter_names(model))
        others = [
            (name, weight)
            for name, weight in model.named_parameters()
            if weight.requires_grad and id(weight) not in ours
        ]
        groups = [
            {"params": [weight for name, weight in others if (name in decayed) == decays],
             "weight_decay": args.weight_decay if decays else 0.0}
            for decays in (True, False)
        ]  # fmt: skip
        muon = Muon(
            hidden,
            lr=args.learning_rate * args.muon_rate,
            weight_decay=args.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return MuonAndAdamW(AdamW(groups, **kwargs), muon)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices of products between hidden states: of linear layers, but for head and routers.

    Not a table of positions, which is looked up as the input embedding is; not Mamba's ``A_log``,
    whose numbers are decays; and no matrix of one row or column, which is a vector. A router is
    known by its name, or by that of its class; those that are no linear layer are left out anyway.

    Raises:
        UsageError: there is none.
    """
    ends = (input_embeddings(model), output_embeddings(model))
    outside = {id(weight) for end in ends for weight in end.parameters()}
    products = set()
    for name, module in model.named_modules():
        router = "router" in f"{name} {type(module).__name__}".lower()
        if isinstance(module, nn.Embedding) or router:
            outside |= {id(weight) for weight in module.parameters()}
        elif isinstance(module, nn.Linear | Conv1D):
            products.add(id(module.weight))
    hidden = products - outside
    found = [
        weight
        for weight in model.parameters()
        if weight.ndim == 2
        and min(weight.shape) > 1
        and weight.requires_grad
        and id(weight) in hidden
    ]
    if not found:
        raise UsageError(f"muon_rate: {type(model).__name__} has no hidden matrices to train")
    return found


def stacks_left_out(model: nn.Module) -> str | None:
    """A line on the stacks of matrices, as of a mixture's experts, which torch's Muon refuses."""
    stacks = [
        (name, weight.numel())
        for name, weight in model.named_parameters()
        if weight.ndim == 3 and min(weight.shape[1:]) > 1 and weight.requires_grad
    ]
    if not stacks:
        return None
    share = sum(count for _, count in stacks) / sum(w.numel() for w in model.parameters())
    return (
        f"muon_rate leaves {len(stacks)} stacks of matrices, {share:.0%} of the parameters, to "
        f"AdamW ({stacks[0][0]} and others): Muon takes single matrices"
    )
