"""Instruction data in each of its forms is the same conversation, and a bad row is named."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchtrain.chat import Messages
from patchtrain.data.conversations import read_conversations
from patchtrain.errors import PatchtrainError, UsageError

EXPECTED: Messages = [
    {"role": "user", "content": "What is it?\n\nA cell"},
    {"role": "assistant", "content": "It is small."},
]
SHAREGPT = [{"from": "human", "value": EXPECTED[0]["content"]},
            {"from": "gpt", "value": EXPECTED[1]["content"]}]  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": EXPECTED},
    "texts": {"prompt": EXPECTED[0]["content"], "completion": EXPECTED[1]["content"]},
    "lists": {"prompt": EXPECTED[:1], "completion": EXPECTED[1:]},
    "alpaca": {"instruction": "What is it?", "input": "A cell", "output": "It is small."},
    "whole": {"instruction": EXPECTED[0]["content"], "input": "", "output": "It is small."},
    "sharegpt": {"conversations": SHAREGPT, "id": 7},
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_conversation(form: str, tmp_path: Path) -> None:
    lines = write(tmp_path / "a.jsonl", FORMS[form])
    array = tmp_path / "a.json"
    array.write_text(json.dumps([FORMS[form]], indent=1), encoding="utf-8")
    table = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([FORMS[form]]), table)
    for file in (lines, array, table):
        found = read_conversations([file])
        assert [row.messages for row in found.rows] == [EXPECTED], file
        assert found.rows[0].where.startswith(str(file))


def test_files_are_read_in_order_compressed_or_not(tmp_path: Path) -> None:
    text = json.dumps(FORMS["alpaca"]).encode()
    for name, pack in (("1.jsonl.gz", gzip.compress), ("2.json.xz", lzma.compress),
                       ("3.jsonl.zst", zstandard.compress)):  # fmt: skip
        (tmp_path / name).write_bytes(pack(text))
    found = read_conversations([tmp_path])
    assert [Path(row.where.split(":")[0]).name[0] for row in found.rows] == ["1", "2", "3"]
    assert all(row.messages == EXPECTED for row in found.rows)


def test_what_has_no_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    thanks = {"role": "user", "content": "Thanks."}
    file = write(
        tmp_path / "a.jsonl",
        {"messages": [*EXPECTED, thanks]},
        {"messages": [thanks]},
        {"messages": []},
        {"instruction": "Say nothing.", "output": " \n"},
    )
    found = read_conversations([file])
    assert [row.messages for row in found.rows] == [EXPECTED]
    assert found.without_answer == 3
    with pytest.raises(UsageError, match="no answer to learn from"):
        read_conversations([write(tmp_path / "b.jsonl", {"messages": []})])


def test_system_messages(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    file = write(
        tmp_path / "a.jsonl",
        {"messages": [system, *EXPECTED]},
        {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]},
        {**FORMS["alpaca"], "system": "Be brief."},
    )
    assert [row.messages for row in read_conversations([file]).rows] == [[system, *EXPECTED]] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, r"line 2 is no instruction data: it needs .* it has: text"),
        ({"messages": "hi"}, "line 2: 'messages' is not a list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1 of 'messages' does not have 'role' and"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 of 'messages' is of 'bot'"),
        ({"messages": [{"role": ["x"], "content": "x"}]}, r"is of \['x'\]; known: system, user"),
        ({"messages": [{"role": "user", "content": 7}]}, "content of message 1 .* is not text"),
        ({"messages": [*EXPECTED, {"role": "system", "content": ""}, *EXPECTED]}, "only be the fi"),
        ({"instruction": 7, "output": "x"}, "the instruction is not text"),
        ({"prompt": "x", "completion": {"a": 1}}, "the completion is not text"),
        ({"prompt": "\ud800", "completion": "x"}, "half a surrogate pair"),
        (["x"], "line 2 is not a JSON object but a list"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(row: Any, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", FORMS["alpaca"], row)
    with pytest.raises(PatchtrainError, match=message) as caught:
        read_conversations([file])
    assert str(caught.value).startswith(f"{file}: line 2")
    assert "\n" not in str(caught.value)


def test_a_bad_row_of_parquet_and_a_text_file(tmp_path: Path) -> None:
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": [1, 2]}), table)
    with pytest.raises(PatchtrainError, match=r"a\.parquet: row 1: the completion is not text"):
        read_conversations([table])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match="is no instruction data: give JSON"):
        read_conversations([tmp_path / "a.txt"])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "user", "human"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
columns = st.sampled_from(["messages", "conversations", "prompt", "completion", "instruction",
                           "input", "output", "system", "x"])  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(columns, values, max_size=5))
def test_any_row_is_a_conversation_or_one_clear_error(
    tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]
) -> None:
    file = write(tmp_path_factory.mktemp("rows") / "a.jsonl", row)
    try:
        found, problem = read_conversations([file]).rows[0].messages, ""
    except PatchtrainError as error:
        found, problem = [], str(error)
    assert "\n" not in problem
    assert bool(problem) == (not found)
    assert not found or found[-1]["role"] == "assistant"
    assert all(isinstance(message["content"], str) for message in found)
