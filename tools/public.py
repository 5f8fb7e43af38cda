"""Write the lists of docs/reference/public.md from the code.

    python tools/public.py

After a marker ``<!-- NAME -->``, up to ``<!-- end -->``, stands what ``PARTS`` has under that name.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import patchtrain
from patchtrain import runs
from patchtrain.data import store
from patchtrain.files import write_text
from patchtrain.training.config import PatchConfig

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "public.md"
# Of a class, the members that are public besides its constructor's arguments.
MEMBERS = {
    "PatchTrainer": ("train", "evaluate", "export"),
    "PlanSpec": ("from_dict", "for_model", "resolve"),
    "Plan": ("stage_at", "rate_at", "warnings", "to_dict"),
    "TokenStore": ("open", "verify", "load_tokenizer", "train", "validation", "meta"),
    "RunFolder": ("open", "model", "info", "metrics", "samples", "evaluation", "stage_models"),
    "Memory": ("peak", "when", "to_dict"),
}


def public_modules() -> Iterator[Any]:
    """``patchtrain``, then each of its modules that has an ``__all__``."""
    yield patchtrain
    for found in pkgutil.walk_packages(patchtrain.__path__, "patchtrain."):
        source = found.module_finder.find_spec(found.name).origin  # type: ignore[call-arg, union-attr]
        if re.search(r"^__all__ =", Path(source).read_text(encoding="utf-8"), re.MULTILINE):
            yield importlib.import_module(found.name)


def names() -> str:
    parts = []
    for module in public_modules():
        parts.append(f"### `{module.__name__}`\n")
        for name in module.__all__:
            if not name.startswith("_"):
                parts.append(described(name, getattr(module, name)))
        parts.append("")
    return "\n".join(parts)


def described(name: str, value: Any) -> str:
    members = ", ".join(f"`{member}`" for member in MEMBERS.get(name, ()))
    more = f" Public members: {members}." if members else ""
    return f"- `{name}{signature(value)}`: {first_sentence(value)}{more}"


def signature(value: Any) -> str:
    """As in the code; of an error nothing, of a config only what it adds to its base."""
    if isinstance(value, type) and issubclass(value, Exception):
        return ""
    if value is PatchConfig:
        own = [f"{field.name}={field.default!r}" for field in own_fields(value)]
        return f"(..., {', '.join(own)})"
    asked, own = inspect.signature(value), []
    for parameter in asked.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in own:
            own.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        text = f"{star.get(parameter.kind, '')}{parameter.name}: {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            text += f" = {default(parameter.default)}"
        own.append(text)
    returns = "" if isinstance(value, type) else f" -> {annotation(asked.return_annotation)}"
    return f"({', '.join(own)}){returns}"


def annotation(value: Any) -> str:
    return value if isinstance(value, str) else inspect.formatannotation(value)


def default(value: Any) -> str:
    """As one would write it; of what is made anew each time, three dots."""
    if callable(value):
        return str(value.__name__)
    return "..." if repr(value) == "<factory>" else repr(value)


def own_fields(config: Any) -> list[Any]:
    """The fields that a dataclass adds to those of its base."""
    inherited = {field.name for field in dataclasses.fields(config.__base__)}
    return [field for field in dataclasses.fields(config) if field.name not in inherited]


def first_sentence(value: Any) -> str:
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split()).replace("``", "`")
    return re.split(r"(?<=[a-z`)\d][.:;]) (?=[A-Z`(])", paragraph)[0].rstrip(":;")


def files_of(module: Any) -> str:
    """The block of a module's docstring that names the files of a folder."""
    (block,) = re.findall(r"::\n\n(.*?)\n\n", module.__doc__, re.DOTALL)
    return f"```text\n{inspect.cleandoc(block)}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "names": names,
    "run": lambda: files_of(runs),
    "store": lambda: files_of(store),
}


def written(text: str) -> str:
    """``text`` with every list as the code has it now."""
    for name, part in PARTS.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        found = re.search(pattern, text, re.DOTALL)
        assert found, name
        new = f"{found[1]}{part().strip()}\n{found[2]}"
        text = text[: found.start()] + new + text[found.end() :]
    return text


if __name__ == "__main__":
    write_text(PAGE, written(PAGE.read_text(encoding="utf-8")))
