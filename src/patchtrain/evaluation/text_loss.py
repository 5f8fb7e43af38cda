"""The loss of a text as numbers a reader compares: perplexity, bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextLoss:
    """The summed loss of a text and what it is spread over.

    ``nats``: sum of the next-token losses. ``targets``: tokens that were predicted.
    ``utf8_bytes`` and ``words`` (separated by white space): the size of the text they stand for.
    """

    nats: float
    targets: int
    utf8_bytes: int
    words: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return _ratio(self.nats, self.targets)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float:
        """Per word; infinite where a text without spaces makes it overflow."""
        return _exp(_ratio(self.nats, self.words))

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8: the number that compares across tokenizers."""
        return _ratio(self.nats / math.log(2), self.utf8_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; what is not finite becomes None."""
        values = {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "word_perplexity": self.word_perplexity,
            "bits_per_byte": self.bits_per_byte,
            "nats": self.nats,
            "targets": self.targets,
            "utf8_bytes": self.utf8_bytes,
            "words": self.words,
        }
        return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
