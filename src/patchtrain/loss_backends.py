"""Ways to compute the K-target loss, and the choice between them.

``chunked`` is our own function (``loss.py``), which knows K targets. The others are kernels for one
target that never hold all logits either; K targets come out of them by an identity. With slot
weights ``v_k`` (0 where the target is ignored), ``s = sum_k v_k``, logits ``z`` and ``p`` any one
of the valid targets::

    sum_k v_k (logsumexp(z) - z[y_k])  =  s CE(z, p)  +  s z[p] - sum_k v_k z[y_k]

so to the kernel's loss come K + 1 single logits a position, each a dot product with one row of the
head. ``plain`` forms all logits, for models whose logits the model itself must make.

Which one a run takes is decided and checked at its start (``choose``): on the device, in the dtype
and with the head it will have, value and gradients must be those of the formula in fp64.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchtrain.errors import UsageError
from patchtrain.extras import how_to_install
from patchtrain.loss import (
    indices,
    matmul_dtype,
    patch_loss,
    patch_loss_from_logits,
    patch_loss_reference,
    weigh,
    with_slots,
)
from patchtrain.patches import IGNORE

if TYPE_CHECKING:
    from patchtrain.modeling import Probe

# (hidden (N, D), weight (V, D), target (N,), bias (V,) or None, softcap) -> losses (N,)
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]

_CHECK_ROWS, _CHECK_VOCABULARY, _CHECK_SLOTS = 64, 512, 3


@dataclass(frozen=True)
class Backend:
    """A loss backend and why it was taken."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@torch.compiler.disable  # the kernels bring their own graphs, and torch's refuses to be compiled
def loss_with_kernel(
    kernel: Kernel,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    weights: Sequence[float] | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """``patch_loss`` from a kernel for one target; arguments and result are the same."""
    targets = with_slots(hidden, targets)
    weighted, total = weigh(hidden, targets, weights, total)
    slots = (weighted / total).reshape(-1, targets.shape[-1])
    targets = targets.reshape(-1, targets.shape[-1])
    dtype = matmul_dtype(hidden)
    rows = hidden.reshape(-1, hidden.shape[-1])
    # The scale goes into the states and the bias: the kernels know none.
    rows = (rows if scale == 1.0 else rows * scale).to(dtype)
    head = weight.to(dtype)
    offset = bias if bias is None or scale == 1.0 else bias * scale
    first = (targets != IGNORE).to(torch.uint8).argmax(-1, keepdim=True)
    target = targets.gather(-1, first)  # ignored only where all of the row's targets are
    row_weight = slots.sum(-1)
    with torch.autocast(hidden.device.type, enabled=False):
        losses = kernel(rows, head, target.squeeze(-1), offset, softcap)
        loss = (row_weight * losses.to(row_weight.dtype)).sum()
        if targets.shape[-1] == 1:
            return loss
        picked = indices(torch.cat([target, targets], -1))
        shares = torch.cat([row_weight.unsqueeze(-1), -slots], -1)
        others: Tensor = _PickedLogits.apply(rows, head, offset, picked, shares, softcap)
        return loss + others


class _PickedLogits(torch.autograd.Function):
    """``sum_nj shares[n, j] z[n, picked[n, j]]`` of the logits z, without the other logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        picked: Tensor,  # (N, J)
        shares: Tensor,  # (N, J)
        softcap: float | None,
    ) -> Tensor:
        wide = shares.dtype
        states = hidden.to(wide)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.zeros_like(states)
        slopes = []  # of each picked logit, (N,)
        for column, share in zip(picked.unbind(-1), shares.unbind(-1), strict=True):
            rows = weight[column].to(wide)
            logits = (states * rows).sum(-1)
            if bias is not None:
                logits = logits + bias[column].to(wide)
            slope = share
            if softcap is not None:
                bent = torch.tanh(logits / softcap)
                logits, slope = softcap * bent, share * (1 - bent * bent)
            total += (share * logits).sum()
            grad_hidden += slope.unsqueeze(-1) * rows
            slopes.append(slope)
        ctx.save_for_backward(hidden, weight, bias, picked, torch.stack(slopes, -1), grad_hidden)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        hidden, weight, bias, picked, slopes, grad_hidden = ctx.saved_tensors
        slopes = slopes * upstream
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            # fp32, whatever the dtype: common tokens are added to many times.
            grad_weight = torch.zeros_like(weight, dtype=slopes.dtype)
            states = hidden.to(slopes.dtype)
            for column, slope in zip(picked.unbind(-1), slopes.unbind(-1), strict=True):
                grad_weight.index_add_(0, column, slope.unsqueeze(-1) * states)
            grad_weight = grad_weight.to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias, dtype=slopes.dtype)
            grad_bias.index_add_(0, picked.flatten(), slopes.flatten())
            grad_bias = grad_bias.to(bias.dtype)
        return (grad_hidden * upstream).to(hidden.dtype), grad_weight, grad_bias, None, None, None


# ---- the kernels


def _torch_kernel(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    # Without acc_dtype it sums the head's gradient in bf16, and loses most of a common token's.
    # Its API still moves, so it is named only here.
    options = torch.nn.LinearCrossEntropyOptions(
        acc_policy="accurate", acc_dtype=torch.promote_types(hidden.dtype, torch.float32)
    )
    return F.linear_cross_entropy(
        hidden,
        weight,
        target,
        linear_bias=None if bias is None else bias.to(weight.dtype),
        reduction="none",  # the other reductions come back rounded to bf16
        ignore_index=IGNORE,
        options=options,
    )


def _liger_kernel(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    losses: Tensor = liger_fused_linear_cross_entropy(
        hidden,
        weight,
        target,
        None if bias is None else bias.to(weight.dtype),
        ignore_index=IGNORE,
        reduction="none",
        softcap=softcap,
        accum_dtype=torch.float32,
    )
    return losses


def _cce_kernel(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    losses: Tensor = linear_cross_entropy(
        hidden,
        weight,
        target,
        ignore_index=IGNORE,
        softcap=softcap,
        reduction="none",
        filter_eps=None,  # filtering gradients spoils pretraining
    )
    return losses


def _with(kernel: Kernel) -> Callable[..., Tensor]:
    def loss(hidden: Tensor, weight: Tensor, targets: Tensor, **kwargs: Any) -> Tensor:
        return loss_with_kernel(kernel, hidden, weight, targets, **kwargs)

    return loss


def _plain(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    weights: Sequence[float] | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    logits = _full_logits(hidden, weight, bias, scale, softcap)
    return patch_loss_from_logits(logits, targets, weights=weights, total=total)


def _full_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """``(..., V)`` from hidden states ``(..., D)``, scaled and capped as ``patch_loss`` says."""
    logits = F.linear(hidden, weight, bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


# Each takes what ``patch_loss`` takes.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "chunked": patch_loss,
    "torch": _with(_torch_kernel),
    "liger": _with(_liger_kernel),
    "cce": _with(_cce_kernel),
    "plain": _plain,
}
_PACKAGES = {"liger": "liger_kernel", "cce": "cut_cross_entropy"}


# ---- the choice


def unavailable(name: str, device: str) -> str | None:
    """Why a backend cannot run on a device of this type here, or None if it can."""
    package = _PACKAGES.get(name)
    if package is None:
        return None
    if torch.device(device).type != "cuda":
        return f"it runs on a GPU, and the model is on {torch.device(device).type}"
    if importlib.util.find_spec(package) is None:
        return f"it is not installed; {how_to_install(package)}"
    return None


def choose(requested: str, found: Probe, head: Any) -> Backend:
    """The loss backend of a run, checked on this device, in this dtype, with this head.

    Args:
        requested: a name of ``LOSSES``, or ``"auto"``: ``chunked`` where the model's logits allow
            it and its check succeeds, else ``plain``.
        found: what ``probe`` found about the model's logits.
        head: the model's output embedding, with ``weight`` and perhaps ``bias``.

    Raises:
        UsageError: if what was asked for by name is not known, cannot run here or fails its check.
    """
    if requested not in ("auto", *LOSSES):
        raise UsageError(f"loss backend '{requested}' is not known; use auto, {', '.join(LOSSES)}")
    if not found.fused:
        if requested in ("auto", "plain"):
            return Backend("plain", found.reason)
        raise UsageError(
            f"loss backend '{requested}' cannot be used: {found.reason}; use auto or plain"
        )
    if requested == "plain":
        return Backend("plain", "asked for")
    name = "chunked" if requested == "auto" else requested
    weight, bias = head.weight, getattr(head, "bias", None)
    wrong = unavailable(name, weight.device.type)
    if wrong is None and name == "cce" and bias is not None:
        wrong = "it has no bias, and the model's head has one"
    if wrong is None and name == "torch" and found.softcap is not None:
        wrong = "it has no softcapping, and the model caps its logits"
    if wrong is None:
        wrong = check(name, found, weight, bias)
    if wrong is None:
        if requested != "auto":
            return Backend(name, "asked for")
        return Backend(name, "one pass over the vocabulary for all targets")
    if requested != "auto":
        raise UsageError(f"loss backend '{name}' cannot be used: {wrong}; use auto")
    warnings.warn(f"the patch loss is taken from full logits: {wrong}", stacklevel=2)
    return Backend("plain", wrong)


def check(name: str, found: Probe, weight: Tensor, bias: Tensor | None) -> str | None:
    """What is wrong with a backend on this head, compared with the formula in fp64, or None.

    On a part of the vocabulary, with random states, ignored targets and uneven slot weights.
    """
    device, dtype = weight.device, weight.dtype
    generator = torch.Generator().manual_seed(0)
    head = weight.detach()[:_CHECK_VOCABULARY].clone().requires_grad_()
    offset = None if bias is None else bias.detach()[:_CHECK_VOCABULARY].clone().requires_grad_()
    states = torch.randn(_CHECK_ROWS, weight.shape[1], generator=generator).to(device, dtype)
    states.requires_grad_()
    targets = torch.randint(0, len(head), (_CHECK_ROWS, _CHECK_SLOTS), generator=generator)
    targets[::5] = IGNORE
    targets[1::5, 0] = IGNORE
    targets = targets.to(device)
    weights = [1.5, 1.0, 0.5]
    inputs = [tensor for tensor in (states, head, offset) if tensor is not None]
    with torch.enable_grad():
        try:
            loss = LOSSES[name](states, head, targets, bias=offset, scale=found.logit_scale,
                                softcap=found.softcap, weights=weights)  # fmt: skip
            gradients = torch.autograd.grad(loss, inputs)
        except Exception as error:  # a kernel may fail in any way
            return f"it fails here ({' '.join(str(error).split())[:200]})"
        wide_bias = None if offset is None else offset.double()
        logits = _full_logits(
            states.double(), head.double(), wide_bias, found.logit_scale, found.softcap
        )
        expected = patch_loss_reference(logits, targets, weights)
        pairs = zip(gradients, torch.autograd.grad(expected, inputs), strict=True)
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2
    value, formula = loss.item(), expected.item()
    if not abs(value - formula) <= tolerance * abs(formula):
        return f"its loss is {value:.6f}, the formula's {formula:.6f}"
    for got, want in pairs:
        off = float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-30))
        if not off <= tolerance:
            return f"its gradient is off by {off:.1%} of the formula's"
    return None
