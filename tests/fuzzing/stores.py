"""Damaged token stores, opened by a dry run, by training and by evaluation."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from patchtrain.data.store_record import fingerprint
from tests.fuzzing.chance import change_entry, damaged, odd_value, places
from tests.fuzzing.judging import Case
from tests.fuzzing.world import World

# Entries of store.json on which something is computed: another value must not pass.
CRITICAL = {
    ("format",), ("format_version",), ("dtype",), ("fingerprint",), ("splits",), ("files",),
    ("tokenizer",), ("tokenizer", "vocab_size"), ("tokenizer", "eos_token_id"),
    ("tokenizer", "fingerprint"),
    *(("splits", split) for split in ("train", "validation")),
    *(("splits", split, "tokens") for split in ("train", "validation")),
    *(("splits", split, "documents") for split in ("train", "validation")),
}  # fmt: skip


def store_case(rng: Random, world: World, folder: Path) -> Case:
    store = folder / "store"
    shutil.copytree(world.store, store)
    what, succeeds = rng.choice(DAMAGE)(rng, store)
    out = folder / "run"
    way = rng.choice(("dry run", "dry run", "eval", "train", "prepare"))
    if way == "prepare":  # takes nothing but the tokenizer of the store
        text, new = folder / "text.txt", folder / "new"
        text.write_text("The cat sat on a mat.", encoding="utf-8")
        argv = ("prepare", str(text), "--tokenizer", str(store), "--out", str(new))
        argv += ("--validation-fraction", "0")
        return Case(argv, folder, f"prepare: {what}", out=new)
    if way == "eval":
        # The result is written into the run, which is why the run is a copy as well.
        shutil.copytree(world.run, out)
        argv = ("eval", str(out), "--store", str(store), "--max-tokens", "200")
        return Case(argv, folder, f"eval: {what}", succeeds=succeeds, out=out / "evaluation.json")
    (folder / "tiny.yaml").write_text(world.tiny(store, out), encoding="utf-8")
    argv = ("train", str(folder / "tiny.yaml"), "--dry-run" if way == "dry run" else "--quiet")
    made = out if way == "train" else None
    return Case(argv, folder, f"{way}: {what}", succeeds=succeeds, out=made)


Damaged = tuple[str, bool | None]


def _nothing(rng: Random, store: Path) -> Damaged:
    return "nothing", True


def _bytes_of_a_file(rng: Random, store: Path) -> Damaged:
    name = rng.choice(sorted(_record(store)["files"]))
    data, what = damaged(rng, (store / name).read_bytes())
    (store / name).write_bytes(data)
    return f"{name}: {what}", False


def _bytes_made_right(rng: Random, store: Path) -> Damaged:
    """Damage that no checksum betrays; whatever still makes sense may be read."""
    what, _ = _bytes_of_a_file(rng, store)
    _reseal(store)
    return f"resealed {what}", None


def _bytes_of_the_record(rng: Random, store: Path) -> Damaged:
    data, what = damaged(rng, (store / "store.json").read_bytes())
    (store / "store.json").write_bytes(data)
    return f"store.json: {what}", None


def _entry_of_the_record(rng: Random, store: Path) -> Damaged:
    record = _record(store)
    path = rng.choice(places(record))
    new = odd_value(rng)
    before = json.dumps(record)
    what = change_entry(rng, record, path, new)
    (store / "store.json").write_text(json.dumps(record), encoding="utf-8")
    critical = path in CRITICAL or path[0] == "files"
    same = json.dumps(record) == before
    return f"store.json: {what}", False if critical and not same else None


def _name_outside(rng: Random, store: Path) -> Damaged:
    """A file of the store that lies elsewhere: whole, with its right checksum, but not inside."""
    record = _record(store)
    name = rng.choice(sorted(record["files"]))
    outside = store.parent / "elsewhere.bin"
    shutil.move(store / name, outside)
    way = rng.choice(("..", "absolute", "link", "linked folder"))
    if way == "link":
        (store / name).symlink_to(outside)
    elif way == "linked folder":
        shutil.move(outside, store / name)
        shutil.move(store / "tokenizer", store.parent / "tokenizer")
        (store / "tokenizer").symlink_to(store.parent / "tokenizer")
    else:
        other = "../elsewhere.bin" if way == ".." else str(outside)
        record["files"][other] = record["files"].pop(name)
        if rng.random() < 0.5:
            shutil.copy(outside, store / name)
            record["files"][name] = record["files"][other]
        record["fingerprint"] = fingerprint(record["files"])
        (store / "store.json").write_text(json.dumps(record), encoding="utf-8")
    return f"{name} by {way}", False


def _ids_beyond(rng: Random, store: Path) -> Damaged:
    split = rng.choice(("train", "validation"))
    file = store / f"{split}.tokens.bin"
    tokens = np.fromfile(file, "<u2")
    tokens[rng.randrange(len(tokens))] = rng.choice((300, 301, 2**15, 2**16 - 1))
    tokens.tofile(file)
    _reseal(store)
    return f"an id beyond the vocabulary in {split}", False


def _offsets(rng: Random, store: Path) -> Damaged:
    split = rng.choice(("train", "validation"))
    file = store / f"{split}.offsets.bin"
    offsets = np.fromfile(file, "<i8")
    place = rng.randrange(1, len(offsets) - 1)
    old = int(offsets[place])
    offsets[place] = rng.choice((0, -1, old + 1, int(offsets[-1]), 2**62, -(2**63)))
    offsets.tofile(file)
    _reseal(store)
    return f"offset {place} of {split}: {old} to {offsets[place]}", False


def _tokenizer(rng: Random, store: Path) -> Damaged:
    """An entry of the tokenizer's files changed, with checksums made right again."""
    name = rng.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json"))
    file = store / "tokenizer" / name
    values = json.loads(file.read_text(encoding="utf-8"))
    what = change_entry(rng, values, rng.choice(places(values)), odd_value(rng))
    file.write_text(json.dumps(values), encoding="utf-8")
    _reseal(store)
    return f"{name}: {what}", None


def _another_kind_of_file(rng: Random, store: Path) -> Damaged:
    name = rng.choice(("store.json", *sorted(_record(store)["files"])))
    way = rng.choice(("none", "a folder", "a pipe", "a link in a circle"))
    (store / name).unlink()
    if way == "a folder":
        (store / name).mkdir()
    elif way == "a pipe":
        os.mkfifo(store / name)
    elif way == "a link in a circle":
        (store / name).symlink_to(name.rpartition("/")[2])
    return f"{name} is {way}", False


DAMAGE: tuple[Callable[[Random, Path], Damaged], ...] = (
    _nothing, _bytes_of_a_file, _bytes_of_a_file, _bytes_made_right, _bytes_made_right,
    _bytes_of_the_record, _bytes_of_the_record, _entry_of_the_record, _entry_of_the_record,
    _entry_of_the_record, _name_outside, _ids_beyond, _offsets, _tokenizer, _tokenizer,
    _another_kind_of_file,
)  # fmt: skip


def _record(store: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((store / "store.json").read_text(encoding="utf-8"))
    return values


def _reseal(store: Path) -> None:
    """Sizes, counts and checksums of store.json as the files now are."""
    record = _record(store)
    for name, entry in record["files"].items():
        data = (store / name).read_bytes()
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    for split, counts in record["splits"].items():
        counts["tokens"] = record["files"][f"{split}.tokens.bin"]["bytes"] // 2
        counts["documents"] = record["files"][f"{split}.offsets.bin"]["bytes"] // 8 - 1
    record["tokenizer"]["fingerprint"] = record["files"]["tokenizer/tokenizer.json"]["sha256"]
    record["fingerprint"] = fingerprint(record["files"])
    (store / "store.json").write_text(json.dumps(record), encoding="utf-8")
