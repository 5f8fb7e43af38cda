"""Tokens to patches: the whole input side of patch-level training on one screen.

A patch is K consecutive tokens. The transformer reads the mean of their embeddings, with no new
parameters, and position i predicts the K tokens of patch i + 1 from one softmax (Shao, Meng,
Zhou, arXiv:2407.12665, section 2). With ``hidden = transformer(pool_embeddings(embeds, K))``::

    loss = patch_loss(hidden[:, :-1], head.weight, patch_targets(ids, K))

At K = 1 all of this is ordinary next-token training.

Shapes: B rows, S raw tokens a row (a multiple of K), D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchtrain.errors import UsageError


def pool_embeddings(embeddings: Tensor, patch_size: int) -> Tensor:
    """Mean of every K consecutive token embeddings.

    Args:
        embeddings: ``(B, S, D)``, any floating dtype.
        patch_size: K; must divide S.

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
    return patches.mean(dim=2, dtype=wide).to(embeddings.dtype)


def patch_targets(labels: Tensor, patch_size: int) -> Tensor:
    """The K tokens of the next patch, for every patch but the last.

    Args:
        labels: ``(B, S)`` token ids, *not* shifted; ``-100`` marks targets to ignore.
        patch_size: K; must divide S.

    Returns:
        ``(B, S / K - 1, K)``, a view: entry ``[b, i, k]`` is token k of patch i + 1, the target of
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
    return labels[:, patch_size:].reshape(rows, length // patch_size - 1, patch_size)


def _check_patch_size(patch_size: int, length: int) -> None:
    if patch_size < 1:
        raise UsageError(f"patch_size must be at least 1, not {patch_size}")
    if length % patch_size:
        raise UsageError(
            f"a row of {length} tokens cannot be cut into patches of {patch_size}; "
            f"its length must be a multiple of {patch_size}"
        )
