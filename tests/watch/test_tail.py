"""Lines are read once, when they are whole, whatever befalls their file."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from patchtrain.watch.tail import Tail


def test_lines_come_once_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    tail = Tail(file)
    assert tail.read() == (False, [])  # not there yet
    file.write_text('{"a": 1}\n{"a": 2')
    assert tail.read() == (False, [{"a": 1}])
    with file.open("a") as more:
        more.write('2}\n{"a": 3}\n')
    assert tail.read() == (False, [{"a": 22}, {"a": 3}])
    assert tail.read() == (False, [])


def test_any_cut_of_the_bytes_gives_the_same_lines(tmp_path: Path) -> None:
    text = "".join(f'{{"n": {n}, "text": "é{n}"}}\n' for n in range(50)).encode()
    rng = random.Random(0)
    for _ in range(20):
        file = tmp_path / "lines"
        file.write_bytes(b"")
        tail, rows, place = Tail(file), [], 0
        while place < len(text):
            end = place + rng.randint(1, 90)
            with file.open("ab") as out:
                out.write(text[place:end])
            place = end
            rows += tail.read()[1]
        assert [row["n"] for row in rows] == list(range(50))


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    first = "".join(f'{{"n": {n}}}\n' for n in range(100))
    file.write_text(first)
    tail = Tail(file)
    assert len(tail.read()[1]) == 100
    file.write_text(first[:90])  # shorter: resumed from a checkpoint
    replaced, rows = tail.read()
    assert replaced
    assert len(rows) == 10
    file.write_text(first.replace("8", "7") + '{"n": -1}\n')  # longer, and another
    replaced, rows = tail.read()
    assert replaced
    assert len(rows) == 101
    file.unlink()
    assert tail.read() == (True, [])
    assert tail.read() == (False, [])


def test_broken_lines_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n\n[1]\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    tail = Tail(file)
    assert tail.read() == (False, [{"a": 1}, {"a": 2}])
    assert tail.broken == 4


def test_a_folder_in_its_place_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        Tail(tmp_path / "metrics.jsonl").read()
