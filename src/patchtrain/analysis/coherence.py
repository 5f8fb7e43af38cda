"""Do the tokens of a patch belong together? Cosines of their embeddings, and mutual information.

A patch is read as the mean of its tokens' embeddings, so what it keeps of them depends on how alike
they are. The mean cosine of all pairs inside a patch is put beside that of pairs across patches
(the next one; one that is ``FAR`` patches on) and of tokens drawn at random from the same text.
Trained embeddings share a direction, so a cosine says something only against the random one.

Mutual information says how much a token tells of another one a distance away, without any model. It
is counted over the ``TYPES - 1`` most frequent tokens, all others being one: what is left of it
after that can only be less. Counts of few pairs tell too much, also of tokens that know nothing of
each other; what the same pairs tell when one side is shuffled is therefore subtracted. Where tokens
do depend on each other that takes off a little too much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from patchtrain.analysis.patch_content import Text
from patchtrain.errors import UsageError

DISTANCES = (*range(1, 17), 32, 64, 128, 256, 512, 1024)
FAR = 8
TYPES = 512
GROUPS = 16_384
"""Patches, pairs of patches or random groups at most, evenly from all of the text."""
_PAIRS = 65_536
_BLOCKS = 32
_SHUFFLES = 4


@dataclass(frozen=True)
class Mean:
    """A mean over ``count`` groups and its standard error, which is that of the means of 32
    stretches of the text: neighbours are alike. None where there were no groups, or too few."""

    value: float | None
    error: float | None
    count: int


@dataclass(frozen=True)
class PatchCosines:
    """Mean cosine of two tokens: of one patch, of a patch and the next, of a patch and the one
    ``FAR`` on, of random tokens. No pair crosses the end of a document."""

    patch_size: int
    inside: Mean
    next_patch: Mean
    far_patch: Mean
    random: Mean


@dataclass(frozen=True)
class Information:
    """Mutual information of two tokens ``distance`` apart, in nats.

    ``nats`` is ``counted - shuffled``; ``noise`` the standard deviation over the shuffles.
    """

    distance: int
    pairs: int
    nats: float
    counted: float
    shuffled: float
    noise: float


def unit(embeddings: np.ndarray) -> np.ndarray:
    """``(V, D)`` scaled to length 1 in fp32; rows of zeros stay."""
    wide = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    scaled: np.ndarray = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return scaled


def patch_cosines(text: Text, units: np.ndarray, patch_size: int) -> PatchCosines:
    """The cosines inside and across patches of ``patch_size`` (at least 2).

    ``units``: ``(V, D)`` embeddings from ``unit``. ``UsageError``: patches of one token, or a token
    without an embedding.
    """
    K = patch_size
    if K < 2:
        raise UsageError("a patch of one token has no two tokens to compare")
    _check(text, units)
    lengths = (units * units).sum(1)  # 1, or 0 of an embedding that is all zeros
    patches = len(text) // K
    tokens = text.tokens[: patches * K].reshape(patches, K)
    documents = text.document[: patches * K].reshape(patches, K)
    whole = (documents[:, 0] == documents[:, -1]) & (tokens != text.end_token).all(1)

    def inside(rows: np.ndarray) -> np.ndarray:
        """Of the pairs in each row of tokens ``(n, K)``: |sum|^2 holds each pair twice, and K."""
        total = _sum(units, rows)
        values: np.ndarray = ((total * total).sum(1) - lengths[rows].sum(1)) / (K * (K - 1))
        return values

    def across(step: int) -> Mean:
        same = documents[:-step, 0] == documents[step:, 0] if patches > step else np.zeros(0, bool)
        places = np.flatnonzero(whole[:-step] & whole[step:] & same) if len(same) else np.zeros(0)

        def values(chosen: np.ndarray) -> np.ndarray:
            first, second = _sum(units, tokens[chosen]), _sum(units, tokens[chosen + step])
            product: np.ndarray = (first * second).sum(1) / K**2
            return product

        return _mean(places.astype(np.int64), values, GROUPS)

    readable = np.flatnonzero(text.tokens != text.end_token)
    drawn = np.random.default_rng(0).choice(readable, (min(GROUPS, patches), K))
    return PatchCosines(
        patch_size=K,
        inside=_mean(np.flatnonzero(whole), lambda chosen: inside(tokens[chosen]), GROUPS),
        next_patch=across(1),
        far_patch=across(FAR),
        random=_mean(np.arange(len(drawn)), lambda rows: inside(text.tokens[drawn[rows]]), GROUPS),
    )


def cosine_at(text: Text, units: np.ndarray, distance: int) -> Mean:
    """Mean cosine of two tokens of one document, ``distance`` apart."""
    _check(text, units)
    first = _pairs(text, distance)

    def values(chosen: np.ndarray) -> np.ndarray:
        one, other = units[text.tokens[chosen]], units[text.tokens[chosen + distance]]
        product: np.ndarray = (one * other).sum(1)
        return product

    return _mean(first, values, _PAIRS)


def information_at(text: Text, distance: int, types: int = TYPES) -> Information:
    """Mutual information of the tokens of one document that stand ``distance`` apart."""
    first = _pairs(text, distance)
    if len(first) == 0:
        return Information(distance, 0, 0.0, 0.0, 0.0, 0.0)
    kinds = _frequent(text.tokens, types)
    one, other = kinds[first], kinds[first + distance]
    counted = _information(one, other, types)
    rng = np.random.default_rng((0, distance))
    null = [_information(one, rng.permutation(other), types) for _ in range(_SHUFFLES)]
    shuffled = float(np.mean(null))
    return Information(distance, len(first), counted - shuffled, counted, shuffled,
                       float(np.std(null, ddof=1)))  # fmt: skip


def information_inside(found: Sequence[Information], patch_size: int) -> float | None:
    """Mean over the pairs of a patch; None if some distance below ``patch_size`` was not counted.

    Of K tokens, K - d pairs stand d apart.
    """
    known = {entry.distance: entry.nats for entry in found if entry.pairs}
    K = patch_size
    if K < 2 or any(distance not in known for distance in range(1, K)):
        return None
    total = sum((K - distance) * known[distance] for distance in range(1, K))
    return total / (K * (K - 1) / 2)


def _pairs(text: Text, distance: int) -> np.ndarray:
    """Where the first tokens of pairs stand that are of one document and no end-of-text."""
    if len(text) <= distance:
        return np.zeros(0, dtype=np.int64)
    readable = text.tokens != text.end_token
    same = text.document[:-distance] == text.document[distance:]
    return np.flatnonzero(same & readable[:-distance] & readable[distance:])


def _frequent(tokens: np.ndarray, types: int) -> np.ndarray:
    """``tokens`` with the ``types - 1`` most frequent numbered by rank, all others the last."""
    kinds, places, counts = np.unique(tokens, return_inverse=True, return_counts=True)
    ranks = np.empty(len(kinds), dtype=np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(kinds))
    found: np.ndarray = np.minimum(ranks, types - 1)[places]
    return found


def _information(one: np.ndarray, other: np.ndarray, types: int) -> float:
    """Plug-in estimate from the counts of pairs, in nats."""
    joint = np.bincount(one * types + other, minlength=types * types).reshape(types, types)
    entropies = [_entropy(counts) for counts in (joint.sum(1), joint.sum(0), joint.ravel())]
    return entropies[0] + entropies[1] - entropies[2]


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _mean(places: np.ndarray, values: Callable[[np.ndarray], np.ndarray], most: int) -> Mean:
    """Mean of ``values`` at up to ``most`` of the ``places``, evenly spread."""
    if len(places) == 0:
        return Mean(None, None, 0)
    count = min(len(places), most)
    chosen = places[np.arange(count) * len(places) // count]
    found = np.concatenate([values(part) for part in np.array_split(chosen, -(-count // 4096))])
    error = None
    if count >= 2 * _BLOCKS:
        means = [float(block.mean()) for block in np.array_split(found.astype(float), _BLOCKS)]
        error = float(np.std(means, ddof=1) / np.sqrt(_BLOCKS))
    return Mean(float(found.astype(float).mean()), error, count)


def _sum(units: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Sum of the embeddings in each row of tokens, ``(n, K)`` to ``(n, D)``."""
    total = units[rows[:, 0]].copy()
    for slot in range(1, rows.shape[1]):
        total += units[rows[:, slot]]
    return total


def _check(text: Text, units: np.ndarray) -> None:
    if len(text) and (largest := int(text.tokens.max())) >= len(units):
        raise UsageError(
            f"token id {largest} has no embedding in a model of {len(units):,} tokens: "
            "text and model have different tokenizers"
        )
