"""Documents kept apart: a stream in which each begins where a patch begins.

With ``documents: separate`` a document is read as its start token (the end-of-text token, which
its first token is predicted from) and its tokens, padded up to a multiple of every patch size of
the plan. Nothing is rewritten on disk: ``AlignedDocuments`` is an address book over the store's
tokens and offsets. Rows are cut from this stream as they are from the plain one; in a row,
positions restart where a document begins, and what nothing before it predicts is no target: the
padding, and the first patch of each document and of the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from patchtrain.data.token_files import Pieces
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.patches import IGNORE

# Documents between two entries of the index: 100 million documents make one of under a megabyte.
_GROUP = 1024
_READ_AT_A_TIME = 1 << 20  # offsets, when the index is built


class AlignedDocuments:
    """The documents of a split, each from a multiple of ``multiple`` on.

    Args:
        tokens: ``(N,)`` integer token ids, memory-mapped or not.
        offsets: ``(documents + 1,)``; document i is ``tokens[offsets[i]:offsets[i + 1]]``.
        multiple: what every document is padded to a multiple of: the least common multiple of the
            patch sizes that will read it.
        start_token: put before each document, and used as padding; None puts none, and then
            nothing predicts a document's first patch either way.

    ``len()`` is the length of the stream in tokens, padding and start tokens included.
    """

    def __init__(
        self,
        tokens: np.ndarray | Pieces,
        offsets: np.ndarray,
        multiple: int,
        start_token: int | None,
    ) -> None:
        self.tokens = tokens
        self.offsets = offsets
        self.multiple = multiple
        self.start_token = start_token
        begins, total = [], 0
        for lengths in _lengths(offsets, start_token is not None):
            ends = total + np.cumsum(_padded(lengths, multiple))
            # A copy: a slice would keep the whole array.
            begins.append(np.concatenate([[total], ends[:-1]])[::_GROUP].copy())
            total = int(ends[-1])
        self._begins = np.concatenate(begins) if begins else np.zeros(0, dtype=np.int64)
        self._total = total

    def __len__(self) -> int:
        return self._total

    @property
    def added(self) -> int:
        """Tokens of the stream that are not of the store: padding and start tokens."""
        return self._total - int(self.offsets[-1] - self.offsets[0])

    def read(self, starts: np.ndarray, length: int, patch_size: int) -> dict[str, np.ndarray]:
        """Rows of the stream.

        Args:
            starts: ``(n,)`` where the rows begin, multiples of ``patch_size``.
            length: tokens a row, a multiple of ``patch_size``.
            patch_size: K, by which targets are left out.

        Returns:
            ``input_ids``, ``labels`` (``-100`` where there is no target) and ``position_ids``
            (from 0 at each document's beginning and each row's), ``(n, length)`` int64.
        """
        rows = [self._row(int(start), length, patch_size) for start in starts]
        names = ("input_ids", "labels", "position_ids")
        columns = zip(*rows, strict=True)
        return {name: np.stack(column) for name, column in zip(names, columns, strict=True)}

    def _row(self, start: int, length: int, patch_size: int) -> tuple[np.ndarray, ...]:
        first, begins = self._documents(start, start + length)
        places = np.arange(start, start + length)
        document = np.searchsorted(begins, places, side="right") - 1
        offsets = np.asarray(self.offsets[first : first + len(begins) + 1], dtype=np.int64)
        lead = int(self.start_token is not None)
        within = places - begins[document] - lead  # -1 is the start token
        lengths = np.diff(offsets)[document]
        real = (within >= 0) & (within < lengths)
        ids = np.full(length, self.start_token or 0, dtype=np.int64)
        ids[real] = self.tokens[(offsets[:-1][document] + within)[real]]
        positions = places - np.maximum(begins[document], start)
        labels = np.where(real & (positions >= patch_size), ids, IGNORE)
        return ids, labels, positions

    def _documents(self, start: int, end: int) -> tuple[int, np.ndarray]:
        """The first document of ``[start, end)``, and where each of its documents begins."""
        group = int(np.searchsorted(self._begins, start, side="right")) - 1
        first, begin = group * _GROUP, int(self._begins[group])
        parts = []
        while begin < end and first < len(self.offsets) - 1:
            offsets = np.asarray(self.offsets[first : first + _GROUP + 1], dtype=np.int64)
            lengths = _padded(np.diff(offsets) + (self.start_token is not None), self.multiple)
            ends = begin + np.cumsum(lengths)
            parts.append(np.concatenate([[begin], ends[:-1]]))
            first, begin = first + _GROUP, int(ends[-1])
        begins = np.concatenate(parts)
        low = int(np.searchsorted(begins, start, side="right")) - 1
        high = int(np.searchsorted(begins, end, side="left"))
        return group * _GROUP + low, begins[low:high]


def aligned_documents(dataset: Any, multiple: int) -> AlignedDocuments:
    """The documents of what a user trains on, as one aligned stream.

    Takes a split of a ``TokenStore``, whose end-of-text token starts a document, or a
    ``datasets.Dataset`` whose rows in a column ``input_ids`` are documents. Of these their common
    last token is what starts one; where they have none, nothing does.

    Raises:
        UsageError: if the data does not say where its documents begin, or has no text.
    """
    from patchtrain.data.batches import token_array

    if hasattr(dataset, "offsets"):
        tokens, offsets = dataset.tokens, dataset.offsets
        if (start := dataset.end_token) is None:
            raise UsageError(
                "documents can only be kept separate where the end-of-text token is known: link "
                "the files again with --end-of-text ID, or set plan.documents to mixed"
            )
    elif getattr(dataset, "column_names", None) is not None:
        tokens = token_array(dataset)
        rows = dataset.with_format("numpy")["input_ids"]
        offsets = np.cumsum([0, *(len(row) for row in rows)])
        last = {int(row[-1]) for row in rows if len(row)}
        start = last.pop() if len(last) == 1 else None
    else:
        raise UsageError(
            "documents can only be kept separate where they are known: give a TokenStore or a "
            "datasets.Dataset with one document a row, or set plan.documents to mixed"
        )
    if len(tokens) == 0:
        raise UsageError("there are no tokens to keep apart: every document is empty")
    return AlignedDocuments(tokens, offsets, multiple, start)


def added_share(offsets: np.ndarray, multiple: int) -> float:
    """The share of the aligned stream that is padding or a start token, in [0, 1)."""
    total = sum(int(_padded(lengths, multiple).sum()) for lengths in _lengths(offsets, True))
    return 1 - int(offsets[-1] - offsets[0]) / total if total else 0.0


def _lengths(offsets: np.ndarray, started: bool) -> Iterator[np.ndarray]:
    """Lengths of the documents, with their start token if they have one, some at a time."""
    for begin in range(0, len(offsets) - 1, _READ_AT_A_TIME):
        part = np.asarray(offsets[begin : begin + _READ_AT_A_TIME + 1], dtype=np.int64)
        if (part[1:] < part[:-1]).any():
            raise PatchtrainError(
                "the document offsets of the token store are damaged: they do not grow; "
                "make the store again with `patchtrain prepare`"
            )
        yield np.diff(part) + started


def _padded(lengths: np.ndarray, multiple: int) -> np.ndarray:
    return -(-lengths // multiple) * multiple
