"""How well token frequencies alone predict a text, which a patch loss has to be held against.

A patch-level stage that ends near it has learned what a token-level one learns in its first steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from patchtrain.data.batches import spread, token_array

_SAMPLE, _BLOCK = 1 << 22, 1 << 12


def unigram_entropy(tokens: Any) -> float:
    """The entropy of the token frequencies, nats a token; of millions of tokens, spread evenly.

    No model that ignores its context has a lower loss on this text.

    Args:
        tokens: as ``token_array`` takes them, at least one.
    """
    counts = np.bincount(spread(token_array(tokens), _SAMPLE, _BLOCK).ravel())
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
