"""The store gives back what was written, and refuses what is not whole."""

import json

import numpy as np
import pytest

from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.store import StoreWriter, TokenStore, token_dtype
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.files import whole_folder

DOCUMENTS = [[5, 6, 0], [7, 0], [9, 9, 9, 0], [0], [250, 11, 0]]


@pytest.fixture
def store(tmp_path):
    tokenizer = tokenizers.train("byte", ["a"])
    with whole_folder(tmp_path / "store") as folder, StoreWriter(folder, tokenizer) as writer:
        for ids in DOCUMENTS:
            writer.add("train", ids, [len(ids)], utf8_bytes=len(ids) - 1, words=1)
        writer.add("validation", [1, 0, 2, 0], [2, 2], utf8_bytes=2, words=2)
        writer.finish({"sources": ["here"]})
    return TokenStore.open(tmp_path / "store")


def rows(split):
    pairs = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [split.tokens[a:b].tolist() for a, b in pairs]


def test_what_was_written_comes_back(store):
    assert rows(store.train) == DOCUMENTS
    assert rows(store.validation) == [[1, 0], [2, 0]]
    assert (store.train.utf8_bytes, store.train.words) == (8, 5)
    assert (store.train.documents, store.validation.documents) == (5, 2)
    assert store.train.tokens.dtype == np.uint16
    assert store.train.offsets.dtype == np.int64
    assert (store.vocab_size, store.eos_token_id) == (257, 0)
    assert store.load_tokenizer().eos_token_id == 0
    store.verify()


def test_the_files_are_plain_arrays(store):
    tokens = np.fromfile(store.path / "train.tokens.bin", dtype="<u2")
    assert tokens.tolist() == [token for ids in DOCUMENTS for token in ids]
    offsets = np.fromfile(store.path / "train.offsets.bin", dtype="<i8")
    assert offsets.tolist() == [0, *np.cumsum([len(ids) for ids in DOCUMENTS])]


def test_arrays_are_read_only(store):
    with pytest.raises(ValueError, match="read-only"):
        store.train.tokens[0] = 1


def test_moving_documents_to_validation(tmp_path):
    tokenizer = tokenizers.train("byte", ["a"])
    with whole_folder(tmp_path / "store") as folder, StoreWriter(folder, tokenizer) as writer:
        for ids in DOCUMENTS:
            writer.add("train", ids, [len(ids)], utf8_bytes=10, words=2)
        writer.move_to_validation([1, 4], utf8_bytes=20, words=4)
        writer.finish({})
    store = TokenStore.open(tmp_path / "store")
    assert rows(store.train) == [DOCUMENTS[0], DOCUMENTS[2], DOCUMENTS[3]]
    assert rows(store.validation) == [DOCUMENTS[1], DOCUMENTS[4]]
    assert (store.train.utf8_bytes, store.validation.words) == (30, 4)
    store.verify()
    names = {path.name for path in store.path.iterdir()}
    assert not [name for name in names if "rest" in name]


@pytest.mark.parametrize(("size", "dtype"), [(257, "u2"), (65536, "u2"), (65537, "u4")])
def test_dtype_by_vocabulary(size, dtype):
    assert token_dtype(size) == np.dtype(dtype)


def test_a_token_that_does_not_fit_is_refused(tmp_path):
    with StoreWriter(tmp_path, tokenizers.train("byte", ["a"])) as writer:
        with pytest.raises(ValueError, match="65536 does not fit uint16"):
            writer.add("train", [65536], [1])
        with pytest.raises(ValueError, match="add up to 3"):
            writer.add("train", [1], [3])


def test_an_empty_split_opens(tmp_path):
    with StoreWriter(tmp_path, tokenizers.train("byte", ["a"])) as writer:
        writer.add("train", [1, 0], [2])
        writer.finish({})
    store = TokenStore.open(tmp_path)
    assert store.validation.documents == len(store.validation.tokens) == 0


def test_not_a_store(tmp_path):
    with pytest.raises(UsageError, match="no token store at"):
        TokenStore.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"has no store\.json"):
        TokenStore.open(tmp_path)
    (tmp_path / "store.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        TokenStore.open(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="is something else"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 99, "has store format 99"),
        ("splits", {}, "is incomplete: 'train' is missing"),
        ("dtype", "uint32", "do not hold the 5 documents"),
    ],
)
def test_a_record_that_does_not_fit(store, key, value, message):
    file = store.path / "store.json"
    file.write_text(json.dumps({**store.meta, key: value}))
    with pytest.raises(UsageError, match=message):
        TokenStore.open(store.path)


@pytest.mark.parametrize("name", ["train.tokens.bin", "validation.offsets.bin"])
def test_a_truncated_file_is_refused(store, name):
    file = store.path / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match=f"{name} has .* bytes, but store.json says"):
        TokenStore.open(store.path)
    file.unlink()
    with pytest.raises(UsageError, match=f"{name} is missing"):
        TokenStore.open(store.path)


@pytest.mark.parametrize("name", ["train.tokens.bin", "tokenizer/tokenizer.json"])
def test_verify_finds_a_changed_byte(store, name):
    file = store.path / name
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    with pytest.raises(PatchtrainError, match=f"{name} is damaged"):
        TokenStore.open(store.path).verify()
