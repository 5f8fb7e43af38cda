"""The line that an advice prints makes of any recipe's plan the one that was advised."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchtrain import PlanSpec, UsageError
from patchtrain.advice import Advice, advise
from patchtrain.plan import CHOICES, Plan
from patchtrain.presets import PRESETS
from patchtrain.recipe import Recipe, apply_override

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted([*RECIPES.glob("*.yaml"), *RECIPES.glob("papers/*.yaml")])
M, B = 10**6, 10**9


def taken(values: dict[str, Any], line: str, processes: int = 1) -> Plan:
    """The plan of a recipe with ``values`` once the line is put behind it."""
    recipe = {"plan": dict(values)}
    for override in line.split():
        apply_override(recipe, override)
    return PlanSpec.from_dict(recipe["plan"]).resolve(processes=processes)


def is_what_was_advised(plan: Plan, advice: Advice) -> None:
    K = advice.patch_size
    assert [stage.patch_size for stage in plan.stages] == ([1] if K == 1 else [K, 1])
    assert plan.spec.hold == PRESETS[advice.preset]["hold"]
    assert plan.spec.rows == advice.plan.get("rows", "positions")
    patched = [stage for stage in plan.stages if stage.patch_size > 1]
    if advice.step_fraction is None:
        share = sum(stage.tokens for stage in patched) / plan.total_tokens
        assert share == pytest.approx(advice.patch_fraction, abs=0.01)
    else:
        share = sum(stage.steps for stage in patched) / plan.total_steps
        assert share == pytest.approx(advice.step_fraction, abs=0.01)
    assert plan.total_tokens == pytest.approx(advice.tokens_read, rel=0.02)
    assert plan.total_positions / advice.tokens == pytest.approx(advice.cost_ratio, rel=0.02)
    assert plan == PlanSpec.from_dict(advice.plan).resolve(processes=plan.processes)


SIZES = [(166_000, 16_400_000, 2048), (30 * M, 3 * B, 2**17), (370 * M, 360 * B, 2**21)]
OF_A_RECIPE: dict[str, st.SearchStrategy[Any]] = {
    **{
        key: st.sampled_from([None, *CHOICES[key]])
        for key in ("hold", "rows", "schedule", "schedule_scope", "optimizer_at_switch")
    },
    "slot_weights": st.sampled_from([None, "power", [1, 2, 3, 4]]),
    "hybrid_share": st.sampled_from([0, 0.25]),
    "token_share": st.sampled_from([0, 0.5]),
}


@given(
    st.sampled_from(list(PRESETS)), st.fixed_dictionaries(OF_A_RECIPE),
    st.sampled_from(["patch_fraction", "step_fraction"]), st.sampled_from(["steps", "tokens"]),
    st.sampled_from(SIZES), st.sampled_from(["data", "compute"]), st.sampled_from([1, 2, 8]),
)  # fmt: skip
def test_any_recipe_takes_it(
    preset: str, chosen: dict[str, Any], share: str, length: str, size: Any, scarce: Any,
    processes: int,
) -> None:  # fmt: skip
    parameters, tokens, tokens_per_step = size
    context = {"context_length": 128, "tokens_per_step": tokens_per_step}
    values = {**context, "preset": preset, **chosen, "patch_size": 4, share: 0.66, length: 6000}
    advice = advise(parameters, tokens, scarce, **context, processes=processes)
    is_what_was_advised(taken(values, advice.overrides, processes), advice)


@pytest.mark.parametrize("scarce", ["data", "compute"])
@pytest.mark.parametrize("hold", ["tokens", "compute"])
def test_a_list_of_stages_gives_way(scarce: Any, hold: str) -> None:
    context = {"context_length": 2048, "tokens_per_step": 2**19}
    advice = advise(600 * M, 360 * B, scarce, **context)
    values = {**context, "hold": hold, "stages": [[8, 0.2], [4, 0.2], [1, 0.6]], "steps": 9}
    is_what_was_advised(taken(values, advice.overrides), advice)


def test_a_step_that_holds_no_whole_patches_is_made_one_that_does() -> None:
    """A recipe under ``hold: compute`` may have steps of any number of sequences."""
    context = {"context_length": 2048, "tokens_per_step": 2048 * 1026}
    values = {**context, "preset": "superposition", "steps": 9000}
    for processes, fitting in ((1, 2048 * 1024), (2, 2048 * 1024), (9, 2048 * 36 * 28)):
        advice = advise(370 * M, 360 * B, "data", **context, processes=processes)
        assert advice.patch_size == 4
        assert f"plan.tokens_per_step={fitting} " in advice.overrides
        assert f"steps of {2048 * 1026} tokens do not divide" in advice.warnings[-1]
        is_what_was_advised(taken(values, advice.overrides, processes), advice)
    one = advise(370 * M, 360 * B, "data", context_length=2**21, tokens_per_step=2**21)
    assert f"plan.tokens_per_step={4 * 2**21} " in one.overrides
    assert advise(370 * M, 360 * B, "compute", **context).plan["tokens_per_step"] == 2048 * 1026


def test_processes_are_a_whole_number() -> None:
    with pytest.raises(UsageError, match="processes must be a whole number from 1"):
        advise(B, B, "data", processes=0)


def test_what_is_named_second_can_be_taken_too() -> None:
    context = {"context_length": 2048, "tokens_per_step": 2048 * 1026}
    values = {**context, "preset": "superposition", "hold": "compute", "steps": 9000}
    advice = advise(370 * M, 45 * B, "data", **context)
    line = advice.to_dict()["alternative_overrides"]
    assert "plan.tokens_per_step=2097152 " in line
    plan = taken(values, line)
    assert [stage.patch_size for stage in plan.stages] == [4, 1]
    assert plan == PlanSpec.from_dict(advice.alternative or {}).resolve()
    is_what_was_advised(taken(values, advice.overrides), advice)
    assert advise(B, 20 * B, "data").to_dict()["alternative_overrides"] is None


def test_the_line_for_the_command_line_replaces_a_plan() -> None:
    line = advise(370 * M, 360 * B, "data").overrides
    assert line.startswith("plan.preset=paper plan.patch_size=4 plan.patch_fraction=0.5 ")
    assert "plan.tokens=360000000000" in line
    assert "plan.step_fraction=null" in line
    assert "plan.patch_fraction=null" in advise(370 * M, 36 * B, "compute").overrides


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda file: file.stem)
@pytest.mark.parametrize("scarce", ["data", "compute"])
def test_the_line_fits_every_shipped_recipe(recipe: Path, scarce: Any) -> None:
    advice = advise(370 * M, 360 * B, scarce)
    loaded = Recipe.load(recipe, advice.overrides.split())
    plan = PlanSpec.from_dict(loaded.plan).resolve()
    assert [stage.patch_size for stage in plan.stages] == [advice.patch_size, 1]
    assert plan.total_tokens == pytest.approx(advice.tokens_read, rel=0.01)
