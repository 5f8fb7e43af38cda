"""What every step of a plan reads, as a pure function of the seed and the step.

The training tokens are cut into blocks of ``plan.block_tokens``, a whole number of sequences for
every stage. One permutation of the blocks decides which stage reads which block, so that each
stage sees the corpus evenly and no two stages see the same tokens in one epoch; a second one,
within a stage, decides the order of its sequences. Nothing is kept in memory and nothing is
replayed: step 1,000,000 is found as fast as step 10.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from patchtrain.ablations import interleaved, shuffled
from patchtrain.data.documents import AlignedDocuments
from patchtrain.data.token_files import Pieces
from patchtrain.errors import UsageError
from patchtrain.plan import Plan
from patchtrain.stage import REARRANGED, Stage

_MASK64 = (1 << 64) - 1


class Permutation:
    """A pseudo-random permutation of ``range(length)`` that is computed, not stored.

    A four-round Feistel network permutes the next power of four; results outside the range are
    fed back in until they fall inside (cycle walking), four rounds of at most four on average.
    """

    def __init__(self, length: int, *seed: int) -> None:
        self.length = length
        self._half = max(1, (max(length - 1, 1).bit_length() + 1) // 2)
        state = 0x9E3779B97F4A7C15
        for part in (length, *seed):
            state = _mix(state ^ (part & _MASK64))
        self._keys = [_mix(state + round_number) for round_number in range(4)]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """The permuted values of ``index``, ``(n,)`` int64 in ``range(length)``."""
        value = self._rounds(index.astype(np.uint64))
        outside = value >= self.length
        while outside.any():
            value[outside] = self._rounds(value[outside])
            outside = value >= self.length
        return value.astype(np.int64)

    def _rounds(self, value: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = value >> half, value & mask
        for key in self._keys:
            mixed = (right ^ np.uint64(key)) * np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(32)
            left, right = right, left ^ (mixed & mask)
        return (left << half) | right


class PlanBatches:
    """The sequences of each step of ``plan`` over a stream of tokens.

    Args:
        tokens: ``(N,)`` integer token ids, memory-mapped or not; or separate documents.
        plan: the resolved plan.
        seed: the same seed and plan give the same sequences, on any number of processes.
    """

    def __init__(
        self, tokens: np.ndarray | Pieces | AlignedDocuments, plan: Plan, seed: int
    ) -> None:
        self.tokens = tokens
        self.plan = plan
        self.seed = seed
        self.blocks = len(tokens) // plan.block_tokens
        if self.blocks == 0:
            raise UsageError(
                f"{len(tokens):,} training tokens are less than one block of "
                f"{plan.block_tokens:,}; use more text or a shorter context"
            )

    def __len__(self) -> int:
        return self.plan.total_steps

    def step(self, step: int, process: int = 0) -> np.ndarray:
        """The token ids of one step: ``inputs(step, process)["input_ids"]``."""
        return self.inputs(step, process)["input_ids"]

    def inputs(self, step: int, process: int = 0) -> dict[str, np.ndarray]:
        """The sequences of one step, arrays of ``(sequences_per_step / processes, K * T)`` int64,
        or ``(.., T)`` where ``token_share`` has the step done at token level.

        ``input_ids``; of separate documents also ``labels`` and ``position_ids``. Process p reads
        the p-th equal part of the step's sequences.
        """
        stage = self.plan.stage_at(step)
        share = stage.sequences_per_step // self.plan.processes
        begin = (step - stage.first_step) * stage.sequences_per_step + process * share
        index = np.arange(begin, begin + share)
        if stage.ablation in REARRANGED:
            return {"input_ids": self._rearranged(stage, index)}
        starts = self.starts(stage, index)
        if self.plan.spec.phase == "random" and stage.level_at(step).patch_size > 1:
            starts += self.phases(stage, index, starts)
        level = stage.level_at(step)  # a step at token level reads the beginning of each sequence
        return read_rows(self.tokens, starts, level.sequence_tokens, level.patch_size)

    def phases(self, stage: Stage, index: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """By how many tokens, from 0 to K - 1, sequences begin later: random, each equally often.

        A function of seed and sequence, and another one in another epoch. What a sequence gains at
        its end is the beginning of the one after it in the store; nothing is read beyond the end.

        Args:
            stage: of patches.
            index: ``(n,)`` numbers of the stage's sequences.
            starts: ``(n,)`` where they begin unmoved.
        """
        order = Permutation(stage.steps * stage.sequences_per_step, self.seed, 3, stage.index)
        room = len(self.tokens) - stage.sequence_tokens - starts
        return np.minimum(order(index) % stage.patch_size, room)

    def _rearranged(self, stage: Stage, index: np.ndarray) -> np.ndarray:
        """The stage's sequences number ``index`` as its ablation has them, ``(n, K * T)`` int64."""
        pieces = stage.sequence_tokens // stage.piece_tokens
        # Pieces are dealt out as sequences are: each from anywhere, none twice.
        numbers = (index[:, None] * pieces + np.arange(pieces)).ravel()
        starts = self.starts(stage, numbers)
        ids = read_rows(self.tokens, starts, stage.piece_tokens, stage.patch_size)["input_ids"]
        if stage.ablation == "mixup":
            return interleaved(ids, stage.patch_size)
        orders = [Permutation(ids.shape[1], self.seed, 2, stage.index, int(row)) for row in index]
        return shuffled(ids, np.stack([order(np.arange(ids.shape[1])) for order in orders]))

    def starts(self, stage: Stage, index: np.ndarray) -> np.ndarray:
        """Where in the token array the stage's sequences number ``index`` begin, ``(n,)`` int64.

        Of a mixup's, where its pieces begin.
        """
        per_block = self.plan.block_tokens // stage.piece_tokens
        starts = np.empty(len(index), dtype=np.int64)
        # A stage that runs over the end of the store goes on in the next epoch, in another order;
        # sequences are shuffled within an epoch, so that none comes twice before all came once.
        first, done = stage.first_block, 0
        last = stage.first_block + stage.blocks
        while first < last:
            epoch = first // self.blocks
            until = min(last, (epoch + 1) * self.blocks)
            count = (until - first) * per_block
            here = (index >= done) & (index < done + count)
            if here.any():
                order = Permutation(count, self.seed, 1, stage.index, epoch)(index[here] - done)
                places = first - epoch * self.blocks + order // per_block
                blocks = Permutation(self.blocks, self.seed, 0, epoch)(places)
                offsets = order % per_block * stage.piece_tokens
                starts[here] = blocks * self.plan.block_tokens + offsets
            first, done = until, done + count
        return starts


def read_rows(
    tokens: np.ndarray | Pieces | AlignedDocuments,
    starts: np.ndarray,
    length: int,
    patch_size: int,
) -> dict[str, np.ndarray]:
    """Rows of a stream of tokens as a model's inputs; see ``AlignedDocuments.read``."""
    if isinstance(tokens, AlignedDocuments):
        return tokens.read(starts, length, patch_size)
    return {"input_ids": tokens[starts[:, None] + np.arange(length)].astype(np.int64)}


def token_array(dataset: Any) -> np.ndarray | Pieces:
    """One flat array of token ids from what a user trains on.

    Takes an array, a split of a ``TokenStore``, or a ``datasets.Dataset`` with a column
    ``input_ids`` (its rows are joined; end each document with the end-of-text token).

    Raises:
        UsageError: it is none of these, or a ``datasets.Dataset`` without a token.
    """
    if hasattr(dataset, "tokens"):
        dataset = dataset.tokens
    if getattr(dataset, "column_names", None) is not None:
        dataset = _joined(dataset)
    if isinstance(dataset, np.ndarray | Pieces):
        if dataset.ndim != 1 or dataset.dtype.kind not in "iu":
            raise UsageError(f"token ids must be a flat integer array, not {dataset.dtype} "
                             f"of shape {dataset.shape}")  # fmt: skip
        return dataset
    raise UsageError(
        f"cannot train on a {type(dataset).__name__}; give a TokenStore, a datasets.Dataset with "
        f"input_ids, or a flat numpy array of token ids"
    )


def _joined(dataset: Any) -> np.ndarray:
    """The rows of a ``datasets.Dataset``, one after the other."""
    columns = dataset.column_names
    if "input_ids" not in columns:
        named = f"only {', '.join(columns)}" if columns else "and no other"
        raise UsageError(f"the dataset has no column input_ids, {named}")
    rows = dataset.with_format("numpy")["input_ids"]
    full = [np.asarray(row) for row in rows if len(row)]  # empty ones have no integer type
    if not full:
        raise UsageError(
            f"the input_ids of a dataset are empty, in {len(rows)} rows; give one with tokens, or "
            f"leave an eval_dataset out"
        )
    return np.concatenate(full)


def spread(tokens: np.ndarray | Pieces, wanted: int, block: int) -> np.ndarray:
    """About ``wanted`` tokens as whole blocks taken evenly from all of ``tokens``.

    Returns ``(blocks, block)``; everything in one shorter block if there is not one whole block.
    """
    starts = spread_starts(len(tokens), wanted, block)
    if len(starts) == 0:
        return np.asarray(tokens)[None]
    return tokens[starts[:, None] + np.arange(block)]


def spread_starts(length: int, wanted: int, block: int) -> np.ndarray:
    """Where blocks begin that hold about ``wanted`` of ``length`` tokens, evenly apart.

    Returns ``(blocks,)`` int64, multiples of ``block``: at least one, if there is a whole one.
    """
    available = length // block
    count = min(max(1, wanted // block), available)
    return np.arange(count) * available // max(count, 1) * block


def _mix(value: int) -> int:
    """SplitMix64's finaliser: every input bit moves about half of the output bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
