"""Aligned documents against the whole stream written out."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain import UsageError
from patchtrain.data import documents as module
from patchtrain.data.documents import AlignedDocuments, added_share, aligned_documents

EOS = 0


def corpus(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents of unlike tokens, each ending in the end-of-text token."""
    ids = iter(range(1, 10**6))
    documents = [[next(ids) for _ in range(length - 1)] + [EOS] for length in lengths]
    flat = [token for document in documents for token in document]
    return np.array(flat, dtype=np.uint32), np.cumsum([0, *lengths])


def written_out(
    tokens: np.ndarray, offsets: np.ndarray, multiple: int, started: bool
) -> tuple[list[int], list[int], list[bool]]:
    """The stream, where each place's document begins, and whether it is a token of the text."""
    ids: list[int] = []
    begins: list[int] = []
    real: list[bool] = []
    for begin, end in pairwise(offsets):
        document = [EOS] * started + [int(token) for token in tokens[begin:end]]
        filled = -(-len(document) // multiple) * multiple
        begins += [len(ids)] * filled
        real += [False] * started + [True] * int(end - begin) + [False] * (filled - len(document))
        ids += document + [EOS] * (filled - len(document))
    return ids, begins, real


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=40),
    patch_size=st.integers(1, 4),
    factor=st.integers(1, 3),
    patches=st.integers(1, 9),
    started=st.booleans(),
    group=st.integers(1, 7),
    data=st.data(),
)
def test_rows_are_those_of_the_stream_written_out(
    lengths: list[int],
    patch_size: int,
    factor: int,
    patches: int,
    started: bool,
    group: int,
    data: st.DataObject,
) -> None:
    tokens, offsets = corpus(lengths)
    multiple = patch_size * factor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_GROUP", group)
        patch.setattr(module, "_READ_AT_A_TIME", group * 3)
        stream = AlignedDocuments(tokens, offsets, multiple, EOS if started else None)
        ids, begins, real = written_out(tokens, offsets, multiple, started)
        assert len(stream) == len(ids)
        assert stream.added == len(ids) - len(tokens)
        length = patches * patch_size
        if length > len(ids):
            return
        places = st.integers(0, (len(ids) - length) // patch_size)
        starts = patch_size * np.array(data.draw(st.lists(places, min_size=1, max_size=4)))
        got = stream.read(starts, length, patch_size)
    for row, start in enumerate(starts):
        for column in range(length):
            place = start + column
            position = place - max(begins[place], start)
            assert got["input_ids"][row, column] == ids[place]
            assert got["position_ids"][row, column] == position
            is_target = real[place] and position >= patch_size
            assert got["labels"][row, column] == (ids[place] if is_target else -100)


def test_every_token_but_first_patches_is_a_target_once() -> None:
    tokens, offsets = corpus([7, 12, 1, 30])
    stream = AlignedDocuments(tokens, offsets, 4, EOS)
    labels = stream.read(np.array([0]), len(stream), 4)["labels"]
    # The first patch of a document holds its start token and three of its tokens.
    expected = [tokens[begin + 3 : end] for begin, end in pairwise(offsets)]
    assert labels[labels != -100].tolist() == np.concatenate(expected).tolist()


def test_a_store_without_text_and_data_without_documents_are_refused() -> None:
    with pytest.raises(UsageError, match=r"plan\.documents to mixed"):
        aligned_documents(np.arange(10), 4)
    with pytest.raises(UsageError, match="empty"):
        aligned_documents(Dataset.from_dict({"input_ids": [[]]}), 4)


@pytest.mark.parametrize(("ends", "start"), [((9, 9), 9), ((8, 9), None)])
def test_rows_of_a_dataset_are_documents_and_their_common_end_starts_them(
    ends: tuple[int, int], start: int | None
) -> None:
    rows = [[1, 2, 3, ends[0]], [4, 5, ends[1]]]
    stream = aligned_documents(Dataset.from_dict({"input_ids": rows}), 2)
    assert stream.start_token == start
    got = stream.read(np.array([0]), len(stream), 1)
    expected = [[9, 1, 2, 3, 9, 9, 9, 4, 5, 9]] if start else [[1, 2, 3, 8, 4, 5, 9, 0]]
    assert got["input_ids"].tolist() == expected


def test_the_share_that_is_added_is_that_of_the_stream() -> None:
    tokens, offsets = corpus([3, 5, 11])
    stream = AlignedDocuments(tokens, offsets, 8, EOS)
    assert added_share(offsets, 8) == stream.added / len(stream) == 1 - 19 / 32
    assert added_share(np.array([0]), 8) == 0.0


def test_the_index_keeps_only_every_so_many_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchtrain.data.documents._READ_AT_A_TIME", 4096)
    count = 400_000
    tokens, offsets = np.zeros(count, dtype=np.uint16), np.arange(count + 1, dtype=np.int64)
    tracemalloc.start()
    try:
        found = AlignedDocuments(tokens, offsets, 2, start_token=0)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 2 * count
    assert most < offsets.nbytes / 4
