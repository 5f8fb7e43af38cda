"""The reference says what the code says."""

import argparse
import re
import runpy
from dataclasses import fields

import pytest

from patchtrain import PlanSpec
from patchtrain.cli.main import build_parser
from patchtrain.presets import PRESETS
from tests.docs.reading import DOCS, ROOT, text_of

REFERENCE = runpy.run_path(str(ROOT / "tools" / "reference.py"))


@pytest.mark.parametrize("name", REFERENCE["PAGES"])
def test_a_page_is_what_the_code_says(name: str) -> None:
    committed = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert committed == REFERENCE["PAGES"][name](), "run python tools/reference.py"


def test_every_plan_key_and_preset_value_is_documented() -> None:
    page = text_of("docs/reference/recipe.md")
    keys = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert {field.name for field in fields(PlanSpec)} <= set(keys)
    for key in PRESETS["paper"]:
        values = [preset.get(key, "by the model's size") for preset in PRESETS.values()]
        assert f"| `{key}` | {' | '.join(map(str, values))} |" in page


def options(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for sub in action.choices.values() for option in options(sub)}
    return found


def test_every_option_is_documented() -> None:
    page = text_of("docs/reference/cli.md")
    missing = {option for option in options(build_parser()) if option not in page}
    assert missing == {"-h", "--help", "--version"} - set(re.findall(r"--\w+|-h", page))


def test_help_becomes_markdown() -> None:
    prose = REFERENCE["prose"]
    assert prose("Takes *all* of it\nwith --out.") == [r"Takes \*all\* of it with `--out`."]
    assert prose("`a_b --help` and a_b") == [r"`a_b --help` and a\_b"]
    assert prose("examples:\n  patchtrain demo\n") == [
        "examples:", "```text\npatchtrain demo\n```"
    ]  # fmt: skip
    assert prose("a    one\nbc   two") == ["```text\na    one\nbc   two\n```"]


def test_the_costs_in_the_idea_are_what_the_formula_gives() -> None:
    table = re.findall(r"^\| lambda = (\d)/(\d) \|(.*)\|$", text_of("docs/idea.md"), re.MULTILINE)
    assert len(table) == 3
    for over, under, row in table:
        share = int(over) / int(under)
        cells = [float(cell) for cell in row.split("|")]
        assert cells == [pytest.approx(share / K + 1 - share, abs=5.1e-4) for K in (2, 4, 8)]
