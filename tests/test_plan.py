"""The plan: whole steps, disjoint tokens, schedules, and every problem named at once."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patchtrain import Plan, PlanSpec, UsageError, slot_weights
from patchtrain.advice import fits, points, ranges, small
from patchtrain.presets import OF_LARGE, OF_SMALL, SMALL, STEP_FRACTION

BASE: dict[str, Any] = {"preset": "paper", "context_length": 16, "tokens_per_step": 512}


def resolve(store_tokens: int | None = None, **values: Any) -> Plan:
    placed = {
        name: values.pop(name) for name in ("device_sequences", "processes") if name in values
    }
    return PlanSpec.from_dict({**BASE, **values}).resolve(store_tokens=store_tokens, **placed)


def test_paper_costs_half_at_k_4_and_two_thirds_of_the_data() -> None:
    plan = resolve(preset="paper", patch_size=4, patch_fraction=2 / 3, steps=300)
    patch, token = plan.stages
    assert (patch.patch_size, patch.steps, token.patch_size, token.steps) == (4, 200, 1, 100)
    assert patch.tokens_per_step == token.tokens_per_step == 512
    assert patch.positions_per_step == token.positions_per_step / 4
    assert plan.compute_ratio == pytest.approx(0.5)
    assert (plan.spec.hold, plan.spec.optimizer_at_switch) == ("tokens", "reset")


def test_superposition_holds_the_compute_of_a_step() -> None:
    plan = resolve(preset="superposition", patch_size=2, step_fraction=0.3, steps=100)
    patch, token = plan.stages
    assert (patch.steps, token.steps) == (30, 70)
    assert patch.positions_per_step == token.positions_per_step == 512
    assert patch.tokens_per_step == 2 * token.tokens_per_step
    assert plan.total_positions == 100 * 512
    assert (plan.spec.schedule_scope, plan.spec.optimizer_at_switch) == ("run", "carry")


@given(
    k=st.sampled_from([2, 4, 8]), r=st.floats(0.1, 0.9), hold=st.sampled_from(["tokens", "compute"])
)
def test_rows_of_as_many_tokens_are_as_wide_as_those_at_token_level(
    k: int, r: float, hold: str
) -> None:
    common = {"step_fraction": r, "steps": 100, "hold": hold, "patch_size": k}
    patch, token = resolve(rows="tokens", **common).stages
    assert (patch.context_length, token.context_length) == (16 // k, 16)
    assert patch.sequence_tokens == token.sequence_tokens == 16
    wide = resolve(**common).stages[0]
    assert patch.tokens_per_step == wide.tokens_per_step
    assert patch.positions_per_step == wide.positions_per_step
    listed = resolve(
        stages=[{"patch_size": k, "share": r, "context_length": 16 // k}, [1, 1 - r]],
        share_of="steps", steps=100, hold=hold,
    )  # fmt: skip
    assert listed.stages == (patch, token)


def test_each_stage_of_a_list_has_rows_of_as_many_tokens_but_for_its_own() -> None:
    stages = [[8, 0.2], {"patch_size": 4, "share": 0.2, "context_length": 16}, [2, 0.2], [1, 0.4]]
    plan = resolve(stages=stages, rows="tokens", steps=100, hold="compute")
    assert [stage.context_length for stage in plan.stages] == [2, 16, 8, 16]


@given(k=st.sampled_from([2, 4, 8]), r=st.floats(0.05, 0.95))
def test_share_of_tokens_and_share_of_steps_convert_as_published(k: int, r: float) -> None:
    share = r * k / (r * k + 1 - r)  # design: lambda = rK / (rK + 1 - r)
    common = {"preset": "superposition", "patch_size": k, "steps": 100_000}
    by_steps = resolve(step_fraction=r, **common)
    by_tokens = resolve(patch_fraction=share, **common)
    assert abs(by_steps.stages[0].steps - by_tokens.stages[0].steps) <= 1
    patch = by_steps.stages[0]
    assert patch.tokens / by_steps.total_tokens == pytest.approx(share, abs=1e-4)


@given(
    preset=st.sampled_from(["paper", "superposition"]),
    k=st.sampled_from([1, 2, 4, 8]),
    fraction=st.floats(0, 1),
    steps=st.integers(10, 5000),
)
def test_steps_sum_up_and_token_ranges_are_disjoint(
    preset: str, k: int, fraction: float, steps: int
) -> None:
    try:
        plan = resolve(preset=preset, patch_size=k, patch_fraction=fraction, steps=steps)
    except UsageError as error:
        assume("no step" not in str(error) and "warm-up" not in str(error))
        raise
    assert plan.total_steps == steps
    end_step = end_block = 0
    for stage in plan.stages:
        assert stage.first_step == end_step
        assert stage.first_block == end_block
        assert stage.blocks * plan.block_tokens >= stage.tokens
        assert (stage.blocks - 1) * plan.block_tokens < stage.tokens
        end_step, end_block = stage.last_step, end_block + stage.blocks
    for step in {0, steps // 3, steps - 1}:
        stage = plan.stage_at(step)
        assert stage.first_step <= step < stage.last_step
    assert plan.tokens_before(steps) == plan.total_tokens
    assert plan.positions_before(steps) == plan.total_positions


def test_a_free_list_of_stages_is_only_a_longer_list() -> None:
    plan = resolve(stages=[[8, 0.2], [4, 0.2], [2, 0.2], {"patch_size": 1, "share": 0.4}], steps=50)
    assert [stage.patch_size for stage in plan.stages] == [8, 4, 2, 1]
    assert [stage.steps for stage in plan.stages] == [10, 10, 10, 20]
    assert plan.block_tokens == 8 * 16
    assert plan.compute_ratio == pytest.approx(0.2 / 8 + 0.2 / 4 + 0.2 / 2 + 0.4)


@pytest.mark.parametrize("values", [{"patch_fraction": 0}, {"patch_size": 1}])
def test_no_patches_is_one_token_level_stage(values: dict[str, Any]) -> None:
    plan = resolve(steps=10, **values)
    assert [stage.patch_size for stage in plan.stages] == [1]
    assert plan.compute_ratio == 1


def test_length_by_tokens_and_by_epochs_never_reads_more_than_that() -> None:
    by_tokens = resolve(tokens=100_000, patch_fraction=0.5)
    assert 100_000 - 2 * 512 <= by_tokens.total_tokens <= 100_000
    by_epochs = resolve(store_tokens=100_000, epochs=2, patch_fraction=0.5)
    assert by_epochs.epochs is not None
    assert 1.9 < by_epochs.epochs <= 2
    assert by_epochs.stages[-1].first_block + by_epochs.stages[-1].blocks <= 2 * (100_000 // 64)


def test_device_passes_are_equal_in_all_stages() -> None:
    plan = resolve(steps=30, patch_fraction=0.5, device_sequences=5)  # 8 and 32 sequences a step
    assert plan.pass_sequences == 4
    assert [plan.passes(stage) for stage in plan.stages] == [2, 8]
    spread = resolve(steps=30, patch_fraction=0.5, device_sequences=64, processes=2)
    assert spread.pass_sequences == 4
    assert [spread.passes(stage) for stage in spread.stages] == [1, 4]


def test_rates_restart_in_each_stage_or_run_through() -> None:
    paper = resolve(preset="paper", patch_fraction=0.5, steps=200, warmup_steps=10)
    rates = [paper.rate_at(step) for step in range(200)]
    assert rates[9] == rates[109] == 1.0
    assert rates[0] == rates[100] == pytest.approx(0.1)
    assert rates[99] < 0.01 > rates[199]
    run = resolve(preset="superposition", steps=200, warmup_steps=10, decay_fraction=0.2)
    rates = [run.rate_at(step) for step in range(200)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:161]) == {1.0}
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[161:]))
    assert 0 < rates[-1] < 0.05
    flat = resolve(schedule="constant", steps=200, warmup_steps=0)
    assert {flat.rate_at(step) for step in range(200)} == {1.0}


@given(
    step=st.integers(0, 500),
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    scope=st.sampled_from(["stage", "run"]),
    low=st.floats(0, 0.5),
)
def test_a_rate_is_a_share_of_the_peak(step: int, schedule: str, scope: str, low: float) -> None:
    plan = resolve(steps=400, schedule=schedule, schedule_scope=scope, min_rate=low)
    assert 0 <= plan.rate_at(step) <= 1


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(preset="papper", patch_size=0, patch_fraction=1.5, steps=0, schedule="sine")
    for part in ("preset 'papper'", "patch_size", "patch_fraction", "steps", "schedule 'sine'"):
        assert part in str(caught.value)


def test_the_default_goes_by_the_models_size() -> None:
    spec = PlanSpec(context_length=16, tokens_per_step=512, steps=100)
    for parameters, (K, rows) in ((SMALL - 1, OF_SMALL), (SMALL, OF_LARGE)):
        plan = spec.for_model(parameters).resolve()
        patch, token = plan.stages
        assert (patch.patch_size, patch.steps, token.steps) == (K, 30, 70)
        assert patch.positions_per_step == token.positions_per_step  # equal compute a step
        assert patch.context_length * (K if rows == "tokens" else 1) == 16
        assert (plan.spec.preset, plan.spec.optimizer_at_switch) == ("patchtrain", "carry")
        assert (plan.spec.schedule, plan.spec.schedule_scope) == ("cosine", "run")
    # Rows that such patches do not divide, and who says what rows to have.
    with pytest.raises(UsageError, match="rows 'words' is not one of positions"):
        PlanSpec(context_length=16, tokens_per_step=512, steps=9, rows="words").for_model(
            1
        ).resolve()
    for values in ({"context_length": 18}, {"context_length": 4}, {"rows": "positions"}):
        spec = PlanSpec.from_dict({**BASE, "preset": "patchtrain", "steps": 100, **values})
        assert spec.filled().rows == values.get("rows")
        sized = spec.for_model(SMALL - 1)
        assert (sized.patch_size, sized.rows) == (OF_SMALL[0], "positions")
    for other in ({"patch_size": 3}, {"preset": "paper"}, {"preset": "superposition"}):
        fixed = PlanSpec.from_dict({**BASE, "preset": "patchtrain", "steps": 100, **other})
        assert fixed.for_model(1) == fixed
        assert fixed.filled().rows == "positions"
    # Where no patch size is asked for, the size of the model does not matter.
    for other in ({"position_scale": "patch"}, {"position_scale": "patch", "patch_size": 2}):
        scaled = PlanSpec.from_dict({**BASE, "preset": "patchtrain", "steps": 9, **other})
        if "patch_size" in other:
            assert scaled.longest_context() == 32
        else:
            with pytest.raises(UsageError, match="position_scale patch needs a patch_size"):
                scaled.longest_context()
    for other in ({"stages": [[4, 0.5], [1, 0.5]]}, {"patch_fraction": 0}, {"step_fraction": 0.0}):
        values = {**BASE, "preset": "patchtrain", "steps": 10, **other}
        assert PlanSpec.from_dict(values).for_model(1) == PlanSpec.from_dict(values)
        assert PlanSpec.from_dict(values).resolve().stages


def test_the_default_is_what_the_comparisons_speak_for() -> None:
    """Of what is advised at the size and length of any own comparison, what gained most."""
    advised = [small.best(item.parameters, item.tokens) for item in points.own()]
    best = max(advised, key=lambda choice: choice.mean)
    r = STEP_FRACTION["patchtrain"]
    assert (best.patch_size, best.rows) == OF_SMALL
    assert best.share == r
    assert best.mean > 0
    assert len(best.found) > 1  # texts
    assert min(choice.mean for choice in advised) < 0  # where runs are short
    # Other patches are advised only where these were tried on fewer texts.
    for item, choice in zip(points.own(), advised, strict=True):
        if choice.mean > 0 and (choice.patch_size, choice.rows) != OF_SMALL:
            tried = [
                len(other.found)
                for other in small.nearest(item.parameters, item.tokens, points.own())
                if (other.patch_size, other.share, other.rows) == (OF_SMALL[0], r, OF_SMALL[1])
            ]
            assert max(tried, default=0) < len(choice.found), item
    large = fits.equal_compute()
    assert (large.patch_size, large.step_fraction) == (OF_LARGE[0], r)
    assert pytest.approx(ranges.boundary(), rel=0.05) == SMALL


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch_size": 0, "steps": 10}, "patch_size must be a whole number of at least 1"),
        ({"patch_size": 2.5, "steps": 10}, "patch_size must be a whole number"),
        ({"patch_size": 3, "steps": 10}, "not a multiple of 48 .* the nearest that fits is 480 or"),
        ({"patch_size": 3, "steps": 10, "rows": "tokens"}, "16 is not such a multiple of 3"),
        ({"patch_size": 16, "steps": 10, "rows": "tokens"}, "16 is not such a multiple of 16"),
        ({"steps": 10, "rows": "words"}, "rows 'words' is not one of positions, tokens"),
        ({"steps": 10, "tokens": 10_000}, "steps and tokens are given"),
        ({}, "none is given"),
        ({"epochs": 1}, "epochs needs a store"),
        ({"steps": 1, "patch_fraction": 0.5}, "would have no step"),
        ({"steps": 20, "warmup_steps": 15}, "15 warm-up steps leave none"),
        ({"steps": 20, "patch_fraction": 0.5, "step_fraction": 0.5}, "not both"),
        ({"steps": 20, "stages": [[2, 0.5]], "patch_fraction": 0.5}, "not both"),
        ({"steps": 20, "stages": []}, "empty"),
        ({"steps": 20, "stages": [[2, 0.5], [1, 0.1]]}, "sum to 0.6"),
        ({"steps": 20, "stages": [[2, 0.5], "x"]}, "a stage is a patch_size and a share"),
        ({"steps": 20, "stages": [{"patchsize": 2, "share": 1}]}, "did you mean 'patch_size'"),
        ({"steps": 20, "stages": [[0, 1.0]]}, "a whole number from 1 to 1,024, not 0"),
        ({"steps": 20, "context_length": 1}, "at least 2"),
        ({"steps": 20, "slot_weights": "cubic"}, "slot weights 'cubic'"),
        ({"steps": 20, "slot_weights": 3}, "slot weights are a name or a list of numbers, not 3"),
        ({"steps": 20, "slot_weights": [1, "x", 1, 1]}, "slot weights are a name or a list"),
        ({"steps": 20, "stages": 5}, "stages is a list of patch sizes and shares, not 5"),
        ({"steps": 20, "stages": "ab"}, "stages is a list of patch sizes and shares, not 'ab'"),
        (
            {"steps": 20, "decay_fraction": None},
            "decay_fraction must lie between 0 and 1, not None",
        ),
        (
            {"steps": 20, "preset": "patchtrain"},
            "patch_size is missing: preset patchtrain takes it from the size of the model",
        ),
        (
            {"steps": 20, "max_epochs": None},
            "max_epochs must be above 0 and at most 10,000, not None",
        ),
        ({"steps": 20, "tokens_per_step": "many"}, "tokens_per_step must be a whole number"),
        ({"steps": 20, "patch_size": 10**9}, "patch_size must be at most 1,024"),
        ({"steps": 10**400}, "steps must be at most 1,000,000,000"),
        ({"tokens": 10**14}, "the run would have [0-9,]* steps"),
        ({"steps": 20, "tokens_per_step": 10**15}, "tokens_per_step must be at most"),
        ({"steps": 20, "max_epochs": 10**400}, "max_epochs must be above 0 and at most 10,000"),
        ({"steps": 20, "max_epochs": float("inf")}, "max_epochs must be above 0 and at most"),
        ({"steps": 20, "preset": ["paper"]}, "preset .* is not one of patchtrain, paper"),
        ({"steps": 20, "patch_fraction": "x", "documents": "separate"}, "patch_fraction must lie"),
        ({"steps": 20, "slot_weights": [10**400, 1, 1, 1]}, "slot weights are a name or a list"),
        ({"steps": 20, "slot_weights": [1, 2]}, "slot_weights has 2 numbers, and no stage has"),
        ({"steps": 20, "pool_weights": [1, 2]}, "pool_weights has 2 numbers, and no stage has"),
        (
            {
                "steps": 20,
                "stages": [[k, 0.1] for k in (1021, 1019, 1013, 1009, 997)] + [[991, 0.5]],
            },
            "so large a common multiple",
        ),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(**values)


def test_unknown_and_missing_keys_are_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError) as caught:
        PlanSpec.from_dict({"patch_sise": 4, "context_length": 8})
    assert "'patch_sise'; did you mean 'patch_size'" in str(caught.value)
    assert "'tokens_per_step' is missing" in str(caught.value)


def test_a_store_too_small_is_refused_unless_epochs_are_asked_for() -> None:
    with pytest.raises(UsageError, match=r"2\.\d+ epochs.*max_epochs=2\.\d"):
        resolve(store_tokens=10_000, tokens=25_000, patch_fraction=0.5)
    with pytest.raises(UsageError, match=r"shorten it \(steps=\d+ at most\)") as caught:
        resolve(store_tokens=10_000, steps=1000, patch_fraction=0.5)
    fitting = int(str(caught.value).split("steps=")[1].split()[0])
    resolve(store_tokens=10_000, steps=fitting, patch_fraction=0.5)  # as it says
    plan = resolve(store_tokens=10_000, tokens=25_000, patch_fraction=0.5, max_epochs=3)
    assert plan.epochs is not None
    assert math.isclose(plan.epochs, 2.5, abs_tol=0.1)
    with pytest.raises(UsageError, match="less than one block"):
        resolve(store_tokens=20, steps=10)


def test_a_plan_that_ends_at_patch_level_is_warned_of() -> None:
    for values in ({"patch_fraction": 1.0}, {"stages": [[1, 0.5], [4, 0.5]]}):
        (warning,) = resolve(steps=100, **values).warnings()
        assert "ends at patch level" in warning


@pytest.mark.parametrize(
    ("preset", "share", "least", "words"),
    [
        ("paper", "patch_fraction", 0.75, "tokens are left for the token level; in 2407.12665"),
        (
            "superposition",
            "step_fraction",
            0.5,
            "steps are left for the token level; in 2605.06546",
        ),
    ],
)
@pytest.mark.parametrize("patch_size", [2, 4, 8])
@pytest.mark.parametrize("steps", [10, 1000])
def test_too_little_token_level_is_allowed_with_a_warning(
    preset: str, share: str, least: float, words: str, patch_size: int, steps: int
) -> None:
    def warnings(fraction: float) -> list[str]:
        plan = resolve(
            steps=steps, preset=preset, patch_size=patch_size, tokens_per_step=8 * 16,
            **{share: fraction},
        )  # fmt: skip
        return plan.warnings()

    assert not warnings(0.0)
    assert not warnings(least)
    (warning,) = warnings(least + 0.15)
    assert f"only {0.85 - least:.0%} of the {words}" in warning or steps == 10


def test_no_published_run_that_gained_is_warned_of() -> None:
    """K and share of all runs of both papers that beat plain training clearly."""
    for fraction in (0.5, 2 / 3):
        assert not resolve(steps=1000, patch_size=4, patch_fraction=fraction).warnings()
    for patch_size in (2, 4, 6, 8, 16):
        for fraction in (0.1, 0.2, 0.3, 0.4, 0.5):
            values = {"preset": "superposition", "step_fraction": fraction}
            assert not resolve(steps=1000, patch_size=patch_size, **values).warnings()


def test_published_runs_that_lost_are_warned_of() -> None:
    assert resolve(steps=1000, patch_size=4, patch_fraction=0.8).warnings()  # 11.0 against 10.9
    values = {"preset": "superposition", "step_fraction": 0.9}
    for patch_size in (2, 4, 8, 16):
        assert resolve(steps=1000, patch_size=patch_size, **values).warnings()


def test_a_step_that_does_not_fit_is_said_once() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(steps=100, tokens_per_step=2000, stages=[[4, 0.5], [2, 0.3], [1, 0.2]])
    assert str(caught.value).count("not a multiple") == 1
    assert "multiple of 64 (context_length 16 x patch size 4)" in str(caught.value)


def test_processes_that_cannot_share_a_step_are_refused() -> None:
    with pytest.raises(UsageError, match="3 processes"):
        resolve(steps=30, processes=3)


def test_a_list_of_weights_is_for_the_stage_of_its_length() -> None:
    plan = resolve(steps=30, patch_size=4, patch_fraction=0.5, slot_weights=[4, 2, 1, 1])
    assert plan.stages[0].slot_weights == (2.0, 1.0, 0.5, 0.5)
    assert plan.stages[1].slot_weights == (1.0,)


def test_the_record_is_plain_json() -> None:
    import json

    plan = resolve(store_tokens=1_000_000, preset="superposition", steps=100)
    record = json.loads(json.dumps(plan.to_dict()))
    assert record["total_steps"] == 100
    assert record["stages"][0]["name"] == "patches of 4"
    assert record["schedule"] == "wsd"


@given(st.integers(1, 32), st.sampled_from(["uniform", "power", "auto"]))
def test_slot_weights_have_a_mean_of_one(patch_size: int, kind: str) -> None:
    weights = slot_weights(patch_size, kind)
    assert len(weights) == patch_size
    assert sum(weights) == pytest.approx(patch_size)
    assert list(weights) == sorted(weights, reverse=True)


def test_slot_weights_follow_their_names() -> None:
    assert slot_weights(4) == (1.0, 1.0, 1.0, 1.0)
    power = slot_weights(4, "power")
    assert [power[0] / weight for weight in power] == pytest.approx([1, 2, 3, 4])
    assert slot_weights(4, "auto") == slot_weights(4, "uniform")
    assert slot_weights(8, "auto") == slot_weights(8, "power")
    assert slot_weights(2, [3, 1]) == (1.5, 0.5)


@pytest.mark.parametrize("kind", ["cubic", [1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]])
def test_slot_weights_that_make_no_sense_are_refused(kind: object) -> None:
    with pytest.raises(UsageError, match="slot weights"):
        slot_weights(2, kind)  # type: ignore[arg-type]
