"""The whole of patchtrain in some minutes, on text that every machine has.

``run_demo`` tokenises the Python standard library's sources, trains the same small model twice at
equal compute (token level only; patch level, then token level), evaluates both, and writes plain
models and a page that shows them side by side. It prints what came out, won or lost. What is
there from an earlier call and still fits is not done again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from patchtrain.data.prepare import prepare
from patchtrain.data.sources import open_corpus
from patchtrain.data.store import TokenStore, is_store
from patchtrain.errors import PatchtrainError
from patchtrain.files import claim_folder, write_text
from patchtrain.machine import usable_cores
from patchtrain.recipe import Recipe
from patchtrain.report.page import write_page
from patchtrain.runs import RunFolder
from patchtrain.training.run import run_recipe

Say = Callable[[str], None]
MARKER = ".patchtrain-demo"
SEED = 2  # the middle one, by outcome, of those in results/evidence/demo.json: no lucky draw
ARMS = ("token level only", "patch level, then token level")


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, and the two runs in the order they were trained."""

    store: TokenStore
    token_level: RunFolder
    patch_level: RunFolder
    page: Path


def run_demo(
    out: Path, *, quick: bool = False, seed: int = SEED, say: Say = print, quiet: bool = False
) -> DemoResult:
    """Do what of the demo is not done yet, under ``out``; returns where things are.

    Args:
        out: folder for the store, both runs and the page; made if it is not there.
        quick: a run of about a minute: it shows every part, and its models have learned little.
        seed: of initialisation and data order, the same for both arms.
        say: is given one line for each thing that begins.
        quiet: no progress on stderr.
    """
    claim(out)
    store = demo_store(out / "store", say, quiet)
    recipes = demo_recipes(store, out, quick, seed)
    missing = []
    for name, recipe in zip(ARMS, recipes, strict=True):
        if is_done(recipe, store):
            say(f"the run {recipe.out} ({name}) is there already")
        else:
            missing.append((name, recipe))
    train_all(missing, say, quiet)
    runs = [RunFolder(recipe.out) for recipe in recipes]
    file = out / f"{_prefix(quick)}report.html"
    page = write_page(runs, file, "Token level against patch level")
    return DemoResult(store, runs[0], runs[1], page)


def claim(out: Path) -> None:
    """Mark ``out`` as the demo's; raises as ``files.claim_folder``."""
    claim_folder(out, MARKER)


def demo_recipes(
    store: TokenStore, out: Path, quick: bool = False, seed: int = SEED
) -> list[Recipe]:
    """The recipes of the two arms, token level first, each at the learning rate that suits it."""
    settings = _settings()
    common = settings["recipe"]
    length = settings["lengths"]["quick" if quick else "full"]
    return [
        Recipe.check(
            {
                **common,
                "store": str(store.path),
                "plan": {**common["plan"], **length, **arm["plan"]},
                "training": {**common["training"], **arm["training"]},
                "seed": seed,
                "out": str(out / f"{_prefix(quick)}{arm['folder']}"),
            },
            "demo.yaml",
        )
        for arm in settings["arms"]
    ]


def _settings() -> dict[str, Any]:
    text = files(__package__).joinpath("demo.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def _prefix(quick: bool) -> str:
    return "quick-" if quick else ""


def demo_store(path: Path, say: Say, quiet: bool = False) -> TokenStore:
    """The token store of the demo, made now or, if it is still of this corpus, earlier."""
    tokenizer = _settings()["tokenizer"]
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


def train_all(recipes: Sequence[tuple[str, Recipe]], say: Say, quiet: bool) -> None:
    """Train named recipes: on a CPU side by side with equal shares of the cores, else in turn.

    A model this small does not fill two cores; two of them do. Both arms see the same load, so
    their wall-clock times compare.
    """
    import torch

    cores = usable_cores()
    if len(recipes) < 2 or cores < len(recipes) or torch.cuda.is_available():
        for name, recipe in recipes:
            say(f"training {name} in {recipe.out}")
            run_recipe(recipe, overwrite=True, quiet=quiet)
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(recipes)))}
    children = []
    try:
        for name, recipe in recipes:
            say(f"training {name} in {recipe.out}")
            file = recipe.out.parent / f"{recipe.out.name}.yaml"
            write_text(file, recipe.to_yaml())
            command = [sys.executable, "-m", "patchtrain", "train", str(file), "--overwrite"]
            child = subprocess.Popen(
                command + ["--quiet"] * quiet,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            relay = _Relay(child.stderr, recipe.out.name)
            relay.start()
            children.append((name, child, relay))
        waiting = list(children)
        while waiting:
            time.sleep(0.1)
            for entry in [entry for entry in waiting if entry[1].poll() is not None]:
                waiting.remove(entry)
                name, child, relay = entry
                relay.join()
                if child.returncode:
                    reason = relay.last.removeprefix("patchtrain: error: ")
                    raise PatchtrainError(f"training {name} failed: {reason}")
    finally:
        for _, child, _ in children:
            if child.poll() is None:
                child.terminate()
        for _, child, _ in children:
            child.wait()


class _Relay(threading.Thread):
    """Passes a child's lines on to our standard error, each under the child's name."""

    def __init__(self, lines: Any, name: str) -> None:
        super().__init__(daemon=True)
        self.lines, self.label, self.last = lines, name, ""

    def run(self) -> None:
        for line in self.lines:
            self.last = line.strip() or self.last
            print(f"  {self.label:<12} {line}", end="", file=sys.stderr, flush=True)


def is_done(recipe: Recipe, store: TokenStore) -> bool:
    """Whether the recipe's folder holds this very run, finished, on the same tokens.

    Paths do not count: the folder may have been moved, or named from another place.
    """
    folder = RunFolder(recipe.out)
    try:
        info = folder.info()
        then = Recipe.load(folder.recipe_file)
    except (OSError, PatchtrainError):
        return False
    paths: dict[str, Any] = {"store": None, "out": None}
    same = {**dict(then.resolved()), **paths} == {**dict(recipe.resolved()), **paths}
    known = (info.get("store") or {}).get("fingerprint") == store.fingerprint
    return same and known and info.get("status") == "finished" and folder.model.is_dir()
