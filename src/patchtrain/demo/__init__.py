"""The whole of patchtrain in ten minutes, on text that every machine has.

``run_demo`` tokenises the Python standard library's sources, trains the same small model twice at
equal compute (token level only; patch level, then token level), evaluates both, and writes plain
models and a page that shows them side by side. It prints what came out, won or lost. What is
there from an earlier call and still fits is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from patchtrain.data.prepare import prepare
from patchtrain.data.sources import open_corpus
from patchtrain.data.store import TokenStore, is_store
from patchtrain.errors import PatchtrainError
from patchtrain.recipe import Recipe
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder
from patchtrain.training.run import run_recipe

Say = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """One of the two runs that the demo compares."""

    name: str
    folder: str
    plan: dict[str, Any]


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and the two runs in the order they were trained."""

    store: TokenStore
    token_level: RunFolder
    patch_level: RunFolder
    page: Path


def run_demo(
    out: Path, *, quick: bool = False, seed: int = 0, say: Say = print, quiet: bool = False
) -> DemoResult:
    """Do what of the demo is not done yet, under ``out``; returns where things are.

    Args:
        out: folder for the store, both runs and the page; made if it is not there.
        quick: a run of about a minute: it shows every part, and its models have learned little.
        seed: of initialisation and data order, the same for both arms.
        say: is given one line for each thing that begins.
        quiet: no progress on stderr.
    """
    settings = yaml.safe_load(files(__package__).joinpath("demo.yaml").read_text(encoding="utf-8"))
    length = settings["lengths"]["quick" if quick else "full"]
    store = _store(out / "store", settings["tokenizer"], say, quiet)
    runs = []
    for arm in settings["arms"]:
        recipe = Recipe.check(
            {
                **settings["recipe"],
                "store": str(store.path),
                "plan": {**settings["recipe"]["plan"], **length, **arm["plan"]},
                "training": {**settings["recipe"]["training"], **arm["training"]},
                "seed": seed,
                "out": str(out / f"{'quick-' if quick else ''}{arm['folder']}"),
            },
            "demo.yaml",
        )
        runs.append(_run(recipe, store, arm["name"], say, quiet))
    page = write_page(
        runs, out / f"{'quick-' if quick else ''}report.html", "Token level against patch level"
    )
    return DemoResult(store, runs[0], runs[1], page)


def _store(path: Path, tokenizer: dict[str, Any], say: Say, quiet: bool) -> TokenStore:
    """The token store of the demo, made now or, if it is still of this corpus, earlier."""
    if is_store(path):
        try:
            store = TokenStore.open(path)
            (now,) = open_corpus(["stdlib"]).records
            (then,) = store.meta["sources"]
            same_tokenizer = (
                store.meta["tokenizer"].get("trained") == tokenizer["kind"]
                and store.vocab_size == tokenizer["vocab_size"]
            )
            if then.get("fingerprint") == now["fingerprint"] and same_tokenizer:
                say(f"the token store {path} is there already")
                return store
        except PatchtrainError:
            pass  # damaged or of another version: made again below
    say("preparing the Python standard library's sources (training a tokenizer, tokenising)")
    return prepare(
        ["stdlib"],
        path,
        train_tokenizer=tokenizer["kind"],
        vocab_size=tokenizer["vocab_size"],
        overwrite=path.exists(),
        progress=not quiet,
    )


def _run(recipe: Recipe, store: TokenStore, name: str, say: Say, quiet: bool) -> RunFolder:
    folder = RunFolder(recipe.out)
    if _is_done(folder, recipe, store):
        say(f"the run {recipe.out} ({name}) is there already")
        return folder
    say(f"training {name} in {recipe.out}")
    return run_recipe(recipe, overwrite=True, quiet=quiet)


def _is_done(folder: RunFolder, recipe: Recipe, store: TokenStore) -> bool:
    """Whether the folder holds this very run, finished, on this very store."""
    try:
        info = folder.info()
        same = folder.recipe_file.read_text(encoding="utf-8") == recipe.to_yaml()
    except (OSError, PatchtrainError):
        return False
    known = info.get("store", {}).get("fingerprint") == store.fingerprint
    return same and known and info.get("status") == "finished" and folder.model.is_dir()
