"""``patchtrain inspect`` as a person calls it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from patchtrain.cli.main import main
from patchtrain.data.prepare import prepare
from tests.cli.corpus import write_corpus
from tests.evaluation.tiny import TEXT, save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    corpus = write_corpus(folder / "text.txt", sentences=3000)
    prepare([corpus], folder / "store", tokenizer=str(model))
    return folder / "store"


def found(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["inspect", *map(str, words), "--json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_a_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(store)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"[\d,]+ tokens of \d+ documents \(of [\d,]+ in the train split of", out)
    assert "K = 16" in out
    assert "|" in out.split("K = 2")[1].split("K = 4")[0]
    assert "\x1b[" not in out
    assert "mutual information inside" in out
    assert "cosine inside" not in out  # there is no model
    result = found(capsys, store)
    assert [entry["patch_size"] for entry in result["patches"]] == list(range(2, 17))
    assert result["command"].startswith("patchtrain")
    for entry in result["patches"]:
        assert 0 <= entry["words_cut"] <= 1
        assert entry["cosines"] is None
    cut = [entry["words_cut"] for entry in result["patches"]]
    assert cut[0] > cut[-1]
    near, far = (entry["nats"] for entry in result["distances"] if entry["distance"] in (1, 512))
    assert near > 0.1 > far  # words of random sentences: what is near belongs to one word


def test_embeddings_of_a_model(
    store: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(store), "--model", str(model), "--patch-sizes", "3"]) == 0
    assert "cosine inside" in capsys.readouterr().out
    result = found(capsys, store, "--model", model)
    for entry in result["patches"]:
        assert abs(entry["cosines"]["random"]["value"]) <= 1
        assert entry["cosines"]["inside"]["error"] > 0
    assert result["distances"][0]["cosine"]["count"] > 1000


def test_a_text_with_a_model_or_a_tokenizer_and_a_page(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text(TEXT + "\n<b>bold</b>\x1b[2J", encoding="utf-8")
    page = tmp_path / "page.html"
    words = ["inspect", str(tmp_path / "t.txt"), "--patch-sizes", "2", "5", "--show", "500"]
    assert main([*words, "--tokenizer", str(model), "--page", str(page)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert f"page           {page}" in out
    shown = out.split("K = 5\n")[1].split("\n")[0]
    assert shown.replace("|", "") == f"{TEXT}↵<b>bold</b>\\x1b[2J"
    text = page.read_text(encoding="utf-8")
    assert text.count("<h3>K = ") == 2
    assert 'class="even"' in text
    assert "<b>" not in text
    assert "\x1b" not in text
    assert text.count("plotly.js v") == 1
    assert 'http-equiv="Content-Security-Policy"' in text
    result = found(capsys, *words[1:], "--model", model)
    assert {entry["patch_size"] for entry in result["patches"]} == set(range(2, 17))
    assert "".join(result["shown"]["2"]) == f"{TEXT}\n<b>bold</b>\x1b[2J"


def test_a_sample_says_how_large_it_is(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = found(capsys, store, "--max-tokens", "2000", "--show", "0")
    assert 2000 <= small["tokens"] < 20_000
    assert small["shown"] == {}
    again = found(capsys, store, "--max-tokens", "2000")
    assert small["patches"] == again["patches"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{store}", "--patch-sizes", "0"], "--patch-sizes must be at least 1, not 0"),
        (["{store}", "--max-tokens", "3"], "--max-tokens 3 is less than two patches"),
        (["{store}", "--show", "-1"], "--show must be at least 0"),
        (["{store}", "{text}"], "give one token store, or texts, not both"),
        (["{store}", "--tokenizer", "{model}"], "a tokenizer of its own"),
        (["{text}"], "say how to cut it into tokens"),
        (["no/such/file"], "no file or folder no/such/file"),
        (["{text}", "--tokenizer", "{model}", "--page", "no/folder/p.html"], "cannot write the"),
        (["{store}", "--model", "nothing"], "no run or model folder at nothing"),
        (["{other}", "--model", "{model}"], "not the tokenizer of the model"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str], message: str, store: Path, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    text = tmp_path / "t.txt"
    text.write_text(TEXT)
    if "{other}" in words:
        prepare([text], tmp_path / "other", train_tokenizer="byte", validation_fraction=0)
    places = {"store": store, "text": text, "model": model, "other": tmp_path / "other"}
    capsys.readouterr()
    assert main(["inspect", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
