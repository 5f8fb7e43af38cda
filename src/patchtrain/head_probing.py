"""How a model makes its logits from the output of its head, found by trying it.

The part of ``probe`` (``probing.py``) that decides whether the patch loss can do without logits.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtrain.modeling import PatchLevel, Probe, input_embeddings, output_embeddings, skipped_head


def same_loss(model: nn.Module, ids: Tensor, found: Probe) -> Probe:
    """``found``, if its loss is that of full logits, on patches of different tokens."""
    losses = []
    plain = dataclasses.replace(found, fused=False)
    for candidate in (plain, found):
        with PatchLevel(model, 2, (1.0, 1.0), candidate):
            losses.append(model(input_ids=ids, labels=ids).loss)
    if close(losses[1], losses[0], model):
        return found
    full, fused = (float(loss) for loss in losses)
    reason = f"without its logits the loss is {fused:.6f}, with them {full:.6f}"
    return Probe(False, auxiliary=found.auxiliary, reason=reason)


def probe_head(model: nn.Module, ids: Tensor) -> Probe:
    """Whether logits are a multiple of the head's own output, or a softcapped one.

    A freshly initialised model has tiny logits, on which softcapping is invisible: the head's
    input is scaled until its output is as large as wanted. A multiple is seen at 100. Softcapping,
    ``cap * tanh(scale * output / cap)``, shows its scale where outputs are small and its cap where
    they are very large, and is verified in between.
    """
    try:
        scale, cap = _scale_and_cap(model, ids)
    except _UnusualHeadError as error:
        return Probe(False, reason=str(error))
    try:
        with skipped_head(model):
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, IndexError) as error:
        return Probe(False, reason=f"the model needs its logits in its forward ({error})")
    if cap is None:
        return Probe(True, scale)
    return Probe(True, scale, cap, reason="logits are a softcapped linear map of the head's input")


def _scale_and_cap(model: nn.Module, ids: Tensor) -> tuple[float, float | None]:
    linear, logits = _respond(model, ids, 100.0)
    scale = _slope(linear, logits)
    if close(scale * linear, logits, model):
        return scale, None
    scale = _slope(*_respond(model, ids, 1e-2))
    cap = float(f"{float(_respond(model, ids, 1e4)[1].abs().max()):.6g}")
    if scale > 0:
        pairs = [(linear, logits), _respond(model, ids, 2 * cap / scale)]
        if all(close(cap * torch.tanh(scale * x / cap), z, model) for x, z in pairs):
            return scale, cap
    raise _UnusualHeadError("the model bends its logits, and not as softcapping does")


class _UnusualHeadError(Exception):
    """Why logits are not what the head's output gives, scaled and capped."""


def _respond(model: nn.Module, ids: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """The head's own output, scaled to be as large as ``size``, and the logits, in fp64."""
    head = output_embeddings(model)
    received: list[Tensor] = []

    def resize(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest = F.linear(args[0], head.weight).abs().max().clamp(min=1e-6)
        received.append(args[0] * (size / largest).to(args[0].dtype))
        return (received[-1], *args[1:])

    hook = head.register_forward_pre_hook(resize)
    try:
        logits = model(input_ids=ids, use_cache=False).logits.double()
    finally:
        hook.remove()
    if not received:
        raise _UnusualHeadError("the model does not call its output embedding as a module")
    linear = F.linear(received[-1], head.weight, getattr(head, "bias", None)).double()
    if linear.shape != logits.shape:
        raise _UnusualHeadError("the model's logits are not those of its output embedding")
    if not float(logits.abs().max()) > 0:
        raise _UnusualHeadError("the model's logits are all zero")
    return linear, logits


def _slope(linear: Tensor, logits: Tensor) -> float:
    """Least squares for one factor: granite divides its logits, cohere multiplies them."""
    slope = float((linear * logits).sum() / linear.square().sum())
    return 1.0 if abs(slope - 1.0) < 1e-3 else float(f"{slope:.6g}")


def close(got: Tensor, expected: Tensor, model: nn.Module) -> bool:
    """Equal up to the rounding of the model's weights, relative to the largest entry."""
    dtype = input_embeddings(model).weight.dtype  # logits may be in fp32 and yet from bf16
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    if not expected.numel():
        return True
    scale = expected.abs().max().clamp(min=1e-6)
    return bool(((got - expected).abs().max() / scale) < tolerance)
