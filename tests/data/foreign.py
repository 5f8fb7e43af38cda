"""The token files in ``tests/fixtures/token_files``, and a store of our own of the same text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from patchtrain.data import tokenizer as tokenizers
from patchtrain.data.store import StoreWriter, TokenStore
from patchtrain.files import whole_folder

FILES = Path(__file__).parents[1] / "fixtures" / "token_files"
TEXTS: dict[str, list[str]] = json.loads((FILES / "documents.json").read_text(encoding="utf-8"))
END = 0

# What to link, for training and for validation, where one folder does not say it all.
SOURCES: dict[str, tuple[list[str], list[str]]] = {
    "nanogpt": (["nanogpt"], []),
    "llmc": (["llmc/*.bin"], []),
    "llmc-uint32": (["llmc-uint32"], []),
    "megatron": (["megatron/tiny_train_text_document"], ["megatron/tiny_val_text_document"]),
    "megatron-int32": (["megatron-int32"], []),
    "litdata": (["litdata"], []),
    "datatrove": (["datatrove/train"], ["datatrove/val"]),
    "datatrove-uint32": (["datatrove-uint32/train"], ["datatrove-uint32/val"]),
}


def sources(name: str) -> tuple[list[str], list[str]]:
    """``SOURCES`` as paths."""
    first, second = ([str(FILES / source) for source in part] for part in SOURCES[name])
    return first, second


def copied(name: str, folder: Path) -> Path:
    """A copy of the files of one format, to damage."""
    return Path(shutil.copytree(FILES / name, folder / name))


def own_store(path: Path) -> TokenStore:
    """The same documents in the same order, as ``prepare`` would write them."""
    tokenizer = tokenizers.train("byte", [""])
    encode = tokenizers.encoder(tokenizer).encode
    with whole_folder(path) as folder, StoreWriter(folder, tokenizer) as writer:
        for split, name in (("train", "train"), ("validation", "val")):
            for text in TEXTS[name]:
                ids = [*encode(text).ids, END]
                size = len(text.encode()), len(text.split())
                writer.add(split, ids, [len(ids)], *size)
        writer.finish({})
    return TokenStore.open(path)
