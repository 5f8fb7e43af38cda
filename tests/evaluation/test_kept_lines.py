"""What was expensive to get survives the process that got it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchtrain.errors import PatchtrainError
from patchtrain.evaluation.kept_lines import KeptLines, key_of


def test_lines_are_found_again_by_their_key(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.jsonl"
    kept = KeptLines(file)
    assert not file.parent.exists()
    keys = [key_of("model", {"a": 1}, n) for n in range(3)]
    assert len(set(keys)) == 3
    assert key_of("model", {"a": 1}, 0) == keys[0]
    for n, key in enumerate(keys[:2]):
        kept.add(key, {"text": "a\nb\u2028" * n})
    again = KeptLines(file)
    assert again.rows == kept.rows
    assert again.get(keys[1]) == {"key": keys[1], "text": "a\nb\u2028"}
    assert again.get(keys[2]) is None


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_line_that_a_killed_process_left_is_dropped(whole: int, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = "".join(json.dumps({"key": str(n)}) + "\n" for n in range(whole))
    file.write_text(lines + '{"key": "ha')
    kept = KeptLines(file)
    assert list(kept.rows) == [str(n) for n in range(whole)]
    assert file.read_text() == lines
    kept.add("more", {})
    assert list(KeptLines(file).rows) == [*(str(n) for n in range(whole)), "more"]


@pytest.mark.parametrize("line", ["{", "[]", "7", '{"x": 1}', "\xff", '{"key": []}'])
def test_another_broken_line_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"key": "a"}\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(PatchtrainError, match=r"a\.jsonl: line 2 is damaged .* delete that line"):
        KeptLines(file)


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("")
    (tmp_path / "a.jsonl").symlink_to(other)
    with pytest.raises(PatchtrainError, match="is a link"):
        KeptLines(tmp_path / "a.jsonl").add("a", {})
    assert other.read_text() == ""
