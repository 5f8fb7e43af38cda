"""Damaged text files for ``prepare``: text, JSON lines, JSON arrays, Parquet, compressed or not.

What the file holds is read here once more, by plain means, so that a loss is noticed.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tests.fuzzing.chance import damaged
from tests.fuzzing.judging import Case
from tests.fuzzing.world import World

TEXTS = (
    "The cat sat on the mat.", "ä ö ü 日本語 🙂", "", " \n\t ", "one\ntwo\r\nthree\r", "a" * 5000,
    "<|endoftext|> in the middle <|endoftext|>", "\0 and \x1b[31m", '{"text": "inner"}', "\ufeffx",
    "\u2028 line\u2029", "x y " * 4500, "'\"\\", "Zeile\n\n\nZeile",
)  # fmt: skip
NAMES = (
    "text",
    "ä 日本",
    "a[1]",
    "-x",
    "new\nline",
    "quote'\"",
    "x" * 200,
    "caf\udce9",
    "~you",
    "#%&",
)

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    # With a checksum, as the command line tool writes it.
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}

# What a line of JSON lines might be instead; None of them is an object with a text.
ODD_LINES = (
    "{", "[]", "1", "null", '"text"', '{"text": 1}', '{"text": ["a"]}', '{"txt": "a"}', "{}",
    '{"text": "\\ud800"}', '{"text": "a"} {"text": "b"}', "NaN", "[" * 5000,
    '{"text": ' + "9" * 5000 + "}",
    '{"text": "a"', "{'text': 'a'}", '{"text": {"text": "a"}}', "{\"text\": \"a\tb\"}", "\x00",
)  # fmt: skip

OTHER_READING = (
    ["--format", "jsonl"], ["--format", "parquet"], ["--format", "text"],
    ["--text-column", "number"], ["--text-column", "none\n"],
    ["--document-separator", "\\n"], ["--document-separator", "a"],
)  # fmt: skip


def text_case(rng: Random, world: World, folder: Path) -> Case:
    kind, packing = rng.choice(("txt", "jsonl", "json", "parquet")), rng.choice(sorted(PACK))
    texts = [rng.choice(TEXTS) for _ in range(rng.randint(1, 8))]
    way = rng.choice(("nothing", "inner", "inner", "outer", "outer", "lines", "second", "name"))
    content, what, succeeds = write(kind, texts), "nothing", True
    expected: Sequence[str] | None = texts if kind == "parquet" else read(kind, content)
    assert expected is not None
    rows: int | None = len(expected)
    if way == "lines" and kind == "jsonl":
        content, what = _odd_line(rng, content)
        succeeds = False
    elif way == "inner" and kind != "parquet":
        content, what = damaged(rng, content)
        expected = read(kind, content)
        succeeds = None if expected is not None else False
        rows = len(expected or ())
    elif way == "inner":
        content, what = damaged(rng, content)
        # A flipped bit may be another letter, but no document may be missing.
        succeeds, expected = None, None
    data = PACK[packing](content)
    if way == "outer" and packing:
        data, what = damaged(rng, data)
        succeeds = None
    elif way == "second" and packing:
        data, what = _second_stream(rng, data, PACK[packing](content))
        succeeds = False
    name = rng.choice(NAMES) if way == "name" else "text"
    file = folder / f"{name}.{kind}{packing}"
    file.write_bytes(data)
    if not any(text.strip() for text in expected or ()):
        succeeds = None if succeeds else succeeds
    options = ["--tokenizer", str(world.tokenizer), "--validation-fraction", "0"]
    if rng.random() < 0.2:
        options = rng.choice(_other_tokenizers(world))
        succeeds = None if succeeds else succeeds
    elif rng.random() < 0.2:
        options += rng.choice(OTHER_READING)
        succeeds = expected = rows = None
    if expected is not None:
        expected = [text for text in expected if text.strip()]
    argv = ("prepare", str(file), "--out", str(folder / "store"), *options)
    return Case(
        argv,
        folder,
        f"{file.name}, {way}: {what}; {' '.join(options[2:])}",
        out=folder / "store",
        succeeds=succeeds,
        texts=expected,
        rows=None if kind == "txt" else rows,
    )


def write(kind: str, texts: Sequence[str]) -> bytes:
    """The texts as a file of a kind; of a text file they are one document."""
    if kind == "txt":
        return "".join(texts).encode()
    rows = [{"number": number, "text": text} for number, text in enumerate(texts)]
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1).encode()
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, write_page_checksum=True, row_group_size=3)
    return sink.getvalue()


def read(kind: str, data: bytes) -> list[str] | None:
    """The documents of a file by plain means, or None where it is damaged."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
        if kind == "txt":
            return [text]
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        return [_text_of(row) for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _text_of(row: dict[str, Any]) -> str:
    text = row["text"]
    if text is None:
        return ""
    text.encode()
    return str(text)


def _odd_line(rng: Random, content: bytes) -> tuple[bytes, str]:
    lines = content.decode().split("\n")
    odd = rng.choice(ODD_LINES)
    # Not the first: a first line that is a list makes the file an array.
    lines.insert(rng.randint(1, len(lines) - 1), odd)
    return "\n".join(lines).encode(), f"the line {odd:.40}"


def _second_stream(rng: Random, data: bytes, second: bytes) -> tuple[bytes, str]:
    """Two compressed streams, the second one damaged at its head or without its end."""
    if rng.random() < 0.5:
        place = rng.randrange(4)
        second = second[:place] + bytes([second[place] ^ 0xFF]) + second[place + 1 :]
        return data + second, f"the second stream's byte {place} flipped"
    return data + second[: rng.randint(1, len(second) - 1)], "the second stream without its end"


def _other_tokenizers(world: World) -> tuple[list[str], ...]:
    """Options under which not all whole input is enough."""
    return (
        ["--train-tokenizer", "byte", "--validation-fraction", "0"],
        ["--train-tokenizer", "bpe", "--vocab-size", "260", "--validation-fraction", "0"],
        ["--train-tokenizer", "char", "--vocab-size", "260"],
        ["--tokenizer", str(world.store), "--validation-fraction", "0.5"],
        ["--tokenizer", str(world.run / "model"), "--validation-fraction", "0.999999"],
    )
