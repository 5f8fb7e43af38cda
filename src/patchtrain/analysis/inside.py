"""What goes on inside a model, at token level and at patch level.

* *Activated neurons*: the share of feed-forward outputs with an absolute value above 0.5, by layer.
  That is the definition of the paper (Shao, Meng, Zhou, arXiv:2407.12665, section on neuron
  activation), which finds that it grows with K. The scale of a model's outputs is its own, so their
  root mean square stands beside each share; so do the activations between the two projections.
* *Embeddings*: their lengths, how alike random ones are, how many directions they fill, how far
  they moved from one stage of a run to the next, and how long their mean over a patch is.
* *Loss by slot*: the K tokens of the next patch are predicted from one position; how well each?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchtrain.analysis.coherence import unit
from patchtrain.analysis.feed_forward import LayerActivity, counting, find_feed_forwards
from patchtrain.data.batches import spread
from patchtrain.errors import UsageError
from patchtrain.evaluation.loading import LoadedModel
from patchtrain.evaluation.perplexity import check_token_ids, device_of, evaluating
from patchtrain.modeling import patch_level, vocabulary_size
from patchtrain.patch_settings import patches_of
from patchtrain.patches import patch_targets
from patchtrain.probing import probe

THRESHOLD = 0.5
_BATCH_LOGITS = 2**26
_PATCHES = 65_536


def read_levels(
    model: Any,
    tokens: np.ndarray,
    patch_sizes: Sequence[int],
    context_length: int,
    threshold: float = THRESHOLD,
    batch_size: int | None = None,
    advance: Callable[[int], None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Read the same tokens at each patch size: loss by slot, activated neurons by layer.

    Args:
        model: a transformers causal LM.
        tokens: ``(N,)`` integer token ids, read in rows of K times ``context_length`` tokens; what
            does not fill a row is left out (of a shorter text, what does not fill a patch).
        patch_sizes: each K; at K = 1 the model runs as it is.
        context_length: positions a row.
        threshold: above which absolute value an activation counts.
        batch_size: rows at a time; by default as many as keep the logits near 256 MB.
        advance: is called with the tokens of each batch.
        settings: of patches, of the plan it was trained by (``patch_settings.patches_of``).

    Returns:
        One entry for each K: ``patch_size``, ``tokens``, ``positions``, ``loss`` (mean over slots,
        nats), ``slots`` (``value`` and ``error``, the standard error over rows, of each), and
        ``layers`` (``layer``, ``name``, and share above the threshold and root mean square of
        ``output`` and ``inner``; empty where no feed-forward parts are found).

    Raises:
        UsageError: a text of fewer than two patches, a token the model does not have, positions
            that it has no room for, or a model on which patch level is not exact.
    """
    if len(tokens):
        check_token_ids(model, int(tokens.max()))
    parts = find_feed_forwards(model)
    checked = probe(model) if max(patch_sizes) > 1 else None
    levels = []
    for K in patch_sizes:
        rows = cut_rows(tokens, K, context_length)
        size = batch_size or max(1, _BATCH_LOGITS // (rows.shape[1] // K * vocabulary_size(model)))
        losses = []
        with (
            patch_level(model, K, checked=checked, **patches_of(settings or {}, K)),
            evaluating(model),
            counting(parts, threshold) as activity,
        ):
            for begin in range(0, len(rows), size):
                ids = torch.from_numpy(rows[begin : begin + size]).to(device_of(model))
                logits = model(input_ids=ids, use_cache=False).logits
                losses.append(slot_losses(logits[:, :-1], patch_targets(ids, K)).mean(1).cpu())
                if advance:
                    advance(ids.numel())
        slots = torch.cat(losses).double()  # (rows, K)
        levels.append({
            "patch_size": K,
            "tokens": rows.size,
            "positions": rows.size // K,
            "loss": float(slots.mean()),
            "slots": [_mean_of_rows(slot) for slot in slots.T],
            "layers": [_layer(layer) for layer in activity],
        })  # fmt: skip
    return levels


def stage_models(loaded: LoadedModel) -> list[Path]:
    """The models a run kept at its switches, in order; none of a model without a run."""
    return list(loaded.run.stage_models().values()) if loaded.run else []


def cut_rows(tokens: np.ndarray, patch_size: int, context_length: int) -> np.ndarray:
    """``(rows, K * T)`` int64: all whole rows, or one of as many whole patches as there are.

    ``UsageError``: fewer than two patches.
    """
    K = patch_size
    length = min(K * context_length, len(tokens) // K * K)
    if length < 2 * K:
        raise UsageError(
            f"{len(tokens)} tokens in a context of {context_length} hold fewer than two patches "
            f"of {K}: give more text, a longer context or a smaller K"
        )
    return spread(tokens, len(tokens), length).astype(np.int64)


def slot_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target, nats in fp32: ``(..., V)`` and ``(..., K)`` to ``(..., K)``.

    No target may be ignored.
    """
    wide = logits.float()
    return wide.logsumexp(-1, keepdim=True) - wide.gather(-1, targets)


def geometry(embeddings: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """How the embeddings of the tokens in ``seen`` lie, each once.

    Args:
        embeddings: ``(V, D)``.
        seen: token ids of a text, ``(N,)``: tokens that never come up were never trained.

    Returns:
        ``types``: how many there are; ``width``: D; ``norm`` and ``norm_deviation``: mean and
        standard deviation of their lengths; ``cosine``: mean cosine of two of them, 0 if they point
        anywhere; ``directions``: the participation ratio of the eigenvalues of their covariance,
        ``(sum l)^2 / sum l^2``, D if all directions are used alike and 1 if one is.
    """
    table = np.asarray(embeddings[np.unique(seen)], dtype=np.float64)
    types = len(table)
    norms = np.linalg.norm(table, axis=1)
    units = unit(table).astype(np.float64)
    total = units.sum(0)
    pairs = types * (types - 1)
    centred = table - table.mean(0)
    covariance = centred.T @ centred
    squares = float((covariance**2).sum())
    return {
        "types": types,
        "width": table.shape[1],
        "norm": float(norms.mean()),
        "norm_deviation": float(norms.std()),
        "cosine": float((total @ total - (units * units).sum()) / pairs) if pairs else 1.0,
        "directions": float(np.trace(covariance) ** 2 / squares) if squares else 0.0,
    }


def drift(before: np.ndarray, after: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """How far the embeddings of the tokens in ``seen`` moved: ``(V, D)`` each.

    ``cosine``: mean cosine of a token's embedding with its later self; ``norm_ratio``: mean length
    after over mean length before. ``UsageError``: the two are of different shapes.
    """
    if before.shape != after.shape:
        raise UsageError(f"embeddings of {before.shape} cannot become embeddings of {after.shape}")
    types = np.unique(seen)
    one, other = before[types].astype(np.float64), after[types].astype(np.float64)
    cosines = (unit(one) * unit(other)).sum(1)
    lengths = (np.linalg.norm(table, axis=1).mean() for table in (other, one))
    return {"cosine": float(cosines.mean()), "norm_ratio": float(np.divide(*lengths))}


def pooled_norm(embeddings: np.ndarray, tokens: np.ndarray, patch_size: int) -> float:
    """Mean length of a patch's mean embedding over that of its tokens.

    1 / sqrt(K) if the K embeddings had nothing to do with each other, 1 if they were the same.
    ``UsageError``: fewer tokens than one patch.
    """
    K, patches = patch_size, len(tokens) // patch_size
    if patches == 0:
        raise UsageError(f"{len(tokens)} tokens are less than one patch of {K}")
    count = min(patches, _PATCHES)
    chosen = np.arange(count) * patches // count
    rows = tokens[: patches * K].reshape(patches, K)[chosen]
    norms = np.linalg.norm(np.asarray(embeddings, dtype=np.float32), axis=1)
    pooled = [
        np.linalg.norm(embeddings[part].mean(1, dtype=np.float32), axis=1)
        for part in np.array_split(rows, -(-count * K // 8192))
    ]
    return float(np.concatenate(pooled).mean() / norms[rows].mean())


def _mean_of_rows(slot: Tensor) -> dict[str, float | None]:
    error = float(slot.std() / len(slot) ** 0.5) if len(slot) > 1 else None
    return {"value": float(slot.mean()), "error": error}


def _layer(activity: LayerActivity) -> dict[str, Any]:
    return {
        "layer": activity.part.layer,
        "name": activity.part.name,
        "output_share": activity.output.share,
        "output_rms": activity.output.rms,
        "inner_share": activity.inner.share,
        "inner_rms": activity.inner.rms,
    }
