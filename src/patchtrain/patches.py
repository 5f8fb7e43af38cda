"""Tokens to patches: the whole input side of patch-level training on one screen.

A patch is K consecutive tokens. The transformer reads the mean of their embeddings, with no new
parameters, and position i predicts the K tokens of patch i + 1 from one softmax (Shao, Meng,
Zhou, arXiv:2407.12665, section 2). With ``hidden = transformer(pool_embeddings(embeds, K))``::

    loss = patch_loss(hidden[:, :-1], head.weight, patch_targets(ids, K))

At K = 1 all of this is ordinary next-token training.

Shapes: B rows, S raw tokens a row (a multiple of K), D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from patchtrain.errors import UsageError

IGNORE = -100  # a label that is no target, as everywhere in PyTorch


def pool_embeddings(
    embeddings: Tensor,
    patch_size: int,
    weights: Sequence[float] | None = None,
    rotate: bool = False,
) -> Tensor:
    """Mean of every K consecutive token embeddings.

    Args:
        embeddings: ``(B, S, D)``, any floating dtype.
        patch_size: K; must divide S.
        weights: K numbers with a mean of 1, for a weighted mean, which neither paper has.
        rotate: tell the tokens of a patch apart (``rotated``), which neither paper does.

    Returns:
        ``(B, S / K, D)`` in the dtype of ``embeddings``. The mean is taken in fp32 (or wider):
        in bf16 a sum of K terms would lose bits that single tokens keep.

    Raises:
        UsageError: if S is not a multiple of K.
    """
    _check_patch_size(patch_size, embeddings.shape[1])
    if patch_size == 1:
        return embeddings
    rows, length, width = embeddings.shape
    patches = embeddings.view(rows, length // patch_size, patch_size, width)
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    if rotate:
        patches = rotated(patches)
    if weights is not None:
        slots = torch.tensor(weights, dtype=wide, device=embeddings.device)
        patches = patches.to(wide) * slots.view(-1, 1)
    return patches.mean(dim=2, dtype=wide).to(embeddings.dtype)


def rotated(patches: Tensor) -> Tensor:
    """Each token's embedding, its dimensions rolled on by how far it stands from the patch's end.

    A mean of embeddings is the same whatever their order; one of rolled embeddings is not, and has
    no parameters either. The last token, which stands next to what is predicted, is not moved and
    goes in as it does at token level; the one before it is rolled by D / K, and so on. A roll is a
    permutation: it keeps norms and can be undone.

    Args:
        patches: ``(..., K, D)``.

    Returns:
        The same shape and dtype.
    """
    slots, width = patches.shape[-2:]
    rolls = ((slots - 1 - slot) * width // slots for slot in range(slots))
    tokens = patches.unbind(-2)
    return torch.stack([token.roll(by, -1) for token, by in zip(tokens, rolls, strict=True)], -2)


def embed_patches(
    embedding: nn.Module,
    ids: Tensor,
    patch_size: int,
    weights: Sequence[float] | None = None,
    rotate: bool = False,
) -> Tensor:
    """``pool_embeddings(embedding(ids), K)``, without the K embeddings of each patch if possible.

    A plain ``nn.Embedding`` is looked up and averaged in one go: at K = 16 that is most of what
    pooling costs. One that does more (scaling, hooks, a padding row without gradient, a sharded
    weight, a dtype in which sums must be widened) is called and then pooled.

    Args:
        embedding: token ids to embeddings, ``(B, S)`` to ``(B, S, D)``.
        ids: ``(B, S)`` token ids.
        patch_size: K; must divide S.
        weights, rotate: as ``pool_embeddings``.

    Returns:
        ``(B, S / K, D)`` in the dtype of the embedding.
    """
    if rotate or not _is_plain(embedding):
        return pool_embeddings(embedding(ids), patch_size, weights, rotate)
    _check_patch_size(patch_size, ids.shape[1])
    rows, length = ids.shape
    bags = ids.reshape(-1, patch_size)
    if weights is None:
        pooled = nn.functional.embedding_bag(bags, embedding.weight, mode="mean")
    else:
        shares = torch.tensor(weights, dtype=embedding.weight.dtype, device=ids.device) / patch_size
        pooled = nn.functional.embedding_bag(
            bags, embedding.weight, mode="sum", per_sample_weights=shares.expand(bags.shape)
        )
    return pooled.view(rows, length // patch_size, -1)


def _is_plain(embedding: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether calling ``embedding`` is nothing but looking rows of its weight up, in fp32."""
    return (
        type(embedding) is nn.Embedding
        and "forward" not in embedding.__dict__  # as accelerate's and others' wrappers set
        and not embedding._forward_hooks
        and not embedding._forward_pre_hooks
        and not embedding._backward_hooks
        and not embedding._backward_pre_hooks
        and embedding.padding_idx is None
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
        and not embedding.sparse
        and type(embedding.weight) is nn.Parameter
        and embedding.weight.dtype in (torch.float32, torch.float64)
    )


def patch_targets(labels: Tensor, patch_size: int, positions: Tensor | None = None) -> Tensor:
    """The K tokens of the next patch, for every patch but the last.

    Args:
        labels: ``(B, S)`` token ids, *not* shifted; ``-100`` marks targets to ignore.
        patch_size: K; must divide S.
        positions: ``(B, S / K)`` positions of the patches (``patch_positions``), where documents
            are packed: a patch at position 0 begins a document, and what stands before it must
            not be trained to predict it.

    Returns:
        ``(B, S / K - 1, K)``: entry ``[b, i, k]`` is token k of patch i + 1, the target of
        the hidden state at position i.

    Raises:
        UsageError: if S is not a multiple of K, or holds fewer than two patches.
    """
    rows, length = labels.shape
    _check_patch_size(patch_size, length)
    if length < 2 * patch_size:
        raise UsageError(
            f"{length} tokens hold fewer than two patches of {patch_size}: nothing to predict"
        )
    targets = labels[:, patch_size:].reshape(rows, length // patch_size - 1, patch_size)
    if positions is None:
        return targets
    return torch.where((positions[:, 1:] == 0).unsqueeze(-1), IGNORE, targets)


def hybrid_targets(labels: Tensor, patch_size: int, tail: int) -> Tensor:
    """The targets of a row whose last ``tail`` tokens are read one by one, after patches.

    What a position is to predict follows from what it reads: a patch the K tokens after it, also
    where these are the first of the tail; a token the one after it. So each position's first slot
    is the very next token, and where slots weigh differently, that weight is also a tail target's.

    Args:
        labels: ``(B, K * P + tail)`` token ids, *not* shifted; ``-100`` marks targets to ignore.
        patch_size: K.
        tail: positions that read one token each; at least 1.

    Returns:
        ``(B, P + tail - 1, K)``; ``-100`` where a tail shorter than K ends, and in all slots of
        the tail's positions but the first.
    """
    rows, past = labels.shape[0], labels.shape[1] - tail
    _check_patch_size(patch_size, past)
    onward = pad(labels, (0, patch_size), value=IGNORE)[:, patch_size : past + patch_size]
    of_patches = onward.reshape(rows, past // patch_size, patch_size)
    of_tokens = pad(labels[:, past + 1 :].unsqueeze(-1), (0, patch_size - 1), value=IGNORE)
    return torch.cat([of_patches, of_tokens], dim=1)


def patch_positions(position_ids: Tensor, patch_size: int) -> Tensor:
    """Positions of patches from those of their tokens: position 0 begins a document.

    Args:
        position_ids: ``(B, S)`` positions of tokens, counted from each document's beginning.
        patch_size: K; must divide S.

    Returns:
        ``(B, S / K)`` positions that count patches.

    Raises:
        UsageError: if a document begins inside a patch, which would then mix two documents.
    """
    if position_ids.dim() != 2:
        raise UsageError(
            f"at patch level position_ids are (rows, tokens), not {tuple(position_ids.shape)}"
        )
    rows, length = position_ids.shape
    _check_patch_size(patch_size, length)
    patches = position_ids.view(rows, length // patch_size, patch_size)
    # Compiled code cannot look at values: there the first, uncompiled pass has to do.
    if not torch.compiler.is_compiling() and bool((patches.diff(dim=-1) != 1).any()):
        raise UsageError(
            f"positions restart inside a patch of {patch_size}: align documents to patches, or "
            f"leave position_ids out to mix documents"
        )
    return patches[..., 0] // patch_size


def _check_patch_size(patch_size: int, length: int) -> None:
    if patch_size < 1:
        raise UsageError(f"patch_size must be at least 1, not {patch_size}")
    if length % patch_size:
        raise UsageError(
            f"a row of {length} tokens cannot be cut into patches of {patch_size}; "
            f"its length must be a multiple of {patch_size}"
        )
