"""The map of the rooms in CONTRIBUTING.md is true: no module imports from a line above its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "patchtrain"
(MAP,) = re.findall(
    r"## The rooms\n.*?```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL
)
LINES = [re.split(r" {2,}", line)[0].split(", ") for line in MAP.splitlines()]
LINE = {name: number for number, names in enumerate(LINES) for name in names}
MODULES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
    if file.stem != "__main__"
}


def line_of(module: str) -> int:
    """The number of the line, from the top, that a module or else its room stands on."""
    _, room, *inside = module.split(".")
    return LINE.get(".".join([room, *inside[:1]]), LINE[room])


def imports() -> Iterator[tuple[str, str]]:
    """Who imports whom, also inside functions and for types alone; the package's root aside."""
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.module, f"{module} has a relative import"
                wholes = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [whole if whole in MODULES else node.module for whole in wholes]
            for name in names:
                if name.startswith("patchtrain.") and module not in (name, "patchtrain"):
                    yield module, name


def test_no_module_imports_from_a_line_above_its_own() -> None:
    found = set(imports())
    assert ("patchtrain.recipe", "patchtrain.training.config") in found  # inside a function
    upwards = [f"{who} imports {whom}" for who, whom in found if line_of(whom) < line_of(who)]
    assert not upwards, sorted(upwards)


def test_the_map_has_what_is_there_and_nothing_else() -> None:
    rooms = {module.split(".")[1] for module in MODULES if "." in module}
    assert rooms == {name for name in LINE if "." not in name}
    assert {f"patchtrain.{name}" for name in LINE} <= MODULES.keys()
    assert len(LINE) == sum(map(len, LINES))
