"""Damage to bytes and to nested values, chosen by a source of chance."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

ODD_BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xc3",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"[",
    b"\x1b[2J",
)


def damaged(rng: Random, data: bytes) -> tuple[bytes, str]:
    """``data`` with one to three wounds, never equal to it, and what was done."""
    done = []
    changed = data
    while changed == data:
        for _ in range(rng.randint(1, 3)):
            wound = rng.choice(WOUNDS)
            changed = wound(rng, changed)
            done.append(wound.__name__.strip("_"))
    return changed, ", ".join(done)


def _flip(rng: Random, data: bytes) -> bytes:
    if not data:
        return b"x"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(max(len(data), 1))]


def _extend(rng: Random, data: bytes) -> bytes:
    return data + rng.choice(ODD_BYTES) * rng.randint(1, 9)


def _insert(rng: Random, data: bytes) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(ODD_BYTES) + data[place:]


def _cut(rng: Random, data: bytes) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + data[start + rng.randint(1, 20) :]


def _zeroes(rng: Random, data: bytes) -> bytes:
    start = rng.randint(0, len(data))
    length = min(rng.randint(1, 20), len(data) - start)
    return data[:start] + b"\0" * length + data[start + length :]


def _swap(rng: Random, data: bytes) -> bytes:
    first, second, third = sorted(rng.randint(0, len(data)) for _ in range(3))
    return data[:first] + data[second:third] + data[first:second] + data[third:]


WOUNDS: tuple[Callable[[Random, bytes], bytes], ...] = (
    _flip, _truncate, _extend, _insert, _cut, _zeroes, _swap,
)  # fmt: skip

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 7, 2**31, 2**63, 10**30, -(10**18), 0.5, -0.1, 1e308,
    float("inf"), float("-inf"), float("nan"), "", "x", "1", "1e9", "-5", "\0", "no", "../..",
    "/etc/passwd", "ä\u202eö", "a" * 3000, [], [1], [[8, 0.5], [1, 0.5]], [None], ["a", {}], {},
    {"a": 1}, {"patch_size": 2}, [[[[]]]], "cuda:9", "\x1b[31m", "a\nb",
)  # fmt: skip


def odd_value(rng: Random) -> Any:
    return rng.choice(ODD_VALUES)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of nested mappings and lists."""
    found = []
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            found += [(*path, key), *places(inner, (*path, key))]
    return found


def change_entry(rng: Random, values: Any, path: tuple[Any, ...], new: Any) -> str:
    """Set, take out or rename the entry at ``path``, in place; what was done."""
    *before, last = path
    for key in before:
        values = values[key]
    shown = ".".join(map(str, path))
    what = rng.choice(("set", "set", "set", "set", "delete", "rename"))
    if what == "set":
        values[last] = new
        return f"{shown} = {new!r:.60}"
    old = values.pop(last)
    if what == "rename" and isinstance(values, dict):
        values[rng.choice((f"{last}_", str(last)[:-1], 7, "name"))] = old
    return f"{what} {shown}"
