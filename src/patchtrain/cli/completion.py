"""Print what makes a shell complete commands, options, files and entries of a recipe.

examples:
  patchtrain completion bash > patchtrain.bash
  patchtrain completion zsh > _patchtrain
  patchtrain completion fish > patchtrain.fish

To have it in every shell, put one of these lines where it belongs:

  ~/.bashrc                     source <(patchtrain completion bash)
  ~/.zshrc, after compinit      source <(patchtrain completion zsh)
  ~/.config/fish/config.fish    patchtrain completion fish | source

The script asks patchtrain itself at each Tab, so it stays right when patchtrain changes. After
`patchtrain train RECIPE` it also completes entries of a recipe, such as plan.patch_size= and
plan.preset=paper."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from patchtrain.cli.parser import general, leaves

HELP = "print a completion script for bash, zsh or fish"
SHELLS = ("bash", "zsh", "fish")

# What an option takes that says so only when it runs: heavy packages know.
_VALUES = {
    "--executor": ("local", "slurm", "ray"),
    "--train-tokenizer": ("bpe", "unigram", "char", "byte"),
}
_FOLDERS = ("RUN", "STORE", "FOLDER", "OUT", "STUDY")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    general(parser)


def run(args: argparse.Namespace) -> int:
    from argcomplete import shellcode

    print(shellcode(["patchtrain"], shell=args.shell))
    return 0


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end, if it is the shell that asks; else nothing."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete
    from argcomplete.completers import (
        DirectoriesCompleter,
        FilesCompleter,
    )

    def completer(action: Any) -> Any:
        name = action.option_strings[0] if action.option_strings else action.dest
        if name in _VALUES:
            return partial(_choices, _VALUES[name])
        if name == "overrides":
            return entries
        if action.metavar == "RECIPE":
            return FilesCompleter(("yaml", "yml"))
        if action.metavar in _FOLDERS:
            return DirectoriesCompleter()
        if action.type in (int, float) or action.metavar in ("TEXT", "PROMPT"):
            return _nothing  # argcomplete's SuppressCompleter hides the option as well
        return None

    for leaf in leaves(parser):
        for action in leaf._actions:
            if not action.choices and (found := completer(action)):
                action.completer = found  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options="long")
    sys.exit(1)  # not reached: it has answered and ended


def _nothing(**_: Any) -> list[str]:
    return []


def _choices(values: tuple[str, ...], prefix: str, **_: Any) -> list[str]:
    return [value for value in values if value.startswith(prefix)]


def entries(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Entries of a recipe that begin with ``prefix``: ``key=``, after the ``=`` ``key=value``."""
    from argcomplete.completers import FilesCompleter

    key, equals, _value = prefix.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values(key)]
    recipe = getattr(parsed_args, "recipe", None) or getattr(parsed_args, "model", None)
    keys = {*_plan_keys(), *_top_keys(), *(_own_keys(Path(recipe)) if recipe else ())}
    if prefix.startswith("t"):  # there are too many to show unasked
        keys |= {f"training.{name}" for name in training_keys()}
    found = [f"{key}=" for key in sorted(keys)]
    # A study also takes texts and recipes there.
    return found if recipe else [*found, *FilesCompleter()(prefix)]


def _plan_keys() -> Iterator[str]:
    from dataclasses import fields

    from patchtrain.plan import PlanSpec

    return (f"plan.{field.name}" for field in fields(PlanSpec))


def _top_keys() -> Iterator[str]:
    from patchtrain.recipe import ModelSection, Recipe

    sections = ("model", "plan", "training")
    yield from (name for name in (*Recipe.model_fields, "rehearse") if name not in sections)
    yield from (f"model.{name}" for name in ModelSection.model_fields if name != "config")


def _own_keys(recipe: Path) -> Iterator[str]:
    """The entries that a recipe has."""
    from patchtrain.errors import UsageError
    from patchtrain.yaml_reader import read_yaml

    try:
        values = read_yaml(recipe.read_text(encoding="utf-8"), str(recipe))
    except (OSError, ValueError, UsageError):
        return

    def walk(values: Any, path: str) -> Iterator[str]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from walk(value, f"{path}{key}.")
            else:
                yield f"{path}{key}"

    if isinstance(values, dict):
        yield from walk(values, "")


def training_keys() -> set[str]:
    """The names of ``training``, read from the sources: to import transformers takes seconds."""
    transformers = importlib.util.find_spec("transformers")
    if transformers is None or transformers.origin is None:
        return set()
    theirs = Path(transformers.origin).with_name("training_args.py")
    ours = Path(__file__).parents[1] / "training" / "config.py"
    try:
        derived = _assigned(ours, "DERIVED")
        names = {*_fields(theirs, "TrainingArguments"), *_fields(ours, "PatchConfig")}
    except (OSError, SyntaxError, ValueError):
        return set()
    return names - {"plan", *derived}


def _fields(file: Path, name: str) -> set[str]:
    """The annotated attributes of a class that do not begin with ``_``."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    bodies = [
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name
    ]
    targets = [item.target for body in bodies for item in body if isinstance(item, ast.AnnAssign)]
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def _assigned(file: Path, name: str) -> Any:
    """The literal that a module assigns to a name; ``ValueError`` where there is none."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [
            name
        ]:
            return ast.literal_eval(node.value)
    raise ValueError(f"{file} assigns no {name}")


def _values(key: str) -> tuple[str, ...]:
    """What an entry can be, where that is a short list."""
    from patchtrain.plan import CHOICES

    known = {f"plan.{name}": values for name, values in CHOICES.items()}
    known |= {"rehearse": ("true", "false"), "model.dtype": ("float32", "bfloat16")}
    return known.get(key, ())
