"""One stretch of a run at one patch size, and the weights of its K targets.

Standard library only. ``plan.py`` makes stages; everything that trains, counts or reads does so by
the stage it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from patchtrain.errors import UsageError, one_line

SlotWeights = str | Sequence[float]

# What a patch-level stage can leave out or destroy, to see which part of a patch does the work.
# To study, not to train; ``ablations.py`` has the functions.
ABLATIONS = {
    "input-only": "patches are read, and one token is predicted: the one after the patch",
    "output-only": "single tokens are read, and the next K tokens are predicted from each",
    "mixup": "a patch is K tokens from K random places of the text, at the same position",
    "shuffled": "the tokens of a row are shuffled before they are cut into patches",
}
# Those that are nothing but another order of the tokens that a stage reads.
REARRANGED = ("mixup", "shuffled")


@dataclass(frozen=True)
class Part:
    """A stage as asked for: its share of the steps, of which only the ratios count."""

    patch_size: int
    share: float
    context_length: int
    ablation: str | None = None
    tail: int = 0  # of the positions, that read single tokens

    @property
    def sequence_tokens(self) -> int:
        return sequence_tokens(self.patch_size, self.context_length, self.ablation, self.tail)

    @property
    def tokens_per_position(self) -> float:
        return self.sequence_tokens / self.context_length

    def span(self, position_scale: int) -> int:
        return span(self.context_length, position_scale, self.tail)


@dataclass(frozen=True)
class Stage:
    """One stretch of a run at one patch size. All counts are over all processes."""

    index: int
    patch_size: int
    first_step: int  # of the run
    steps: int
    context_length: int  # positions of a sequence: the plan's T, but in studies
    sequences_per_step: int
    first_block: int  # of the shuffled block stream; a block has Plan.block_tokens tokens
    blocks: int
    slot_weights: tuple[float, ...]
    ablation: str | None = None  # one of ABLATIONS
    embedding_scale: float = 1.0  # times the mean of a patch's embeddings
    position_scale: int = 1  # from one position to the next
    pool_weights: tuple[float, ...] | None = None  # of a patch's embeddings; None: their mean
    pool_order: str = "none"  # rotate: a patch's embeddings are told apart by their place
    tail: int = 0  # positions at the end of a sequence that read single tokens
    token_steps: int = 0  # of its steps, that are done at token level; spread evenly

    @property
    def name(self) -> str:
        name = stage_name(self.patch_size)
        if self.tail:
            name += f" and {self.tail} tokens"
        return f"{name}, {self.ablation}" if self.ablation else name

    def named(self, context_length: int) -> str:
        """Its name, with the length of its rows where that is not ``context_length``."""
        if self.context_length == context_length:
            return self.name
        return f"{self.name} in rows of {self.context_length:,} positions"

    @property
    def last_step(self) -> int:
        """The first step that is no longer of this stage."""
        return self.first_step + self.steps

    @property
    def sequence_tokens(self) -> int:
        return sequence_tokens(self.patch_size, self.context_length, self.ablation, self.tail)

    @property
    def tokens_per_position(self) -> float:
        """Of its cost: K, less where the positions of a tail read one token each."""
        return self.sequence_tokens / self.context_length if self.tail else self.patch_size

    @property
    def piece_tokens(self) -> int:
        """Tokens of a sequence that stand together in the text: of a mixup's, one Kth."""
        return self.context_length if self.ablation == "mixup" else self.sequence_tokens

    @property
    def last_position(self) -> int:
        return last_position(self.context_length, self.position_scale, self.tail)

    @property
    def positions_per_step(self) -> int:
        return self.sequences_per_step * self.context_length

    @property
    def tokens_per_step(self) -> int:
        """Of a step at the stage's patch size."""
        return self.sequences_per_step * self.sequence_tokens

    @property
    def tokens(self) -> int:
        return self.tokens_in(self.steps)

    def tokens_in(self, steps: int) -> int:
        """Raw tokens that the stage's first ``steps`` steps read."""
        singles = self.token_steps_in(steps)
        return (steps - singles) * self.tokens_per_step + singles * self.positions_per_step

    def token_steps_in(self, steps: int) -> int:
        """How many of the stage's first ``steps`` steps are done at token level."""
        return (2 * steps * self.token_steps + self.steps) // (2 * self.steps)

    def level_at(self, step: int) -> Stage:
        """The stage as step ``step`` of the run does it: itself, or at token level."""
        into = step - self.first_step
        if self.token_steps_in(into + 1) == self.token_steps_in(into):
            return self
        return replace(
            self, patch_size=1, slot_weights=(1.0,), embedding_scale=1.0, position_scale=1,
            pool_weights=None, pool_order="none", tail=0, token_steps=0,
        )  # fmt: skip

    def levels(self) -> list[tuple[Stage, int, int]]:
        """What ``level_at`` gives for its steps: each with the first such step and their number."""
        counts = {self.patch_size: self.steps - self.token_steps}
        if self.token_steps:
            counts[1] = self.token_steps
        found = []
        for patch_size, count in counts.items():
            steps = range(self.first_step, self.last_step)
            first = next(step for step in steps if self.level_at(step).patch_size == patch_size)
            found.append((self.level_at(first), first, count))
        return found

    def reading(self) -> dict[str, Any]:
        """How sequences are read, beyond their patch size: what ``patch_level`` is given of it."""
        names = ("embedding_scale", "position_scale", "pool_weights", "pool_order", "tail")
        ablation = None if self.ablation in REARRANGED else self.ablation
        return {"ablation": ablation, **{name: getattr(self, name) for name in names}}

    @property
    def positions(self) -> int:
        return self.steps * self.positions_per_step

    def to_dict(self) -> dict[str, Any]:
        derived = ("name", "tokens_per_step", "positions_per_step", "tokens", "positions")
        values = {**asdict(self), **{name: getattr(self, name) for name in derived}}
        return {name: value for name, value in values.items() if value is not None}


def stage_name(patch_size: int) -> str:
    """What a stage reads, in words: ``patches of 4``, or ``tokens``."""
    return "tokens" if patch_size == 1 else f"patches of {patch_size}"


def sequence_tokens(
    patch_size: int, context_length: int, ablation: str | None = None, tail: int = 0
) -> int:
    """Raw tokens of one sequence: K a position, but one where single tokens are read."""
    return (context_length - tail) * (1 if ablation == "output-only" else patch_size) + tail


def span(context_length: int, position_scale: int, tail: int = 0) -> int:
    """The positions that a sequence covers: from its beginning to where the next would begin."""
    return (context_length - tail) * position_scale + tail


def last_position(context_length: int, position_scale: int, tail: int = 0) -> int:
    """The position that a model gives the last patch, or token of the tail, of a sequence.

    A patch has its beginning's, so that it may lie up to K before the end of the span.
    """
    return span(context_length, position_scale, tail) - (1 if tail else position_scale)


def slot_weights(patch_size: int, kind: SlotWeights = "uniform") -> tuple[float, ...]:
    """The weight of each of the K targets of a patch, scaled to a mean of 1.

    Args:
        patch_size: K.
        kind: ``"uniform"`` (2407.12665); ``"power"``, the i-th target weighs 1 / i; ``"auto"``,
            uniform below K = 8 and power from there (2605.06546); or K non-negative numbers.

    Returns:
        K weights that sum to K, so that the loss stays in nats per token.
    """
    if not isinstance(patch_size, int) or isinstance(patch_size, bool) or patch_size < 1:
        shown = one_line(repr(patch_size), 60)
        raise UsageError(f"patch_size must be a whole number of at least 1, not {shown}")
    if isinstance(kind, str):
        if kind == "auto":
            kind = "uniform" if patch_size < 8 else "power"
        if kind == "uniform":
            raw = [1.0] * patch_size
        elif kind == "power":
            raw = [1.0 / (slot + 1) for slot in range(patch_size)]
        else:
            raise UsageError(
                f"slot weights '{one_line(kind, 40)}' are not known; use uniform, power, auto or "
                f"K numbers"
            )
    else:
        if not isinstance(kind, Sequence) or not all(
            isinstance(weight, int | float) and abs(weight) < 1e300 for weight in kind
        ):
            shown = one_line(repr(kind), 60)
            raise UsageError(f"slot weights are a name or a list of numbers, not {shown}")
        raw = [float(weight) for weight in kind]
        if len(raw) != patch_size:
            raise UsageError(f"{len(raw)} slot weights for a patch of {patch_size} tokens")
        if min(raw) < 0 or not 0 < sum(raw) < float("inf"):
            raise UsageError("slot weights must be non-negative, finite and not all zero")
    return tuple(weight * patch_size / sum(raw) for weight in raw)


def rows_fit(context_length: Any, patch_size: int) -> bool:
    """Whether rows of as many tokens can be made of patches: T / K is whole, and two or more."""
    T = context_length if isinstance(context_length, int) else 0
    return T % patch_size == 0 and 2 * patch_size <= T


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return max(size for part in small for size in (part, number // part) if size <= limit)
