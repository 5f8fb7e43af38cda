"""Every format and compression gives the same documents; what is broken is named."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.data import hub, readers
from patchtrain.data.readers import Counts, split_text, text_size
from patchtrain.data.sources import DOCUMENT_LIMIT, TEXT_LIMIT, open_corpus, read_documents
from patchtrain.errors import PatchtrainError, UsageError

TEXTS = ["one\ntwo", "drei ö 細胞", "three  \r\n four"]
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def jsonl(texts, column="text"):
    return "".join(json.dumps({"id": i, column: text}) + "\n" for i, text in enumerate(texts))


def parquet_bytes(columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".json", ".parquet"])
def test_formats_and_compressions(tmp_path, kind, ending):
    data = {
        ".jsonl": jsonl(TEXTS).encode(),
        ".json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
        ".parquet": parquet_bytes({"text": TEXTS, "id": [1, 2, 3]}),
    }.get(kind, TEXTS[1].encode())
    file = tmp_path / f"a{kind}{ending}"
    file.write_bytes(PACK[ending](data))
    expected = [TEXTS[1]] if kind in (".txt", ".md") else TEXTS
    assert list(read_documents([file])) == expected


def test_several_frames_are_read_to_the_end(tmp_path):
    for ending in (".gz", ".xz", ".zst"):
        file = tmp_path / f"a.txt{ending}"
        file.write_bytes(PACK[ending](b"first ") + PACK[ending](b"second"))
        assert list(read_documents([file])) == ["first second"]


def test_folders_and_globs(tmp_path):
    for name in ("b.txt", "a.jsonl", "sub/c.md", ".hidden/d.txt", ".e.txt", "picture.png"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(jsonl([name]) if name.endswith("jsonl") else name)
    assert list(read_documents([tmp_path])) == ["a.jsonl", "b.txt", "sub/c.md"]
    assert open_corpus([tmp_path]).skipped == {".png": 1}
    assert list(read_documents([f"{tmp_path}/*.txt"])) == ["b.txt"]
    assert list(read_documents([f"{tmp_path}/**/*.md"])) == ["sub/c.md"]
    everything = list(read_documents([tmp_path], format="text"))
    assert "picture.png" in everything


def test_order_blank_documents_and_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffzuerst".encode())
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["x", " \n", ""]).encode())
    (tmp_path / "c.jsonl").write_text('{"text": null}\n\n{"text": "y"}')
    corpus, counts = open_corpus([tmp_path / n for n in ("c.jsonl", "a.txt", "b.jsonl")]), Counts()
    assert list(corpus.documents(counts)) == ["y", "zuerst", "x"]
    assert counts.blank == 3
    assert counts.read_bytes == corpus.size


@given(
    st.text(alphabet="ab \n=", max_size=120),
    st.sampled_from([None, "=", "==", "\n=\n"]),
    st.integers(1, 12) | st.none(),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_cutting_does_not_depend_on_the_chunks(text, separator, limit, sizes):
    def chunks():
        start, turn = 0, 0
        while start < len(text):
            size = sizes[turn % len(sizes)]
            yield text[start : start + size]
            start, turn = start + size, turn + 1

    cuts, whole_cuts = [], []
    parts = list(split_text(chunks(), separator, limit, lambda: cuts.append(1)))
    whole = list(split_text([text], separator, limit, lambda: whole_cuts.append(1)))
    expected = text.split(separator) if separator else [text]
    assert [p for p in parts if p] == [p for p in whole if p]
    assert "".join(parts) == "".join(expected)
    assert len(cuts) == len(whole_cuts)
    assert len(cuts) == (sum(len(doc) > limit for doc in expected) if limit else 0)
    assert limit is None or all(len(part) <= limit for part in parts)
    if limit is None:
        assert parts == expected


def test_long_text_is_cut_at_line_ends_and_nothing_is_lost(tmp_path):
    line = "a line of some words\n"
    text = line * 5000
    (tmp_path / "a.txt").write_text(text)
    corpus, counts = open_corpus([tmp_path / "a.txt"]), Counts()
    parts = list(corpus.documents(counts, cut=True))
    assert "".join(parts) == text
    assert all(len(part) <= TEXT_LIMIT and part.endswith("\n") for part in parts)
    assert len(parts) == 7
    assert counts.cut == 1
    assert list(corpus.documents()) == [text]


def test_only_the_longest_documents_of_other_formats_are_cut(tmp_path):
    texts = ["x" * DOCUMENT_LIMIT, "y" * (DOCUMENT_LIMIT + 1)]
    (tmp_path / "a.jsonl").write_text(jsonl(texts))
    counts = Counts()
    parts = list(open_corpus([tmp_path / "a.jsonl"]).documents(counts, cut=True))
    assert [len(part) for part in parts] == [DOCUMENT_LIMIT, DOCUMENT_LIMIT, 1]
    assert counts.cut == 1


def test_document_separator(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\nlines\n\nthree")
    found = list(read_documents([tmp_path / "a.txt"], document_separator="\n\n"))
    assert found == ["one", "two\nlines", "three"]


def test_standard_library():
    corpus = open_corpus(["stdlib"])
    names = [source.name for source in corpus.sources]
    assert "stdlib/argparse.py" in names
    assert not [name for name in names if "/test/" in name or "site-packages" in name]
    assert corpus.records[0]["fingerprint"] == open_corpus(["stdlib"]).records[0]["fingerprint"]
    assert corpus.records[0]["bytes"] > 5_000_000


def test_a_file_of_the_standard_library_that_is_not_utf8_is_counted(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# fine\n" * 5000 + b"name = '\xe9'\n")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    counts = Counts()
    assert list(open_corpus(["stdlib"]).documents(counts, cut=True)) == ["x = 1\n"]
    assert counts.undecodable == 1


BROKEN = {
    "line3.jsonl": (b'{"text":"a"}\n\n{"text": bad}\n', "line 3 is not JSON: Expecting value"),
    "list.jsonl": (b'{"text":"a"}\n["a"]\n', "line 2 is not a JSON object but a list"),
    "column.jsonl": (b'{"body":"a","id":1}\n', "line 1 has no column 'text'; it has: body, id"),
    "number.jsonl": (b'{"text":3}\n', "line 1: column 'text' holds a number, not text"),
    "half.jsonl": (b'{"text":"a\\ud800"}\n', "half a surrogate pair at character 1"),
    "bytes.jsonl": (b'{"text":"a"}\n{"text":"\xff"}\n', "line 2 is not UTF-8 text: byte 0xff"),
    "deep.jsonl": (b'{"a":' * 100_000, "line 1 cannot be read as JSON"),
    "item.json": (b'[{"text":"a"},\n4]', "item 2 is not a JSON object but a number"),
    "open.json": (b'[{"text":"a"},\n', "is not JSON"),
    "latin.txt": (b"ab\ncd\xe9f", r"byte 0xe9 at offset 5 \(line 2\)"),
    "ends.txt": (b"ab\xc3", "byte 0xc3 at offset 2"),
    "junk.parquet": (b"PAR1 not really PAR1", "is no readable Parquet file"),
    "empty.parquet": (b"", "is no readable Parquet file"),
    "body.parquet": (parquet_bytes({"body": ["a"]}), "no column 'text'; it has: body"),
    "ints.parquet": (parquet_bytes({"text": [1]}), "column 'text' holds int64, not text"),
    "junk.txt.gz": (b"not compressed", "is damaged or not gzip data"),
    "junk.txt.xz": (b"not compressed", "is damaged or not xz data"),
    "junk.txt.zst": (b"not compressed", "is damaged or not zstd data"),
    "other.txt.gz": (bz2.compress(b"a"), "is damaged or not gzip data"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_content_is_named(tmp_path, name):
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PatchtrainError, match=message) as caught:
        list(read_documents([tmp_path / name]))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(PatchtrainError, match=message):  # in a folder just as well
        list(read_documents([tmp_path]))


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_truncated_compression(tmp_path, kind, ending):
    texts = [f"text number {i * i}" for i in range(2000)]
    data = parquet_bytes({"text": texts}) if kind == "parquet" else jsonl(texts).encode()
    file = tmp_path / f"a.{kind}{ending}"
    packed = PACK[ending](data)
    for keep in (len(packed) // 2, len(packed) - 1):
        file.write_bytes(packed[:keep])
        with pytest.raises(PatchtrainError, match=f"a.{kind}{ending} is truncated"):
            list(read_documents([file]))


def test_truncated_parquet(tmp_path):
    data = parquet_bytes({"text": ["a" * 100] * 100})
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(PatchtrainError, match=r"a\.parquet is no readable Parquet file"):
        list(read_documents([tmp_path / "a.parquet"]))


def test_utf8_offsets_count_across_chunks(tmp_path):
    data = "ö\n".encode() * (readers._READ_BYTES // 2) + b"\xff"
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(PatchtrainError, match=rf"offset {len(data) - 1:,} "):
        list(read_documents([tmp_path / "a.txt"]))


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        (["nothing.txt"], {}, "no file or folder nothing.txt"),
        (["nothing"], {}, "a dataset of that name: hf:nothing"),
        (["*.nothing"], {}, r"no file matches '\*.nothing'"),
        (["empty"], {}, "no readable file in empty: it is empty"),
        (["pictures"], {}, r"no readable file in pictures: found 1 x \.png"),
        (["pictures/a.png"], {}, "the name does not tell the format; --format"),
        (["-"], {}, "standard input has no name"),
        (["-"], {"format": "parquet"}, "cannot be read from standard input"),
        (["-", "-"], {"format": "text"}, "only once"),
        (["hf:"], {}, "needs the name of a dataset"),
        ([], {}, "no source given"),
        (["a.txt"], {"format": "docx"}, "no format 'docx'; known: text, jsonl, parquet"),
        (["a.txt"], {"document_separator": ""}, "--document-separator is empty"),
    ],
)
def test_what_cannot_be_opened(tmp_path, monkeypatch, sources, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=message):
        open_corpus(sources, **options)


def test_a_dataset_is_streamed(tmp_path):
    (tmp_path / "a.jsonl").write_text(jsonl(TEXTS, "body"))
    name = f"hf:{tmp_path}"
    assert list(read_documents([name], text_column="body")) == TEXTS
    with pytest.raises(UsageError, match="no column 'text'; it has: id, body"):
        list(read_documents([name]))
    with pytest.raises(PatchtrainError, match="column 'id' holds a number"):
        list(read_documents([name], text_column="id"))
    with pytest.raises(PatchtrainError, match="could not be read: Bad split: nope"):
        list(read_documents([name], text_column="body", split="nope"))


def test_a_dataset_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    monkeypatch.setattr(hub, "offline", lambda: False)
    for source in ("hf:owner/name", "no-such-owner/name"):
        with pytest.raises(PatchtrainError, match="Hub cannot be reached") as caught:
            list(read_documents([source]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_damage_in_the_head_of_a_second_stream_is_no_end(tmp_path, ending):
    """The library's own reader of xz stops there without a word."""
    first, second = PACK[ending](b"one\n"), bytearray(PACK[ending](b"two\n"))
    file = tmp_path / f"a.txt{ending}"
    file.write_bytes(first + second)
    assert list(read_documents([file])) == ["one\ntwo\n"]
    for place in range(4):
        damaged = second.copy()
        damaged[place] ^= 0xFF
        file.write_bytes(first + damaged)
        with pytest.raises(PatchtrainError, match=r"is (damaged|truncated)"):
            list(read_documents([file]))


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_no_bytes_at_all_are_no_compressed_text(tmp_path, ending):
    (tmp_path / f"a.txt{ending}").write_bytes(b"")
    with pytest.raises(PatchtrainError, match="is truncated"):
        list(read_documents([tmp_path / f"a.txt{ending}"]))
    (tmp_path / f"a.txt{ending}").write_bytes(PACK[ending](b""))
    assert list(read_documents([tmp_path / f"a.txt{ending}"])) == []


def test_zeroes_are_padding_behind_xz_data_and_nowhere_else(tmp_path):
    file = tmp_path / "a.txt.xz"
    file.write_bytes(PACK[".xz"](b"one\n") + bytes(8) + PACK[".xz"](b"two\n") + bytes(4))
    assert list(read_documents([file])) == ["one\ntwo\n"]
    file.write_bytes(bytes(8))
    with pytest.raises(PatchtrainError, match=r"not xz data|is truncated"):
        list(read_documents([file]))


def test_xz_data_is_unpacked_piece_by_piece(tmp_path):
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"a" * 9_000_000))
    chunks = readers.read_bytes(tmp_path / "a.txt.xz", "xz", "a", readers.Counts())
    sizes = [len(chunk) for chunk in chunks]
    assert sum(sizes) == 9_000_000
    assert max(sizes) <= readers._READ_BYTES


def test_parquet_with_fewer_rows_than_it_says(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(parquet_bytes({"text": ["a", "b", "c"]}))
    batches = pq.ParquetFile.iter_batches

    def fewer(*args, **kwargs):
        return (batch.slice(1) for batch in batches(*args, **kwargs))

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fewer)
    with pytest.raises(PatchtrainError, match="it has 2 rows, and its head says 3"):
        list(read_documents([tmp_path / "a.parquet"]))


def test_a_user_who_is_not_there():
    with pytest.raises(UsageError, match="no file or folder ~nobody-here"):
        open_corpus(["~nobody-here/x.txt"])


def test_text_size_counts_bytes_not_characters():
    assert text_size(["naïve café", "日本 "]) == (12 + 7, 3)
