"""Spikes against made curves, where it is known what is one; the switch on made and real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import PatchConfig, PatchTrainer
from patchtrain.report.spikes import (
    LEAST_RISE,
    LEAST_ROWS,
    NOISES,
    WINDOW,
    Row,
    find_spikes,
    find_switches,
)
from patchtrain.runs import RunFolder
from tests.models import VOCAB, tiny_model

EVERY = 10  # steps between rows


def rows_of(*stages: tuple[int, Sequence[float]]) -> list[Row]:
    """Metrics of stages ``(patch size, losses)``, a row every ten steps."""
    rows: list[Row] = []
    step = 0
    for index, (patch_size, losses) in enumerate(stages):
        where = {"stage": index, "patch_size": patch_size}
        if index:
            rows.append({"event": "switch", "step": step, **where})
        for loss in losses:
            step += EVERY
            rows.append({"event": "train", "step": step, "loss": float(loss), **where})
    return rows


def plan_of(*steps: int) -> dict[str, Any]:
    return {"stages": [{"steps": count} for count in steps]}


def falling(length: int, low: float = 3.0, rate: float = 0.02) -> np.ndarray:
    """From nine down to ``low``."""
    return low + (9.0 - low) * np.exp(-rate * np.arange(length))


def noise(length: int, size: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, length)


# ---- spikes


@given(
    st.integers(0, 400),
    st.floats(0.0, 0.2),
    st.floats(0.0, 0.04),
    st.integers(0, 2**16),
)
def test_a_falling_curve_with_small_noise_has_no_spike(
    length: int, rate: float, size: float, seed: int
) -> None:
    wobble = np.random.default_rng(seed).uniform(-size, size, length)
    assert find_spikes(rows_of((1, falling(length, rate=rate) + wobble))) == []


@pytest.mark.parametrize("size", [0.02, 0.1, 0.3])
def test_normal_noise_is_no_spike(size: float) -> None:
    for seed in range(10):
        assert not find_spikes(rows_of((1, falling(600) + noise(600, size, seed)))), seed


@given(
    st.integers(LEAST_ROWS, 280),
    st.integers(1, 15),
    st.floats(1.1, 5.0),
    st.floats(0.0, 0.05),
    st.integers(0, 2**16),
)
def test_a_planted_spike_is_found_once_with_its_numbers(
    at: int, width: int, times: float, size: float, seed: int
) -> None:
    losses = falling(300, rate=0.01) + np.random.default_rng(seed).uniform(-size, size, 300)
    before = losses[max(0, at - WINDOW) : at]
    # More than the rule can ask for: no difference is larger than the range of the losses before.
    height = times * (np.ptp(before) * (1 + NOISES * 1.05) + LEAST_RISE + 2 * size)
    losses[at : at + width] += height
    (spike,) = find_spikes(rows_of((1, losses)))
    assert spike.first_step == EVERY * (at + 1)
    assert spike.height == pytest.approx(losses[at : at + width].max() - np.median(before))
    assert spike.back_after == EVERY * width
    assert spike.first_step <= spike.step < spike.first_step + EVERY * width


def test_what_goes_up_and_down_before_it_is_back_is_one_spike() -> None:
    losses = np.full(100, 3.0)
    losses[40:50] = [4.0, 5.0, 3.06, 4.0, 3.06, 3.2, 3.08, 3.07, 3.06, 3.04]
    (spike,) = find_spikes(rows_of((1, losses)))
    assert (spike.step, spike.first_step, spike.back_after) == (420, 410, 90)
    assert spike.height == pytest.approx(2.0)


def test_a_flat_curve_has_a_least_rise() -> None:
    losses = np.full(100, 3.0)
    losses[60] += 0.9 * LEAST_RISE
    assert find_spikes(rows_of((1, losses))) == []
    losses[60] += 0.2 * LEAST_RISE
    assert len(find_spikes(rows_of((1, losses)))) == 1


def test_a_loss_that_stays_up_is_a_spike_that_does_not_end() -> None:
    losses = np.concatenate([falling(100), falling(100)[-1] + np.linspace(0, 3, 100)])
    losses += noise(200, 0.01)
    (spike,) = find_spikes(rows_of((1, losses)))
    assert spike.back_after is None
    assert spike.step == 2000


def test_losses_that_are_no_numbers_are_passed_over() -> None:
    rows = [*rows_of((1, falling(50))), {"event": "train", "stage": 0, "step": 501, "loss": None},
            {"event": "train", "stage": 0, "step": 502, "loss": float("nan")}]  # fmt: skip
    assert find_spikes(rows) == []
    assert find_spikes([]) == find_switches([]) == []


def test_a_rollback_is_no_spike_and_hides_none() -> None:
    losses = falling(120)
    undone = np.concatenate([losses[:80], losses[40:80], losses[80:]])
    rows = rows_of((1, undone))
    assert find_spikes(rows)
    back = {"event": "rollback", "stage": 0, "patch_size": 1, "step": 805, "to_step": 400}
    assert find_spikes([*rows[:80], back, *rows[80:]]) == []
    undone[130] += 2.0
    rows = rows_of((1, undone))
    (spike,) = find_spikes([*rows[:80], back, *rows[80:]])
    assert spike.step == 1310
    # A spike that the rollback was to end stays one.
    undone[78:80] += 2.0
    rows = rows_of((1, undone))
    first, _ = find_spikes([*rows[:80], back, *rows[80:]])
    assert first.step == 790


# ---- the switch


@given(
    st.floats(1.0, 9.0),
    st.floats(1.0, 9.0),
    st.floats(0.0, 0.04),
    st.sampled_from([(4, 1), (8, 4), (1, 4)]),
    st.integers(0, 2**16),
)
def test_a_level_shift_at_a_switch_is_no_spike(
    before: float, after: float, size: float, sizes: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    levels = [level + rng.uniform(-size, size, 100) for level in (before, after)]
    rows = rows_of((sizes[0], levels[0]), (sizes[1], levels[1]))
    assert find_spikes(rows) == []
    assert len(find_switches(rows)) == (sizes[1] < sizes[0])


def test_the_rise_at_the_switch_is_told_from_one_after_it() -> None:
    token = falling(400, low=2.5, rate=0.1)  # starts at nine, above the patch loss
    token[20:24] += 0.5  # still the switch's
    token[120] += 1.0
    rows = rows_of((4, falling(100, low=3.0, rate=0.1)), (1, token))
    (switch,) = find_switches(rows, plan_of(1000, 4000))
    assert (switch.step, switch.from_patch_size, switch.patch_size) == (1000, 4, 1)
    assert switch.goal == pytest.approx(3.0, abs=0.01)
    assert switch.rise == pytest.approx(6.0, abs=0.01)
    assert switch.recovered_after is not None
    assert 240 < switch.recovered_after < 300
    assert switch.finished
    assert not switch.slow
    (spike,) = find_spikes(rows)
    assert spike.step == 1000 + 1210


def test_noise_does_not_make_a_recovery() -> None:
    token = np.full(100, 4.0)
    token[[5, 17, 18, 40]] = 2.0
    token[60:] = 2.9
    rows = rows_of((4, np.full(100, 3.0)), (1, token))
    (switch,) = find_switches(rows, plan_of(1000, 1000))
    assert switch.recovered_after == 610
    assert switch.slow


def test_few_rows_are_no_sign_of_a_slow_recovery() -> None:
    patch = np.full(20, 3.0)
    (switch,) = find_switches(rows_of((4, patch), (1, [2.0])), plan_of(200, 10))
    assert (switch.recovered_after, switch.last_above, switch.slow) == (10, 0, False)
    (switch,) = find_switches(rows_of((4, patch), (1, [3.1, *[2.0] * 9])), plan_of(200, 100))
    assert (switch.recovered_after, switch.last_above, switch.slow) == (20, 10, False)
    (switch,) = find_switches(rows_of((4, patch), (1, [3.1, 3.1, *[2.0] * 8])), plan_of(200, 100))
    assert (switch.recovered_after, switch.last_above, switch.slow) == (30, 20, True)


def test_a_switch_without_recovery_is_reported_once_its_stage_is_over() -> None:
    rows = rows_of((4, np.full(50, 3.0)), (1, np.full(50, 4.0)))
    (switch,) = find_switches(rows, plan_of(500, 500))
    assert switch.recovered_after is None
    assert switch.rise == pytest.approx(1.0)
    assert (switch.finished, switch.slow) == (True, True)
    (switch,) = find_switches(rows, plan_of(500, 510))
    assert (switch.finished, switch.slow) == (False, False)
    (switch,) = find_switches(rows)
    assert (switch.steps, switch.slow) == (None, False)


def test_every_switch_of_a_stepwise_run_has_its_own_goal() -> None:
    rows = rows_of((8, np.full(30, 5.0)), (4, np.full(30, 4.0)), (2, np.full(30, 4.5)),
                   (1, np.full(30, 3.0)))  # fmt: skip
    switches = find_switches(rows, plan_of(300, 300, 300, 300))
    assert [switch.goal for switch in switches] == [5.0, 4.0, 4.5]
    assert [switch.recovered_after for switch in switches] == [10, None, 10]
    assert [switch.slow for switch in switches] == [False, True, False]


# ---- a real run


T = 16


def test_a_real_run_with_one_spoilt_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    moves = np.where(rng.random(60_000) < 0.9, 1, rng.integers(0, VOCAB, 60_000))
    tokens = (np.cumsum(moves) % VOCAB).astype(np.uint16)
    plan = {"preset": "superposition", "context_length": T, "tokens_per_step": 16 * T,
            "patch_size": 2, "step_fraction": 0.4, "steps": 100}  # fmt: skip
    args = PatchConfig(str(tmp_path), plan=plan, use_cpu=True, disable_tqdm=True, logging_steps=1,
                       learning_rate=1e-2, per_device_train_batch_size=16,
                       save_strategy="no")  # fmt: skip
    run = PatchTrainer(tiny_model(), args, tokens)
    read = run.batches.inputs

    def inputs(step: int, process: int = 0) -> Any:
        values = read(step, process)
        if step == 79:  # whose row is of step 80
            values["input_ids"] = rng.integers(0, VOCAB, values["input_ids"].shape)
        return values

    run.batches.inputs = inputs  # type: ignore[method-assign]
    run.train()
    folder = RunFolder.open(tmp_path)
    rows = folder.metrics()
    (switch,) = find_switches(rows, folder.info()["plan"])
    assert (switch.step, switch.steps, switch.finished) == (40, 60, True)
    assert switch.recovered_after is not None
    assert not switch.slow
    (spike,) = find_spikes(rows)
    assert spike.first_step == 80
    assert spike.height > 0.5
    assert spike.back_after is not None
