"""Files that other tools wrote are read as these tools mean them, and refused where damaged."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest

from patchtrain.data import formats
from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.formats import datatrove, litdata, megatron
from patchtrain.data.scanning import scan
from patchtrain.errors import UsageError
from tests.data.foreign import END, FILES, SOURCES, TEXTS, copied, sources


def documents(items, dtype=None):
    """The documents of some items, as lists of ids."""
    files = formats.read(items, dtype)
    tokens = np.concatenate([file.map() for file in files])
    bounds = scan(files, END, 257, lambda size: None).offsets
    return [tokens[a:b].tolist() for a, b in pairwise(bounds)]


def expected(split):
    encode = tokenizers.encoder(tokenizers.train("byte", [""])).encode
    return [[*encode(text).ids, END] for text in TEXTS[split]]


def found(name):
    first, second = sources(name)
    both = formats.find(first)
    return both.train, formats.find(second).train if second else both.validation


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_documents_are_those_that_were_written(name, split):
    items = found(name)[split == "val"]
    wanted = expected(split)
    if name.startswith("llmc"):  # nothing closes the last one
        wanted[-1] = wanted[-1][:-1]
    assert documents(items) == wanted


@pytest.mark.parametrize(
    ("name", "format", "dtype"),
    [
        ("nanogpt", "nanoGPT", "uint16"),
        ("llmc", "llm.c", "uint16"),
        ("llmc-uint32", "llm.c", "uint32"),
        ("megatron", "Megatron", "uint16"),
        ("megatron-int32", "Megatron", "int32"),
        ("litdata", "litdata", "int32"),
        ("datatrove", "datatrove", "uint16"),
        ("datatrove-uint32", "datatrove", "uint32"),
    ],
)
def test_format_and_dtype_are_told_by_the_files(name, format, dtype):
    items = found(name)[0]
    assert {item.format for item in items} == {format}
    assert {file.dtype.name for file in formats.read(items)} == {dtype}


def test_every_way_to_name_a_thing(tmp_path):
    folder = FILES / "megatron"
    ways = [
        [folder / "tiny_train_text_document"],
        [folder / "tiny_train_text_document.bin"],
        [folder / "tiny_train_text_document.idx"],
        [folder / "tiny_train*"],
    ]
    for way in ways:
        (item,) = formats.find(way).train
        assert item == formats.Item("Megatron", folder / "tiny_train_text_document")
    (item,) = formats.find([FILES / "litdata" / "train" / "index.json"]).train
    assert item == formats.Item("litdata", FILES / "litdata" / "train")
    # What is named itself is for training, whatever its name.
    assert formats.find([FILES / "nanogpt" / "val.bin"]).train


def test_test_splits_are_left_out_of_a_folder(tmp_path):
    folder = copied("nanogpt", tmp_path)
    (folder / "test.bin").write_bytes((folder / "val.bin").read_bytes())
    (folder / "meta.pkl").write_bytes(b"not opened")
    found = formats.find([folder])
    assert [item.path.name for item in found.train] == ["train.bin"]
    assert [item.path.name for item in found.validation] == ["val.bin"]
    assert [item.path.name for item in found.left_out] == ["test.bin"]


def test_what_is_not_there_or_not_of_one_kind(tmp_path):
    with pytest.raises(UsageError, match=r"no token files at .*nothing: give a \.bin of nanoGPT"):
        formats.find([tmp_path / "nothing"])
    with pytest.raises(UsageError, match="no token files at"):
        formats.find([tmp_path / "*.bin"])
    with pytest.raises(UsageError, match="there are no token files in the folder"):
        formats.find([tmp_path])
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"a\.txt is no token file that is known"):
        formats.find([tmp_path / "a.txt"])
    with pytest.raises(UsageError, match=r"is of nanoGPT and .* of llm\.c"):
        formats.find([FILES / "nanogpt" / "train.bin", FILES / "llmc"])
    (tmp_path / "empty.bin").touch()
    with pytest.raises(UsageError, match=r"there are no tokens in .*empty\.bin"):
        formats.read(formats.find([tmp_path / "empty.bin"]).train)
    widths = [FILES / "llmc", FILES / "llmc-uint32"]
    with pytest.raises(UsageError, match=r"has uint16 tokens and .* uint32; link them to a store"):
        formats.read(formats.find(widths).train)


@pytest.mark.parametrize("name", ["llmc", "megatron", "litdata", "datatrove"])
def test_a_dtype_that_the_file_contradicts(name):
    with pytest.raises(UsageError, match="leave --dtype out"):
        formats.read(found(name)[0], np.dtype("<i8"))


def test_a_plain_file_of_another_width(tmp_path):
    ids = np.array([17, 300, 12, 50000] * 20, "<u4")
    ids.tofile(tmp_path / "wide.bin")
    items = formats.find([tmp_path / "wide.bin"]).train
    with pytest.raises(
        UsageError, match=r"looks like uint32 tokens, not uint16: .* --dtype uint32"
    ):
        formats.read(items)
    (file,) = formats.read(items, np.dtype("<u4"))
    assert file.map().tolist() == ids.tolist()
    (tmp_path / "odd.bin").write_bytes(bytes(33))
    with pytest.raises(UsageError, match=r"odd\.bin is cut off, or not of uint16: 33 bytes"):
        formats.read(formats.find([tmp_path / "odd.bin"]).train)


def test_damaged_files_of_llmc(tmp_path):
    file = copied("llmc", tmp_path) / "tiny_val_000000.bin"
    items, data = formats.find([file]).train, file.read_bytes()
    file.write_bytes(data[:-2])
    with pytest.raises(UsageError, match=r"is cut off or damaged: its header .* but [\d,]+ bytes"):
        formats.read(items)
    file.write_bytes(data[:100])
    with pytest.raises(UsageError, match="100 bytes are less than the header"):
        formats.read(items)
    file.write_bytes(struct.pack("<i", 20240522) + data[4:])
    with pytest.raises(UsageError, match="multiple-choice questions"):
        formats.read(items)


def test_damaged_files_of_megatron(tmp_path):
    prefix = copied("megatron", tmp_path) / "tiny_val_text_document"
    index, tokens = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
    whole, data = index.read_bytes(), tokens.read_bytes()
    sequences, entries = struct.unpack_from("<QQ", whole, 18)

    def refused(match, at=None, value=b"", cut=None):
        changed = bytearray(whole[:cut])
        if at is not None:
            changed[at : at + len(value)] = value
        index.write_bytes(changed)
        with pytest.raises(UsageError, match=match):
            megatron.read(prefix, None)

    refused("is no index of Megatron: it does not begin as one does", 0, b"X")
    refused("an old one of Megatron", 0, b"TNTIDX")
    refused("is no index of Megatron", cut=20)
    refused("is of version 2", 9, b"\2")
    refused("of type 7: those are no token ids", 17, b"\7")
    refused("is cut off or damaged: it has", cut=-3)
    refused("is cut off or damaged: it has", 18, struct.pack("<Q", 1 << 50))
    refused("its sequences do not follow one another", 34, struct.pack("<i", -1))
    refused("its sequences do not follow one another", 34 + 4 * sequences, b"\1")
    refused("its documents do not span", len(whole) - 8, b"\0")
    refused("its documents do not span", len(whole) - 8 * entries + 8, b"\xff\xff")
    # One byte for each sequence: 0 is text.
    index.write_bytes(whole + bytes(sequences))
    assert megatron.read(prefix, None)
    index.write_bytes(whole + bytes(sequences - 1) + b"\1")
    with pytest.raises(UsageError, match="sequences that are no text"):
        megatron.read(prefix, None)
    index.write_bytes(whole)
    tokens.write_bytes(data[:-2])
    with pytest.raises(UsageError, match=r"\.bin is cut off or not of this index"):
        megatron.read(prefix, None)
    tokens.unlink()
    with pytest.raises(UsageError, match=r"is not whole: Megatron has a \.bin and an \.idx"):
        megatron.read(prefix, None)


def test_damaged_files_of_litdata(tmp_path):
    folder = copied("litdata", tmp_path) / "train"
    file = folder / "index.json"
    whole = json.loads(file.read_text())
    chunk = folder / whole["chunks"][0]["filename"]

    def refused(match, **config):
        file.write_text(json.dumps({**whole, "config": {**whole["config"], **config}}))
        with pytest.raises(UsageError, match=match):
            litdata.read(folder, None)

    refused(r"are compressed \(zstd\) and cannot be read in place", compression="zstd")
    refused("are encrypted", encryption={"level": "chunk"})
    refused(
        "is not of flat token ids: its data_format is no_header_tensor:1",
        data_format=["no_header_tensor:1"],
    )
    refused("is not of flat token ids: its data_format is str, int", data_format=["str", "int"])
    refused("is no index of litdata: config.data_format", data_format=None)
    nested = [{**whole["chunks"][0], "dim": None}]
    file.write_text(json.dumps({**whole, "chunks": nested}))
    with pytest.raises(UsageError, match=r"index\.json counts no tokens in it"):
        litdata.read(folder, None)
    older = [{**chunk, "chunk_bytes": 4 * chunk["dim"]} for chunk in whole["chunks"]]
    file.write_text(json.dumps({**whole, "chunks": older}))
    total = sum(map(len, expected("train")))
    assert sum(read.tokens for read in litdata.read(folder, None)) == total
    outside = [{**whole["chunks"][0], "filename": "../val/index.json"}]
    file.write_text(json.dumps({**whole, "chunks": outside}))
    with pytest.raises(UsageError, match="names a chunk outside its folder"):
        litdata.read(folder, None)
    file.write_text("{")
    with pytest.raises(UsageError, match=r"index\.json cannot be read"):
        litdata.read(folder, None)
    file.write_text(json.dumps(whole))
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1])
    with pytest.raises(UsageError, match="is cut off or damaged: it has"):
        litdata.read(folder, None)
    chunk.write_bytes(data[:4] + b"\1\1" + data[6:])
    with pytest.raises(UsageError, match="its items do not follow one another"):
        litdata.read(folder, None)
    chunk.unlink()
    with pytest.raises(UsageError, match=r"is missing, which .*index\.json names"):
        litdata.read(folder, None)


def test_compressed_chunks_as_litdata_writes_them():
    with pytest.raises(UsageError, match=r"compressed \(zstd\).*compression=None"):
        litdata.read(FILES / "litdata-zstd" / "val", None)


def test_damaged_files_of_datatrove(tmp_path):
    file = next((copied("datatrove", tmp_path) / "val").glob("*.ds"))
    index, metadata = file.with_suffix(".ds.index"), file.with_suffix(".ds.metadata")
    data, ends = file.read_bytes(), index.read_bytes()
    assert datatrove.tokenizer_name(file) is not None
    metadata.write_text(metadata.read_text().replace("|2", "|4"))
    with pytest.raises(UsageError, match="says that a token has 4 bytes, and"):
        datatrove.read(file, None)
    metadata.unlink()
    assert datatrove.tokenizer_name(file) is None
    file.write_bytes(data[:-2])
    with pytest.raises(UsageError, match="is cut off or not of its index"):
        datatrove.read(file, None)
    file.write_bytes(data)
    index.write_bytes(ends[:-1])
    with pytest.raises(UsageError, match=r"is cut off: .* not a whole number of entries"):
        datatrove.read(file, None)
    index.write_bytes(ends[8:16] + ends[:8] + ends[16:])
    with pytest.raises(UsageError, match="is cut off or not of its index"):
        datatrove.read(file, None)
    index.unlink()  # then the end-of-text token marks the documents, as in nanoGPT's
    (read,) = datatrove.read(file, None)
    assert read.ends is None
    assert read.map().tobytes() == data


def test_what_the_tools_write_today(tmp_path):
    """The committed files are of one version each; this is the one that is installed."""
    pytest.importorskip("datatrove")
    from datatrove.data import Document
    from datatrove.pipeline.tokens import DocumentTokenizer

    tokenizers.train("byte", [""]).save_pretrained(tmp_path / "tokenizer")
    step = DocumentTokenizer(
        str(tmp_path / "out"),
        str(tmp_path / "tokenizer" / "tokenizer.json"),
        eos_token="<|endoftext|>",
        max_tokens_per_file=300,
        seed=1,
    )
    step.run([Document(text, str(i)) for i, text in enumerate(TEXTS["train"])])
    items = formats.find([tmp_path / "out"]).train
    assert len(items) > 2
    assert sorted(documents(items)) == sorted(expected("train"))


def test_what_litdata_writes_today(tmp_path):
    litdata_package = pytest.importorskip("litdata")
    import torch

    writer = litdata_package.streaming.writer.BinaryWriter(
        str(tmp_path), chunk_size=400, item_loader=litdata_package.TokensLoader()
    )
    for number, ids in enumerate(expected("train")):
        writer[number] = torch.tensor(ids, dtype=torch.int)
    writer.done()
    writer.merge()
    assert documents(formats.find([tmp_path]).train) == expected("train")
