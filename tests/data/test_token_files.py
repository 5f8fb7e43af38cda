"""Many files read as one array, and a changed file noticed."""

import os
import pickle

import numpy as np
import pytest

from patchtrain.data.token_files import (
    Pieces,
    TokenFile,
    check_unchanged,
    cut,
    describe,
    parts_digest,
    tokens_of,
)
from patchtrain.errors import UsageError


@pytest.fixture
def files(tmp_path):
    """Files of 30, 1, 50 and 7 tokens, each with a header of another size."""
    made, first = [], 0
    for number, length in enumerate((30, 1, 50, 7)):
        path, header = tmp_path / f"{number}.bin", bytes(3 * number)
        path.write_bytes(header + np.arange(first, first + length, dtype="<u2").tobytes())
        made.append(TokenFile(path, np.dtype("<u2"), len(header), length))
        first += length
    return made


STRETCHES = [
    [(0, 88)],
    [(3, 5)],
    [(0, 2), (29, 33), (80, 81), (82, 88)],
    [(31, 81)],
    [(30, 31), (31, 32), (40, 41)],
]


def pieces(files, stretches):
    begins, ends = (np.array(side) for side in zip(*stretches, strict=True))
    return Pieces(files, cut(files, begins, ends), int((ends - begins).sum()))


@pytest.mark.parametrize("stretches", STRETCHES)
def test_pieces_read_as_the_array_they_make(files, stretches):
    expected = np.concatenate([np.arange(begin, end, dtype="<u2") for begin, end in stretches])
    tokens = pieces(files, stretches)
    assert len(tokens) == len(expected)
    assert tokens.dtype == expected.dtype
    assert tokens.shape == expected.shape
    assert np.array_equal(np.asarray(tokens), expected)
    rng = np.random.default_rng(0)
    for _ in range(50):
        begin, end = rng.integers(-95, 95, 2)
        assert np.array_equal(tokens[begin:end], expected[begin:end])
        assert np.array_equal(tokens[begin:end:3], expected[begin:end:3])
        index = rng.integers(-len(expected), len(expected), (3, 4))
        assert np.array_equal(tokens[index], expected[index])
    assert tokens[-1] == expected[-1]
    assert tokens[np.zeros((0,), int)].shape == (0,)
    assert tokens[1:2].tolist() == expected[1:2].tolist()
    for outside in (len(expected), -len(expected) - 1, np.array([0, len(expected)])):
        with pytest.raises(IndexError, match=f"there are {len(expected)} tokens"):
            tokens[outside]
    with pytest.raises(IndexError, match="by integers"):
        tokens[expected > 0]


def test_pieces_are_found_by_process_and_copy(files):
    tokens = pieces(files, STRETCHES[2])
    again = pickle.loads(pickle.dumps(tokens))
    assert np.array_equal(np.asarray(again), np.asarray(tokens))
    assert len(pickle.dumps(tokens)) < 2000  # places, not tokens


def test_one_piece_is_a_plain_map(files):
    table = cut(files, np.array([33]), np.array([41]))
    tokens = tokens_of(files, table, 8, np.dtype("<u2"))
    assert isinstance(tokens, np.memmap)
    assert tokens.tolist() == list(range(33, 41))
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_more_files_than_are_kept_open(files, monkeypatch):
    monkeypatch.setattr("patchtrain.data.token_files._OPEN_FILES", 2)
    tokens = pieces(files, [(0, 88)])
    assert np.array_equal(tokens[np.arange(88)], np.arange(88))
    assert tokens._map.cache_info().currsize == 2


def test_a_changed_file_is_noticed_and_a_copied_one_is_not(files, tmp_path):
    file = files[0]
    entry = describe(file)
    check_unchanged(entry, tmp_path)
    os.utime(file.path, (1, 1))  # as after a copy
    check_unchanged(entry, tmp_path)
    data = bytearray(file.path.read_bytes())
    data[10] ^= 1
    file.path.write_bytes(data)
    with pytest.raises(UsageError, match=r"0\.bin has changed .* another checksum; link"):
        check_unchanged(entry, tmp_path)
    os.utime(file.path, ns=(entry["modified_ns"],) * 2)  # the same time by chance
    check_unchanged(entry, tmp_path)
    with pytest.raises(UsageError, match="another checksum"):
        check_unchanged(entry, tmp_path, read=True)
    file.path.write_bytes(data[:-2])
    with pytest.raises(UsageError, match="it has 58 bytes, not 60"):
        check_unchanged(entry, tmp_path)
    file.path.unlink()
    with pytest.raises(UsageError, match="is missing, which the store"):
        check_unchanged(entry, tmp_path)


def test_the_parts_of_a_large_file(tmp_path):
    file = tmp_path / "large.bin"
    data = bytearray(os.urandom(3 << 20))
    file.write_bytes(data)
    before = parts_digest(file)
    for place in (0, len(data) - 1):
        data[place] ^= 1
        file.write_bytes(data)
        assert parts_digest(file) != before
        data[place] ^= 1
    file.write_bytes(data)
    assert parts_digest(file) == before
