"""A comparison's runs are of one text: another one in the store's place is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from patchtrain.analysis.studies import comparison
from patchtrain.analysis.studies.asked import describe
from patchtrain.analysis.studies.comparison import refuse_another_comparison, run_comparison
from patchtrain.analysis.studies.question import Question, compared
from patchtrain.data.prepare import prepare
from patchtrain.data.store import TokenStore
from patchtrain.errors import UsageError
from patchtrain.recipe import Recipe
from tests.analysis.studies.pretend import RECIPE, Pretend
from tests.cli.corpus import write_corpus

Ask = Callable[..., Question]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    for name, sentences in (("one", 4000), ("two", 4100)):
        text = write_corpus(folder / f"{name}.txt", sentences=sentences)
        prepare([text], folder / name, train_tokenizer="byte")
    return folder


@pytest.fixture
def ask(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A question on ``store`` and ``other``, which lie in the folder and can be replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(comparison, "train_runs", Pretend(lambda arm, seed: 2.0))
    for name in ("store", "other"):
        shutil.copytree(stores / "one", name)
    values = {key: value for key, value in RECIPE["model"]["config"].items() if key != "vocab_size"}
    asked = Recipe.check({**RECIPE, "store": "store", "model": {"config": values}})

    def question(*arms: str, seeds: tuple[int, ...] = (0,)) -> Question:
        about = {"store": describe(TokenStore.open("store"))}
        return compared(asked, arms or ["recipe"], seeds=seeds, about=about)

    return question


def train(question: Question) -> dict[str, Any]:
    return run_comparison(question, Path("c"), 1, say=lambda line: None, quiet=True)


def put(stores: Path, text: str, place: str) -> None:
    shutil.rmtree(place)
    shutil.copytree(stores / text, place)


def remember(text: str) -> None:
    """Write into every run what it was trained on, as a real run does."""
    fingerprint = TokenStore.open(text).fingerprint
    for file in Path("c", "runs").glob("*/run.json"):
        info = json.loads(file.read_text())
        file.write_text(json.dumps({**info, "store": {"fingerprint": fingerprint}}))


def test_another_text_in_the_store_is_another_comparison(ask: Ask, stores: Path) -> None:
    train(ask())
    train(ask(seeds=(0, 1)))  # the same text made anew is no other
    put(stores, "one", "store")
    train(ask(seeds=(0, 1)))
    put(stores, "two", "store")
    for attempt in (train, lambda question: refuse_another_comparison(question, Path("c"))):
        with pytest.raises(UsageError, match=r"the text in store differs from .*--overwrite"):
            attempt(ask(seeds=(0, 1, 2)))


def test_the_text_of_an_arm_of_its_own_is_told_by_its_runs(ask: Ask, stores: Path) -> None:
    train(ask("mine:store=other"))
    remember("other")
    train(ask("mine:store=other", seeds=(0, 1)))
    put(stores, "two", "other")
    with pytest.raises(UsageError, match="mine-seed-0 was not trained on what is in other"):
        train(ask("mine:store=other", seeds=(0, 1)))
    train(ask(seeds=(0, 1)))  # not asked for, not in the way


def test_what_an_earlier_version_wrote_is_taken_unless_a_run_says_otherwise(
    ask: Ask, stores: Path
) -> None:
    train(ask())
    file = Path("c", "study.json")
    old = {**json.loads(file.read_text()), "about": {}}
    file.write_text(json.dumps(old))
    put(stores, "two", "store")
    train(ask(seeds=(0, 1)))  # nothing tells
    file.write_text(json.dumps(old))
    put(stores, "one", "store")
    remember("store")
    put(stores, "two", "store")
    with pytest.raises(UsageError, match="token-seed-0 was not trained on what is in store"):
        train(ask(seeds=(0, 1)))
