"""YAML gives plain values or one clear line."""

from __future__ import annotations

from typing import Any

import pytest

from patchtrain.errors import UsageError
from patchtrain.yaml_reader import LONGEST, read_yaml
from tests.fuzzing.recipes import BOMB, MERGE_BOMB


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, 2.5, null, yes]", {"a": 1, "b": ["x", 2.5, None, True]}),
        ("a: &size 64\nb: *size", {"a": 64, "b": 64}),
        ("out: 2024-01-31", {"out": "2024-01-31"}),
        ("out: 2024-02-31", {"out": "2024-02-31"}),
        ("a: {<<: {b: 1}, c: 2}", {"a": {"b": 1, "c": 2}}),
        ("", None),
        ("a: é日本", {"a": "é日本"}),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    assert read_yaml(text, "here") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "line 2: not valid YAML: an alias stands for a single value"),
        (MERGE_BOMB, "line 2: not valid YAML: an alias stands for a single value"),
        ("a: &a [*a]", "an alias stands for a single value"),
        ("a: 1\nb: 2\na: 3", "line 3: not valid YAML: the key 'a' stands twice"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("a: !!binary aGk=", "could not determine a constructor for the tag"),
        ("a: !!set {b, c}", "could not determine a constructor for the tag"),
        ("a: !!int ''", "line 1: not valid YAML: '' is no int"),
        ("a: !!bool maybe", "'maybe' is no bool"),
        ("a: !!float x", "'x' is no float"),
        ("a: 0b_", "'0b_' is no int"),
        ("a: " + "9" * 5000, r"9\.\.\. is no int"),
        ("a: 0x" + "f" * 5000, r"f\.\.\. is no int"),
        ('a: "\\ud800"', "is no str"),
        ("[" * 3000, "nested too deep"),
        ("a: \x07", "special characters are not allowed"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("x" * (LONGEST + 1), "too long for a recipe"),
    ],
)
def test_anything_else_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(text, "here")
    assert str(caught.value).startswith("here:")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
