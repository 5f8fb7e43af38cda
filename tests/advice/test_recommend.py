"""Advice is what the numbers say: where they say nothing, or no, so does it."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import PlanSpec, UsageError
from patchtrain.advice import Advice, advise, plan_warnings, points, small
from patchtrain.advice.fits import equal_compute, equal_data
from patchtrain.advice.points import Own
from patchtrain.plan import Plan

M, B = 10**6, 10**9
STEP = {"context_length": 2048, "tokens_per_step": 2097152}


def text(advice: Advice) -> str:
    return "\n".join([*advice.reasons, *advice.extrapolates, *advice.warnings])


def test_ample_text_for_a_small_model_gains_at_less_cost() -> None:
    advice = advise(370 * M, 360 * B, "data", **STEP)
    assert (advice.preset, advice.patch_size, advice.patch_fraction) == ("paper", 4, 0.5)
    assert advice.held_equal == "data"
    assert advice.cost_ratio == pytest.approx(0.625)
    expected = equal_data().gain(360 / 0.37, 0.5)
    assert expected is not None
    assert advice.gain == expected.value > 0
    assert advice.interval == (expected.low, expected.high)
    assert expected.low > 0  # it is not recommended on hope
    assert (advice.extrapolates, advice.warnings) == ([], [])
    assert "2407.12665" in advice.reasons[0]
    assert any("single run" in reason for reason in advice.reasons)
    assert any("off by up to 0.026 nats; in 4 of them" in reason for reason in advice.reasons)


@pytest.mark.parametrize(("parameters", "tokens"), [(370 * M, 45 * B), (2700 * M, 360 * B)])
def test_where_the_nearest_lost_it_is_token_level_and_the_other_is_named(
    parameters: int, tokens: int
) -> None:
    advice = advise(parameters, tokens, "data", **STEP)
    assert (advice.patch_size, advice.patch_fraction, advice.cost_ratio) == (1, 0.0, 1.0)
    assert (advice.gain, advice.interval, advice.extrapolates) == (0.0, (0.0, 0.0), [])
    loss = equal_data().gain(tokens / parameters)
    assert loss is not None
    assert loss.value < 0
    (warning,) = advice.warnings
    assert f"lambda = 2/3 is expected to lose {-loss.value:.3f} nats" in warning
    assert any("best lambda is about 1/4" in reason for reason in advice.reasons)
    assert any("six times" in reason for reason in advice.reasons)
    other = advice.alternative
    assert other is not None  # no number is published at 1/4
    assert (other["patch_size"], other["patch_fraction"]) == (4, 0.25)
    assert other["tokens"] == tokens
    assert "plan.patch_size=4 plan.patch_fraction=0.25 " in str(advice.to_dict())


def test_far_too_little_text_is_token_level() -> None:
    advice = advise(1000 * M, 20 * B, "data", **STEP)
    assert (advice.patch_size, advice.patch_fraction) == (1, 0.0)
    assert (advice.gain, advice.interval, advice.cost_ratio) == (0.0, (0.0, 0.0), 1.0)
    assert "expected to lose" in advice.warnings[0]
    assert "no published run had so few; the least is 122" in advice.warnings[1]
    assert advice.alternative is None
    assert any(line.startswith("tokens for each parameter: 20 ") for line in advice.extrapolates)


def test_between_losing_and_surely_gaining_it_does_not_promise() -> None:
    ratio = equal_data().break_even * 1.05
    advice = advise(1000 * M, round(1000 * M * ratio), "data")
    assert advice.patch_fraction == 0.25
    assert (advice.gain, advice.interval) == (None, None)  # no number is published at 1/4
    assert advice.cost_ratio == pytest.approx(0.25 / 4 + 0.75)
    assert "expected to gain" in advice.warnings[0]
    assert "too little to be sure that it gains" in advice.warnings[0]
    assert "whether lambda = 0.25 gains here is not known" in advice.warnings[1]
    assert advice.extrapolates[-1].startswith("patch fraction: no number")
    other = advice.alternative
    assert other is not None
    assert (other["patch_size"], other["patch_fraction"]) == (1, 0.0)


def test_equal_data_far_from_everything_has_no_number() -> None:
    for parameters, tokens in ((133_440, 20 * B), (370 * M, B), (200 * B, 40_000 * B)):
        advice = advise(parameters, tokens, "data")
        assert advice.patch_fraction == 0
        assert "no run on equal data is known that is near" in advice.warnings[0]
        assert "so far that no gain is given" in " ".join(advice.extrapolates)
        assert "expected to" not in text(advice)


def test_equal_data_in_small_models_is_what_the_own_runs_say() -> None:
    own = points.own("data")
    assert len({item.patch_size for item in own}) > 1
    assert all(item.held_equal == "data" for item in own)
    item = max(own, key=lambda item: item.tokens)
    advice = advise(item.parameters, item.tokens, "data", tokens_per_step=2048)
    assert (advice.patch_fraction, advice.gain) == (0, 0.0)
    lines = [line for line in advice.reasons if f"evidence/{item.study}.json" in line]
    assert any(f"{item.gains[0]:+z.3f} nats" in line for line in lines)
    assert all(f"equal data, {item.rates} rates" in line for line in lines)
    assert "no published run on equal data is near this one; in the nearest" in advice.warnings[0]
    assert f"lost {-item.gains[0]:.3f} nats (K = {item.patch_size})" in advice.warnings[0]
    (warning,) = plan_warnings(
        item.parameters, plan(patch_size=2, patch_fraction=0.6, tokens=item.tokens)
    )
    assert warning.startswith("if text is what limits you, token level only is the safe choice")
    assert f"lost {-item.gains[0]:.3f} nats (K = {item.patch_size})" in warning


def test_scarce_compute_takes_more_text() -> None:
    advice = advise(600 * M, 42 * B, "compute", **STEP)
    assert (advice.preset, advice.patch_size, advice.step_fraction) == ("superposition", 6, 0.3)
    assert advice.patch_fraction is None
    assert (advice.held_equal, advice.cost_ratio) == ("compute", 1.0)
    assert advice.tokens_read == pytest.approx(105 * B)
    assert advice.gain == pytest.approx(0.075, abs=0.01)
    assert advice.interval is not None
    assert advice.interval[0] < 0.0747 < advice.interval[1]  # as the sweep has it
    assert (advice.extrapolates, advice.warnings) == ([], [])
    assert "105B tokens, each once; if there is less" in advice.reasons[-1]
    assert any("2.640, patches first at 2.676" in reason for reason in advice.reasons)


def test_small_models_follow_the_own_runs_and_their_seeds() -> None:
    (own,) = (o for o in points.own() if (o.study, o.patch_size) == ("heads", 4))
    choice = small.best(own.parameters, own.tokens)
    assert own in choice.found
    advice = advise(own.parameters, own.tokens, "compute", context_length=128, tokens_per_step=2048)
    for item in choice.found:
        (reason,) = (line for line in advice.reasons if f"evidence/{item.study}.json" in line)
        assert all(f"{gain:+z.3f}" in reason for gain in item.gains)
        assert item.text in reason
    assert advice.extrapolates == []
    for far in (
        advise(80 * own.parameters, 80 * own.tokens, "compute"),
        advise(own.parameters, own.tokens, "compute", tokens_per_step=2**20),  # 16 steps
    ):
        assert far.gain is None
        assert "so far that no gain is given" in far.extrapolates[0]
        assert far.warnings[-1].startswith("no run is known that is near")


def own_run(
    text: str, gain: float, K: int = 2, r: float = 0.3, scale: float = 1.0, rows: str = "positions"
) -> Own:
    size, tokens = round(100_000 * scale), round(10_000_000 * scale)
    return Own("study", text, 512, size, tokens, 4000, K, r, rows, 3, (gain - 0.01, gain + 0.01))


def small_advice(monkeypatch: pytest.MonkeyPatch, *own: Own) -> Advice:
    monkeypatch.setattr(points, "own", lambda held_equal="compute": own)
    return advise(100_000, 10_000_000, "compute", context_length=128, tokens_per_step=2048)


def test_a_little_outside_of_the_own_runs_each_dimension_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_advice(monkeypatch, own_run("a", 0.05))
    near = advise(200_000, 10_000_000, "compute", tokens_per_step=2048 * 4)
    assert [line.split(":")[0] for line in near.extrapolates] == [
        "model size", "tokens for each parameter", "steps",
    ]  # fmt: skip
    assert (near.patch_size, near.warnings) == (2, [])


def test_rows_of_as_many_tokens_are_advised_where_they_gained_and_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = [own_run("a", 0.05), own_run("a", 0.1, K=4, rows="tokens"), own_run("a", 0.02, K=4)]
    advice = small_advice(monkeypatch, *own)
    assert (advice.patch_size, advice.plan["rows"]) == (4, "tokens")
    assert "K = 4, r = 0.3, rows of as many tokens: +0.090, +0.110 nats" in advice.reasons[0]
    assert "plan.rows=tokens" in advice.overrides
    # Where they do not fit, K and gain are those of the rows that do, and so are the reasons.
    for context_length, K, rows in ((130, 2, "positions"), (4, 2, "positions"), (128, 4, "tokens")):
        advice = advise(100_000, 10_000_000, "compute", context_length=context_length)
        assert (advice.patch_size, advice.plan["rows"]) == (K, rows)
        assert advice.gain == pytest.approx(0.05 if K == 2 else 0.1)
        assert ("rows of as many tokens" in text(advice)) == (rows == "tokens")
    # Where the preset decides, a recipe's rows are taken out.
    assert "plan.rows=null" in advise(10**9, 10**11, "compute").overrides


def test_where_a_small_model_gains_on_each_text_the_gain_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = [own_run("a", 0.05), own_run("b", 0.15), own_run("b", 0.3, K=4)]
    advice = small_advice(monkeypatch, *own)
    assert (advice.patch_size, advice.step_fraction) == (2, 0.3)  # K = 4 is known of one text
    assert advice.gain == pytest.approx(0.1)
    assert advice.interval == pytest.approx((0.04, 0.16))
    assert advice.warnings == []


def test_where_texts_disagree_no_gain_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    advice = small_advice(monkeypatch, own_run("a", 0.2), own_run("b", -0.1))
    assert (advice.patch_size, advice.gain, advice.interval) == (2, None, None)
    assert advice.warnings[0].startswith(
        "in the nearest runs patches gained on a (100 tokens for each parameter), lost on b (100 "
        "tokens for each parameter); no gain is given: train both arms"
    )
    advice = small_advice(monkeypatch, own_run("a", 0.2), own_run("b", -0.001))
    assert "gained or lost by the seed on b" in advice.warnings[0]


@pytest.mark.parametrize("context_length", [130, 128, 6, None])
def test_every_comparison_quoted_has_the_rows_that_are_advised(context_length: int | None) -> None:
    for item in points.own():
        advice = advise(item.parameters, item.tokens, "compute", context_length=context_length)
        quoted = [line for line in advice.reasons if "results/evidence/" in line]
        rows = {"rows of as many tokens" in line for line in quoted}
        assert len(rows) == 1
        if advice.patch_size > 1:
            assert rows == {advice.plan["rows"] == "tokens"}
            assert all(f"K = {advice.patch_size}," in line for line in quoted)


@pytest.mark.parametrize("other", [-0.3, None])
def test_where_small_models_lose_it_is_token_level(
    monkeypatch: pytest.MonkeyPatch, other: float | None
) -> None:
    own = [own_run("a", -0.1)] if other is None else [own_run("a", 0.1), own_run("b", other)]
    advice = small_advice(monkeypatch, *own)
    assert (advice.patch_size, advice.step_fraction, advice.gain) == (1, 0.0, 0.0)
    assert advice.tokens_read == advice.tokens
    assert "; token level only, or train both arms" in advice.warnings[0]
    assert [s.patch_size for s in PlanSpec.from_dict(advice.plan).resolve().stages] == [1]


def test_each_text_speaks_by_its_nearest_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    near = [own_run("a", 0.1, scale=1.2), own_run("a", 0.02, r=0.1, scale=1.2)]
    own = [*near, own_run("a", -0.5, scale=3), own_run("b", 0.1, scale=3)]
    assert small_advice(monkeypatch, *own).gain == pytest.approx(0.1)


def test_a_setting_tried_at_another_length_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to ln 2 farther than a text's nearest comparison; of two of a setting the nearer one."""
    near, far = own_run("a", 0.1), replace(own_run("a", 0.2, K=4), tokens=5_100_000)
    farther = replace(far, tokens=5_050_000, gains=(0.9,))
    assert small_advice(monkeypatch, near, farther, far).gain == pytest.approx(0.2)
    assert small_advice(monkeypatch, near, replace(far, tokens=4_900_000)).gain == pytest.approx(
        0.1
    )


@pytest.mark.parametrize("scarce", ["data", "compute"])
def test_every_dimension_outside_is_named(scarce: Any) -> None:
    advice = advise(7 * B, 70 * B, scarce, context_length=2048, tokens_per_step=2**26)
    named = {line.split(":")[0] for line in advice.extrapolates}
    assert {"model size", "tokens for each parameter", "steps"} <= named
    without = advise(7 * B, 70 * B, scarce)
    assert not any(line.startswith("steps") for line in without.extrapolates)


def test_published_sizes_are_not_called_extrapolation_for_their_rounding() -> None:
    assert advise(365_123_456, 358 * B, "data", **STEP).extrapolates == []


def test_equal_compute_far_away_has_no_number() -> None:
    advice = advise(1, 10**18, "compute")
    assert advice.gain is None
    assert advice.interval is None
    advice = advise(30 * M, 10 * B, "compute")  # nine times smaller than any published one
    assert advice.gain is not None
    assert advice.extrapolates
    advice = advise(20 * M, B, "compute")
    assert advice.gain is None
    assert "try it at a small scale first" in advice.warnings[-1]


@given(
    st.integers(1, 10**18), st.integers(1, 10**18), st.sampled_from(["data", "compute"]),
    st.sampled_from([None, 1, 2048]),
)  # fmt: skip
def test_any_budget_has_advice_that_holds_together(
    parameters: int, tokens: int, scarce: Any, length: int | None
) -> None:
    advice = advise(parameters, tokens, scarce, context_length=length)
    assert json.loads(json.dumps(advice.to_dict(), allow_nan=False)) == advice.to_dict()
    assert (advice.patch_fraction is None) != (advice.step_fraction is None)
    assert (advice.gain is None) == (advice.interval is None)
    if advice.gain is not None and advice.interval is not None:
        assert advice.interval[0] <= advice.gain <= advice.interval[1]
        assert abs(advice.gain) < 1
        assert advice.gain >= 0  # nothing that is expected to lose is recommended
    if advice.gain is None:
        assert advice.warnings
    assert advice.tokens_read >= tokens
    assert all(reason and "\n" not in reason for reason in text(advice).splitlines())


@given(
    st.integers(10 * M, 10 * B), st.floats(1, 2000), st.sampled_from(["data", "compute"])
)  # fmt: skip
def test_the_plan_resolves_and_is_what_was_advised(
    parameters: int, ratio: float, scarce: Any
) -> None:
    advice = advise(parameters, max(B, int(parameters * ratio)), scarce, context_length=2048,
                    tokens_per_step=2**19)  # fmt: skip
    plan = PlanSpec.from_dict(advice.plan).resolve()
    sizes = [stage.patch_size for stage in plan.stages]
    assert sizes == ([1] if advice.patch_size == 1 else [advice.patch_size, 1])
    assert plan.spec.preset == advice.preset
    assert plan.warnings() == []
    assert plan.total_tokens == pytest.approx(advice.tokens_read, rel=0.01)
    assert plan.total_positions / advice.tokens == pytest.approx(advice.cost_ratio, rel=0.01)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((0, B, "data"), "parameters must be a whole number from 1 to 10**18, not 0"),
        ((B, -5, "data"), "tokens must be a whole number from 1 to 10**18, not -5"),
        ((B, 1.5, "data"), "tokens must be a whole number"),
        ((True, B, "data"), "parameters must be a whole number"),
        ((B, 10**19, "data"), "tokens must be"),
        ((B, math.nan, "data"), "tokens must be"),
        ((B, B, "money\n"), "scarce is data or compute, not 'money"),
        ((B, B, None), "scarce is data or compute, not None"),
    ],
)
def test_wrong_values_are_one_clear_line(values: Any, named: str) -> None:
    with pytest.raises(UsageError) as error:
        advise(*values)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_wrong_context_is_named_too() -> None:
    with pytest.raises(UsageError, match="tokens_per_step must be a whole number"):
        advise(B, B, "compute", tokens_per_step=0)
    with pytest.raises(UsageError, match="context_length must be a whole number"):
        advise(B, B, "compute", context_length="2k")  # type: ignore[arg-type]


def plan(**values: Any) -> Plan:
    spec = {
        "preset": "paper",
        "context_length": 2048,
        "tokens_per_step": 2**19,
        "tokens": 45 * B,
        **values,
    }
    return PlanSpec.from_dict(spec).resolve()


def test_a_plan_with_little_text_for_its_model_is_warned_of() -> None:
    (warning,) = plan_warnings(370 * M, plan(patch_size=4, patch_fraction=2 / 3))
    loss = equal_data().gain(45 / 0.37)
    assert loss is not None
    assert f"expected to end {-loss.value:.3f} nats lower (2407.12665" in warning
    assert "not if compute is" in warning
    (other,) = plan_warnings(370 * M, plan(preset="superposition", patch_size=4, step_fraction=0.3))
    assert "lower (2407.12665" in other
    (late,) = plan_warnings(370 * M, plan(patch_size=4, patch_fraction=0.9))
    assert "at lambda = 0.8, the nearest measured" in late
    (early,) = plan_warnings(370 * M, plan(patch_size=4, patch_fraction=0.4))
    assert "at lambda = 0.5, the nearest measured" in early


def test_a_plan_that_is_fine_is_not() -> None:
    assert plan_warnings(370 * M, plan(patch_size=4, patch_fraction=0.25)) == []
    assert plan_warnings(370 * M, plan(patch_fraction=0)) == []
    assert plan_warnings(370 * M, plan(patch_size=4, patch_fraction=2 / 3, tokens=360 * B)) == []
    stages = plan(stages=[[8, 0.1], [4, 0.1], [1, 0.8]])
    assert plan_warnings(370 * M, stages) == []


def test_a_plan_for_a_size_that_nobody_compared_says_so() -> None:
    (warning,) = plan_warnings(133_440, plan(patch_size=2, patch_fraction=0.6, tokens=20 * B))
    assert "no comparison on the same text is known near 133,440 parameters" in warning
    with pytest.raises(UsageError, match="parameters"):
        plan_warnings(0, plan())


def test_advice_and_warning_agree() -> None:
    """What is advised for scarce text is not warned of, but for what nobody measured."""
    for parameters, tokens in ((370 * M, 45 * B), (370 * M, 360 * B), (2700 * M, 360 * B)):
        advice = advise(parameters, tokens, "data", context_length=2048, tokens_per_step=2**19)
        assert plan_warnings(parameters, PlanSpec.from_dict(advice.plan).resolve()) == []
    assert equal_compute().patch_size == 6


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "advice.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    printed = capsys.readouterr().out
    assert printed.startswith("plan.preset=paper plan.patch_size=1 ")
    assert "tokens for each parameter are few" in printed
