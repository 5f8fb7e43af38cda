"""The store holds the corpus, the split depends on the text alone, failures leave nothing."""

import errno
import io
import json
import random
import sys

import pytest

from patchtrain.data import prepare as module
from patchtrain.data import tokenising
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.prepare import prepare
from patchtrain.data.sources import read_documents
from patchtrain.data.store import StoreWriter, TokenStore
from patchtrain.errors import PatchtrainError, UsageError


def make_texts(count=300, seed=0):
    chosen = random.Random(seed)
    words = ["cell", "wall", "über", "細胞", "the", "<|endoftext|>", "a\nb", "12"]
    return [
        f"{i} " + " ".join(chosen.choices(words, k=chosen.randint(1, 40))) for i in range(count)
    ]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def documents(store, split):
    tokenizer = store.load_tokenizer()
    part = store.split(split)
    for start, end in zip(part.offsets[:-1], part.offsets[1:], strict=True):
        assert part.tokens[end - 1] == store.eos_token_id
        yield tokenizer.decode(part.tokens[start : end - 1].tolist())


@pytest.fixture(scope="module")
def texts():
    return make_texts()


@pytest.fixture(scope="module")
def store(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepare")
    return prepare(
        [write_jsonl(folder / "a.jsonl", texts)],
        folder / "store",
        train_tokenizer="bpe",
        vocab_size=400,
        validation_fraction=0.1,
    )


def test_every_document_is_there_once_in_order(store, texts):
    train, validation = list(documents(store, "train")), list(documents(store, "validation"))
    assert sorted(train + validation) == sorted(texts)
    held_out = set(validation)
    assert train == [text for text in texts if text not in held_out]
    assert validation == [text for text in texts if text in held_out]
    assert 10 <= len(validation) <= 60


def test_tokens_are_those_of_the_tokenizer(store, texts):
    encoder = tokenizers.encoder(store.load_tokenizer())
    for part in (store.train, store.validation):
        decoded = list(documents(store, part.name))
        expected = [
            [*encoder.encode(text, add_special_tokens=False).ids, store.eos_token_id]
            for text in decoded
        ]
        assert part.tokens.tolist() == [token for ids in expected for token in ids]
    # A text that mentions the end-of-text token does not end there.
    ends = sum(
        int((part.tokens == store.eos_token_id).sum()) for part in (store.train, store.validation)
    )
    assert ends == len(texts)


def test_counts_match_the_text(store):
    for part in (store.train, store.validation):
        decoded = list(documents(store, part.name))
        assert part.utf8_bytes == sum(len(text.encode()) for text in decoded)
        assert part.words == sum(len(text.split()) for text in decoded)
        counts = store.meta["splits"][part.name]
        assert counts["documents"] == part.documents == len(decoded)
        assert counts["tokens"] == len(part.tokens)
    store.verify()


def test_the_record_says_how_it_was_made(store):
    assert store.meta["tokenizer"]["trained"] == "bpe"
    assert store.meta["tokenizer"]["vocab_size"] == len(store.load_tokenizer())
    assert store.meta["made"]["validation_fraction"] == 0.1
    assert store.meta["sources"][0]["files"] == 1


def test_the_split_does_not_depend_on_order_or_company(store, texts, tmp_path):
    shuffled = [*make_texts(200, seed=9), *reversed(texts)]
    other = prepare(
        [write_jsonl(tmp_path / "b.jsonl", shuffled)],
        tmp_path / "store",
        tokenizer=store.path,
        validation_fraction=0.1,
    )
    here, there = set(documents(store, "validation")), set(documents(other, "validation"))
    assert here == there & set(texts)
    assert other.tokenizer_fingerprint == store.tokenizer_fingerprint


def test_equal_documents_stay_on_one_side(tmp_path):
    texts = [f"text {i % 25}" for i in range(100)]
    store = prepare(
        [write_jsonl(tmp_path / "a.jsonl", texts)],
        tmp_path / "store",
        train_tokenizer="byte",
        validation_fraction=0.4,
    )
    train, held_out = set(documents(store, "train")), set(documents(store, "validation"))
    assert train
    assert held_out
    assert not train & held_out


def test_the_same_again_has_the_same_fingerprint(store, texts, tmp_path):
    options = {"train_tokenizer": "bpe", "vocab_size": 400, "validation_fraction": 0.1}
    again = prepare([write_jsonl(tmp_path / "a.jsonl", texts)], tmp_path / "store", **options)
    assert again.fingerprint == store.fingerprint


@pytest.mark.parametrize("batch", [1, 100, 10**9])
def test_batches_change_nothing(store, texts, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(tokenising, "_BATCH_CHARACTERS", batch)
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    again = prepare([file], tmp_path / "s", tokenizer=store.path, validation_fraction=0.1)
    assert again.meta["splits"] == store.meta["splits"]
    assert again.train.tokens.tolist() == store.train.tokens.tolist()


def test_one_text_file_has_something_held_out(tmp_path):
    text = "".join(f"line {i} of one file\n" for i in range(4000))
    (tmp_path / "a.txt").write_text(text)
    store = prepare([tmp_path / "a.txt"], tmp_path / "store", train_tokenizer="byte")
    assert store.validation.documents >= 1
    assert store.meta["made"]["documents_cut"] == 1
    assert store.train.utf8_bytes + store.validation.utf8_bytes == len(text)
    assert "".join(
        sorted("".join(documents(store, "train")) + "".join(documents(store, "validation")))
    ) == "".join(sorted(text))
    store.verify()


def test_where_the_hash_holds_out_none_one_document_is_moved(tmp_path):
    texts = [f"text {i} {'word ' * i}" for i in range(5)]
    file = write_jsonl(tmp_path / "a.jsonl", [*texts, *texts])
    store = prepare([file], tmp_path / "s", train_tokenizer="byte", validation_fraction=1e-9)
    held_out = list(documents(store, "validation"))
    assert len(held_out) == 2
    assert held_out[0] == held_out[1]
    assert list(documents(store, "train")) == [t for t in [*texts, *texts] if t != held_out[0]]
    assert store.validation.utf8_bytes == sum(len(text.encode()) for text in held_out)
    assert store.validation.words == sum(len(text.split()) for text in held_out)
    store.verify()


def test_no_validation_when_none_is_asked_for(tmp_path):
    (tmp_path / "a.txt").write_text("one short document")
    store = prepare(
        [tmp_path / "a.txt"], tmp_path / "s", train_tokenizer="byte", validation_fraction=0
    )
    assert (store.train.documents, store.validation.documents) == (1, 0)


def test_large_vocabulary_needs_uint32(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"</s>": 0, "[UNK]": 1, "a": 2, "b": 70_000}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text("a b zebra a")
    store = prepare(
        [tmp_path / "a.txt"],
        tmp_path / "s",
        tokenizer=tmp_path / "tokenizer",
        validation_fraction=0,
    )
    assert store.meta["dtype"] == "uint32"
    assert store.vocab_size == 70_001
    assert store.train.tokens.tolist() == [2, 70_000, 1, 2, 0]
    assert store.meta["made"]["unknown_tokens"] == 1


def test_standard_input_trains_and_is_read(store, texts, tmp_path, monkeypatch):
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    options = {"train_tokenizer": "bpe", "vocab_size": 400, "validation_fraction": 0.1}
    piped = prepare(["-"], tmp_path / "s", format="jsonl", **options)
    assert piped.fingerprint == store.fingerprint
    assert {path.name for path in piped.path.iterdir()} == {
        path.name for path in store.path.iterdir()
    }


def test_sample_is_bounded_and_not_only_the_first_file(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(chr(0x4E00 + i) * 2000)
    monkeypatch.setattr(module, "SAMPLE_CHARACTERS", 16_000)
    store = prepare([tmp_path], tmp_path / "store", train_tokenizer="char", vocab_size=300)
    assert store.meta["tokenizer"]["characters"] == 16_000
    assert len(store.load_tokenizer()) == 257 + 8


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
def test_a_fraction_out_of_range(tmp_path, fraction):
    with pytest.raises(UsageError, match="at least 0 and below 1"):
        prepare(["stdlib"], tmp_path / "s", validation_fraction=fraction)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no text in .*only blank documents"),
        (" \n\n ", "only blank documents"),
        ("short", "only one document, too few to hold one out .*--validation-fraction 0"),
    ],
)
@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_too_little_text(tmp_path, text, message, kind):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        prepare([tmp_path / "a.txt"], tmp_path / "s", train_tokenizer=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_everything_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(UsageError, match="every document fell into the validation split"):
        prepare(
            [tmp_path / "a.txt"],
            tmp_path / "s",
            train_tokenizer="byte",
            validation_fraction=0.9999999,
        )


def test_contradictions(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    sources, out = [tmp_path / "a.txt"], tmp_path / "s"
    with pytest.raises(UsageError, match="not both"):
        prepare(sources, out, tokenizer="x", train_tokenizer="bpe")
    with pytest.raises(UsageError, match="--vocab-size is for --train-tokenizer"):
        prepare(sources, out, tokenizer="x", vocab_size=300)
    with pytest.raises(UsageError, match="is not a folder"):
        prepare(sources, tmp_path / "a.txt/s")


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_broken_input_leaves_nothing(tmp_path, kind):
    file = write_jsonl(tmp_path / "a.jsonl", ["a"] * 20)
    file.write_text(file.read_text() + "{oops\n")
    with pytest.raises(PatchtrainError, match="line 21 is not JSON"):
        prepare([file], tmp_path / "s", train_tokenizer=kind)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_empty_folder_may_become_the_store(store, texts, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts[:100])
    (tmp_path / "s").mkdir()
    prepare([file], tmp_path / "s", tokenizer=store.path)
    assert TokenStore.open(tmp_path / "s").train.documents > 0


def test_an_existing_store_stays_or_is_replaced_whole(store, texts, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", texts[:100])
    out = tmp_path / "s"
    first = prepare([file], out, tokenizer=store.path)
    with pytest.raises(UsageError, match="already exists; --overwrite replaces it"):
        prepare([file], out, tokenizer=store.path)
    with pytest.raises(PatchtrainError):
        prepare([tmp_path / "none.txt"], out, tokenizer=store.path, overwrite=True)
    assert TokenStore.open(out).fingerprint == first.fingerprint
    write_jsonl(file, texts)
    second = prepare([file], out, tokenizer=store.path, overwrite=True)
    assert TokenStore.open(out).fingerprint == second.fingerprint != first.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "s"]


def test_overwrite_spares_what_is_no_store(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match="is not a token store"):
        prepare([tmp_path / "a.txt"], tmp_path, overwrite=True)
    assert (tmp_path / "a.txt").exists()


def test_a_store_inside_a_source_folder_is_not_read(store, texts, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", texts)
    prepare([tmp_path], tmp_path / "s", tokenizer=store.path)
    assert list(read_documents([tmp_path])) == texts


def test_a_full_disk(store, texts, tmp_path, monkeypatch):
    def add(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StoreWriter, "add", add)
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(PatchtrainError, match=r"the disk is full while writing .*/s; free some"):
        prepare([file], tmp_path / "s", tokenizer=store.path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
