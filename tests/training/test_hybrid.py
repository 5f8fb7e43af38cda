"""Hybrid sharding: several whole copies of the model, each shared out among some processes."""

import re
from pathlib import Path

import pytest
from transformers.training_args import ParallelMode

from patchtrain import PatchConfig, UsageError
from tests.training.test_processes import FSDP, Runs, files, make_recipe, same_run

HYBRID = "training.fsdp_replicas=2"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(make_recipe(tmp_path_factory.mktemp("hybrid")))


def test_hybrid_sharding_is_one_run(runs: Runs) -> None:
    """Two copies of the model on two processes each."""
    found = runs.whole(4, FSDP, HYBRID)
    same_run(found, runs.whole(1))
    for part in ("weights", "optimizer"):
        written = files(found[0].path / "checkpoint-2", part)
        (one,) = files(runs.whole(1)[0].path / "checkpoint-2", part).values()
        for name, shape in one.items():
            shapes = sorted(of[name] for of in written.values() if name in of)
            if shape:  # each half of the rows once, not once a copy
                assert shapes == [[shape[0] // 2, *shape[1:]], [-(-shape[0] // 2), *shape[1:]]]
            else:
                assert shapes == [shape], name


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (3, "fsdp_replicas is 3, which does not divide the 4 processes"),
        (4, "fsdp_replicas is 4, as many as there are processes, so nothing is left"),
    ],
)
def test_replicas_that_cannot_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: int, words: str
) -> None:
    args = PatchConfig(str(tmp_path), fsdp_replicas=asked)  # one process: not used
    assert args.replicas() == 1
    monkeypatch.setattr(PatchConfig, "world_size", 4)
    monkeypatch.setattr(PatchConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    with pytest.raises(UsageError, match="nothing is sharded"):
        args.replicas()
    args.fsdp = True
    with pytest.raises(UsageError, match=re.escape(words)):
        args.replicas()


@pytest.mark.parametrize("asked", [0, -1, True, 1.5, "node", [2], None])
def test_replicas_that_are_no_number_are_refused(tmp_path: Path, asked: object) -> None:
    with pytest.raises(UsageError, match="fsdp_replicas must be a number of at least 1 or nodes"):
        PatchConfig(str(tmp_path), fsdp_replicas=asked)


@pytest.mark.parametrize(("here", "copies"), [("2", 4), ("4", 2), ("8", 1)])
def test_one_copy_a_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: str, copies: int
) -> None:
    args = PatchConfig(str(tmp_path), fsdp_replicas="nodes")
    args.fsdp = True
    monkeypatch.setattr(PatchConfig, "world_size", 8)
    monkeypatch.setattr(PatchConfig, "parallel_mode", ParallelMode.DISTRIBUTED)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert args.replicas() == copies


def test_the_launchers_parallelism_is_not_left_unread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(UsageError, match=re.escape("set training.fsdp_replicas")):
        PatchConfig(str(tmp_path))


@pytest.mark.parametrize(
    ("saved_on", "saved_with", "resumed_on", "resumed_with"),
    [(4, (FSDP, HYBRID), 2, (FSDP,)), (2, (FSDP,), 4, (FSDP, HYBRID))],
)
def test_it_goes_on_with_another_number_of_processes_and_copies(
    runs: Runs,
    saved_on: int,
    saved_with: tuple[str, ...],
    resumed_on: int,
    resumed_with: tuple[str, ...],
) -> None:
    source, _ = runs.whole(saved_on, *saved_with)
    same_run(runs.resumed(source, 2, resumed_on, *resumed_with), runs.whole(1), 2)
