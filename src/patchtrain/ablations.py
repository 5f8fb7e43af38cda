"""What a patch-level stage becomes when one part of it is taken away: to study, not to train.

A patch does two things: K tokens go in as one mean, and K tokens come out of one softmax. And its
K tokens are neighbours. Four ablations (``stage.ABLATIONS``) part these from one another:

``input-only``   patches go in, and each position predicts one token: the first of the next patch
``output-only``  single tokens go in, and each position predicts the K tokens that follow it
``mixup``        a patch is K tokens from K random places, at the same position of K sequences, and
                 its targets are the K tokens after them: both sides, and no neighbours
``shuffled``     the tokens of a row are shuffled before they are cut: neither neighbours nor order

Each position of each of them costs what a position of the whole method costs. The first two change
the targets, the last two what stands in a row; torch and numpy only.

Shapes: B rows, S raw tokens a row, T positions.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from patchtrain.errors import UsageError
from patchtrain.patches import IGNORE, hybrid_targets, patch_targets


def stage_targets(
    labels: Tensor,
    patch_size: int,
    ablation: str | None = None,
    positions: Tensor | None = None,
    tail: int = 0,
) -> Tensor:
    """The targets of every position but the last of a stage, whole, hybrid or ablated.

    Args:
        labels: ``(B, S)`` token ids, *not* shifted; ``-100`` marks targets to ignore.
        patch_size: K.
        ablation: of ``stage.ABLATIONS``, or None.
        positions: see ``patch_targets``.
        tail: see ``patches.hybrid_targets``; not with an ablation.

    Returns:
        ``(B, T - 1, K)``; at ``input-only`` ``(B, S / K - 1, 1)``, at ``output-only``
        ``(B, S - 1, K)``.
    """
    if tail:
        return hybrid_targets(labels, patch_size, tail)
    if ablation == "output-only":
        return following_tokens(labels, patch_size)
    targets = patch_targets(labels, patch_size, positions)
    return targets[..., :1] if ablation == "input-only" else targets


def target_weights(slot_weights: tuple[float, ...], ablation: str | None) -> tuple[float, ...]:
    """The weights of the targets of one position: the slots', or that of the only one."""
    return (1.0,) if ablation == "input-only" else slot_weights


def following_tokens(labels: Tensor, count: int) -> Tensor:
    """The ``count`` tokens that follow each token, for every token but the last.

    Returns:
        ``(B, S - 1, count)``: entry ``[b, i, k]`` is ``labels[b, i + 1 + k]``, and ``-100`` where
        the row has ended by then.
    """
    if labels.shape[1] < 2:
        raise UsageError("a row of one token has nothing to predict")
    return pad(labels[:, 1:], (0, count - 1), value=IGNORE).unfold(1, count, 1)


def interleaved(pieces: np.ndarray, patch_size: int) -> np.ndarray:
    """K sequences as one row whose patch i holds their i-th tokens.

    Args:
        pieces: ``(B * K, T)``; K of them in turn make a row.
        patch_size: K.

    Returns:
        ``(B, K * T)``: entry ``[b, i * K + k]`` is ``pieces[b * K + k, i]``.
    """
    count, length = pieces.shape
    rows = pieces.reshape(count // patch_size, patch_size, length)
    return rows.swapaxes(1, 2).reshape(count // patch_size, patch_size * length)


def shuffled(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Each row in its own order: entry ``[b, i]`` is ``rows[b, order[b, i]]``, all ``(B, S)``."""
    return np.take_along_axis(rows, order, axis=1)
