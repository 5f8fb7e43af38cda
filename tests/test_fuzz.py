"""A few hundred damaged inputs of every kind; see ``tests.fuzzing``. The same ones each time.

``python benchmarks/fuzz.py`` makes as many more as you like.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.fuzzing import KINDS, World, judge, make_world

EXAMPLES = {"recipe": 190, "store": 150, "text": 160}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def check(kind: str, rng: Random, world: World) -> None:
    with tempfile.TemporaryDirectory(dir=world.folder.parent) as name:
        case = KINDS[kind](rng, world, Path(name))
        note(case.what)
        result = judge(case)
    note(f"exit code {result.code}: {result.error}")
    assert result.problems == []


def settled(kind: str) -> settings:
    return settings(
        max_examples=EXAMPLES[kind],
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


chance = st.randoms(use_true_random=False)


def test_every_kind_has_its_test() -> None:
    assert KINDS.keys() == EXAMPLES.keys()


@settled("recipe")
@given(rng=chance)
def test_recipes(rng: Random, world: World) -> None:
    check("recipe", rng, world)


@settled("store")
@given(rng=chance)
def test_stores(rng: Random, world: World) -> None:
    check("store", rng, world)


@settled("text")
@given(rng=chance)
def test_text_files(rng: Random, world: World) -> None:
    check("text", rng, world)
