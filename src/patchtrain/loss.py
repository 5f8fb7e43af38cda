"""The K-target loss: one pass over the vocabulary for all K tokens of the next patch.

Every position has one softmax and K targets, so its loss is one log-sum-exp and K gathers::

    L = sum_k v_k * (logsumexp(z) - z[y_k])        z = head(hidden), v_k = slot weights

and its gradient is the softmax times ``sum_k v_k``, less ``v_k`` at each target. ``patch_loss``
computes both from the same chunk of logits, so the ``N x V`` logits never stand in memory at once
and the cost does not grow with K. ``patch_loss_reference`` is the papers' formula, slow and
obvious, against which the fast path is tested.

All losses are in nats per token. ``-100`` marks an ignored target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from patchtrain.errors import UsageError
from patchtrain.patches import IGNORE
from patchtrain.products import multiply

# Rows whose logits are formed at a time: enough for full-speed matrix products, of which each also
# adds once to the head's whole gradient; few enough that the logits are a small part of the memory.
# Where the vocabulary is small, rows of so many logits in all. A GPU wants larger products.
CHUNK_ROWS = 416
CHUNK_ELEMENTS, CHUNK_ELEMENTS_GPU = 2**20, 2**25


def patch_loss(
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
    """Mean K-target cross-entropy from hidden states, never holding all logits.

    Args:
        hidden: ``(..., D)`` hidden states, the input of the language-model head.
        weight: ``(V, D)`` the head's weight.
        targets: ``(..., K)`` token ids as ``patch_targets`` gives them, or ``(...)`` for K = 1.
        bias: ``(V,)`` the head's bias, if it has one.
        scale: factor the model puts on its logits.
        softcap: if given, the logits z, scaled, become ``softcap * tanh(z / softcap)`` (Gemma 2).
        weights: K slot weights (``stage.slot_weights``); all 1 if not given.
        total: what the weighted sum is divided by; by default the sum of the weights of the
            targets that are not ignored. Pass the global count when a step is spread over
            micro-batches or processes: sum everywhere, divide once.

    Returns:
        A scalar in fp32 (fp64 for fp64 input). Differentiable once in hidden, weight and bias.
        Matrix products run in the dtype of ``hidden`` (under autocast, in autocast's); the
        softmax, the sums and the head's gradient in fp32.
    """
    targets = with_slots(hidden, targets)
    weighted, total = weigh(hidden, targets, weights, total)
    weighted = weighted / total
    if not torch.is_grad_enabled():  # under no_grad no gradient is worth its matrix products
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    return _apply(
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        bias,
        indices(targets).reshape(-1, targets.shape[-1]),
        weighted.reshape(-1, targets.shape[-1]),
        float(scale),
        softcap,
        matmul_dtype(hidden),
    )


def patch_loss_from_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Sequence[float] | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """The same loss from full logits ``(..., V)``, for models whose head cannot be skipped."""
    targets = with_slots(logits, targets)
    weighted, total = weigh(logits, targets, weights, total)
    wide = logits.to(weighted.dtype)
    picked = wide.gather(-1, indices(targets))
    losses = wide.logsumexp(-1) * weighted.sum(-1) - (weighted * picked).sum(-1)
    return losses.sum() / total


def patch_loss_reference(
    logits: Tensor,
    targets: Tensor,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The papers' formula, term by term: log-softmax of all logits, then K gathers.

    Args and result as ``patch_loss_from_logits``. Slow and plain on purpose: the fast paths are
    tested against it (2407.12665, equation 3; their code loops over the K tokens of the patch).
    """
    targets = with_slots(logits, targets)
    log_probabilities = logits.double().log_softmax(-1)
    loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    count = 0.0
    for slot in range(targets.shape[-1]):
        target = targets[..., slot]
        slot_weight = 1.0 if weights is None else float(weights[slot])
        valid = target != IGNORE
        picked = log_probabilities[valid].gather(-1, target[valid].unsqueeze(-1))
        loss = loss - slot_weight * picked.sum()
        count += slot_weight * int(valid.sum())
    return loss / max(count, torch.finfo(torch.float64).tiny)


@torch.compiler.disable
def _apply(*args: Any) -> Tensor:
    """The autograd function, kept out of compiled graphs: its chunk loop would be unrolled."""
    result: Tensor = _PatchLoss.apply(*args)
    return result


class _PatchLoss(torch.autograd.Function):
    """Loss and both gradients from one chunk of logits at a time (see the module's formula)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (N, K), all valid indices
        weighted: Tensor,  # (N, K), slot weights over the total; 0 where the target is ignored
        scale: float,
        softcap: float | None,
        dtype: torch.dtype,  # of the matrix products
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        head = weight.to(dtype)
        in_place, tiny = hidden.device.type == "cpu", torch.finfo(wide).tiny
        loss = torch.zeros((), dtype=wide, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        # fp32, whatever the dtype: the gradient of one row of the head sums over all chunks.
        # The first chunk fills it, so that it need not be cleared and read before.
        make = torch.empty_like if len(hidden) else torch.zeros_like
        grad_weight = make(weight, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and need_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            rows = _chunk_rows(hidden, weight.shape[0])
            buffer = torch.empty(rows, weight.shape[0], dtype=wide, device=hidden.device)
            for start in range(0, hidden.shape[0], rows):
                part = slice(start, start + rows)
                states, target, slot = hidden[part].to(dtype), targets[part], weighted[part]
                logits = buffer[: len(states)]
                if dtype == wide:
                    multiply(states, head.T, logits)
                else:
                    logits.copy_(states @ head.T)
                if bias is not None:
                    logits += bias.to(wide)
                if scale != 1.0:
                    logits *= scale
                bent = None
                if softcap is not None:
                    bent = logits.div_(softcap).tanh_()
                    logits = bent * softcap
                row_weight = slot.sum(-1, keepdim=True)
                picked = logits.gather(-1, target)
                largest = logits.amax(-1, keepdim=True)
                # One pass over the chunk gives the softmax, and its largest entry, exp(0) over the
                # sum of all exponentials, the log-sum-exp. On a CPU it can take the logits' place.
                grad = torch.softmax(logits, -1, out=logits if in_place else None)
                log_sum = largest - grad.amax(-1, keepdim=True).log()
                loss += (row_weight * log_sum).sum() - (slot * picked).sum()
                if not (need_hidden or need_weight or need_bias):
                    continue
                # A token that stands twice counts twice.
                grad.scatter_add_(-1, target, -slot / row_weight.clamp(min=tiny))
                if bent is not None:
                    grad.mul_(1 - bent.square_())  # the derivative of tanh
                # The rows' weights and the scale go to the small factors of the products instead of
                # over the whole chunk; in a narrow dtype, into what is rounded anyway.
                factor = row_weight * scale
                if grad_bias is not None:
                    grad_bias.addmv_(grad.T, factor.squeeze(-1))
                fold = dtype == wide
                narrow = grad if fold else grad.mul_(factor).to(dtype)
                rows_of_hidden = None if grad_hidden is None else grad_hidden[part]
                if grad_weight is not None and fold:
                    # The rows of the other gradient hold the scaled states until it is formed.
                    scaled = torch.mul(states, factor, out=rows_of_hidden)
                    multiply(narrow.T, scaled, grad_weight, add=start > 0)
                elif grad_weight is not None and start:
                    grad_weight += narrow.T @ states
                elif grad_weight is not None:
                    grad_weight.copy_(narrow.T @ states)
                if rows_of_hidden is not None and fold:
                    multiply(narrow, head, rows_of_hidden)
                    rows_of_hidden.mul_(factor)
                elif rows_of_hidden is not None:
                    rows_of_hidden.copy_(narrow @ head)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grad_outputs
        try:
            grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        except RuntimeError as error:
            raise RuntimeError(
                "patch_loss can be differentiated only once; compute it again for another backward"
            ) from error
        weight_dtype, bias_dtype = ctx.dtypes
        # In place: a second copy of the head's gradient would be most of the memory taken here.
        # A loss that nothing scales has an upstream gradient of 1 (looked at only where that does
        # not make a GPU wait).
        if upstream.device.type != "cpu" or float(upstream) != 1.0:
            for grad in (grad_hidden, grad_weight, grad_bias):
                if grad is not None:
                    grad.mul_(upstream)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight_dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None, None


def _chunk_rows(hidden: Tensor, vocabulary: int) -> int:
    """How many rows of ``hidden`` have their logits formed at a time."""
    elements = CHUNK_ELEMENTS if hidden.device.type == "cpu" else CHUNK_ELEMENTS_GPU
    return min(max(CHUNK_ROWS, elements // vocabulary), max(hidden.shape[0], 1))


def matmul_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the head's matrix product: that of ``hidden``, or autocast's."""
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def with_slots(scores: Tensor, targets: Tensor) -> Tensor:
    """``targets`` as ``(..., K)``, checked against the leading shape of hidden states or logits."""
    leading = scores.shape[:-1]
    if targets.shape == leading:
        targets = targets.unsqueeze(-1)
    if targets.shape[:-1] != leading:
        raise UsageError(
            f"targets of shape {tuple(targets.shape)} do not fit scores of shape "
            f"{tuple(scores.shape)}: expected {tuple(leading)} + (K,)"
        )
    return targets


def indices(targets: Tensor) -> Tensor:
    """Targets to gather with: any index where one is ignored. Other negative ids stay an error."""
    return torch.where(targets == IGNORE, targets.new_zeros(()), targets)


def weigh(
    scores: Tensor,
    targets: Tensor,
    weights: Sequence[float] | None,
    total: Tensor | float | None,
) -> tuple[Tensor, Tensor]:
    """Slot weights ``(..., K)``, 0 where the target is ignored, and what to divide by."""
    count = targets.shape[-1]
    if weights is not None and len(weights) != count:
        raise UsageError(f"{len(weights)} slot weights for {count} targets a position")
    wide = torch.promote_types(scores.dtype, torch.float32)
    slots = torch.tensor(weights or [1.0] * count, dtype=wide, device=scores.device)
    weighted = torch.where(targets != IGNORE, slots, slots.new_zeros(()))
    total = weighted.sum() if total is None else torch.as_tensor(total, device=scores.device)
    # With no valid target at all the loss is 0, not 0 / 0.
    return weighted, total.to(wide).clamp(min=torch.finfo(wide).tiny)
