"""Patch level on any transformers causal language model, in place and reversible.

``patch_level(model, K)`` replaces the instance's ``forward`` by one that pools the token
embeddings, runs the unchanged transformer on the patches, and takes the K-target loss on the
hidden states that reach the language-model head. Class, parameters and state dict stay as they
are; ``remove()`` puts the plain forward back.

Nothing here knows the name of a model. What a model does to its embeddings and logits is found by
probing it (``probe``): a model on which pooling is not exact is refused, and one whose logits are
more than a scaled linear map of the head's input gets its loss from the full logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchtrain.errors import UsageError
from patchtrain.loss import patch_loss, patch_loss_from_logits
from patchtrain.patches import patch_targets, pool_embeddings
from patchtrain.plan import SlotWeights, slot_weights

_PROBE_TOKENS = 6


@dataclass(frozen=True)
class Probe:
    """What a probe found: how a model turns the head's input into logits.

    ``fused`` says that logits are ``logit_scale * head(hidden)``, so that the loss can do without
    them; ``reason`` says why, or why not.
    """

    fused: bool
    logit_scale: float = 1.0
    reason: str = "logits are a linear map of the head's input"


class PatchLevel:
    """Handle of a model at patch level; ``remove()`` or the end of a ``with`` block undoes it."""

    def __init__(
        self, model: nn.Module, patch_size: int, weights: tuple[float, ...], checked: Probe
    ) -> None:
        self.model = model
        self.patch_size = patch_size
        self.weights = weights
        self.probe = checked
        self._plain_forward: Callable[..., Any] = model.forward
        self._own_forward = model.__dict__.get("forward")  # another tool may have set one before us
        self._active = patch_size > 1
        if self._active:
            model.forward = self._make_forward()

    def remove(self) -> None:
        """Put the model back to token level. Calling it again does nothing."""
        if not self._active:
            return
        self._active = False
        ours = self.model.__dict__.get("forward")
        if getattr(ours, "patch_level", None) is not self:
            return  # wrapped by another tool since: ours, now inactive, just passes calls on
        if self._own_forward is None:
            del self.model.forward
        else:
            self.model.forward = self._own_forward

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Token level within the block, to evaluate between steps of patch-level training."""
        active, self._active = self._active, False
        try:
            yield
        finally:
            self._active = active

    def __enter__(self) -> PatchLevel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def _make_forward(self) -> Callable[..., Any]:
        # wraps() keeps the plain signature visible: Trainer reads it to choose data columns.
        @functools.wraps(self._plain_forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._active:
                return self._plain_forward(*args, **kwargs)
            if args:
                kwargs = {"input_ids": args[0], **kwargs}
                if len(args) > 1:
                    raise UsageError("at patch level, pass all inputs but input_ids by keyword")
            return self._forward(**kwargs)

        forward.patch_level = self  # type: ignore[attr-defined]
        return forward

    def _forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        num_items_in_batch: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Any:
        if input_ids is None:
            raise UsageError("at patch level a model needs input_ids; it pools their embeddings")
        if kwargs.get("past_key_values") is not None:
            raise UsageError("a model at patch level cannot generate; call remove() first")
        K = self.patch_size
        embeddings = _input_embeddings(self.model)(input_ids)
        inputs = {
            **kwargs,
            "inputs_embeds": pool_embeddings(embeddings, K),
            "attention_mask": _patch_mask(attention_mask, K),
            "position_ids": None if position_ids is None else position_ids[:, ::K] // K,
            "use_cache": False,
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if labels is None:
            return self._plain_forward(**inputs)
        targets = patch_targets(labels, K)
        common = {"weights": self.weights, "total": num_items_in_batch}
        if self.probe.fused:
            with _skipped_head(self.model) as head_inputs:
                outputs = self._plain_forward(**inputs)
            head = _head(self.model)
            loss = patch_loss(
                head_inputs[-1][:, :-1],
                head.weight,
                targets,
                bias=getattr(head, "bias", None),
                scale=self.probe.logit_scale,
                **common,  # type: ignore[arg-type]
            )
        else:
            outputs = self._plain_forward(**inputs)
            loss = patch_loss_from_logits(outputs.logits[:, :-1], targets, **common)  # type: ignore[arg-type]
        outputs.loss = loss + _auxiliary_loss(self.model, outputs)
        return outputs


def patch_level(
    model: nn.Module,
    patch_size: int,
    weights: SlotWeights | None = None,
    *,
    checked: Probe | None = None,
) -> PatchLevel:
    """Put a transformers causal LM at patch level, in place.

    While it is on, ``model(input_ids=ids, labels=ids).loss`` is the patch loss for ``ids`` of
    shape ``(B, K * T)``; the transformer sees T positions. ``attention_mask`` and ``position_ids``
    may be given at token length: a patch is visible if any of its tokens is, and positions count
    patches. Given ``num_items_in_batch``, the sum of the loss is divided by it. The outputs' logits
    are empty where the loss did not need them; without ``labels`` they are those of each patch.

    Args:
        model: a causal language model of transformers, or any module with the same contract
            (``get_input_embeddings``, ``get_output_embeddings``, ``inputs_embeds``).
        patch_size: K. At K = 1 nothing changes.
        weights: slot weights (see ``plan.slot_weights``); uniform if not given.
        checked: the result of an earlier ``probe`` of this model, to skip the probing.

    Returns:
        A handle with ``remove()``, which also works as a context manager.

    Raises:
        UsageError: if K does not make sense, the model is at patch level already, or pooling
            embeddings is not exact for it.
    """
    slots = slot_weights(patch_size, "uniform" if weights is None else weights)
    if isinstance(getattr(model.forward, "patch_level", None), PatchLevel):
        raise UsageError("the model is at patch level already; remove() the other handle first")
    if patch_size == 1:
        return PatchLevel(model, 1, slots, checked or Probe(fused=False))
    return PatchLevel(model, patch_size, slots, checked or probe(model))


@torch.no_grad()
def probe(model: nn.Module) -> Probe:
    """Check on a few tokens that patch level is exact for ``model``, and how its head works.

    Two identical tokens pool to the token's own embedding, so a patch of them must give the very
    hidden states and logits that the token gives, through the very same modules: a module that is
    run only where there are ``input_ids`` may do nothing yet in a fresh model, and something later.
    Then a patch of different tokens must run at all, and the loss that skips the head must be the
    loss from full logits. A model that does more with ``input_ids`` than embed them fails, and is
    refused by name; one whose two losses differ gets its loss from full logits.

    Raises:
        UsageError: naming the model's class and what went wrong.
    """
    refused = f"{type(model).__name__} cannot be trained at patch level: "
    embedding = _input_embeddings(model).weight
    ids = torch.arange(_PROBE_TOKENS, device=embedding.device) * 7 + 1
    ids = ids.remainder(embedding.shape[0]).unsqueeze(0)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _watched(model) as plain_run:
            plain = model(input_ids=ids, use_cache=False).logits
        if not bool(plain.isfinite().all()):
            raise UsageError(f"{type(model).__name__} has weights that are not finite numbers")
        with PatchLevel(model, 2, (1.0, 1.0), Probe(fused=False)), _watched(model) as pooled_run:
            pooled = model(input_ids=ids.repeat_interleave(2, dim=1)).logits
        if skipped := plain_run.modules - pooled_run.modules:
            raise UsageError(
                f"{refused}its {sorted(skipped)[0]} is run on input_ids and not on inputs_embeds, "
                f"so it does more with input_ids than embed them"
            )
        pairs = [(pooled, plain), *zip(pooled_run.head_inputs, plain_run.head_inputs, strict=True)]
        if not all(a.shape == b.shape and _close(a, b, b.dtype) for a, b in pairs):
            raise UsageError(
                f"{refused}a patch of identical tokens does not give the token's own hidden "
                f"states, so it does more with input_ids than embed them"
            )
        return _same_loss(model, ids, _probe_head(model, ids))
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{refused}its forward does not take pooled inputs_embeds in place of input_ids "
            f"({' '.join(str(error).split())})"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


@dataclass
class _Run:
    """What a forward pass went through."""

    modules: set[str]
    head_inputs: list[Tensor]


@contextmanager
def _watched(model: nn.Module) -> Iterator[_Run]:
    """Note which modules with parameters of their own run, and what the head receives."""
    run = _Run(set(), [])
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: run.modules.add(name))
        for name, module in model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    ]
    hooks.append(
        _head(model).register_forward_pre_hook(lambda _, args: run.head_inputs.append(args[0]))
    )
    try:
        yield run
    finally:
        for hook in hooks:
            hook.remove()


def _same_loss(model: nn.Module, ids: Tensor, found: Probe) -> Probe:
    """``found``, if its loss is that of full logits, on patches of different tokens."""
    losses = []
    for candidate in (Probe(fused=False), found):
        with PatchLevel(model, 2, (1.0, 1.0), candidate):
            losses.append(model(input_ids=ids, labels=ids).loss)
    if _close(losses[1], losses[0], _head(model).weight.dtype):
        return found
    plain, fused = (float(loss) for loss in losses)
    return Probe(False, reason=f"without its logits the loss is {fused:.6f}, with them {plain:.6f}")


def _probe_head(model: nn.Module, ids: Tensor) -> Probe:
    """Whether logits are a multiple of the head's own output, also where they are large.

    A freshly initialised model has tiny logits, on which softcapping is invisible: the head's
    input is scaled up until its output reaches about 100.
    """
    head = _head(model)
    received: list[Tensor] = []

    def enlarge(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        largest = nn.functional.linear(args[0], head.weight).abs().max().clamp(min=1e-6)
        received.append(args[0] * (100.0 / largest).to(args[0].dtype))
        return (received[-1], *args[1:])

    hook = head.register_forward_pre_hook(enlarge)
    try:
        logits = model(input_ids=ids, use_cache=False).logits.double()
    finally:
        hook.remove()
    if not received:
        return Probe(False, reason="the model does not call its output embedding as a module")
    bias = getattr(head, "bias", None)
    linear = nn.functional.linear(received[-1], head.weight, bias).double()
    if linear.shape != logits.shape:
        return Probe(False, reason="the model's logits are not those of its output embedding")
    # Least squares for one factor: granite divides its logits, cohere multiplies them.
    if not float(linear.abs().max()) > 0 or not float(logits.abs().max()) > 0:
        return Probe(False, reason="the head's weights are all zero, so its scale cannot be seen")
    scale = float((linear * logits).sum() / linear.square().sum())
    scale = 1.0 if abs(scale - 1.0) < 1e-3 else float(f"{scale:.6g}")
    if not _close(linear * scale, logits, head.weight.dtype):
        return Probe(False, reason="the model bends its logits (softcapping or the like)")
    try:
        with _skipped_head(model):
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, IndexError) as error:
        return Probe(False, reason=f"the model needs its logits in its forward ({error})")
    return Probe(True, scale)


@contextmanager
def _skipped_head(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block the head receives no rows; what it would have received is in the list.

    So the model's own forward runs to the end, with whatever it does around its head, and pays
    nothing for logits.
    """
    received: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        received.append(args[0])
        return (args[0][:, :0], *args[1:])

    hook = _head(model).register_forward_pre_hook(take)
    try:
        yield received
    finally:
        hook.remove()


def _input_embeddings(model: Any) -> Any:
    return model.get_input_embeddings()


def _head(model: Any) -> Any:
    head = model.get_output_embeddings()
    if head is None:
        raise UsageError(f"{type(model).__name__} has no output embedding: not a language model")
    return head


def _auxiliary_loss(model: Any, outputs: Any) -> Tensor | float:
    """The load-balancing loss of a mixture of experts, weighted as its own forward does it."""
    auxiliary = getattr(outputs, "aux_loss", None)
    if auxiliary is None or not isinstance(auxiliary, Tensor):
        return 0.0
    coefficient = getattr(model, "router_aux_loss_coef", None)
    if coefficient is None:
        raise UsageError(
            f"{type(model).__name__} has an auxiliary loss whose weight is not where it is looked "
            f"for (router_aux_loss_coef); set output_router_logits=False to train without it"
        )
    return coefficient * auxiliary


def _patch_mask(attention_mask: Tensor | None, patch_size: int) -> Tensor | None:
    """``(B, S)`` to ``(B, S / K)``: a patch is visible if any of its tokens is."""
    if attention_mask is None:
        return None
    rows, length = attention_mask.shape
    return attention_mask.view(rows, length // patch_size, patch_size).amax(-1)


def _close(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of ``dtype``, relative to the largest entry."""
    tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
    scale = expected.abs().max().clamp(min=1e-6)
    return bool(((got - expected).abs().max() / scale) < tolerance)
