"""Where in a text a model loses: its losses added up by position in the context and by document.

The position of a token is how many tokens of context it was predicted from, at least 1 and at most
the context length. A mean over a text hides what both show: a model whose loss stops falling with
the context makes nothing of it, and one bad document may outweigh a hundred good ones.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

# Documents whose numbers are all kept, one by one: those of WikiText-103's test set, but not those
# of a corpus.
MOST_LISTED = 256
_NAMED = 3  # of the best and of the worst documents
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class Tally:
    """Sums of the losses of single tokens, for texts read with one context length.

    What scores a text calls ``add``; what reads it calls ``add_document`` for each document, in
    order. Memory grows with the documents, not with the tokens.
    """

    def __init__(self, context_length: int) -> None:
        self._nats_at = np.zeros(context_length + 1)
        self._targets_at = np.zeros(context_length + 1, dtype=np.int64)
        self._nats_of = np.zeros(0)
        self._targets_of = np.zeros(0, dtype=np.int64)
        self._tokens, self._bytes = array("q"), array("q")

    @property
    def documents(self) -> int:
        """How many documents there were, empty ones too."""
        return len(self._tokens)

    def add_document(self, tokens: int, utf8_bytes: int) -> None:
        """The next document: all its tokens, scored or not, and the size of its text."""
        self._tokens.append(tokens)
        self._bytes.append(utf8_bytes)

    def add(self, nats: np.ndarray, documents: np.ndarray, first: int) -> None:
        """Count the losses of a batch.

        Args:
            nats: ``(rows, n)`` float, the losses; anything where there is no target.
            documents: ``(rows, n)`` int64, the document of each target, from 0; -1 for no target.
            first: tokens of context that the first column was predicted from; each column has one
                more than the one before.
        """
        scored = documents >= 0
        if not scored.any():
            return
        at = np.broadcast_to(np.arange(first, first + nats.shape[1]), nats.shape)[scored]
        values, owners = nats[scored].astype(np.float64), documents[scored]
        self._nats_at += np.bincount(at, values, len(self._nats_at))
        self._targets_at += np.bincount(at, minlength=len(self._targets_at))
        low, high = int(owners.min()), int(owners.max()) + 1  # a batch holds neighbours
        if high > len(self._nats_of):
            size = max(high, 2 * len(self._nats_of))
            self._nats_of = np.pad(self._nats_of, (0, size - len(self._nats_of)))
            self._targets_of = np.pad(self._targets_of, (0, size - len(self._targets_of)))
        self._nats_of[low:high] += np.bincount(owners - low, values, high - low)
        self._targets_of[low:high] += np.bincount(owners - low, minlength=high - low)

    def by_position(self) -> list[dict[str, Any]]:
        """Mean loss in nats per token, by tokens of context: 1, 2, 3 to 4, 5 to 8, and so on.

        The last bin ends with the context length; bins without a target are left out.
        """
        bins, begin = [], 1
        while begin < len(self._nats_at):
            end = min(max(2 * begin - 1, 2), len(self._nats_at))  # the first one beyond the bin
            if targets := int(self._targets_at[begin:end].sum()):
                loss = float(self._nats_at[begin:end].sum()) / targets
                bins.append({"from": begin, "to": end - 1, "loss": loss, "targets": targets})
            begin = end
        return bins

    def by_document(self) -> dict[str, Any]:
        """Bits per byte of each document on its own, as far as one page holds them.

        ``documents``: how many have a number, that is a scored token and a text. ``mean`` and
        ``quantiles`` are over documents, a short one counting as much as a long one. ``best`` and
        ``worst`` name a few by their place in the text, from 0. ``each``: all of them in order,
        None for one without a number; only where there are at most ``MOST_LISTED``.

        Where a document's first tokens were not scored, they count as much as its others.
        """
        count = len(self._tokens)
        nats, targets = np.zeros(count), np.zeros(count, dtype=np.int64)
        known = min(count, len(self._nats_of))
        nats[:known], targets[:known] = self._nats_of[:known], self._targets_of[:known]
        tokens, sizes = np.asarray(self._tokens), np.asarray(self._bytes)
        fit = (targets > 0) & (sizes > 0)
        bits = np.full(count, math.nan)
        bits[fit] = nats[fit] / targets[fit] * tokens[fit] / sizes[fit] / math.log(2)
        if not fit.any():
            return {"documents": 0}
        order = np.flatnonzero(fit)[np.argsort(bits[fit], kind="stable")]

        def named(documents: np.ndarray) -> list[dict[str, Any]]:
            return [
                {
                    "document": int(i),
                    "bits_per_byte": float(bits[i]),
                    "loss": float(nats[i] / targets[i]),
                    "targets": int(targets[i]),
                    "utf8_bytes": int(sizes[i]),
                }
                for i in documents
            ]

        found: dict[str, Any] = {
            "documents": int(fit.sum()),
            "mean": float(bits[fit].mean()),
            "quantiles": {
                f"{q:g}": float(value)
                for q, value in zip(_QUANTILES, np.quantile(bits[fit], _QUANTILES), strict=True)
            },
            "best": named(order[:_NAMED]),
            "worst": named(order[::-1][:_NAMED]),
        }
        if count <= MOST_LISTED:
            found["each"] = [None if math.isnan(b) else round(b, 6) for b in bits.tolist()]
        return found
