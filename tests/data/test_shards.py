"""Shards one after the other are the corpus: the same documents, and the same counts."""

import json
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain.data import shards, sources
from patchtrain.data.readers import Counts
from patchtrain.data.sources import Corpus, open_corpus
from patchtrain.errors import PatchtrainError

LETTERS = st.text(alphabet="aab \n\né細\ufeff{[", max_size=120)
# Runs of separators that overlap, and lines that are cut into documents of very different lengths.
PIECES = ["\n", "\n\n", "a\n", "aa", "aba", "bbbbb ", "cccccccccccc", "é\n", "細", "\ufeff", " "]
TEXTS = LETTERS | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
SEPARATORS = st.sampled_from(
    [None, "\n\n", "\n\n\n", "aa", "aba", "b", "é\n", "細", "\ufeff\ufeff"]
)


def read(corpus, pieces=None):
    """The documents of a corpus, or of some of its sources, and what was counted."""
    if pieces is not None:
        corpus = Corpus(pieces, [], corpus.text_column, corpus.split, corpus.document_separator)
    counts = Counts()
    return list(corpus.documents(counts, cut=True)), asdict(counts)


def check(corpus, tasks):
    """Shards of the corpus, after all that must hold for any was checked."""
    documents, counts = read(corpus)
    cut = shards.cut(corpus, tasks)
    assert cut == shards.cut(corpus, tasks)
    assert 1 <= len(cut) <= max(1, tasks)
    assert all(cut)
    read_again = [read(corpus, pieces) for pieces in cut]
    assert [text for texts, _ in read_again for text in texts] == documents
    for name in ("blank", "cut", "undecodable"):
        assert sum(counted[name] for _, counted in read_again) == counts[name]
    return cut


@pytest.fixture(scope="module", autouse=True)
def small_limits():
    """Documents and reads of a few bytes, so that a short text has all the cases of a long one."""
    with ExitStack() as stack:
        for module, name, value in (
            (sources, "TEXT_LIMIT", 11), (shards, "TEXT_LIMIT", 11),
            (sources, "DOCUMENT_LIMIT", 17), (shards, "_READ_BYTES", 7),
            (sources.readers, "_READ_BYTES", 5),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(module, name, value))
        yield


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), SEPARATORS, st.integers(1, 25))
def test_text(texts, separator, tasks):
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            Path(folder, f"{number}.txt").write_bytes(text.encode())
        check(open_corpus([folder], document_separator=separator), tasks)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.none() | LETTERS, max_size=12), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    st.booleans(),
    st.integers(1, 25),
)
def test_json_lines(files, end, mark, tasks):
    with tempfile.TemporaryDirectory() as folder:
        for number, values in enumerate(files):
            lines = [json.dumps({"text": value}, ensure_ascii=False) for value in values]
            text = "\ufeff" * mark + end.join(lines)
            Path(folder, f"{number}.jsonl").write_bytes(text.encode())
        check(open_corpus([folder]), tasks)


def test_every_kind_of_cut_is_made(tmp_path):
    """Else the tests above would say nothing."""
    (tmp_path / "a.txt").write_text("a few words and some more\n" * 30)
    (tmp_path / "b.jsonl").write_text('{"text": "a few words"}\n' * 30)
    for name, separator in (("a.txt", None), ("a.txt", "\n"), ("a.txt", "s"), ("b.jsonl", None)):
        cut = check(open_corpus([tmp_path / name], document_separator=separator), 10)
        assert len(cut) == 10, (name, separator)
        sizes = [piece.end - piece.start for (piece,) in cut]
        assert max(sizes) < 2 * min(sizes)


def test_a_piece_does_not_end_where_its_last_two_documents_would_be_one(tmp_path):
    """Read alone, ``a`` and ``bbbbb`` fit into one document; with what follows they are two."""
    (tmp_path / "a.txt").write_text("a\nbbbbb cccccccccccc" * 5)
    corpus = open_corpus([tmp_path / "a.txt"])
    assert read(corpus)[0][:2] == ["a\n", "bbbbb "]
    for tasks in range(1, 60):
        check(corpus, tasks)


def test_a_byte_order_mark_is_no_half_of_a_separator(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeff" * 5 + "some words")
    for tasks in range(1, 20):
        check(open_corpus([tmp_path / "a.txt"], document_separator="\ufeff\ufeff"), tasks)


def test_small_files_share_a_shard_and_large_ones_are_cut(tmp_path):
    for number in range(20):
        (tmp_path / f"{number:02}.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "99.jsonl").write_text('{"text": "a"}\n' * 60)
    cut = check(open_corpus([tmp_path]), 8)
    assert len(cut) == 8
    assert len(cut[0]) == 10
    assert sum(piece.name.endswith("99.jsonl") for pieces in cut for piece in pieces) == 6


def test_what_cannot_be_cut_stays_whole(tmp_path):
    (tmp_path / "array.json").write_text(json.dumps([{"text": "one"}, {"text": "two"}] * 9))
    (tmp_path / "late.json").write_text(" \t " * 9 + json.dumps([{"text": "one"}] * 20, indent=1))
    (tmp_path / "line.jsonl").write_text(json.dumps({"text": "a b " * 100}))
    for cut in (check(open_corpus([file]), 9) for file in tmp_path.iterdir()):
        assert len(cut) == 1
        assert cut[0][0].end is None


def test_no_cut_with_nothing_behind_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "' + "b" * 90 + '"}\n')
    corpus = open_corpus([tmp_path / "a.jsonl"])
    cut = check(corpus, 3)
    assert cut == [corpus.sources]


def test_the_size_alone_decides_where_no_number_is_given(tmp_path):
    (tmp_path / "a.txt").write_text("a few words\n" * 1000)
    corpus = open_corpus([tmp_path / "a.txt"])
    assert len(shards.cut(corpus)) == 1
    with mock.patch.object(shards, "SMALLEST_SHARD", 1000):
        assert len(shards.cut(corpus)) == 12
        with mock.patch.object(shards, "MOST_SHARDS", 5):
            assert len(shards.cut(corpus)) == 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "a"}\n' * 40 + b"{oops\n", r"a\.jsonl: line 41 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n' * 40 + b"[1]\n", r"line 41 is not a JSON object but a list"),
        ("a.jsonl", b'{"text": "a"}\n' * 40 + b'{"t": 1}\n', r"line 41 has no column 'text'"),
        ("a.txt", b"some words\n" * 40 + b"\xff\n", r"byte 0xff at offset 440 \(line 41\)"),
    ],
)
def test_an_error_says_the_line_of_the_whole_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    corpus = open_corpus([tmp_path / name])
    with pytest.raises(PatchtrainError, match=message):
        list(map(partial(read, corpus), shards.cut(corpus, 10)))


def test_bytes_that_are_no_text_are_placed_in_a_piece_too(tmp_path):
    """As when a file is changed after it was cut, or cut at separators, which decodes nothing."""
    (tmp_path / "a.txt").write_bytes(b"some words\n" * 40 + b"\xff\n")
    corpus = open_corpus([tmp_path / "a.txt"], document_separator="\n")
    cut = shards.cut(corpus, 10)
    assert len(cut) == 10
    with pytest.raises(PatchtrainError, match=r"byte 0xff at offset 440 \(line 41\)"):
        read(corpus, cut[-1])
