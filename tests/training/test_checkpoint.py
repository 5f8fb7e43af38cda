"""Checkpoints: whole or not there, exact, found when others are damaged, kept as asked."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchtrain import PatchtrainError
from patchtrain.training.checkpoint import Checkpoint, Checkpoints, checksum
from patchtrain.training.state import (
    read_optimizer,
    read_random,
    read_weights,
    write_optimizer,
    write_random,
    write_weights,
)
from tests.models import tiny_model


def write_file(name: str, data: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def write(checkpoints: Checkpoints, step: int) -> None:
    """A checkpoint that is whole, with next to nothing in it."""
    state = {
        "global_step": step, "max_steps": 9, "train_batch_size": 1, "epoch": 0.1,
        "num_train_epochs": 1, "total_flos": 0, "log_history": [], "stateful_callbacks": {},
        "num_input_tokens_seen": 0,
    }  # fmt: skip
    parts = {
        "a": write_file("weights/a", bytes(100)),
        "b": write_file("trainer_state.json", json.dumps(state).encode()),
    }
    info = {
        "identity": {}, "processes": 1, "window": {"total": 0.0, "steps": 0}, "scheduler": None,
        "optimizer": {"state": {}, "groups": [], "tensors": {}},
        "guard": {"in_a_row": 0, "rollbacks": {}},
    }  # fmt: skip
    checkpoints.write(step, parts, info)


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    """Checkpoints of steps 1, 2 and 3 with a file each."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        write(checkpoints, step)
    return checkpoints


def test_a_whole_checkpoint_verifies_and_says_what_it_is(three: Checkpoints) -> None:
    found = three.newest_whole(pytest.fail)
    assert found is not None
    assert found.step == 3
    info = found.info()
    assert info["step"] == 3
    assert info["files"]["weights/a"]["bytes"] == 100


def damage(kind: str, checkpoint: Checkpoint) -> None:
    file, info = checkpoint.path / "weights" / "a", checkpoint.path / "checkpoint.json"
    if kind == "flipped":
        file.write_bytes(b"\1" + bytes(99))
    elif kind == "cut short":
        file.write_bytes(bytes(99))
    elif kind == "missing":
        file.unlink()
    elif kind == "no manifest":
        info.unlink()
    elif kind == "manifest cut":
        info.write_text(info.read_text()[:-20])
    elif kind == "manifest changed":
        info.write_text(info.read_text().replace('"step": 3', '"step": 4'))
    else:
        raise ValueError(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("flipped", "SHA-256 is not right"),
        ("cut short", "has 99 of 100 bytes"),
        ("missing", "is missing"),
        ("no manifest", "no checkpoint.json"),
        ("manifest cut", "cannot be read"),
        ("manifest changed", "its own checksum is not right"),
    ],
)
def test_a_damaged_one_is_left_out_and_said(three: Checkpoints, kind: str, words: str) -> None:
    damage(kind, three.all()[-1])
    told: list[str] = []
    found = three.newest_whole(told.append)
    assert found is not None
    assert found.step == 2
    assert len(told) == 1
    assert told[0].startswith("checkpoint-3 is left out: ")
    assert words in told[0]


def test_where_none_is_whole_it_is_said_and_nothing_changes(three: Checkpoints) -> None:
    for checkpoint in three.all():
        damage("cut short", checkpoint)
    told: list[str] = []
    with pytest.raises(PatchtrainError, match=r"no checkpoint in .* is whole"):
        three.newest_whole(told.append)
    assert len(told) == 3
    assert len(three.all()) == 3


def test_a_file_too_many_is_found(three: Checkpoints) -> None:
    (three.all()[-1].path / "weights" / "b").write_bytes(b"x")
    told: list[str] = []
    assert three.newest_whole(told.append) == three.all()[1]
    assert "is not of this checkpoint" in told[0]


@pytest.mark.parametrize("keep", [0, -1, None])
def test_no_limit_keeps_all(tmp_path: Path, keep: int | None) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (1, 2, 3):
        write(checkpoints, step)
    assert len(checkpoints.all()) == 3


def test_those_that_stay_for_good_stay_when_the_interval_changes(tmp_path: Path) -> None:
    write(Checkpoints(tmp_path, 1, every=3), 3)
    later = Checkpoints(tmp_path, 1, every=None)
    for step in (4, 5):
        write(later, step)
    assert [checkpoint.step for checkpoint in later.all()] == [3, 5]


def test_a_file_outside_of_the_checkpoint_is_refused(three: Checkpoints) -> None:
    checkpoint = three.all()[-1]
    file = checkpoint.path / "checkpoint.json"
    info = json.loads(file.read_text())
    info["files"]["../checkpoint-2/weights/a"] = info["files"].pop("weights/a")
    file.write_text(json.dumps({**info, "checksum": checksum(info)}))
    with pytest.raises(PatchtrainError, match="names a file outside of the checkpoint"):
        checkpoint.verify()


@pytest.mark.parametrize(
    ("keep", "every", "left"),
    [(2, None, [5, 6]), (2, 3, [3, 5, 6]), (None, None, [1, 2, 3, 4, 5, 6]), (1, 2, [2, 4, 6])],
)
def test_the_last_and_every_so_many_are_kept(
    tmp_path: Path, keep: int | None, every: int | None, left: list[int]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep, every)
    for step in range(1, 7):
        write(checkpoints, step)
    assert [checkpoint.step for checkpoint in checkpoints.all()] == left
    assert all(not path.name.startswith(".") for path in tmp_path.iterdir())


def test_another_tools_checkpoint_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1").mkdir()
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (2, 3):
        write(checkpoints, step)
    assert [checkpoint.step for checkpoint in checkpoints.all()] == [1, 3]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd")])
def test_a_failed_write_leaves_the_older_ones_alone(three: Checkpoints, error: Exception) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights" / "half").write_bytes(b"x")
        raise error

    with pytest.raises(type(error)):
        three.write(4, {"a": write_file("weights/a", b"x"), "b": fail}, {})
    assert [path.name for path in sorted(three.run.iterdir())] == [
        "checkpoint-1", "checkpoint-2", "checkpoint-3"]  # fmt: skip
    found = three.newest_whole(pytest.fail)
    assert found is not None
    assert found.step == 3


def test_what_a_killed_process_left_is_cleared(three: Checkpoints) -> None:
    for name in (".checkpoint-9.partial", ".checkpoint-8.old.partial"):
        (three.run / name).mkdir()
    write(three, 4)
    assert not list(three.run.glob(".*"))


def stepped(model: Any, **kwargs: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **kwargs)
    ids = torch.arange(20).view(2, 10)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "mamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_optimizer_come_back_bit_by_bit(
    tmp_path: Path, family: str, dtype: torch.dtype
) -> None:
    settings = {"tie_word_embeddings": True} if family == "llama" else {}
    model = tiny_model(family, **settings).to(dtype)
    optimizer = stepped(model, fused=family == "llama")
    for part in ("weights", "optimizer"):
        (tmp_path / part).mkdir()
    write_weights(model, tmp_path)
    scalars = write_optimizer(model, optimizer, tmp_path)
    other = tiny_model(family, seed=1, **settings).to(dtype)
    fresh = torch.optim.AdamW(other.parameters(), lr=5e-3, fused=family == "llama")
    read_weights(other, tmp_path)
    read_optimizer(other, fresh, tmp_path, scalars)
    for (name, got), want in zip(
        other.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name
    before, after = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys()
    for index, state in before.items():
        assert state.keys() == after[index].keys()
        for key, value in state.items():
            assert torch.equal(after[index][key], value), (index, key)
            assert after[index][key].dtype == value.dtype
    assert fresh.param_groups[0]["lr"] == 5e-3
    if family == "llama":
        assert other.lm_head.weight is other.model.embed_tokens.weight


def test_an_optimizer_without_state_yet(tmp_path: Path) -> None:
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    (tmp_path / "optimizer").mkdir()
    scalars = write_optimizer(model, optimizer, tmp_path)
    read_optimizer(model, optimizer, tmp_path, scalars)
    assert optimizer.state_dict()["state"] == {}


def test_numbers_in_the_optimizers_state(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight] = {"count": 3, "best": 0.1, "nothing": None}
    (tmp_path / "optimizer").mkdir()
    scalars = json.loads(json.dumps(write_optimizer(model, optimizer, tmp_path)))
    fresh = torch.optim.SGD(model.parameters(), lr=0.1)
    read_optimizer(model, fresh, tmp_path, scalars)
    assert fresh.state[model.weight] == {"count": 3, "best": 0.1, "nothing": None}
    optimizer.state[model.weight] = {"odd": {1, 2}}
    with pytest.raises(PatchtrainError, match="keeps odd as set"):
        write_optimizer(model, optimizer, tmp_path)


@pytest.mark.parametrize("settings", [{"hidden_size": 64}, {"num_hidden_layers": 1}])
def test_weights_of_another_model_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "weights").mkdir()
    write_weights(tiny_model(), tmp_path)
    with pytest.raises(PatchtrainError, match=r"is of another model: .* in the checkpoint"):
        read_weights(tiny_model(**settings), tmp_path)


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    (tmp_path / "random").mkdir()
    np.random.normal()  # leaves a second normal number waiting
    random.gauss(0, 1)
    write_random(tmp_path)
    first = (random.gauss(0, 1), random.random(), np.random.normal(), torch.rand(3).tolist())
    assert read_random(tmp_path)
    assert first == (
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        torch.rand(3).tolist(),
    )
    (tmp_path / "random" / "0.safetensors").unlink()
    assert not read_random(tmp_path)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    from tests.training.test_trainer import trainer

    run = trainer(tmp_path, save_steps=5)
    run.train()
    files = [file for file in (tmp_path / "checkpoint-5").rglob("*") if file.is_file()]
    assert files
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    assert os.sep not in "".join(file.name for file in files)
