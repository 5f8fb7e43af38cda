"""YAML as recipes use it: plain values, every key once, nothing that runs or grows.

``yaml.SafeLoader`` builds no Python objects. Beyond that, an alias stands for a single value only:
nested aliases of whole sections make a text of one line stand for more values than memory holds.
Dates stay text, and text is what UTF-8 can hold.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from patchtrain.errors import UsageError, one_line

LONGEST = 1 << 18
"""Characters of the longest text that is read: a few seconds."""
_TAG = "tag:yaml.org,2002:"


def read_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; ``UsageError`` says after ``where`` what is wrong in which line."""
    if len(text) > LONGEST:
        raise UsageError(
            f"{where}: too long for a recipe, which has at most {LONGEST:,} characters"
        )
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", "cannot be read")
        raise UsageError(f"{where}:{line} not valid YAML: {one_line(problem)}") from error
    except RecursionError as error:
        raise UsageError(f"{where}: sections are nested too deep to be read") from error


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        alias = self.peek_event() if self.check_event(yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        if alias is not None and not isinstance(node, yaml.ScalarNode):
            problem = "an alias stands for a single value here, not for a section or a list"
            raise ComposerError(None, None, problem, alias.start_mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError) as error:
            problem = f"{one_line(repr(node.value), 60)} is no {node.tag.removeprefix(_TAG)}"
            raise ConstructorError(None, None, problem, node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            name = (key.tag, str(key.value))
            if name in seen:
                problem = f"the key '{one_line(key.value, 60)}' stands twice in its section"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _text(loader: Any, node: Any) -> str:
    value: str = loader.construct_scalar(node)
    value.encode()  # half a surrogate pair raises here: neither a file nor a tokenizer takes it
    return value


def _whole_number(loader: Any, node: Any) -> int:
    value: int = yaml.SafeLoader.construct_yaml_int(loader, node)
    if value.bit_length() > 256:
        raise ValueError("more digits than any setting has")
    return value


def _refuse(loader: Any, node: Any) -> Any:
    return yaml.SafeLoader.construct_undefined(loader, node)


for _kind in ("str", "timestamp"):
    _Loader.add_constructor(_TAG + _kind, _text)
for _kind in ("binary", "set", "omap", "pairs"):
    _Loader.add_constructor(_TAG + _kind, _refuse)
_Loader.add_constructor(_TAG + "int", _whole_number)
