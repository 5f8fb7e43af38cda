# ruff: noqa: RUF001 - typographic characters are what is tested
"""What patches split, against a reader who goes through the text border by border."""

from __future__ import annotations

import inspect
import random
import unicodedata
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain.analysis.patch_content import (
    Text,
    patch_shares,
    sentence_ends,
    shown_patches,
    text_of_documents,
    text_of_store,
    text_of_texts,
    word_spans,
)
from patchtrain.data import tokenizer as tokenizers
from patchtrain.errors import PatchtrainError, UsageError

_WORDS = [
    *("the", "cell", "divides;", "it's", "über", "naïve", "Straße.", "細胞", "分裂!"),
    *("e\u0301", "12_345", "हिन्दी", "(a.b)"),
]
_SIZES = {"bpe": 400, "unigram": 400, "char": 280, "byte": None}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    chosen = random.Random(0)
    corpus = [" ".join(chosen.choices(_WORDS, k=60)) for _ in range(40)]
    corpus.append(inspect.getsource(inspect)[:20_000])
    return {kind: tokenizers.train(kind, corpus, size) for kind, size in _SIZES.items()}


def is_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"


def joined(text: str, place: int) -> bool:
    """Whether the character at ``place`` belongs to a word, an apostrophe inside one too."""
    if is_word(text[place]):
        return True
    inside = 0 < place < len(text) - 1
    return text[place] in "'’" and inside and is_word(text[place - 1]) and is_word(text[place + 1])


def border_in_word(tokenizer: Any, ids: list[int], text: str, border: int) -> bool:
    """Whether the border before token ``border`` lies inside a word, from decoded text alone."""
    before = [tokenizer.decode(ids[:end]) for end in range(border + 1)]
    place = max(len(part) for part in before if text.startswith(part))
    if before[-1] == text[:place]:
        return 0 < place < len(text) and joined(text, place - 1) and joined(text, place)
    return joined(text, place)  # the border lies inside the bytes of this character


_TEXTS = st.lists(
    st.sampled_from(_WORDS) | st.text(st.characters(exclude_characters="\ufffd",
                                                    exclude_categories=["Cs"]), max_size=6),
    max_size=12,
).map(" ".join)  # fmt: skip


@pytest.mark.parametrize("kind", tokenizers.KINDS)
def test_borders_in_words_are_those_a_reader_finds(trained: dict[str, Any], kind: str) -> None:
    tokenizer = trained[kind]
    encoder = tokenizers.encoder(tokenizer)

    @settings(max_examples=60, deadline=None)
    @given(_TEXTS, st.integers(1, 5))
    def check(text: str, K: int) -> None:
        ids = encoder.encode(text, add_special_tokens=False).ids
        found = text_of_documents([np.array([*ids, tokenizer.eos_token_id])], tokenizer)
        expected = [border_in_word(tokenizer, ids, text, i + 1) for i in range(len(ids))]
        assert found.in_word.tolist() == [*expected, False]
        if len(found) >= K:
            ends = [*expected, False][K - 1 :: K]
            assert patch_shares(found, K).end_in_word == pytest.approx(sum(ends) / len(ends))
        pieces = shown_patches(found, K, len(found))
        assert "".join(pieces) == text

    check()


def test_a_store_a_text_and_token_ids_are_read_alike(trained: dict[str, Any]) -> None:
    tokenizer = trained["bpe"]
    texts = ["The cell divides. It's small.", "über naïve", "Straße 12."]
    known = text_of_texts(texts, tokenizer, 10**6)
    cuts = np.searchsorted(known.document, range(4))
    documents = [known.tokens[begin:end] for begin, end in pairwise(cuts)]
    again = text_of_documents(documents, tokenizer)
    split = SimpleNamespace(name="train", tokens=known.tokens, offsets=cuts, documents=3)
    stored = text_of_store(split, tokenizer, 10**6)
    for other in (again, stored):
        for name in ("tokens", "document", "sentence", "words", "opening_ends"):
            assert np.array_equal(getattr(known, name), getattr(other, name)), name
    assert known.documents == 3
    assert known.tokens[cuts[1:] - 1].tolist() == [tokenizer.eos_token_id] * 3
    some = text_of_store(split, tokenizer, 1)
    assert some.documents == 1
    assert np.array_equal(some.tokens, text_of_store(split, tokenizer, 1).tokens)


def test_documents_that_do_not_come_back_are_left_out(trained: dict[str, Any]) -> None:
    tokenizer = trained["bpe"]
    encoder = tokenizers.encoder(tokenizer)
    good = encoder.encode("the cell divides").ids
    single = [encoder.encode(char).ids[0] for char in "the cell"]  # as no encoding of it would be
    found = text_of_documents([np.array(good), np.array(single)], tokenizer)
    assert (found.documents, found.left_out, len(found)) == (1, 1, len(good))
    with pytest.raises(PatchtrainError, match="none of 1 documents"):
        text_of_documents([np.array(single)], tokenizer)


def test_no_text_is_an_error(trained: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="every document is empty"):
        text_of_texts([], trained["bpe"], 10)
    empty = SimpleNamespace(name="validation", tokens=np.zeros(0, int), offsets=[0], documents=0)
    with pytest.raises(UsageError, match="no text in the validation split"):
        text_of_store(empty, trained["bpe"], 10)
    with pytest.raises(UsageError, match="less than one patch of 9"):
        patch_shares(text_of_texts(["a"], trained["bpe"], 10), 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("a", ["a"]),
        ("it's 12_3, l’eau. 'so'", ["it's", "12_3", "l’eau", "so"]),
        ("e\u0301te\u0301 細胞 a''b", ["e\u0301te\u0301", "細胞", "a", "b"]),
        ("'", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert [text[begin:end] for begin, end in word_spans(text)] == words


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", [""]),
        ("No end", ["No end"]),
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ('He said "no." Then (so.) He left', ['He said "no."', " Then (so.)", " He left"]),
        ("approx. five of J. Smith at 3.14", ["approx. five of J. Smith at 3.14"]),
        ("What?! Really... Yes", ["What?!", " Really...", " Yes"]),
        ("Heading \n \nText.\n\nMore", ["Heading", " \n \nText.", "\n\nMore"]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("\n\n a. ", ["\n\n a. "]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    ends = sentence_ends(text).tolist()
    cuts = [0, *ends, len(text)]
    assert [text[a:b] for a, b in pairwise(cuts)] == sentences


def test_shares_of_a_text_cut_by_hand() -> None:
    # Tokens: [Cell][s][ grow][.][ A][ leaf][ falls][.][end] | [New][end], and in patches of 4
    # [Cell s grow .][ A leaf falls .][end New end]: the last three are left over.
    text = Text(
        tokens=np.arange(11),
        document=np.array([0] * 9 + [1] * 2),
        sentence=np.array([0] * 4 + [1] * 5 + [2] * 2),
        words=np.array([[0, 1], [2, 2], [4, 4], [5, 5], [6, 6], [9, 9]]),
    )
    four = patch_shares(text, 4)
    assert (four.patches, four.end_in_word, four.two_sentences, four.two_documents) == (2, 0, 0, 0)
    assert (four.words_cut, four.words_per_patch) == (0, 2.5)
    five = patch_shares(text, 5)  # [Cells grow . A][ leaf falls . end New]
    assert (five.two_sentences, five.two_documents) == (1, 0.5)
    one = patch_shares(text, 1)
    assert one.end_in_word == pytest.approx(1 / 11)
    assert one.words_cut == pytest.approx(1 / 6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 16))
def test_counts_agree_with_loops(seed: int, K: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(K, 200))
    starts = np.sort(rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False))
    words = np.stack([starts, np.append(starts[1:] - 1, n - 1)], axis=1)
    document = np.cumsum(rng.random(n) < 0.1)
    text = Text(np.arange(n), document, document, words)
    found = patch_shares(text, K)
    last = n // K * K
    patches = [range(begin, begin + K) for begin in range(0, last, K)]
    of = {token: number for number, (a, b) in enumerate(words) for token in range(a, b + 1)}
    inside = [of.get(p[-1], -1) == of.get(p[-1] + 1, -2) for p in patches]
    assert found.end_in_word == pytest.approx(np.mean(inside))
    held = [(a, b) for a, b in words if b < last]
    cut = [any(a <= p[-1] < b for p in patches) for a, b in held]
    assert found.words_cut == pytest.approx(np.mean(cut) if cut else 0)
    mixed = [len({document[i] for i in p}) > 1 for p in patches]
    assert found.two_documents == found.two_sentences == pytest.approx(np.mean(mixed))


def test_single_tokens_hold_one_sentence_and_one_document(trained: dict[str, Any]) -> None:
    for tokenizer in trained.values():
        found = patch_shares(text_of_texts(["A b. C d. E"] * 9, tokenizer, 10**6), 1)
        assert (found.two_sentences, found.two_documents) == (0, 0)
