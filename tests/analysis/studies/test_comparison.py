"""Comparisons: arms at an equal length, rates chosen on the first seed alone, results by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchtrain.analysis.studies import comparison
from patchtrain.analysis.studies.comparison import run_comparison
from patchtrain.analysis.studies.estimate import estimate
from patchtrain.analysis.studies.question import compared, from_words, full_path
from patchtrain.analysis.studies.study import Arm
from patchtrain.data.prepare import prepare
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.plan import CHOICES
from patchtrain.recipe import Recipe
from patchtrain.report.compare_words import (
    budget_rows,
    held,
    loss_rows,
    lost_notes,
    verdict,
)
from tests.analysis.studies.pretend import RECIPE, End, Pretend, recipe
from tests.cli.corpus import write_corpus


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(end: End) -> Pretend:
        found = Pretend(end)
        monkeypatch.setattr(comparison, "train_runs", found)
        return found

    return make


def run(question: Any, folder: Path, **more: Any) -> dict[str, Any]:
    return run_comparison(question, folder, 1, say=lambda line: None, quiet=True, **more)


def named(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in found["contenders"] if item["name"] == name)


def test_the_usual_arms_cost_the_same_and_a_twin_is_left_out() -> None:
    question = compared(recipe(step_fraction=0.3), [])
    assert [item.name for item in question.contenders] == [
        "token", "recipe", "patchtrain", "paper",
    ]  # fmt: skip
    assert question.about["left_out"] == {"superposition": "the same plan as recipe"}
    for item in question.contenders:
        assert item.equality is not None
        assert abs(item.equality.off) < 0.01
    words = {item.name: item.words for item in question.contenders}
    assert words["token"] == "tokens throughout"
    assert words["paper"].startswith("patches of 4 for 33% of the positions, then tokens; opt")
    assert words["patchtrain"].startswith("patches of 4 in rows of 4 positions for 30% of")


def test_the_default_as_an_arm_is_what_it_is_for_that_model_whatever_k_the_recipe_names() -> None:
    for values in ({"patch_size": 2}, {"preset": "paper", "patch_size": None}):
        question = compared(recipe(**values), ["patchtrain", "paper"])
        words = {item.name: item.words for item in question.contenders}
        assert words["patchtrain"].startswith("patches of 4 in rows of 4 positions for 30% of")
        assert words["paper"].startswith(f"patches of {values['patch_size'] or 4} for ")
    # A recipe of the default is that arm.
    question = compared(recipe(preset="patchtrain", patch_size=None, step_fraction=0.3), [])
    assert question.about["left_out"]["patchtrain"] == "the same plan as recipe"


def test_what_a_plan_does_at_the_switch_and_its_settings_are_in_its_words() -> None:
    arms = [
        *(f"{name}:optimizer_at_switch={name}" for name in CHOICES["optimizer_at_switch"]),
        "warmed:rewarm_steps=5",
        "moved:phase=random",
        "mixed:token_share=0.25",
        "weighed:slot_weights=power",
        'short:stages=[{"patch_size":1,"share":0.3,"context_length":8},[1,0.7]],share_of=steps',
    ]
    question = compared(recipe(step_fraction=0.3), arms)
    words = {item.name: item.words for item in question.contenders}
    assert len(words) == len(set(words.values())) == 1 + len(arms)
    assert "second moments" in words["second"]
    assert words["warmed"].endswith("; rewarm_steps 5")
    assert words["weighed"].endswith("; slot_weights power")
    assert words["short"].startswith(
        "tokens in rows of 8 positions for 30% of the positions, then t"
    )


def test_a_preset_that_does_not_fit_is_left_out_unless_it_was_asked_for() -> None:
    odd = recipe(patch_size=3)  # the paper's long rows do not fit the step
    question = compared(odd, [])
    names = [item.name for item in question.contenders]
    assert names == ["token", "recipe", "patchtrain", "superposition"]
    assert "tokens_per_step 64 is not a multiple of 48" in question.about["left_out"]["paper"]
    with pytest.raises(UsageError, match="arm paper: the plan does not fit"):
        compared(odd, ["paper"])


def test_what_an_arm_changes_besides_its_plan_is_in_its_words() -> None:
    question = compared(recipe(), ["other:training.optim=sgd,training.learning_rate=0.1"])
    assert question.contenders[1].words.endswith("; optim sgd; learning_rate 0.1")


def test_at_equal_data_all_read_the_same_tokens() -> None:
    question = compared(recipe(), ["patchtrain", "paper", "superposition"], held_equal="data")
    token, *others = question.contenders
    for item in others:
        assert item.equality is not None
        assert item.equality.actual == pytest.approx(200 * 64, rel=0.02)
        assert item.recipe["plan.steps"] <= token.recipe["plan.steps"]


def test_separate_documents_have_no_data_to_hold_equal() -> None:
    arm = "mine:documents=separate,K=4"
    compared(recipe(), [arm])
    with pytest.raises(UsageError, match=r"arm mine: .*padding between separate documents"):
        compared(recipe(), [arm], held_equal="data")


def test_an_arm_of_the_same_plan_as_another_is_not_trained_beside_it() -> None:
    with pytest.raises(UsageError, match="arm 'recipe' is the same plan as token"):
        compared(recipe(step_fraction=0), ["recipe"])
    with pytest.raises(UsageError, match="arm 'superposition' is the same plan as recipe"):
        compared(recipe(step_fraction=0.3), ["recipe", "superposition"])
    # The same plan, and not the same training or text.
    compared(recipe(), ["mine:training.optim=sgd", "recipe"])
    compared(recipe(), ["mine:documents=separate", "recipe"])


def test_an_arm_in_words_clears_what_it_stands_for() -> None:
    name, entries = from_words("mine:stages=[[8,0.2],[4,0.2],[1,0.6]],share_of=steps")
    assert name == "mine"
    assert entries["plan.stages"] == [[8, 0.2], [4, 0.2], [1, 0.6]]
    assert entries["plan.share_of"] == "steps"
    assert entries["plan.step_fraction"] is None
    question = compared(recipe(), ["mine:K=2,lambda=0.5"])
    mine = question.contender("mine").recipe
    assert (mine["plan.patch_fraction"], mine["plan.step_fraction"]) == (0.5, None)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["tokn"], "is no arm"),
        (["mine:patch_sise=2"], "patch_size"),
        (["mine:patch_size"], "not key=value"),
        (["paper:patch_size=2"], "is an arm already"),
        (["recipe", "recipe"], "there twice"),
        (["mine:rate=1e-3"], "tries others"),
        (["token"], "nothing to compare"),
        (["mine:K=2,K=4"], "plan.patch_size is there twice"),
        (["mine:K=2,r=0.3,patch_size=2"], "plan.patch_size is there twice"),
        (["mine:store.y=1"], "arm mine: 'store.y': store is a value, not a section"),
        (["mine:model.dtype.x=1"], "'model.dtype.x': dtype is a value, not a section"),
    ],
)
def test_a_wrong_arm_is_said(arms: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compared(recipe(), arms, rates=(1e-3, 2e-3))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=30))
def test_any_words_are_an_arm_or_a_usage_error(words: str) -> None:
    try:
        name, entries = from_words(words)
    except UsageError:
        return
    assert name
    assert entries


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"arms": ["token"]}, "--arms has token level alone"),
        ({"arms": ["mine:steps=500"]}, "arm 'mine': its length is set .* as much compute"),
        ({"arms": ["mine:training.learning_rate=-1"]}, "learning_rate must be above 0"),
        ({"arms": ["mine:training.optim=adamq"]}, "arm mine: .*'adamq' is no optimizer"),
        ({"seeds": (0, 0)}, "a seed is there twice"),
        ({"seeds": (-1,)}, "a seed is a number from 0 to"),
        ({"rates": (1e30,)}, "above 0 and below a million"),
        ({"budgets": (1.0,)}, "--baseline-budgets 1 is trained anyway"),
    ],
)
def test_what_no_run_could_be_made_of_is_refused_first(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compared(recipe(), more.pop("arms", ["recipe"]), **more)


def test_short_names_of_entries() -> None:
    assert full_path("K") == "plan.patch_size"
    assert full_path("tokens_per_step") == "plan.tokens_per_step"
    assert full_path("model.config.hidden_size") == "model.config.hidden_size"
    with pytest.raises(UsageError, match="optimizer_at_switch"):
        full_path("optimizer_at_swich")


def test_differences_by_hand(tmp_path: Path, pretend: Any) -> None:
    ends = {"token": [2.0, 2.2, 2.1], "recipe": [1.9, 2.0, 2.0]}
    pretend(lambda arm, seed: ends[arm.name][seed])
    found = run(compared(recipe(), ["recipe"]), tmp_path / "c")
    difference = named(found, "recipe")["difference"]
    # -0.1, -0.2, -0.1: mean -0.4 / 3, deviation sqrt(1 / 300), and t(0.975, 2) is 4.3027.
    assert difference["mean"] == pytest.approx(-0.4 / 3)
    half = 4.30265 * math.sqrt(1 / 300) / math.sqrt(3)
    ends_of_interval = [-0.4 / 3 - half, -0.4 / 3 + half]
    assert difference["interval"] == pytest.approx(ends_of_interval, abs=1e-5)
    assert difference["unseen"] is None  # no rate was chosen
    assert found["complete"]


def test_several_seeds_may_choose_the_rates(tmp_path: Path, pretend: Any) -> None:
    def end(arm: Arm, seed: int) -> float:
        # The first seed alone would choose the large rate, the mean of two the small one.
        small = arm.notes["learning_rate"] == 1e-3
        return {7: 2.1 if small else 2.0, 8: 2.1 if small else 2.5}.get(seed, 2.2)

    trainer = pretend(end)
    asked = compared(recipe(), ["recipe"], seeds=(7, 8, 9), rates=(1e-3, 2e-3), tuning=2)
    found = run(asked, tmp_path / "c")
    assert named(found, "recipe")["learning_rate"] == 1e-3
    assert [item["bits_per_byte"] for item in named(found, "token")["tried"]] == [2.1, 2.25]
    assert [run for run in trainer.trained if run[1] == 9] == [
        ("token-rate-0.001", 9), ("recipe-rate-0.001", 9),
    ]  # fmt: skip
    assert len(trainer.trained) == 10
    assert found["tuning_seeds"] == [7, 8]
    assert named(found, "recipe")["difference"]["unseen"]["values"] == [0.0]
    words = " ".join(held(found))
    assert "with seeds 7, 8, and is taken" in words
    assert "'other seeds' is without them" in words


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("other:patch_size=2", "All contenders have one learning rate"),
        ("other:training.learning_rate=0.1", "Each arm has the learning rate it was given"),
    ],
)
def test_arms_that_were_not_tuned_say_so(arm: str, said: str, tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: 2.0)
    assert said in " ".join(held(run(compared(recipe(), [arm]), tmp_path / "c")))


@pytest.mark.parametrize("tuning", [0, 4])
def test_no_more_seeds_tune_than_there_are(tuning: int) -> None:
    with pytest.raises(UsageError, match="--tuning-seeds is at least 1 and at most"):
        compared(recipe(), ["recipe"], seeds=(7, 8, 9), tuning=tuning)


def test_each_arm_is_taken_at_its_own_best_rate_of_the_first_seed_alone(
    tmp_path: Path, pretend: Any
) -> None:
    def end(arm: Arm, seed: int) -> float:
        rate, name = arm.notes["learning_rate"], arm.notes["contender"]
        best = 4e-3 if name == "token" else 2e-3
        chosen = rate == best
        # On the other seeds the rates that were not chosen would have been far better.
        return (2.0 if chosen else 2.5) if seed == 7 else (2.1 if chosen else 1.0)

    trainer = pretend(end)
    rates = (1e-3, 2e-3, 4e-3)
    found = run(compared(recipe(), ["recipe"], seeds=(7, 8), rates=rates), tmp_path / "c")
    assert named(found, "token")["learning_rate"] == 4e-3
    assert named(found, "recipe")["learning_rate"] == 2e-3
    assert named(found, "token")["edge"] == "largest"
    assert named(found, "recipe")["edge"] is None
    assert [run for run in trainer.trained if run[1] == 8] == [
        ("token-rate-0.004", 8), ("recipe-rate-0.002", 8),
    ]  # fmt: skip
    assert named(found, "recipe")["difference"]["unseen"]["values"] == [0.0]
    assert len(found["arms"]) == 6  # the rates that lost are kept
    # More seeds later: the choice stays, and only what is missing is trained.
    trainer.trained.clear()
    run(compared(recipe(), ["recipe"], seeds=(7, 8, 9), rates=rates), tmp_path / "c")
    assert trainer.trained == [("token-rate-0.004", 9), ("recipe-rate-0.002", 9)]


def test_a_cut_comparison_goes_on_to_the_same_end(tmp_path: Path, pretend: Any) -> None:
    def end(arm: Arm, seed: int) -> float:
        return 2.0 + 0.1 * seed + arm.notes["learning_rate"] - 0.1 * (arm.name[0] == "r")

    def ask() -> Any:
        return compared(recipe(), ["recipe"], seeds=(0, 1), rates=(1e-3, 2e-3), budgets=(0.5,))

    trainer = pretend(end)
    whole = run(ask(), tmp_path / "whole")
    count = len(trainer.trained)
    assert count > 7
    for stop in (0, 3, count - 1):
        trainer.trained.clear()
        trainer.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            run(ask(), tmp_path / f"cut-{stop}")
        trainer.stop_after = None
        again = run(ask(), tmp_path / f"cut-{stop}")
        assert len(trainer.trained) == count
        assert {**again, "counted": 0} == {**whole, "counted": 0}


def test_counting_trains_nothing_and_tells_what_is_missing(tmp_path: Path, pretend: Any) -> None:
    trainer = pretend(lambda arm, seed: 2.0 - (arm.name != "token") / 10 + seed / 100)
    run(compared(recipe(), ["recipe"], seeds=(0,)), tmp_path / "c")
    trained = list(trainer.trained)
    found = run(compared(recipe(), ["recipe"], seeds=(0, 1)), tmp_path / "c", count_only=True)
    assert trainer.trained == trained
    assert (found["runs_there"], found["runs_wanted"]) == (2, 4)
    assert named(found, "recipe")["difference"]["values"] == pytest.approx([-0.1])


def test_at_equal_loss_by_the_baselines_own_runs(tmp_path: Path, pretend: Any) -> None:
    def end(arm: Arm, seed: int) -> float:
        if arm.notes["contender"] == "recipe":
            return 1.5  # what the baseline has at a budget of 2
        return 2.0 - 0.5 * math.log2(arm.notes["budget"])

    pretend(end)
    asked = compared(recipe(), ["recipe"], seeds=(0, 1), budgets=(0.5, 2.0))
    found = run(asked, tmp_path / "c")
    compute = named(found, "recipe")["equal_loss"]["compute"]
    assert compute["mean"] == pytest.approx(0.5, rel=0.02)  # but for whole steps
    assert compute["inside"] == 2
    assert set(found["budgets"]) == {"0.5", "1", "2"}
    against = named(found, "recipe")["equal_loss"]["against"]
    assert {budget: row["mean"] for budget, row in against.items()} == pytest.approx(
        {"0.5": -1.0, "1": -0.5, "2": 0.0}
    )
    head, rows = budget_rows(found)
    assert head == ["arm", "0.5 x", "1 x", "2 x"]
    assert rows == [["recipe", "-1.0000 (-1.0000 to -1.0000)", "-0.5000 (-0.5000 to -0.5000)",
                     "+0.0000 (+0.0000 to +0.0000)"]]  # fmt: skip
    budgets = {arm["name"]: arm["runs"][0]["flops"] for arm in found["arms"]}
    assert budgets["token-budget-0.5"] == pytest.approx(budgets["token"] / 2, rel=0.02)


def test_the_other_budgets_may_have_a_rate_of_their_own(tmp_path: Path, pretend: Any) -> None:
    trainer = pretend(lambda arm, seed: 2.0 + arm.notes["learning_rate"])
    asked = compared(recipe(), ["recipe"], seeds=(0, 1), rates=(0.01, 0.02),
                     budgets=(0.5, 1.0, 2.0), budget_rate=0.02)  # fmt: skip
    assert estimate(asked, None)["most_runs"] == 4 + 2 + 2 * 2
    found = run(asked, tmp_path / "c")
    assert named(found, "token")["learning_rate"] == 0.01
    assert found["budgets"] == {
        "0.5": "token-rate-0.02-budget-0.5", "1": "token-rate-0.01",
        "2": "token-rate-0.02-budget-2",
    }  # fmt: skip
    assert len(trainer.trained) == 4 + 2 + 2 * 2
    assert any("budgets were trained at the rate 0.02" in sentence for sentence in held(found))


def test_a_budget_that_diverged_leaves_the_ratio_to_the_others(
    tmp_path: Path, pretend: Any
) -> None:
    def end(arm: Arm, seed: int) -> float | None:
        if arm.notes["contender"] == "recipe":
            return 2.0
        budget = arm.notes["budget"]
        return math.nan if (budget, seed) == (2.0, 1) else 2.0 - 0.5 * math.log2(budget)

    trainer = pretend(end)
    asked = compared(recipe(), ["recipe"], seeds=(0, 1), budgets=(0.5, 2.0))
    found = run(asked, tmp_path / "c")
    compute = named(found, "recipe")["equal_loss"]["compute"]
    assert (compute["count"], compute["inside"]) == (2, 2)
    assert compute["mean"] == pytest.approx(1.0, rel=0.02)
    assert found["failed"] == {"token-budget-2-seed-1": "loss became nan"}
    assert found["complete"]
    assert any("read off between the others" in sentence for sentence in held(found))
    assert lost_notes(found)[0] == "7 of the 8 runs asked for so far are finished, 1 diverged."
    trainer.trained.clear()
    again = run(asked, tmp_path / "c", count_only=True)
    assert {**again, "counted": 0} == {**found, "counted": 0}


def test_a_budget_that_failed_is_waited_for(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: None if arm.notes["budget"] == 0.5 else 2.0)
    found = run(compared(recipe(), ["recipe"], seeds=(0,), budgets=(0.5, 1.0)), tmp_path / "c")
    assert named(found, "recipe")["equal_loss"]["compute"] is None
    assert lost_notes(found)[0].endswith("; the same command goes on.")


def test_a_short_budget_without_a_step_for_its_rate_is_refused_first() -> None:
    with pytest.raises(UsageError, match=r"arm token-budget-0.4: .*100 warm-up steps leave none"):
        compared(recipe(warmup_steps=100), ["recipe"], budgets=(0.4, 1.0))


def test_a_budget_that_reads_too_often_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    text = write_corpus(tmp_path / "text.txt", sentences=4000)
    prepare([text], tmp_path / "store", train_tokenizer="byte")
    asked = Recipe.check({**RECIPE, "store": str(tmp_path / "store"),
                          "model": {"config": {**RECIPE["model"]["config"], "vocab_size": 512}},
                          })  # fmt: skip
    compared(asked, ["recipe"], budgets=(0.5, 1.0))
    with pytest.raises(UsageError, match=r"arm token-budget-30: .* allow max_epochs"):
        compared(asked, ["recipe"], budgets=(0.5, 30.0))


def test_a_seed_that_diverged_is_told_and_takes_the_mean_ratio_away(
    tmp_path: Path, pretend: Any
) -> None:
    def end(arm: Arm, seed: int) -> float:
        if arm.notes["contender"] == "recipe":
            return math.nan if seed == 1 else 2.0
        return 2.0 - 0.5 * math.log2(arm.notes["budget"])

    pretend(end)
    asked = compared(recipe(), ["recipe"], budgets=(0.5, 2.0))
    found = run(asked, tmp_path / "c")
    assert found["complete"]
    assert not found["whole"]
    assert named(found, "recipe")["lost_seeds"] == [1]
    compute = named(found, "recipe")["equal_loss"]["compute"]
    assert (compute["inside"], compute["count"], compute["mean"]) == (2, 3, None)
    assert loss_rows(found)[0][-1] == "2 of 3"
    assert "with seed 1 it diverged" in verdict(found)[0]


@pytest.mark.parametrize("rates", [(), (0.01, 0.02)])
def test_an_arm_that_diverged_at_all_rates_is_said_to_have(
    rates: tuple[float, ...], tmp_path: Path, pretend: Any
) -> None:
    pretend(lambda arm, seed: math.nan if arm.notes["contender"] == "mine" else 2.0)
    mine = "mine:patch_size=2" + ("" if rates else ",training.learning_rate=0.1")
    found = run(compared(recipe(), [mine], rates=rates), tmp_path / "c")
    assert not found["whole"]
    assert verdict(found) == ["mine diverged at every rate it was tried at."]
    both = run(compared(recipe(), [mine, "recipe"], rates=rates), tmp_path / "d")
    assert verdict(both)[0].startswith("recipe ended")
    assert verdict(both)[1:] == ["mine diverged at every rate it was tried at."]
    if not rates:
        assert "Each arm has the learning rate it was given" in " ".join(held(found))


def test_a_ratio_is_on_both_sides_only_where_bounds_are(tmp_path: Path, pretend: Any) -> None:
    rising = {0.5: 2.0, 1.0: 1.5, 2.0: 1.7}  # pooled, no curve: it ends where the arm does not
    pretend(lambda arm, seed: 1.55 if arm.notes["contender"] == "recipe"
            else rising[arm.notes["budget"]])  # fmt: skip
    asked = compared(recipe(), ["recipe"], seeds=(0,), budgets=(0.5, 1.0, 2.0))
    assert loss_rows(run(asked, tmp_path / "c"))[0][1] == "not known"


def test_a_rate_that_diverged_has_been_tried(tmp_path: Path, pretend: Any) -> None:
    def end(arm: Arm, seed: int) -> float | None:
        rate: float = arm.notes["learning_rate"]
        return math.nan if rate == 0.1 else 2.0 - rate

    pretend(end)
    found = run(compared(recipe(), ["recipe"], rates=(0.01, 0.02, 0.1)), tmp_path / "c")
    assert named(found, "recipe")["learning_rate"] == 0.02
    assert named(found, "recipe")["edge"] is None
    found = run(compared(recipe(), ["recipe"], rates=(0.02, 0.1)), tmp_path / "c")
    assert named(found, "recipe")["edge"] == "smallest"


def test_beyond_the_budgets_there_is_only_a_bound(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: 1.0 if arm.name == "recipe" else 2.0 - arm.notes["budget"] / 10)
    asked = compared(recipe(), ["recipe"], seeds=(0,), budgets=(0.5, 1.0))
    found = run(asked, tmp_path / "c")
    compute = named(found, "recipe")["equal_loss"]["compute"]
    assert compute["mean"] is None
    assert compute["bounds"]["0"]["below"] == pytest.approx(1.0, rel=0.02)


def test_a_run_that_fails_is_kept_and_the_rest_goes_on(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: None if (arm.name, seed) == ("recipe", 1) else 2.0)
    found = run(compared(recipe(), ["recipe", "paper"]), tmp_path / "c")
    assert found["failed"] == {"recipe-seed-1": "it fell over"}
    assert not found["complete"]
    assert not found["whole"]
    assert named(found, "recipe")["difference"]["seeds"] == [0, 2]
    page = (tmp_path / "c" / "report.html").read_text()
    assert "recipe-seed-1 failed: it fell over" in page


def test_each_part_says_how_many_there_are(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: 2.0)
    said: list[str] = []
    asked = compared(recipe(), ["recipe"], seeds=(0, 1), rates=(0.01, 0.02), budgets=(0.5, 1.0))
    run_comparison(asked, tmp_path / "c", 1, say=said.append)
    assert said == [
        "part 1 of 3: 4 runs with seed 0",
        "part 2 of 3: the arms at the rates chosen, with all seeds",
        "part 3 of 3: token level at its budgets",
    ]


def test_arms_whose_token_level_failed_are_trained_on_the_other_seeds(
    tmp_path: Path, pretend: Any
) -> None:
    trainer = pretend(lambda arm, seed: None if (arm.name, seed) == ("token", 0) else 2.0)
    run(compared(recipe(), ["recipe"], seeds=(0, 1)), tmp_path / "c")
    assert ("recipe", 1) in trainer.trained


def test_nothing_finished_is_an_error(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: None)
    with pytest.raises(PatchtrainError, match="no run of the study got to its end"):
        run(compared(recipe(), ["recipe"]), tmp_path / "c")


def test_another_question_does_not_go_on_in_the_folder(tmp_path: Path, pretend: Any) -> None:
    pretend(lambda arm, seed: 2.0)
    run(compared(recipe(), ["recipe"]), tmp_path / "c")
    before = (tmp_path / "c" / "results.json").read_text()
    with pytest.raises(UsageError, match="holds another study: recipe"):
        run(compared(recipe(steps=300), ["recipe"]), tmp_path / "c")
    run(compared(recipe(), ["mine:K=2"]), tmp_path / "c")
    with pytest.raises(UsageError, match="arm mine"):
        run(compared(recipe(), ["mine:K=8"]), tmp_path / "c")
    assert json.loads(before)["name"] == "compare"
    # Another arm is no other question.
    found = run(compared(recipe(), ["recipe", "paper"]), tmp_path / "c")
    assert named(found, "paper")["difference"]["mean"] == 0.0
