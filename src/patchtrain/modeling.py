"""Patch level on any transformers causal language model, in place and reversible.

``patch_level(model, K)`` replaces the instance's ``forward`` by one that pools the token
embeddings, runs the unchanged transformer on the patches, and takes the K-target loss on the
hidden states that reach the language-model head. Class, parameters and state dict stay as they
are; ``remove()`` puts the plain forward back.

Nothing here knows the name of a model. What a model does to its embeddings and logits is found by
probing it (``probing.py``): a model on which pooling is not exact is refused, and one whose logits
are more than a scaled linear map of the head's input gets its loss from the full logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchtrain.ablations import stage_targets, target_weights
from patchtrain.errors import UsageError
from patchtrain.loss import patch_loss_from_logits
from patchtrain.loss_backends import LOSSES, Backend, choose
from patchtrain.patch_settings import reading
from patchtrain.patches import IGNORE, embed_patches, patch_positions, pool_embeddings
from patchtrain.stage import SlotWeights, last_position, slot_weights


@dataclass(frozen=True)
class Probe:
    """What a probe found: how a model turns the head's input into logits.

    ``fused`` says that logits are ``logit_scale * head(hidden)``, then capped at ``softcap`` if it
    is given (see ``patch_loss``), so that the loss can do without them; ``reason`` says why, or why
    not. ``auxiliary`` is the weight of the outputs' ``aux_loss`` (of a mixture of experts) in the
    model's own loss, None where it made none.
    """

    fused: bool
    logit_scale: float = 1.0
    softcap: float | None = None
    auxiliary: float | None = None
    reason: str = "logits are a linear map of the head's input"


class PatchLevel:
    """Handle of a model at patch level; ``remove()`` or the end of a ``with`` block undoes it."""

    def __init__(
        self,
        model: nn.Module,
        patch_size: int,
        weights: tuple[float, ...],
        checked: Probe,
        backend: Backend | None = None,
        ablation: str | None = None,
        embedding_scale: float = 1.0,
        position_scale: int = 1,
        pool_weights: Sequence[float] | None = None,
        pool_order: str = "none",
        tail: int = 0,
    ) -> None:
        self.model = model
        self.patch_size = patch_size
        self.weights = target_weights(weights, ablation)
        self.ablation = ablation
        self.embedding_scale = embedding_scale
        self.position_scale = position_scale
        self.pool_weights = pool_weights
        self.pool_order = pool_order
        self.tail = tail
        self.probe = checked
        self.backend = backend or Backend("chunked" if checked.fused else "plain", checked.reason)
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
        total: Tensor | float | None = None,
        **kwargs: Any,
    ) -> Any:
        if input_ids is None:
            raise UsageError("at patch level a model needs input_ids; it pools their embeddings")
        if kwargs.get("past_key_values") is not None:
            raise UsageError("a model at patch level cannot generate; call remove() first")
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                raise UsageError(f"a model at patch level cannot take {name}: it is per token")
        K = 1 if self.ablation == "output-only" else self.patch_size  # tokens of a position
        if self.tail and not (attention_mask is None and position_ids is None):
            raise UsageError("where a tail of tokens follows the patches, leave attention_mask and "
                             "position_ids out")  # fmt: skip
        positions = None if position_ids is None else patch_positions(position_ids, K)
        embeddings = self._embedded(input_ids, K)
        inputs = {
            **kwargs,
            "inputs_embeds": embeddings,
            "attention_mask": _patch_mask(attention_mask, K),
            "position_ids": positions,
            "use_cache": False,
            **self._stretched(embeddings, attention_mask, position_ids, K),
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if labels is None:
            return self._plain_forward(**inputs)
        targets = stage_targets(labels, self.patch_size, self.ablation, positions, self.tail)
        if total is None and num_items_in_batch is not None:
            total = num_items_in_batch * self._targets_per_item(labels, targets)
        common = {"weights": self.weights, "total": total}
        if self.backend.name == "plain":
            outputs = self._plain_forward(**inputs)
            loss = patch_loss_from_logits(outputs.logits[:, :-1], targets, **common)  # type: ignore[arg-type]
        else:
            with skipped_head(self.model) as head_inputs:
                outputs = self._plain_forward(**inputs)
            head = output_embeddings(self.model)
            loss = LOSSES[self.backend.name](
                head_inputs[-1][:, :-1],
                head.weight,
                targets,
                bias=getattr(head, "bias", None),
                scale=self.probe.logit_scale,
                softcap=self.probe.softcap,
                **common,
            )
        outputs.loss = loss + _auxiliary_loss(self.model, outputs, self.probe.auxiliary)
        return outputs

    def _embedded(self, ids: Tensor, patch_size: int) -> Tensor:
        """What the transformer reads, ``(B, T, D)``: patches, and the tail's tokens if any."""
        embedding, past = input_embeddings(self.model), ids.shape[1] - self.tail
        if past < 0:
            raise UsageError(
                f"a row of {ids.shape[1]} tokens is shorter than its tail, {self.tail}"
            )
        weights, rotate = self.pool_weights, self.pool_order == "rotate"
        if patch_size == 1:
            weights, rotate = None, False
        if self.tail:  # called once: a sharded embedding is gathered for each call
            tokens = embedding(ids)
            patches = pool_embeddings(tokens[:, :past], patch_size, weights, rotate)
        else:
            patches = embed_patches(embedding, ids, patch_size, weights, rotate)
        if patch_size > 1 and self.embedding_scale != 1.0:
            patches = patches * self.embedding_scale
        return torch.cat([patches, tokens[:, past:]], dim=1) if self.tail else patches

    def _stretched(
        self, patches: Tensor, mask: Tensor | None, position_ids: Tensor | None, patch_size: int
    ) -> dict[str, Tensor]:
        """The positions of ``position_scale``, and the mask they need; nothing where it is 1.

        Without a mask transformers takes positions that do not count by one for the beginnings of
        packed documents, and each patch would see nothing but itself.
        """
        if self.position_scale == 1 or patch_size == 1:
            return {}
        if position_ids is not None:
            raise UsageError("with position_scale patch level sets position_ids; leave them out")
        rows, length = patches.shape[:2]
        order = torch.arange(length, device=patches.device)
        within = (order - (length - self.tail)).clamp(min=0)  # places in the tail, if any
        positions = (order - within) * self.position_scale + within
        check_positions(self.model, last_position(length, self.position_scale, self.tail))
        stretched = {"position_ids": positions.expand(rows, -1)}
        if mask is None:
            stretched["attention_mask"] = torch.ones_like(stretched["position_ids"])
        return stretched

    def _targets_per_item(self, labels: Tensor, targets: Tensor) -> Tensor:
        """How many of our (weighted) targets there are to one of those that Trainer counts.

        Trainer counts a whole step's next-token targets, ``labels[:, 1:]``; a patch has none for
        the row's first patch, and weighs its slots. Converted pass by pass, the step's loss is its
        true mean wherever the passes hold these in equal proportion, as full rows do.
        """
        counted = (labels[:, 1:] != IGNORE).sum().clamp(min=1)
        slots = torch.tensor(self.weights, device=labels.device)
        return torch.where(targets != IGNORE, slots, 0.0).sum() / counted


def patch_level(
    model: nn.Module,
    patch_size: int,
    weights: SlotWeights | None = None,
    *,
    backend: str | Backend = "auto",
    checked: Probe | None = None,
    ablation: str | None = None,
    embedding_scale: float | str = 1.0,
    position_scale: int | str = 1,
    pool_weights: SlotWeights | None = None,
    pool_order: str = "none",
    tail: int = 0,
) -> PatchLevel:
    """Put a transformers causal LM at patch level, in place.

    While it is on, ``model(input_ids=ids, labels=ids).loss`` is the patch loss for ``ids`` of
    shape ``(B, K * T)``; the transformer sees T positions. ``attention_mask`` and ``position_ids``
    may be given at token length: a patch is visible if any of its tokens is, and positions count
    patches. Positions that restart at 0 separate packed documents: they must do so where a patch
    begins, and the first patch of a document is then no target. The outputs' logits are empty where
    the loss did not need them; without ``labels`` they are those of each patch.

    Of a step spread over several passes, ``num_items_in_batch`` is the number of next-token targets
    in all of it, as transformers' Trainer counts and passes it; ``total`` is instead the very
    number that the weighted sum of the loss is divided by (see ``patch_loss``).

    Args:
        model: a causal language model of transformers, or any module with the same contract
            (``get_input_embeddings``, ``get_output_embeddings``, ``inputs_embeds``).
        patch_size: K. At K = 1 nothing changes.
        weights: slot weights (see ``stage.slot_weights``); uniform if not given.
        backend: how the loss is computed: ``"auto"``, or a name of ``loss_backends.LOSSES`` to
            force; the result of an earlier ``choose``, to skip the choosing. The handle's
            ``backend`` says what was taken, and why.
        checked: the result of an earlier ``probe`` of this model, to skip the probing.
        ablation: to study what a patch does: ``input-only`` or ``output-only``, where the model
            reads ``ids`` of shape ``(B, T)``. The others of ``stage.ABLATIONS`` are an order of
            the tokens: give rows that have it.
        embedding_scale: what the mean of a patch's embeddings is multiplied with: a number, or a
            word as in a plan. The model is probed without it, and so is what a patch of identical
            tokens gives.
        position_scale: from the position of a patch to that of the next; K, or ``"patch"``, for
            distances as they are at token level. For rotary positions.
        pool_weights: of the K embeddings of a patch, scaled to a mean of 1: K numbers, or a word
            as in a plan; None is their plain mean.
        pool_order: ``"rotate"`` lets the model tell the order of the tokens in a patch
            (``patches.rotated``); ``"none"`` does not. The model is probed without it.
        tail: how many of the tokens at the end of ``ids``, of shape ``(B, K * P + tail)``, the
            model reads one by one, after P patches (``patches.hybrid_targets``).

    Returns:
        A handle with ``remove()``, which also works as a context manager.

    Raises:
        UsageError: if K or a setting does not make sense, the model is at patch level already,
            pooling embeddings is not exact for it, or the backend asked for cannot be used.
    """
    slots = slot_weights(patch_size, "uniform" if weights is None else weights)
    read = reading(
        patch_size, ablation, pool_weights, tail, embedding_scale=embedding_scale,
        position_scale=position_scale, pool_order=pool_order,
    )  # fmt: skip
    if isinstance(getattr(model.forward, "patch_level", None), PatchLevel):
        raise UsageError("the model is at patch level already; remove() the other handle first")
    if patch_size == 1:
        return PatchLevel(model, 1, slots, checked or Probe(fused=False))
    if checked is None:
        from patchtrain.probing import probe, probe_positions  # which needs PatchLevel itself

        checked = probe(model)
        if read["position_scale"] > 1:
            probe_positions(model)
    if isinstance(backend, str):
        backend = choose(backend, checked, output_embeddings(model))
    return PatchLevel(model, patch_size, slots, checked, backend, **read)


@contextmanager
def skipped_head(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block the head receives no rows; what it would have received is in the list.

    So the model's own forward runs to the end, with whatever it does around its head, and pays
    nothing for logits.
    """
    received: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        received.append(args[0])
        return (args[0][:, :0], *args[1:])

    hook = output_embeddings(model).register_forward_pre_hook(take)
    try:
        yield received
    finally:
        hook.remove()


def input_embeddings(model: Any) -> Any:
    return model.get_input_embeddings()


def vocabulary_size(model: Any) -> int:
    """The tokens a model has an embedding of, which may be more than its tokenizer knows."""
    return int(input_embeddings(model).weight.shape[0])


def output_embeddings(model: Any) -> Any:
    head = model.get_output_embeddings()
    if head is None:
        raise UsageError(f"{type(model).__name__} has no output embedding: not a language model")
    return head


def longest_context(model: Any) -> int | None:
    """The positions that a model has room for; None where it does not say."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def check_positions(model: Any, last: int) -> None:
    """``UsageError`` if a model has no room for positions that ``position_scale`` spreads."""
    longest = longest_context(model)
    if longest is not None and last >= longest:
        raise UsageError(
            f"position_scale gives positions up to {last}, beyond the model's "
            f"max_position_embeddings of {longest}; use a shorter context, or no position_scale"
        )


def _auxiliary_loss(model: Any, outputs: Any, weight: float | None) -> Tensor | float:
    """The load-balancing loss of a mixture of experts, weighted as in the model's own loss."""
    auxiliary = getattr(outputs, "aux_loss", None)
    if not isinstance(auxiliary, Tensor):
        return 0.0
    if weight is None:
        raise UsageError(
            f"{type(model).__name__} makes an auxiliary loss that it did not make when it was "
            f"probed; set output_router_logits in its config before patch_level()"
        )
    return weight * auxiliary


def _patch_mask(attention_mask: Tensor | None, patch_size: int) -> Tensor | None:
    """``(B, S)`` to ``(B, S / K)``: a patch is visible if any of its tokens is."""
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2:
        raise UsageError(
            f"at patch level attention_mask is (rows, tokens), not {tuple(attention_mask.shape)}"
        )
    rows, length = attention_mask.shape
    return attention_mask.view(rows, length // patch_size, patch_size).amax(-1)
