"""Bad input, made by the thousand: damaged recipes, stores, checkpoints and text files, and
a judge.

A *case* is one call of the command line on input that was damaged on purpose, with what is known
of its outcome. The rule it is held to (``judge``):

    success, or one clear error: exit code 1 or 2 and one line that says what and where;
    no traceback, no hang, no silent loss, nothing left behind.

``KINDS`` names the makers of cases, one a kind of input. A maker takes a source of chance, the
``World`` (a small real store and run) and an empty folder. A further kind is a module with a maker,
and a line here.

Hypothesis chooses in the tests, and finds the smallest choice that still fails;
``benchmarks/fuzz.py`` makes many more cases by number. A fuzzer guided by coverage would add
little: the parsers behind the formats (YAML, JSON, Parquet, zstd, tokenizers) are libraries that
have such fuzzers of their own, most of them are no Python, and what is judged here is what this
program makes of their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzzing.checkpoints import checkpoint_case
from tests.fuzzing.judging import Case, judge
from tests.fuzzing.recipes import recipe_case
from tests.fuzzing.stores import store_case
from tests.fuzzing.texts import text_case
from tests.fuzzing.world import World, make_world, open_world

KINDS: dict[str, Callable[[Random, World, Path], Case]] = {
    "recipe": recipe_case,
    "store": store_case,
    "text": text_case,
    "checkpoint": checkpoint_case,
}

__all__ = ["KINDS", "Case", "World", "judge", "make_world", "open_world"]
