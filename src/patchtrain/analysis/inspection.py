"""All that can be said of the patches of a text, as plain numbers for JSON, tables and figures.

``patchtrain inspect`` shows it, and ``patchtrain eval --inside`` keeps it with a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from patchtrain.analysis import coherence
from patchtrain.analysis.patch_content import Text, patch_shares


def inspect_text(
    text: Text,
    patch_sizes: Sequence[int],
    embeddings: np.ndarray | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """What patches of each size hold, and how much tokens have to do with each other by distance.

    Args:
        text: from ``patch_content``.
        patch_sizes: each at least 1; those the text is too short for are left out.
        embeddings: ``(V, D)`` token embeddings of a model; without them there are no cosines.
        advance: is called with 1 after each patch size and each distance, ``parts`` in all.

    Returns:
        ``tokens``, ``documents``, ``left_out`` (documents); ``patches``, one entry a size with the
        fields of ``PatchShares``, ``cosines`` (of ``PatchCosines``, or None) and
        ``information_inside`` (nats, or None); ``distances``, one entry a distance with the fields
        of ``Information`` and ``cosine`` (of ``Mean``, or None).
    """
    units = None if embeddings is None else coherence.unit(embeddings)
    distances, information = [], []
    for distance in coherence.DISTANCES:
        if distance < len(text):
            found = coherence.information_at(text, distance)
            cosine = None if units is None else asdict(coherence.cosine_at(text, units, distance))
            information.append(found)
            distances.append({**asdict(found), "cosine": cosine})
        if advance:
            advance(1)
    patches = []
    for K in patch_sizes:
        if len(text) >= K:
            cosines = None
            if units is not None and K > 1:
                cosines = asdict(coherence.patch_cosines(text, units, K))
            patches.append({
                **asdict(patch_shares(text, K)),
                "cosines": cosines,
                "information_inside": coherence.information_inside(information, K),
            })  # fmt: skip
        if advance:
            advance(1)
    return {
        "tokens": len(text),
        "documents": text.documents,
        "left_out": text.left_out,
        "far": coherence.FAR,
        "types": coherence.TYPES,
        "patches": patches,
        "distances": distances,
    }


def parts(patch_sizes: Sequence[int]) -> int:
    """How often ``inspect_text`` calls ``advance``."""
    return len(patch_sizes) + len(coherence.DISTANCES)


def token_embeddings(model: Any) -> np.ndarray:
    """``(V, D)`` fp32: what the model makes of every token id, its own scaling included."""
    import torch

    from patchtrain.modeling import input_embeddings

    embedding = input_embeddings(model)
    device = embedding.weight.device
    ids = torch.arange(embedding.weight.shape[0], device=device)
    with torch.no_grad():
        rows = [embedding(part).float().cpu() for part in ids.split(8192)]
    found: np.ndarray = torch.cat(rows).numpy()
    return found
