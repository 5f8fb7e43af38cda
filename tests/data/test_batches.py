"""The order of the data: a permutation, disjoint between stages, and a function of the step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import PatchConfig, PatchTrainer, PlanSpec, UsageError
from patchtrain.data.batches import Permutation, PlanBatches, spread, token_array
from tests.models import tiny_model


@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_a_permutation_visits_everything_once(length: int, seed: int) -> None:
    values = Permutation(length, seed)(np.arange(length))
    assert np.array_equal(np.sort(values), np.arange(length))


def test_a_permutation_looks_random_and_depends_on_its_seed() -> None:
    length = 10_000
    first, second = (Permutation(length, seed)(np.arange(length)) for seed in (1, 2))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(np.arange(length), first)[0, 1]) < 0.05
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    # Every tenth of the range is met evenly in every tenth of the order.
    table = np.histogram2d(np.arange(length), first, bins=10)[0]
    assert table.min() > 60
    assert table.max() < 140


def batches(tokens: int = 20_000, seed: int = 3, processes: int = 1, **values: Any) -> PlanBatches:
    spec = {"context_length": 16, "tokens_per_step": 256, "preset": "superposition", **values}
    plan = PlanSpec.from_dict(spec).resolve(store_tokens=tokens, processes=processes)
    return PlanBatches(np.arange(tokens, dtype=np.uint32), plan, seed)


@pytest.mark.parametrize("preset", ["paper", "superposition"])
def test_one_epoch_reads_no_token_twice_across_stages(preset: str) -> None:
    data = batches(epochs=1, preset=preset, stages=[[4, 0.3], [2, 0.3], [1, 0.4]])
    seen = np.concatenate([data.step(step).ravel() for step in range(len(data))])
    assert len(np.unique(seen)) == len(seen) == data.plan.total_tokens
    assert len(seen) > 0.9 * 20_000


def test_sequences_are_consecutive_tokens_of_the_stages_length() -> None:
    data = batches(steps=30, patch_size=4, step_fraction=0.5)
    first, last = data.step(0), data.step(29)
    assert first.shape == (16, 64)
    assert last.shape == (16, 16)
    assert (np.diff(first, axis=1) == 1).all()
    assert (np.diff(last, axis=1) == 1).all()
    assert first.dtype == np.int64


def test_a_step_mixes_blocks_from_everywhere() -> None:
    data = batches(tokens=200_000, steps=30, patch_size=4, step_fraction=0.5)
    for step in (0, 29):
        starts = np.sort(data.step(step)[:, 0])
        assert starts[0] < 60_000
        assert starts[-1] > 140_000
        assert (np.diff(starts) > 64).sum() >= 11  # hardly any two come from one block


def test_both_stages_see_the_whole_corpus() -> None:
    data = batches(tokens=100_000, epochs=1, patch_size=2, step_fraction=0.4)
    for stage in data.plan.stages:
        starts = data.starts(stage, np.arange(stage.steps * stage.sequences_per_step))
        counts = np.histogram(starts, bins=5, range=(0, 100_000))[0]
        assert counts.min() > 0.7 * counts.mean()


def test_processes_share_a_step_without_changing_it() -> None:
    one, four = batches(steps=30), batches(steps=30, processes=4)
    for step in (0, 9, 29):
        parts = np.concatenate([four.step(step, process) for process in range(4)])
        assert np.array_equal(one.step(step), parts)


def test_a_step_is_found_without_its_predecessors_and_epochs_reshuffle() -> None:
    data = batches(tokens=5_000, steps=100, step_fraction=0.0, max_epochs=9)
    again = batches(tokens=5_000, steps=100, step_fraction=0.0, max_epochs=9)
    assert np.array_equal(data.step(77), again.step(77))
    per_epoch = 5_000 // 16
    stage = data.plan.stages[0]
    epochs = [data.starts(stage, np.arange(e * per_epoch, (e + 1) * per_epoch)) for e in range(3)]
    for starts in epochs:
        assert len(np.unique(starts)) == per_epoch
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(data.step(5), batches(tokens=5_000, seed=4, steps=100,
                              step_fraction=0.0, max_epochs=9).step(5))  # fmt: skip


def test_what_users_train_on_becomes_one_array() -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5]]})
    assert token_array(rows).tolist() == [1, 2, 3, 4, 5]
    flat = np.arange(5, dtype=np.uint16)
    assert token_array(flat) is flat
    with pytest.raises(UsageError, match="no column input_ids, only text"):
        token_array(datasets.Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(UsageError, match="flat integer array"):
        token_array(np.zeros((2, 2)))
    with pytest.raises(UsageError, match="cannot train on a list"):
        token_array([1, 2])


@pytest.mark.parametrize("rows", [[], [[]], [[], []]])
@pytest.mark.parametrize("documents", ["mixed", "separate"])
@pytest.mark.parametrize("split", ["train_dataset", "eval_dataset"])
def test_a_dataset_without_tokens_is_refused(
    tmp_path: Path, split: str, documents: str, rows: list[list[int]]
) -> None:
    datasets = pytest.importorskip("datasets")
    full = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3, 0]] * 50})
    data = {"train_dataset": full, split: datasets.Dataset.from_dict({"input_ids": rows})}
    plan = {"context_length": 8, "tokens_per_step": 16, "steps": 2, "patch_size": 2,
            "documents": documents, "max_epochs": 9}  # fmt: skip
    with pytest.raises(UsageError) as refused:
        PatchTrainer(tiny_model(), PatchConfig(str(tmp_path), plan=plan, use_cpu=True), **data)
    assert str(refused.value) == (
        f"the input_ids of a dataset are empty, in {len(rows)} rows; give one with tokens, or "
        f"leave an eval_dataset out"
    )


def test_rows_of_a_dataset_hold_whole_numbers_and_may_be_empty() -> None:
    datasets = pytest.importorskip("datasets")
    some = datasets.Dataset.from_dict({"input_ids": [[], [1, 2], []]})
    assert token_array(some).tolist() == [1, 2]
    for wrong in ([[1.5, 2.0]], [[[1]]], [["a"]]):
        with pytest.raises(UsageError, match="flat integer array"):
            token_array(datasets.Dataset.from_dict({"input_ids": wrong}))


@given(st.integers(2, 500), st.integers(1, 600), st.integers(1, 40))
def test_evaluation_blocks_are_whole_distinct_and_spread(
    length: int, wanted: int, block: int
) -> None:
    taken = spread(np.arange(length), wanted, block)
    if length < block:
        assert taken.tolist() == [list(range(length))]
        return
    assert (np.diff(taken, axis=1) == 1).all()
    assert len(np.unique(taken)) == taken.size <= max(wanted, block)
    if len(taken) > 1:
        gaps = np.diff(taken[:, 0])
        assert gaps.min() >= block
        assert gaps.max() - gaps.min() <= block
