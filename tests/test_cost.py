"""The arithmetic of a bill, against the papers' formulas and sums done by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain.cost import AttentionLayers, Bill, Flops, ModelSize, Rates, bill
from patchtrain.devices import device, devices, recognised
from patchtrain.errors import UsageError
from patchtrain.plan import Plan, PlanSpec

T = 2048
SIZE = ModelSize(
    parameters=370_000_000, active_parameters=370_000_000, body_parameters=303_000_000,
    matrix_parameters=303_000_000, head_parameters=32000 * 1024, hidden_size=1024,
    vocab_size=32000, attention=(AttentionLayers(24, 1024, 1024),),
)  # fmt: skip


def plan(**values: object) -> Plan:
    spec = {
        "preset": "paper",
        "context_length": T,
        "tokens_per_step": 2**21,
        "tokens": 360 * 10**9,
        **values,
    }
    return PlanSpec.from_dict(spec).resolve(processes=8)


def cost(rates: Rates | None = None, checkpointing: bool = False, **values: object) -> Bill:
    return bill(SIZE, plan(**values), rates or Rates(), checkpointing)


@given(st.integers(1, 300), st.integers(1, 300))
def test_reach_is_the_mean_of_what_each_position_sees(T: int, window: int) -> None:
    seen = [min(position + 1, window) for position in range(T)]
    assert AttentionLayers(1, 1, 1, window).reach(T) == pytest.approx(sum(seen) / T)
    assert AttentionLayers(1, 1, 1).reach(T) == (T + 1) / 2
    seen = [position % window + 1 for position in range(T)]
    assert AttentionLayers(1, 1, 1, chunk=window).reach(T) == pytest.approx(sum(seen) / T)


@pytest.mark.parametrize(("fraction", "ratio"), [(0.0, 1), (0.5, 0.625), (2 / 3, 0.5), (0.8, 0.4)])
def test_the_ratio_of_the_papers(fraction: float, ratio: float) -> None:
    found = cost(patch_size=4, patch_fraction=fraction)
    assert found.ratio_at_equal_data == pytest.approx(ratio, abs=1e-3)
    assert found.tokens_at_equal_compute == pytest.approx(ratio * 360e9, rel=1e-3)


def test_at_equal_compute_more_is_read() -> None:
    found = cost(preset="superposition", patch_size=6, step_fraction=0.3, tokens=None, steps=20_000)
    assert found.plan.total_tokens / found.tokens_at_equal_compute == pytest.approx(2.5, rel=1e-3)


def test_shorter_rows_of_patches_make_the_ratio_smaller_than_that_of_positions() -> None:
    values = {"preset": "superposition", "patch_size": 4, "step_fraction": 0.5}
    short, long = plan(**values, rows="tokens"), plan(**values, rows="positions")
    assert short.compute_ratio == pytest.approx(long.compute_ratio, rel=1e-3)
    assert SIZE.ratio_at_equal_data(short) < 0.99 * SIZE.ratio_at_equal_data(long)
    token = SIZE.flops_per_position(T).total * short.total_tokens
    assert SIZE.ratio_at_equal_data(short) == SIZE.flops(short).total / token
    assert SIZE.plan_dict(short)["compute_ratio"] == SIZE.ratio_at_equal_data(short)


@given(st.integers(2, 8), st.sampled_from(["paper", "superposition"]))
def test_the_bill_is_the_sum_of_its_steps(K: int, preset: str) -> None:
    made = plan(patch_size=K, preset=preset, tokens=None, steps=30, warmup_steps=1,
                tokens_per_step=840 * 8 * T)  # fmt: skip
    found = bill(SIZE, made, Rates(device("h100"), 8))
    by_step = sum(
        SIZE.flops_per_position(T, made.stage_at(step).patch_size).total
        * made.stage_at(step).positions_per_step
        for step in range(made.total_steps)
    )
    assert found.flops.total == pytest.approx(by_step)
    assert SIZE.flops(made).total == pytest.approx(by_step)
    assert SIZE.flops(made, 7).total < by_step


def test_only_embedding_and_loss_depend_on_the_patch_size() -> None:
    one, four = (SIZE.flops_per_position(T, K) for K in (1, 4))
    assert (one.body, one.attention, one.head) == (four.body, four.attention, four.head)
    assert four.embedding == 2 * 4 * 1024
    assert four.loss - one.loss == 9
    assert four.embedding + four.loss < 1e-4 * four.total


def test_time_money_and_energy() -> None:
    rates = Rates(device("a100"), 8, utilisation=0.5, price=2.0, kwh_price=0.25)
    found = cost(rates, patch_size=4, patch_fraction=0.5)
    seconds = found.flops.total / (312e12 * 0.5 * 8)
    assert found.seconds == pytest.approx(seconds)
    assert found.device_hours == pytest.approx(seconds * 8 / 3600)
    assert found.money == pytest.approx(2 * found.device_hours)
    assert found.kwh == pytest.approx(0.4 * found.device_hours)
    assert found.energy_money == pytest.approx(0.25 * found.kwh)


def test_nothing_is_made_up_without_a_device() -> None:
    found = cost()
    nothing = (found.seconds, found.device_hours, found.money, found.kwh, found.energy_money)
    assert nothing == (None,) * 5
    assert cost(Rates(device("t4"))).seconds is None  # it has no bf16
    assert cost(Rates(device("t4"), precision="fp32")).seconds is not None


def test_measured_steps_count_and_not_the_peak() -> None:
    found = cost(Rates(device("h100"), 8, measured=(2.0, 3.0)), patch_size=4, patch_fraction=0.5)
    first, second = found.plan.stages
    assert found.seconds == pytest.approx(2 * first.steps + 3 * second.steps)
    assert found.utilisation == pytest.approx(found.flops.total / (found.seconds * 8 * 989e12))


def test_checkpointing_adds_a_forward_pass_of_the_body() -> None:
    rates = Rates(device("h100"), 8)
    plain, again = cost(rates), cost(rates, checkpointing=True)
    assert again.flops == plain.flops
    extra = (plain.flops.body + plain.flops.attention) / 3
    assert sum(stage.recomputed for stage in again.stages) == pytest.approx(extra)
    assert again.seconds is not None
    assert plain.seconds is not None
    assert again.seconds / plain.seconds == pytest.approx(1 + extra / plain.flops.total)


def test_flops_add_up() -> None:
    one = Flops(1, 2, 3, 4, 5)
    assert (one * 2 + one).total == 45
    assert one.to_dict()["total"] == 15


def test_every_device_has_a_source_and_sane_figures() -> None:
    for name, known in devices().items():
        assert name == known.name == name.lower()
        assert len(known.source) > 10
        assert 1e9 < known.memory < 1e12
        assert 10 < known.watts < 2000
        for precision in ("bf16", "fp32"):
            peak = known.peak(precision)
            assert peak is None or 1e12 < peak < 1e16


def test_an_unknown_device_is_named_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="h100"):
        device("h1000")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Voodoo 2", None),
    ],
)
def test_what_drivers_call_a_device(title: str, name: str | None) -> None:
    found = recognised(title)
    assert (found.name if found else None) == name


def test_steps_at_token_level_cost_what_token_level_costs() -> None:
    spec = {
        "preset": "paper",
        "context_length": 8,
        "tokens_per_step": 64,
        "steps": 40,
        "hold": "compute",
    }
    made = PlanSpec.from_dict({**spec, "step_fraction": 0.5, "token_share": 0.25}).resolve()
    by_step = [
        SIZE.flops_per_position(8, made.stage_at(step).level_at(step).patch_size).total * 64
        for step in range(40)
    ]
    for steps in (0, 7, 20, 33, 40):
        assert SIZE.flops(made, steps).total == pytest.approx(sum(by_step[:steps]))
    assert bill(SIZE, made, Rates()).stages[0].flops.total == pytest.approx(sum(by_step[:20]))
