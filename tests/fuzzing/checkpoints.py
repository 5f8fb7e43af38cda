"""Damaged checkpoints, that an interrupted run is to be resumed from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file, save_file

from patchtrain.training.checkpoint import checksum
from tests.fuzzing.chance import change_entry, damaged, odd_value, places
from tests.fuzzing.judging import Case
from tests.fuzzing.world import World


def checkpoint_case(rng: Random, world: World, folder: Path) -> Case:
    run = folder / "run"
    shutil.copytree(world.interrupted, run)
    newest = run / "checkpoint-4"
    if rng.random() < 0.3:
        shutil.rmtree(run / "checkpoint-2")  # then there is nothing to fall back to but the start
    what, succeeds = rng.choice(DAMAGE)(rng, newest)
    (folder / "tiny.yaml").write_text(world.resumed(run), encoding="utf-8")
    argv = ("train", str(folder / "tiny.yaml"), "--resume", "--quiet")
    return Case(argv, folder, what, succeeds=succeeds, out=run)


Damaged = tuple[str, bool | None]


def _nothing(rng: Random, checkpoint: Path) -> Damaged:
    return "nothing", True


def _bytes_of_a_file(rng: Random, checkpoint: Path) -> Damaged:
    """Found by size or checksum; the run goes on from the one before."""
    name = rng.choice([*sorted(_record(checkpoint)["files"]), "checkpoint.json"])
    data, what = damaged(rng, (checkpoint / name).read_bytes())
    (checkpoint / name).write_bytes(data)
    # Of its own record, bytes can change that mean nothing: a blank more or less.
    return f"{name}: {what}", True


def _entry_of_the_record(rng: Random, checkpoint: Path) -> Damaged:
    record = _record(checkpoint)
    what = change_entry(rng, record, rng.choice(places(record)), odd_value(rng))
    if rng.random() < 0.7:
        _write(checkpoint, record)
        return f"resealed checkpoint.json: {what}", None
    (checkpoint / "checkpoint.json").write_text(json.dumps(record), encoding="utf-8")
    return f"checkpoint.json: {what}", True


def _entry_of_the_state(rng: Random, checkpoint: Path) -> Damaged:
    file = checkpoint / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    shallow = [path for path in places(state) if len(path) == 1]
    place = rng.choice(shallow if rng.random() < 0.7 else places(state))
    what = change_entry(rng, state, place, odd_value(rng))
    file.write_text(json.dumps(state), encoding="utf-8")
    _reseal(checkpoint)
    return f"resealed trainer_state.json: {what}", None


def _bytes_made_right(rng: Random, checkpoint: Path) -> Damaged:
    """Damage that no checksum betrays; whatever still makes sense may be read."""
    name = rng.choice(sorted(_record(checkpoint)["files"]))
    data, what = damaged(rng, (checkpoint / name).read_bytes())
    (checkpoint / name).write_bytes(data)
    _reseal(checkpoint)
    return f"resealed {name}: {what}", None


def _tensors(rng: Random, checkpoint: Path) -> Damaged:
    """Other names, shapes or dtypes in the tensor files, or other numbers of them."""
    part = rng.choice(("weights", "optimizer", "random"))
    file = next((checkpoint / part).iterdir())
    tensors = load_file(file)
    name = rng.choice(sorted(tensors))
    way = rng.choice(("renamed", "missing", "shape", "dtype", "more", "nan", "empty"))
    tensor = tensors[name]
    if way == "renamed":
        tensors["x" + name] = tensors.pop(name)
    elif way == "missing":
        del tensors[name]
    elif way == "shape":
        tensors[name] = tensor.flatten()[:-1].clone() if tensor.numel() > 1 else tensor.repeat(3)
    elif way == "dtype":
        tensors[name] = tensor.double()
    elif way == "more":
        tensors["another"] = tensor.clone()
    elif way == "nan" and tensor.is_floating_point():
        tensors[name] = tensor * float("nan")
    elif way == "empty":
        tensors = {}
    save_file(tensors, file)
    _reseal(checkpoint)
    return f"{part}: {name} {way}", None


def _another_kind_of_file(rng: Random, checkpoint: Path) -> Damaged:
    name = rng.choice(["checkpoint.json", *sorted(_record(checkpoint)["files"])])
    way = rng.choice(("none", "a folder", "a pipe", "a link in a circle"))
    (checkpoint / name).unlink()
    if way == "a folder":
        (checkpoint / name).mkdir()
    elif way == "a pipe":
        os.mkfifo(checkpoint / name)
    elif way == "a link in a circle":
        (checkpoint / name).symlink_to(name.rpartition("/")[2])
    return f"{name} is {way}", True


def _name_outside(rng: Random, checkpoint: Path) -> Damaged:
    record = _record(checkpoint)
    name = rng.choice(sorted(record["files"]))
    outside = checkpoint.parent.parent / "elsewhere"
    shutil.move(checkpoint / name, outside)
    way = rng.choice(("..", "absolute", "link"))
    if way == "link":
        (checkpoint / name).symlink_to(outside)
    else:
        other = "../../elsewhere" if way == ".." else str(outside)
        record["files"][other] = record["files"].pop(name)
        _write(checkpoint, record)
    return f"{name} by {way}", True


DAMAGE: tuple[Callable[[Random, Path], Damaged], ...] = (
    _nothing, _bytes_of_a_file, _bytes_of_a_file, _entry_of_the_record, _entry_of_the_record,
    _entry_of_the_state, _entry_of_the_state, _bytes_made_right, _tensors, _tensors,
    _another_kind_of_file, _name_outside,
)  # fmt: skip


def _record(checkpoint: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((checkpoint / "checkpoint.json").read_text("utf-8"))
    return values


def _write(checkpoint: Path, record: dict[str, Any]) -> None:
    record["checksum"] = checksum(record)
    (checkpoint / "checkpoint.json").write_text(json.dumps(record), encoding="utf-8")


def _reseal(checkpoint: Path) -> None:
    """Sizes and checksums as the files now are."""
    record = _record(checkpoint)
    for name, entry in record["files"].items():
        data = (checkpoint / name).read_bytes()
        entry["bytes"], entry["sha256"] = len(data), hashlib.sha256(data).hexdigest()
    _write(checkpoint, record)
