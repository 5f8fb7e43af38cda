"""The public surface is one page, made from the code; examples and docs use nothing else."""

import ast
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import patchtrain
from patchtrain.cli.main import main
from patchtrain.errors import PatchtrainError, UsageError

ROOT = Path(__file__).parents[1]
PUBLIC = runpy.run_path(str(ROOT / "tools" / "public.py"))
PAGE = (ROOT / "docs" / "reference" / "public.md").read_text(encoding="utf-8")
MODULES = {module.__name__: module for module in PUBLIC["public_modules"]()}


def test_the_page_is_current() -> None:
    assert PUBLIC["written"](PAGE) == PAGE, "run python tools/public.py"
    assert len(re.findall(r"<!-- \w+ -->", PAGE)) == 2 * len(PUBLIC["PARTS"])


def test_every_public_name_is_there_and_says_in_a_sentence_what_it_is() -> None:
    assert list(MODULES) == [
        "patchtrain", "patchtrain.advice", "patchtrain.analysis.studies", "patchtrain.memory",
    ]  # fmt: skip
    for module in MODULES.values():
        for name in module.__all__:
            value = getattr(module, name)
            if name.startswith("_"):
                continue
            assert not inspect.ismodule(value)
            assert name in PAGE
            sentence = PUBLIC["first_sentence"](value)
            assert len(sentence) > 12, name
            assert not sentence.startswith(f"{name}("), f"{name} has no docstring"


def test_the_members_that_are_named_exist() -> None:
    classes = {name: getattr(place, name) for place in MODULES.values() for name in place.__all__}
    for name, members in PUBLIC["MEMBERS"].items():
        fields = getattr(classes[name], "__dataclass_fields__", {})
        assert all(hasattr(classes[name], member) or member in fields for member in members), name


def test_type_checkers_see_the_names_that_are_loaded_when_used() -> None:
    tree = ast.parse(Path(patchtrain.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"patchtrain.{place}" for name, place in patchtrain._PUBLIC.items()}


def imports(source: str) -> set[tuple[str, str]]:
    """``(module, name)`` of all that a script takes from patchtrain."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "patchtrain":
            found |= {(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            own = [alias.name for alias in node.names if alias.name.split(".")[0] == "patchtrain"]
            found |= {(name, "") for name in own}
    return found


def scripts() -> dict[str, str]:
    found = {str(file): file.read_text(encoding="utf-8") for file in ROOT.glob("examples/*.py")}
    for page in (ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        found |= {f"{page}, block {number}": block for number, block in enumerate(blocks)}
    return found


def test_examples_and_docs_use_only_what_is_public() -> None:
    used = {(where, *found) for where, text in scripts().items() for found in imports(text)}
    assert len(used) > 10
    for where, module, name in used:
        assert module in MODULES, f"{where} imports from {module}"
        assert not name or name in MODULES[module].__all__, f"{where} imports {name} from {module}"


@pytest.mark.parametrize(("error", "code"), [(PatchtrainError("x"), 1), (UsageError("x"), 2)])
def test_the_exit_codes_of_the_page(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: Any) -> int:
        raise error

    monkeypatch.setattr("patchtrain.cli.report.run", fail)
    assert main(["report", "x"]) == code
    assert re.search(rf"^\| {code} \|", PAGE, re.MULTILINE)
