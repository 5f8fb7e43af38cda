"""Tokenizers trained here lose nothing; others are loaded or refused in one line."""

import argparse
import inspect
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from patchtrain.data import tokenizer as tokenizers
from patchtrain.errors import UsageError

_TEXT = "the cell divides and its walls thicken über naïve Straße 細胞 分裂 12 345"
_WORDS = _TEXT.split()
_SIZES = {"bpe": 400, "unigram": 400, "char": 280, "byte": None}


def corpus():
    chosen = random.Random(0)
    sentences = [" ".join(chosen.choices(_WORDS, k=60)) for _ in range(40)]
    return [*sentences, inspect.getsource(argparse)]


@pytest.fixture(scope="module")
def trained():
    return {kind: tokenizers.train(kind, corpus(), size) for kind, size in _SIZES.items()}


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_any_text_comes_back(trained, kind):
    tokenizer = trained[kind]
    encoder = tokenizers.encoder(tokenizer)

    @settings(max_examples=150, deadline=None)
    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"])) | st.sampled_from(_HARD))
    def check(text):
        ids = encoder.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.eos_token_id not in ids

    check()


_HARD = [
    "a <|endoftext|> b",
    "<0x41><0xC3>",
    "don't  stop .\r\n\t\x00\u2028 \ufeff",
    "e\u0301 👩‍👩‍👧 \U0010ffff",
    "   ",
]


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_size_and_special_tokens(trained, kind):
    tokenizer = trained[kind]
    assert len(tokenizer) <= (_SIZES[kind] or 257)
    assert len(tokenizer) == len(set(tokenizer.get_vocab().values()))
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.pad_token == "<|endoftext|>"


def test_training_shortens_the_text(trained):
    text = corpus()[-1]
    lengths = {kind: len(tokenizer.encode(text)) for kind, tokenizer in trained.items()}
    assert lengths["byte"] == len(text.encode())
    assert lengths["char"] <= lengths["byte"]
    assert lengths["bpe"] < lengths["char"] / 1.5
    assert lengths["unigram"] < lengths["char"] / 1.5


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_training_twice_gives_the_same(trained, kind):
    again = tokenizers.train(kind, corpus(), _SIZES[kind])
    assert again.backend_tokenizer.to_str() == trained[kind].backend_tokenizer.to_str()


def test_unigram_of_tiny_text_knows_every_byte():
    tokenizer = tokenizers.train("unigram", ["ab ab ab"], 300)
    assert tokenizer.decode(tokenizer.encode("ÿ\x00 zebra 細")) == "ÿ\x00 zebra 細"


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_saved_and_loaded_it_is_the_same(trained, kind, tmp_path):
    trained[kind].save_pretrained(tmp_path)
    text = "the cell <|endoftext|> 細胞"
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = tokenizers.load(place)
        assert loaded.encode(text) == trained[kind].encode(text)
        assert loaded.eos_token_id == trained[kind].eos_token_id


def test_saved_truncation_is_switched_off(trained, tmp_path):
    backend = Tokenizer.from_str(trained["bpe"].backend_tokenizer.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = tokenizers.load(tmp_path / "tokenizer.json")
    text = "the cell divides and its walls thicken"
    assert loaded.decode(loaded.encode(text)) == text


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", 100, "--vocab-size 100 is too small for bpe"),
        ("unigram", 257, "too small"),
        ("char", -1, "too small"),
        ("bpe", 10**9, "too large"),
        ("byte", 300, "always has 257 entries"),
        ("wordpiece", None, "no tokenizer kind 'wordpiece'; known: bpe, unigram, char, byte"),
    ],
)
def test_a_size_or_kind_that_makes_no_sense(kind, size, message):
    with pytest.raises(UsageError, match=message):
        tokenizers.train(kind, ["text"], size)


def test_no_end_of_text_token(tmp_path):
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "bare.json"))
    with pytest.raises(UsageError, match=r"no end-of-text \(EOS\) token .* --train-tokenizer bpe"):
        tokenizers.load(tmp_path / "bare.json")
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "folder")
    with pytest.raises(UsageError, match="no end-of-text"):
        tokenizers.load(tmp_path / "folder")


def test_broken_or_missing(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(UsageError, match=r"is not a usable tokenizer\.json"):
        tokenizers.load(tmp_path / "tokenizer.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"it has no tokenizer\.json"):
        tokenizers.load(tmp_path / "empty")
    with pytest.raises(UsageError, match="there is no such file or folder"):
        tokenizers.load(tmp_path / "nothing")
    monkeypatch.setattr(tokenizers, "reachable", lambda: False)
    with pytest.raises(UsageError, match="cannot be reached") as caught:
        tokenizers.load("no-owner-has/such-a-tokenizer")
    assert "\n" not in str(caught.value)


def test_ids_far_apart(tmp_path):
    """The library goes through all ids up to the highest one, for minutes and gigabytes."""
    values = json.loads(tokenizers.train("byte", ["a"]).backend_tokenizer.to_str())
    values["model"]["vocab"]["a"] = 2**31
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="has ids up to 2,147,483,648"):
        tokenizers.load(tmp_path / "tokenizer.json")
