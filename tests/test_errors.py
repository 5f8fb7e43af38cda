"""Messages are one line that a terminal shows as it is."""

from __future__ import annotations

import pytest

from patchtrain.errors import nearest, one_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("two\nlines  and\tspace", "two lines and space"),
        ("\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("a\udce9b", "a\\udce9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (ValueError(), "ValueError"),
        (KeyError("k"), "'k'"),
        ("é日本", "é日本"),
    ],
)
def test_one_line(message: object, line: str) -> None:
    assert one_line(message) == line


def test_a_long_message_is_cut() -> None:
    assert one_line("x" * 300) == "x" * 197 + "..."
    assert one_line("x" * 300, limit=10) == "xxxxxxx..."


def test_the_nearest_name_of_anything() -> None:
    assert nearest("patch_sise", ["patch_size"]) == "; did you mean 'patch_size'?"
    assert nearest(None, ["a", "b"]) == "; known: a, b"
