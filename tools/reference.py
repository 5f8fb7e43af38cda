"""Write the pages of docs/reference that say what the code says: recipe keys, commands, files.

    python tools/reference.py

A test fails where a page is not what this writes. Meanings stand in the code alone: below the keys
of ``PlanSpec`` and ``Recipe``, in the metadata of ``PatchConfig``'s fields, in the parsers' help.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic_core import PydanticUndefined
from transformers import TrainingArguments

from patchtrain import rehearsal
from patchtrain.cli.main import build_parser
from patchtrain.files import write_text
from patchtrain.plan import CHOICES, PlanSpec
from patchtrain.presets import (
    OF_LARGE,
    OF_SMALL,
    PATCH_FRACTION,
    PRESETS,
    SMALL,
    STEP_FRACTION,
)
from patchtrain.recipe import ModelSection, Recipe
from patchtrain.training.config import DERIVED, UNSUPPORTED, PatchConfig

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
WRITTEN = "<!-- Written by tools/reference.py from the code: change it there. -->"
REQUIRED, NONE = "required", "none"
_PAPERS = {"paper": "2407.12665", "superposition": "2605.06546"}


def recipe_page() -> str:
    """Every key of a recipe: type, default, meaning."""
    top = list(_model_rows(Recipe))
    about = str(rehearsal.__doc__).splitlines()[0].replace("``", "`")
    top.append(("`rehearse`", "`true`, `false`", "`false`", about))
    plan = list(_plan_rows())
    preset = [
        (f"`{key}`", *(str(values.get(key, "by the model's size")) for values in PRESETS.values()))
        for key in PRESETS["paper"]
    ]
    shares = {name: f"lambda {share:.3g}" for name, share in PATCH_FRACTION.items()}
    shares |= {name: f"r {share:g}" for name, share in STEP_FRACTION.items()}
    preset.append(("share at patch level", *(shares[name] for name in PRESETS)))
    own = [row for row in _training_rows() if row is not None]
    changed = [
        (f"`{item.name}`", _value(item.default), _value(_default(TrainingArguments, item.name)))
        for item in _fields(PatchConfig)
        if "help" not in item.metadata and item.name in PatchConfig.__annotations__
    ]
    return _page(
        "Recipe keys",
        "A [recipe](../recipes.md) is one YAML file and one run. Every key can be replaced on the "
        "command line, with dots into sections: `plan.patch_size=2`. Paths are relative to the "
        "folder you call from.",
        _table(("key", "type", "default", "meaning"), top),
        "## The model",
        "Keys of `model`: exactly one of `config` and `pretrained`.",
        _table(("key", "type", "default", "meaning"), _model_rows(ModelSection)),
        "## The plan",
        "Keys of `plan`. K is the patch size, T the context length, the positions the transformer "
        "sees at token level. A patch-level sequence has K * T tokens and costs T positions, or "
        "with `rows: tokens` T tokens in T / K positions.",
        _table(("key", "type", "default", "meaning"), plan[: _index("embedding_scale")]),
        "The learning rate's shape:",
        _table(("key", "type", "default", "meaning"), plan[_index("warmup_steps") :]),
        "## The presets",
        "What `plan.preset` sets, where the plan does not say otherwise:",
        _table(("", *(f"`{name}` ({_PAPERS.get(name, 'ours')})" for name in PRESETS)), preset),
        f"Where a plan of `patchtrain` names neither K nor stages, K is {OF_SMALL[0]} "
        f"and `rows` `{OF_SMALL[1]}` below {SMALL:,} parameters, where the project's own "
        "comparisons are nearest (`positions` if such patches do not divide the context length), "
        f"else {OF_LARGE[0]} and `{OF_LARGE[1]}`, from the published ones: "
        "[advice](../advice.md). Where it names K or stages, `rows` is `positions`.",
        "With compute held, `lambda = r K / (r K + 1 - r)`.",
        "## Settings of neither paper",
        "More keys of `plan`. They are there to be [tried](../compare.md), with "
        "`--over plan.NAME=a,b`; left out, they change nothing.",
        _table(
            ("key", "type", "default", "meaning"),
            plan[_index("embedding_scale") : _index("warmup_steps")],
        ),
        "## Training",
        "Keys of `training`: those of `transformers.TrainingArguments`, and",
        _table(("key", "type", "default", "meaning"), own),
        "Defaults that differ from transformers':",
        _table(("key", "here", "in transformers"), changed),
        "Refused, since something else decides it:",
        _table(("key", "instead"), ((f"`{key}`", why) for key, why in DERIVED.items())),
        "Refused, since a patch-level stage cannot honour it:",
        _table(("key", "why"), ((f"`{key}`", why) for key, why in UNSUPPORTED.items())),
    )


def commands_page() -> str:
    """Every command with what its ``--help`` says."""
    parser = build_parser()
    parts: list[str] = []
    for name, sub in _subparsers(parser):
        parts += _command(f"patchtrain {name}", sub, 2)
    return _page(
        "Commands",
        *prose(str(parser.description)),
        *prose(str(parser.epilog)),
        "Every command takes `--debug`, which shows the traceback of an error.",
        *parts,
    )


def files_page() -> str:
    """The recipes to start from and the files for schedulers, as they are in the repository."""
    parts = []
    for title, names in (
        ("## Recipes", ("recipes/small.yaml", "recipes/stepwise.yaml", "recipes/continue.yaml")),
        ("## For schedulers", sorted(f"recipes/cluster/{file.name}"
                                     for file in (ROOT / "recipes" / "cluster").iterdir())),
    ):  # fmt: skip
        parts.append(title)
        for name in names:
            text = (ROOT / name).read_text(encoding="utf-8").rstrip("\n")
            parts += [f"### {name}", f"```{_language(name)}\n{text}\n```"]
    return _page(
        "Files to copy",
        "Files of the repository that are meant to be copied and changed. The papers' own runs are "
        "in `recipes/papers/`.",
        *parts,
    )


def examples_page() -> str:
    """examples/README.md with the scripts it names."""
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"\]\((\w+)\.py\)", r"](#\1py)", readme.split("\n", 2)[2].strip("\n"))
    readme = readme.replace("](../docs/", "](../")
    parts = [readme]
    for file in sorted((ROOT / "examples").glob("*.py")):
        text = file.read_text(encoding="utf-8").rstrip("\n")
        parts += [f"## {file.name}", f"```python\n{text}\n```"]
    return _page("Examples", *parts)


PAGES: dict[str, Callable[[], str]] = {
    "recipe.md": recipe_page,
    "cli.md": commands_page,
    "files.md": files_page,
    "examples.md": examples_page,
}


def _page(title: str, *parts: str) -> str:
    return "\n\n".join((f"# {title}", WRITTEN, *parts)) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


# Recipes.


def attribute_docs(cls: type) -> dict[str, str]:
    """The text below each attribute of a class, by the attribute's name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for item, after in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and is_text:
            found[item.target.id] = " ".join(str(after.value.value).split())  # type: ignore[attr-defined]
    return found


def _fields(cls: Any) -> list[Any]:
    return [item for item in fields(cls) if item.init]


def _index(name: str) -> int:
    return [item.name for item in fields(PlanSpec)].index(name)


def _plan_rows() -> Iterable[tuple[str, ...]]:
    docs, hints = attribute_docs(PlanSpec), get_type_hints(PlanSpec)
    for item in fields(PlanSpec):
        kind = _choices(CHOICES[item.name]) if item.name in CHOICES else _type(hints[item.name])
        default = "by preset" if item.name in PRESETS["paper"] else _value(item.default)
        yield f"`{item.name}`", kind, default, docs[item.name]


def _model_rows(cls: type[Recipe] | type[ModelSection]) -> Iterable[tuple[str, ...]]:
    docs, hints = attribute_docs(cls), get_type_hints(cls)
    for name, item in cls.model_fields.items():
        default = item.default_factory() if item.default_factory else item.default  # type: ignore[call-arg]
        shown = "`runs/NAME`" if name == "out" else _value(default)
        yield f"`{name}`", _type(hints[name]), shown, docs[name]


def _training_rows() -> Iterable[tuple[str, ...] | None]:
    hints = get_type_hints(PatchConfig)
    for item in _fields(PatchConfig):
        if item.name in PatchConfig.__annotations__ and "help" in item.metadata:
            if item.name == "plan":  # a section of its own in a recipe
                continue
            kind = _type(hints[item.name])
            yield f"`{item.name}`", kind, _value(item.default), item.metadata["help"]


def _default(cls: Any, name: str) -> Any:
    (found,) = (item.default for item in fields(cls) if item.name == name)
    return found


def _type(hint: Any) -> str:
    """A type in a recipe's words: ``float | None`` is a number."""
    if get_origin(hint) is Literal:
        return _choices(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        kinds = [_type(one) for one in get_args(hint) if one is not NoneType]
        return " or ".join(dict.fromkeys(kinds))
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`",
             Path: "path", dict: "mapping", ModelSection: "mapping"}  # fmt: skip
    return names.get(get_origin(hint) or hint, "list")


def _choices(values: Iterable[Any]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _value(value: Any) -> str:
    if value is MISSING or value is PydanticUndefined:
        return REQUIRED
    if value is None or value == [] or value == {}:
        return NONE
    value = getattr(value, "value", value)  # of an enum
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    return f"`{text}`"


# Commands.


def _subparsers(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    return [
        item
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for item in action.choices.items()
    ]


def _command(name: str, parser: argparse.ArgumentParser, level: int) -> list[str]:
    parts = [f"{'#' * level} {name}", *prose(str(parser.description))]
    for group in parser._action_groups:
        rows = [
            (f"`{_invocation(action)}`", _escaped(str(action.help) % vars(action)))
            for action in group._group_actions
            if action.dest not in ("help", "debug") and action.help != argparse.SUPPRESS
            and not isinstance(action, argparse._SubParsersAction)
        ]  # fmt: skip
        if rows:
            if group.title not in ("arguments", "options"):
                parts.append(f"**{str(group.title).capitalize()}**" + (
                    f": {_escaped(group.description)}" if group.description else ""))  # fmt: skip
            head = "argument" if group.title == "arguments" else "option"
            parts.append(_table((head, "meaning"), rows))
    parts += prose(parser.epilog or "")
    for sub, inner in _subparsers(parser):
        parts += _command(f"{name} {sub}", inner, level + 1)
    return parts


def _invocation(action: argparse.Action) -> str:
    """What is typed: ``--seeds N ...``."""
    name = ", ".join(action.option_strings)
    if action.nargs == 0:
        return name
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else
                               action.dest.upper())  # fmt: skip
    value = " ".join(value) if isinstance(value, tuple) else value
    if action.nargs == "?":
        value = f"[{value}]" if not name or action.const is not None else value
    elif action.nargs in ("*", "+") and not value.startswith("["):
        value = f"{value} ..."
    return f"{name} {value}".strip()


def prose(text: str) -> list[str]:
    """The description of a parser as Markdown: what is indented or in columns stays as it is."""
    parts: list[str] = []
    for paragraph in filter(None, text.strip("\n").split("\n\n")):
        lines = paragraph.split("\n")
        start = next((n for n, line in enumerate(lines) if re.search(r"^  |\S   *\S", line)
                      and re.search(r"  ", line)), len(lines))  # fmt: skip
        if start:
            parts.append(_escaped(" ".join(lines[:start])))
        if start < len(lines):
            kept = textwrap.dedent("\n".join(lines[start:]))
            parts.append(f"```text\n{kept}\n```")
    return parts


def _escaped(text: str) -> str:
    """Plain text as Markdown, with its options in the type of code; what is code stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(parts), 2):
        part = re.sub(r"([*_<\[])", r"\\\1", parts[index])
        parts[index] = re.sub(r"(?<![\w-])(--[a-z][a-z-]*[a-z])", r"`\1`", part)
    return "".join(parts)


def _language(name: str) -> str:
    return "yaml" if name.endswith(".yaml") else "sh"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        write_text(FOLDER / name, page())


if __name__ == "__main__":
    main()
