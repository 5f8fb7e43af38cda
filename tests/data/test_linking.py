"""A linked store is a store like any other, and its files stay where and as they are."""

import json
import os
import shutil

import numpy as np
import pytest

from patchtrain.cli.main import main
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.linking import link
from patchtrain.data.store import TokenStore, is_store
from patchtrain.data.store_record import fingerprint, linked_facts
from patchtrain.data.token_files import Pieces
from patchtrain.errors import PatchtrainError, UsageError
from tests.data.foreign import END, FILES, SOURCES, TEXTS, copied, own_store, sources


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return own_store(tmp_path_factory.mktemp("own") / "store")


def rows(split):
    pairs = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [split.tokens[a:b].tolist() for a, b in pairs]


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_the_store_of_the_same_documents(name, own, tmp_path):
    first, second = sources(name)
    before = {file: file.read_bytes() for file in FILES.rglob("*") if file.is_file()}
    store = link(first, tmp_path / "store", tokenizer=own.path, validation=second)
    assert {file: file.read_bytes() for file in FILES.rglob("*") if file.is_file()} == before
    for split, reference in ((store.train, own.train), (store.validation, own.validation)):
        expected = rows(reference)
        if name.startswith("llmc"):  # nothing closes the last one
            expected[-1] = expected[-1][:-1]
        assert rows(split) == expected
    sizes = store.validation.utf8_bytes, store.validation.words
    assert sizes == (own.validation.utf8_bytes, own.validation.words)
    assert store.tokenizer_fingerprint == own.tokenizer_fingerprint
    assert (store.vocab_size, store.eos_token_id) == (own.vocab_size, own.eos_token_id)
    store.verify()
    assert is_store(store.path)
    tokens = sum(file.stat().st_size for file in store.path.glob("*.tokens.bin"))
    assert tokens == 0  # nothing was copied


def test_tokens_are_mapped(own, tmp_path):
    store = link([FILES / "megatron"], tmp_path / "one", tokenizer=own.path)
    assert isinstance(store.train.tokens, np.memmap)
    store = link([FILES / "litdata"], tmp_path / "many", tokenizer=own.path)
    assert isinstance(store.train.tokens, Pieces)


def test_a_share_is_held_out_by_content(own, tmp_path):
    source = FILES / "nanogpt" / "train.bin"
    store = link([source], tmp_path / "store", tokenizer=own.path, validation_fraction=0.3)
    train, held = rows(store.train), rows(store.validation)
    everything = rows(own.train)
    assert sorted(train + held) == sorted(everything)
    assert train == [row for row in everything if row in train]  # in their order
    assert held == [row for row in everything if row in held]  # equal ones on one side
    assert 0.1 < len(held) / len(everything) < 0.5
    texts = [own.load_tokenizer().decode(row, skip_special_tokens=True) for row in held]
    assert store.validation.utf8_bytes == sum(len(text.encode()) for text in texts)
    assert store.validation.words == sum(len(text.split()) for text in texts)
    # With more files, and in another format, the same documents are held out.
    both = [FILES / "datatrove" / "train", FILES / "datatrove" / "val"]
    more = link(both, tmp_path / "more", tokenizer=own.path, validation_fraction=0.3)
    assert [row for row in rows(more.validation) if row in everything] == held
    store.verify()
    more.verify()


def test_with_few_documents_one_is_held_out(own, tmp_path):
    source = FILES / "nanogpt" / "train.bin"
    store = link([source], tmp_path / "store", tokenizer=own.path, validation_fraction=1e-9)
    held = rows(store.validation)
    assert len({tuple(row) for row in held}) == 1
    none = link([source], tmp_path / "none", tokenizer=own.path, validation_fraction=0)
    assert none.validation.documents == 0
    assert none.train.documents == len(TEXTS["train"])
    np.array([5, 6, 7, END], "<u2").tofile(tmp_path / "one.bin")
    with pytest.raises(UsageError, match="only one document to hold some out of; give"):
        link([tmp_path / "one.bin"], tmp_path / "other", tokenizer=own.path)
    assert not (tmp_path / "other").exists()


def test_an_unknown_tokenizer(tmp_path):
    store = link([FILES / "nanogpt"], tmp_path / "store", end_of_text=END)
    assert (store.has_tokenizer, store.eos_token_id) == (False, END)
    assert store.vocab_size == int(store.train.tokens.max()) + 1
    assert (store.validation.utf8_bytes, store.validation.words) == (0, 0)
    assert store.train.documents == len(TEXTS["train"])
    with pytest.raises(UsageError, match="linked without a tokenizer, which this needs"):
        store.load_tokenizer()
    store.verify()
    padded = link([FILES / "nanogpt"], tmp_path / "padded", vocab_size=304)
    assert (padded.vocab_size, padded.eos_token_id) == (304, None)
    assert padded.train.documents == 1  # nothing tells documents apart
    marked = link([FILES / "megatron"], tmp_path / "marked")
    assert marked.train.documents == len(TEXTS["train"])  # the files themselves do


def test_another_token_ends_documents(own, tmp_path):
    tokenizer = own.load_tokenizer()
    (full_stop,) = tokenizer.encode(".")
    store = link([FILES / "nanogpt"], tmp_path / "store", tokenizer=own.path, end_of_text=full_stop)
    assert store.load_tokenizer().eos_token_id == store.eos_token_id == full_stop
    assert all(row[-1] == full_stop for row in rows(store.train)[:-1])


def test_documents_that_are_not_closed_are_counted(own, tmp_path):
    store = link([FILES / "llmc"], tmp_path / "llmc", tokenizer=own.path)
    closed = store.train.documents + store.validation.documents
    assert store.meta["made"]["documents_closed"] == closed - 2  # the last of each


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 3}, r"train\.bin: token \d+ is \d+, beyond the vocabulary of 3"),
        ({"validation_fraction": 1.0}, "must be at least 0 and below 1"),
        ({"validation_fraction": 0.1}, r"there are files for validation \(.*val\.bin\) and"),
        ({"tokenizer": "OWN", "vocab_size": 300}, "--vocab-size is for files of an unknown"),
        ({"tokenizer": "OWN", "end_of_text": 257}, "--end-of-text 257 is beyond the vocabulary"),
        ({"end_of_text": -1}, "--end-of-text -1 is not between"),
        ({"dtype": "uint32"}, r"\.bin.*(not of uint32|beyond)"),
    ],
)
def test_what_cannot_be_linked(own, tmp_path, options, message):
    options = {key: own.path if value == "OWN" else value for key, value in options.items()}
    if options.get("dtype"):
        options["tokenizer"] = own.path
    with pytest.raises(UsageError, match=message):
        link([FILES / "nanogpt"], tmp_path / "store", **options)
    assert list(tmp_path.iterdir()) == []


def test_ids_below_zero(own, tmp_path):
    np.array([5, -2, END] * 9, "<i4").tofile(tmp_path / "a.bin")
    with pytest.raises(UsageError, match=r"a\.bin: token 1 is -2, below 0"):
        link([tmp_path / "a.bin"], tmp_path / "store", tokenizer=own.path, dtype="int32")


def test_the_same_file_on_both_sides(own, tmp_path):
    file = FILES / "nanogpt" / "train.bin"
    with pytest.raises(UsageError, match=r"train\.bin is named for training and for validation"):
        link([file], tmp_path / "store", tokenizer=own.path, validation=[file])


def test_a_store_is_replaced_only_if_asked(own, tmp_path):
    out = tmp_path / "store"
    link([FILES / "nanogpt"], out, tokenizer=own.path)
    with pytest.raises(UsageError, match="already exists; --overwrite replaces it"):
        link([FILES / "megatron"], out, tokenizer=own.path)
    again = link([FILES / "megatron"], out, tokenizer=own.path, overwrite=True)
    assert again.meta["made"]["format"] == "Megatron"


@pytest.fixture
def linked(own, tmp_path):
    folder = copied("litdata", tmp_path)
    return link([folder], tmp_path / "store", tokenizer=own.path), folder


def test_a_file_that_changes_is_noticed(linked):
    store, folder = linked
    file = sorted((folder / "train").glob("*.bin"))[1]
    data = bytearray(file.read_bytes())
    status = file.stat()
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"chunk-0-1\.bin has changed since .*store was linked"):
        TokenStore.open(store.path)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    TokenStore.open(store.path)  # not by its looks
    with pytest.raises(PatchtrainError, match="parts of it have another checksum"):
        TokenStore.open(store.path).verify(at_most=0)
    data[-1] ^= 1
    file.write_bytes(data)
    TokenStore.open(store.path).verify()
    file.unlink()
    with pytest.raises(UsageError, match=r"chunk-0-1\.bin is missing, which the store"):
        TokenStore.open(store.path)


def test_fingerprints_are_of_the_content(own, linked, tmp_path):
    store, folder = linked
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    same = link([moved], tmp_path / "same", tokenizer=own.path)
    assert same.fingerprint == store.fingerprint
    other = link([folder], tmp_path / "other", tokenizer=own.path, end_of_text=5)
    assert other.fingerprint != store.fingerprint


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("linked", [], "is damaged: linked is"),
        ("linked.0.tokens", 10**9, "do not make [0-9,]+ tokens of the linked files"),
        ("linked.0.offset", 10**9, "fingerprint is not that of its files"),
        ("linked.0.parts_sha256", "0" * 64, "fingerprint is not that of its files"),
        ("linked.0.bytes", -1, "is damaged: linked.0.bytes is -1"),
        ("linked.0.path", 5, "is damaged: linked.0.path is 5"),
        ("dtype", "float32", "is damaged: dtype is 'float32'"),
        ("dtype", "int64", "fingerprint is not that of its files; link the files again"),
        ("splits.train.tokens", 5, "do not make 5 tokens of the linked files"),
        ("splits.train.documents", 5, "do not hold the 5 documents"),
        ("tokenizer.fingerprint", None, "tokenizer.fingerprint is not the SHA-256"),
        ("tokenizer.eos_token_id", 257, "token 257 is beyond the vocabulary"),
        ("format_version", 1, "is damaged: dtype is 'int32'"),
    ],
)
def test_a_record_that_does_not_fit(linked, path, value, message):
    store, _ = linked
    place = record = json.loads((store.path / "store.json").read_text())
    *sections, last = path.split(".")
    for section in sections:
        place = place[int(section) if section.isdecimal() else section]
    place[last] = value
    (store.path / "store.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=message):
        TokenStore.open(store.path)


@pytest.mark.parametrize("damage", ["other file", "before", "behind", "out of order", "cut off"])
def test_a_table_of_pieces_that_reads_elsewhere(linked, damage):
    store, _ = linked
    file = store.path / "train.pieces.bin"
    table = np.fromfile(file, "<i8").reshape(3, -1)
    if damage == "other file":
        table[1, -1] = 99
    elif damage == "before":
        table[2, 0] = -1
    elif damage == "behind":
        table[2, -1] += 1
    elif damage == "out of order":
        table[0, 1] = 10**9
    data = table.tobytes()[: -8 if damage == "cut off" else None]
    file.write_bytes(data)
    record = json.loads((store.path / "store.json").read_text())
    record["files"]["train.pieces.bin"]["bytes"] = len(data)
    record["fingerprint"] = fingerprint(record["files"], linked_facts(record))
    (store.path / "store.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"train\.pieces\.bin is damaged"):
        TokenStore.open(store.path)


def test_ids_are_checked_again(linked):
    store, _ = linked
    record = json.loads((store.path / "store.json").read_text())
    record["tokenizer"]["vocab_size"] = 100
    (store.path / "store.json").write_text(json.dumps(record))
    match = r"the train split has the token id .* beyond the vocabulary of 100"
    with pytest.raises(PatchtrainError, match=match):
        TokenStore.open(store.path).verify()


def test_the_tokenizer_of_a_linked_store_serves_others(own, tmp_path):
    store = link([FILES / "nanogpt"], tmp_path / "store", tokenizer=own.path)
    assert tokenizers.load(store.path).get_vocab() == own.load_tokenizer().get_vocab()


def test_the_command_says_what_it_made(own, tmp_path, capsys):
    out = str(tmp_path / "store")
    assert main(["link", str(FILES / "nanogpt"), "--tokenizer", str(own.path), "--out", out]) == 0
    shown = capsys.readouterr()
    lines = {line.split()[0]: line.split() for line in shown.out.splitlines() if line}
    assert lines["train"][1:4] == [str(own.train.documents), f"{len(own.train.tokens):,}", "-"]
    size = own.validation.utf8_bytes
    assert lines["validation"][3:] == [f"{size:,}", f"{size / len(own.validation.tokens):.2f}"]
    assert "2 files of nanoGPT, uint16 tokens" in shown.out
    assert f"begins     '{TEXTS['train'][0][:8]}" in shown.out
    assert "note" not in shown.out
    assert "checking the tokens of 2 files" in shown.err

    out = str(tmp_path / "unknown")
    assert main(["link", str(FILES / "nanogpt" / "train.bin"), "--validation-fraction", "0",
                 "--out", out]) == 0  # fmt: skip
    shown = capsys.readouterr()
    assert "tokenizer  unknown, taken to have" in shown.out
    assert "no bits per byte, samples or generated text" in shown.out
    assert "the end-of-text token is unknown" in shown.out
    assert "nothing is held out" in shown.out

    named = ["link", str(FILES / "datatrove" / "train"), "--out", str(tmp_path / "named")]
    assert main(named) == 0
    assert "the files name their tokenizer: --tokenizer tokenizer.json" in capsys.readouterr().out

    assert main(["link", str(FILES / "litdata-zstd" / "val"), "--out", str(tmp_path / "x")]) == 2
    assert "patchtrain: error: the chunks in" in capsys.readouterr().err
