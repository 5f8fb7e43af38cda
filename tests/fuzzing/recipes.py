"""Damaged recipes: the shipped ones as text and as values, and ``key=value`` overrides.

Each is tried out (``train --dry-run``) on a real store, and must write nothing.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from random import Random
from typing import Any

import yaml

from patchtrain.plan import PlanSpec
from patchtrain.recipe import ModelSection, Recipe
from patchtrain.training.config import PatchConfig
from tests.fuzzing.chance import change_entry, damaged, odd_value, places
from tests.fuzzing.judging import Case
from tests.fuzzing.world import World

# As YAML writes them: what a value, a line or a whole text might be instead.
ODD_YAML = (
    "null", "~", "[]", "{}", "-1", "0", "1", "3", "1e9", "1e999", ".inf", "-.inf", ".nan", "1.5",
    "10_000_000_000_000_000_000_000", "0x" + "f" * 5000, "9" * 5000, "1:2:3", "0b_", "010",
    "2024-02-30", "2024-01-01", "yes", "no", "'1'", '"\\ud800"', '"\\0"', '"\\x1b[2J"', "!!int ''",
    "!!python/object/apply:os.system ['touch marker']", "!!python/name:os.system", "!!binary aGk=",
    "!!set {a, b}", "!!omap [a: 1]", "!!float x", "!!bool maybe", "!!timestamp x", "!!map [1]",
    "!!str {a: 1}", "&a [*a]", "*nothing", "=", "<<", "[" * 500, "{a: " * 500, "|\n  block", "é",
    "日本語", "a" * 5000, "[1, 2]", "{a: 1}", "[[8, .2], [1, .8]]", "[[8, .nan]]", "%", "@", "\t",
    "../../x", "'", '"', "- a", "? [a]", "{[a]: b}", "{? {a: 1} : b}",
)  # fmt: skip
BOMB = "a: &a [x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, key in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{key}: &{key} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, key in zip("abcdefghi", "bcdefghij", strict=True)
)


def recipe_case(rng: Random, world: World, folder: Path) -> Case:
    name = rng.choice(sorted(world.recipes))
    text, file = world.recipes[name], folder / f"{name}.yaml"
    overrides: list[str] = []
    way = rng.choice(("bytes", "lines", "lines", "values", "values", "values", "overrides", "none"))
    whole = None
    if way == "bytes":
        data, what = damaged(rng, text.encode())
        file.write_bytes(data)
    elif way == "lines":
        text, what = _other_lines(rng, text)
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
    elif way == "values":
        values = yaml.safe_load(text)
        what = "; ".join(_other_value(rng, values) for _ in range(rng.choice((1, 1, 2, 4))))
        file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    else:
        file.write_text(text, encoding="utf-8")
        if way == "overrides":
            overrides = [_override(rng) for _ in range(rng.randint(1, 3))]
        what, whole = (", ".join(overrides), None) if overrides else ("nothing", True)
    argv = ("train", str(file), *overrides, f"out={folder / 'run'}", "--dry-run")
    return Case(argv, folder, f"{name}: {way}: {what}", succeeds=whole)


def _other_lines(rng: Random, text: str) -> tuple[str, str]:
    lines = text.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    way = rng.choice(("delete", "double", "swap", "indent", "value", "value", "value", "insert",
                      "all", "bomb"))  # fmt: skip
    odd = rng.choice(ODD_YAML)
    if way == "delete":
        del lines[number]
    elif way == "double":
        lines.insert(number, lines[number])
    elif way == "swap":
        other = rng.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    elif way == "indent":
        lines[number] = rng.choice((" ", "  ", "\t")) + lines[number]
    elif way == "value":
        keyed = [at for at, line in enumerate(lines) if ": " in line and "#" not in line]
        number = rng.choice(keyed)
        lines[number] = f"{lines[number].split(': ')[0]}: {odd}\n"
    elif way == "insert":
        lines.insert(number, f"{rng.choice(('', '  ', 'a: ', '- '))}{odd}\n")
    elif way == "all":
        lines = [odd]
    else:
        lines.insert(rng.choice((0, len(lines))), rng.choice((BOMB, MERGE_BOMB)))
    return "".join(lines), f"{way} at line {number + 1} ({odd:.60})"


def _other_value(rng: Random, values: dict[str, Any]) -> str:
    if rng.random() < 0.5:
        found = places(values)
        return change_entry(rng, values, rng.choice(found), odd_value(rng)) if found else "nothing"
    section, key = _any_key(rng)
    place = values
    if section:
        place = values.setdefault(section, {})
        if not isinstance(place, dict):
            return f"{section} is no section any more"
    value = odd_value(rng)
    place[key] = value
    return f"{section}.{key} = {value!r:.60}"


_TRAINING = [item.name for item in fields(PatchConfig) if item.init]
_KEYS = (
    *(("", key) for key in Recipe.model_fields),
    *(("model", key) for key in ModelSection.model_fields),
    *(("plan", item.name) for item in fields(PlanSpec)),
)


def _any_key(rng: Random) -> tuple[str, Any]:
    if rng.random() < 0.4:
        return "training", rng.choice(_TRAINING)
    if rng.random() < 0.1:
        return rng.choice(("", "model", "plan", "training")), rng.choice((None, 7, "typo", "", "é"))
    return rng.choice(_KEYS)


def _override(rng: Random) -> str:
    section, key = _any_key(rng)
    equals = rng.choice(("=",) * 9 + ("", "==", " = "))
    return f"{section}{'.' if section else ''}{key}{equals}{rng.choice(ODD_YAML)}"
