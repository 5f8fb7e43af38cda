"""A corpus of several kinds of files, and a tokenizer, for the tests of shards."""

import json

import pytest

from patchtrain.data import tokenizer as tokenizers
from tests.data.sharding import WORDS, lines


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train("bpe", [" ".join(WORDS)] * 9, 300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of several kinds, some cut and some not."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        (folder / f"{number}.jsonl").write_text(lines(150, number))
    (folder / "b.txt").write_text("".join(f"line {i} of a text\n" for i in range(3000)))
    (folder / "c.json").write_text(json.dumps([{"text": "in an array"}, {"text": None}]))
    (folder / "empty.txt").write_text("")
    return folder
