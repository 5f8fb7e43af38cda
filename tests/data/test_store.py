"""The store gives back what was written, and refuses what is not whole."""

import hashlib
import json
import os

import numpy as np
import pytest

from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.store import StoreWriter, TokenStore, is_store, token_dtype
from patchtrain.data.store_record import fingerprint
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
        ("format_version", True, "has store format True"),
        ("splits", {}, "is damaged: splits.train is missing"),
        ("splits", [1], "is damaged: splits is"),
        ("dtype", "uint32", "ids of a vocabulary of 257 are kept as uint16, not uint32"),
        ("dtype", "object", "dtype is 'object'"),
        ("dtype", ["<u2"], "dtype is"),
        ("splits.train.tokens", "13", "splits.train.tokens is '13'"),
        ("splits.train.tokens", True, "splits.train.tokens is True"),
        ("splits.train.tokens", 12, "do not hold the 5 documents and 12 tokens"),
        ("splits.train.documents", 10**30, "do not hold the 1,000,000"),
        ("splits.train.words", -1, "splits.train.words is -1"),
        ("tokenizer.vocab_size", 0, "tokenizer.vocab_size is 0"),
        ("tokenizer.eos_token_id", 257, "token 257 is beyond the vocabulary of 257"),
        ("tokenizer.fingerprint", "0" * 64, "tokenizer.fingerprint is not the SHA-256"),
        ("fingerprint", "0" * 64, "fingerprint is not that of its files"),
        ("files", {}, "does not name the file train.tokens.bin"),
        ("files", None, "files is None"),
    ],
)
def test_a_record_that_does_not_fit(store, key, value, message):
    *sections, last = key.split(".")
    place = meta = json.loads(json.dumps(store.meta))
    for section in sections:
        place = place[section]
    place[last] = value
    (store.path / "store.json").write_text(json.dumps(meta))
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


def reseal(store, **changes):
    """Put new content into files, with sizes, counts and checksums made right again."""
    meta = json.loads(json.dumps(store.meta))
    for name, content in changes.items():
        (store.path / name).write_bytes(content)
    for name, entry in meta["files"].items():
        data = (store.path / name).read_bytes()
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    meta["tokenizer"]["fingerprint"] = meta["files"]["tokenizer/tokenizer.json"]["sha256"]
    meta["fingerprint"] = fingerprint(meta["files"])
    (store.path / "store.json").write_text(json.dumps(meta))
    return TokenStore.open(store.path)


def test_an_id_beyond_the_vocabulary_is_refused_whatever_the_checksums(store):
    tokens = store.train.tokens.copy()
    tokens[3] = 257
    damaged = reseal(store, **{"train.tokens.bin": tokens.tobytes()})
    with pytest.raises(PatchtrainError, match="token id 257, beyond the vocabulary of 257"):
        damaged.verify()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 5, 3, 9, 10, 13], "do not follow one another"),
        ([0, 3, 3, 9, 10, 13], "do not follow one another"),
        ([0, 3, 2**62, -(2**62), 10, 13], "do not follow one another"),
        ([0, 3, 6, 9, 10, 13], "does not end with the end-of-text token 0"),
    ],
)
def test_documents_that_do_not_follow_one_another_are_refused(store, offsets, message):
    damaged = reseal(store, **{"train.offsets.bin": np.array(offsets, "<i8").tobytes()})
    with pytest.raises(PatchtrainError, match=message):
        damaged.verify()


def test_a_large_store_is_left_unread(store):
    (store.path / "train.tokens.bin").write_bytes(b"\xff" * 26)
    TokenStore.open(store.path).verify(at_most=100)
    with pytest.raises(PatchtrainError, match="is damaged"):
        TokenStore.open(store.path).verify(at_most=100_000_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read"),
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"config", "cannot be read: .*not supported between"),
        (None, "has ids up to 257 and the end-of-text token 0, but store.json says 256 and 0"),
    ],
)
def test_a_tokenizer_that_is_not_the_stores(store, content, message):
    if content is None:
        other = store.load_tokenizer()
        other.add_tokens(["more"])
        content = other.backend_tokenizer.to_str().encode()
    if content == b"config":
        damaged = reseal(store, **{"tokenizer/tokenizer_config.json": b'{"model_max_length": "1"}'})
    else:
        damaged = reseal(store, **{"tokenizer/tokenizer.json": content})
    with pytest.raises(PatchtrainError, match=message) as caught:
        damaged.load_tokenizer()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", ["..", "absolute", "link", "linked folder", "null byte"])
def test_files_outside_the_store_are_refused_by_name(store, tmp_path, way):
    name, meta = "train.tokens.bin", json.loads(json.dumps(store.meta))
    outside = tmp_path / "outside.bin"
    outside.write_bytes((store.path / name).read_bytes())
    if way == "link":
        (store.path / name).unlink()
        (store.path / name).symlink_to(outside)
    elif way == "linked folder":
        name = "tokenizer"
        (store.path / name).rename(tmp_path / "elsewhere")
        (store.path / name).symlink_to(tmp_path / "elsewhere")
    else:
        ways = {"..": "../outside.bin", "absolute": str(outside), "null byte": "a\0b"}
        name = ways[way]
        meta["files"][name] = meta["files"]["train.tokens.bin"]
        meta["fingerprint"] = fingerprint(meta["files"])
        (store.path / "store.json").write_text(json.dumps(meta))
    with pytest.raises(UsageError, match="names a file outside the store's folder") as caught:
        TokenStore.open(store.path)
    assert name in str(caught.value)


def test_a_file_beside_the_tokenizer_that_store_json_does_not_name(store):
    (store.path / "tokenizer" / ".DS_Store").write_text("")
    TokenStore.open(store.path)
    (store.path / "tokenizer" / "added_tokens.json").write_text("{}")
    with pytest.raises(UsageError, match=r"added_tokens\.json is not of this store"):
        TokenStore.open(store.path)


def test_a_pipe_is_no_store(tmp_path):
    os.mkfifo(tmp_path / "store.json")  # reading it would wait for ever
    assert not is_store(tmp_path)
    with pytest.raises(UsageError, match=r"has no store\.json"):
        TokenStore.open(tmp_path)
