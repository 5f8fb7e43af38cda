"""What a study is: its arms equal, its folder its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchtrain.analysis.studies.ablation import ablation_study
from patchtrain.analysis.studies.asked import base, small_recipe
from patchtrain.analysis.studies.equal import at_compute, at_data, check_data, plan_of
from patchtrain.analysis.studies.study import Arm, Study, claim, refuse_another_study
from patchtrain.analysis.studies.tokenizers import Tokenized, tokenizer_study
from patchtrain.data.prepare import prepare
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.files import write_json
from patchtrain.stage import ABLATIONS
from tests.analysis.studies.tiny import recipe, tiny_study
from tests.cli.corpus import write_corpus


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("stores")
    corpus = write_corpus(folder / "text.txt", sentences=4000)
    return {
        kind: prepare([corpus], folder / kind, train_tokenizer=kind,
                      vocab_size=300 if kind == "bpe" else None)
        for kind in ("bpe", "byte")
    }  # fmt: skip


def step_cost(study: Study, arm: Arm) -> float:
    """The largest cost of one step of an arm."""
    run = plan_of(study, arm)
    return max(
        run.size.flops_per_position(stage.context_length, stage.patch_size).total
        * stage.positions_per_step
        for stage in run.plan.stages
    )


def test_the_ablations_arms_cost_the_same_but_for_half_a_step(stores: dict[str, Any]) -> None:
    values = recipe(stores["bpe"].path, patch_size=4, step_fraction=0.3, steps=200)
    study = ablation_study(base(values, "tiny"), (0, 1), {})
    names = [arm.name for arm in study.arms]
    assert names[:5] == ["tokens", "tokens-short", "tokens-long", "patches", "patches-short"]
    assert names[5:] == list(ABLATIONS)
    target = study.equality["tokens"].target
    for arm in study.arms:
        run = plan_of(study, arm)
        actual = run.size.flops(run.plan).total
        assert abs(actual - target) <= 0.51 * step_cost(study, arm), arm.name
        assert study.equality[arm.name].off == pytest.approx(actual / target - 1)
    assert study.equality["tokens"].off == 0
    first = {arm.name: plan_of(study, arm).plan.stages[0] for arm in study.arms}
    assert first["patches"].sequence_tokens == first["tokens-long"].sequence_tokens == 64
    assert first["patches-short"].context_length == first["tokens-short"].context_length == 4
    assert first["patches-short"].sequence_tokens == first["tokens"].sequence_tokens == 16
    for name in ABLATIONS:
        assert first[name].ablation == name
        assert first[name].context_length == first["patches"].context_length == 16
    configs = {str(study.values(arm)["model"]) for arm in study.arms}
    assert len(configs) == 1
    assert study.recipe["model"]["config"]["max_position_embeddings"] == 64
    against = {arm.name: arm.against for arm in study.arms}
    assert against["tokens"] == ()
    assert against["patches"] == ("tokens",)
    assert against["mixup"] == ("tokens", "patches")


def test_a_paper_recipe_gives_the_same_compute_in_steps_of_equal_compute(
    stores: dict[str, Any],
) -> None:
    values = recipe(stores["bpe"].path, preset="paper", patch_size=4, patch_fraction=0.5, steps=400,
                    tokens_per_step=1024)  # fmt: skip
    found = base(values, "paper")
    # Half of the tokens at a fourth of the cost: 0.625 of the positions, 0.2 of those in patches.
    assert found.steps == 250
    assert found.step_fraction == pytest.approx(0.2)
    assert found.patch_size == 4


def test_tokenizers_share_text_and_compute(stores: dict[str, Any]) -> None:
    values = recipe(stores["bpe"].path, patch_size=2, step_fraction=0.3, steps=200)
    corpora = [Tokenized(name, name, store) for name, store in stores.items()]
    study = tokenizer_study(base(values, "tiny"), corpora, (0,), {})
    names = [arm.name for arm in study.arms]
    assert names == ["bpe-tokens", "bpe-patches", "byte-tokens", "byte-patches"]
    assert [arm.against for arm in study.arms] == [
        (), ("bpe-tokens",), ("bpe-tokens",), ("byte-tokens",),
    ]  # fmt: skip
    for arm in study.arms:
        equality = study.equality[arm.name]
        assert abs(equality.actual - equality.target) <= 0.51 * step_cost(study, arm)
    notes = [arm.notes for arm in study.arms]
    assert len({note["validation_bytes"] for note in notes}) == 1, "the same held-out text"
    assert notes[2]["bytes_per_token"] <= 1 < notes[0]["bytes_per_token"]
    steps = [plan_of(study, arm).plan.total_steps for arm in study.arms]
    assert steps[2] > steps[0], "a smaller vocabulary costs less a position"


def test_equal_data_reads_the_same_tokens(stores: dict[str, Any]) -> None:
    study = at_data(tiny_study(stores["bpe"].path, steps=100), "tokens")
    tokens = [plan_of(study, arm).plan.total_tokens for arm in study.arms]
    assert tokens[1] == pytest.approx(tokens[0], abs=512)
    steps = [plan_of(study, arm).plan.total_steps for arm in study.arms]
    assert steps[1] < steps[0]


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_equal_compute_at_any_length(stores: dict[str, Any], steps: int) -> None:
    study = tiny_study(stores["bpe"].path, steps=max(steps, 5))
    for arm in study.arms:
        equality = study.equality[arm.name]
        assert abs(equality.actual - equality.target) <= 0.51 * step_cost(study, arm)


@pytest.mark.parametrize("held", [at_compute, at_data])
def test_epochs_are_leave_to_read_so_often_and_no_more(stores: dict[str, Any], held: Any) -> None:
    study = tiny_study(stores["bpe"].path)
    plan = {**study.recipe["plan"], "steps": None, "epochs": 2, "max_epochs": 1}
    asked = replace(study, recipe={**study.recipe, "plan": plan})
    arms = [replace(arm, recipe={k: v for k, v in arm.recipe.items() if "epochs" not in k
                                 and k not in ("plan.steps", "plan.tokens")})
            for arm in study.arms]  # fmt: skip
    found = held(replace(asked, arms=tuple(arms)), "tokens")
    tokens, patches = (study_of(found, name) for name in ("tokens", "patches"))
    check_data(tokens)
    if held is at_data:
        check_data(patches)
    else:  # it reads K times as much for 40%
        with pytest.raises(UsageError, match=r"arm patches: .*2\.80 epochs.*max_epochs=2\.9"):
            check_data(patches)
        plan["max_epochs"] = 2.9
        check_data(held(replace(asked, arms=tuple(arms)), "tokens"))


def test_epochs_of_a_recipe_are_leave_for_the_studys_arms(stores: dict[str, Any]) -> None:
    values = recipe(stores["bpe"].path, patch_size=2, step_fraction=0.3, steps=None, epochs=60)
    assert base(values, "tiny").recipe["plan"]["max_epochs"] == 60
    assert base(values, "tiny", steps=100).recipe["plan"]["max_epochs"] == 50  # its own


def study_of(study: Study, name: str) -> Study:
    """One arm of a study."""
    return replace(study, arms=(replace(study.arm(name), against=()),))


def test_too_little_text_is_told_before_anything_is_trained(stores: dict[str, Any]) -> None:
    study = tiny_study(stores["bpe"].path, steps=30_000)
    with pytest.raises(UsageError, match=r"arm tokens: .*epochs.*; arm patches: "):
        check_data(study)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": (Arm("a/b", "", {}),)}, "cannot name a folder"),
        ({"arms": (Arm("a", "", {}), Arm("a", "", {}))}, "there twice"),
        ({"arms": (Arm("a", "", {}, ("b",)),)}, "which is no arm"),
        ({"arms": ()}, "at least one arm"),
        ({"seeds": ()}, "and one seed"),
        ({"seeds": (1, 1)}, "a seed is there twice"),
        ({"held_equal": "time"}, "is one of compute, data, not time"),
        ({"seeds": (-1,)}, "a seed is a number from 0 to"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"name": "s", "title": "S", "recipe": {}, "arms": (Arm("a", "", {}),),
                              "seeds": (0,), "held_equal": "compute", **changes}  # fmt: skip
    with pytest.raises(UsageError, match=message):
        Study(**values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"pretrained": "gpt2"}}, "trains from scratch"),
        ({"plan": {"patch_size": 1}}, "needs a plan of patches, then tokens"),
        ({"plan": {"stages": [[2, 1.0]]}}, "needs a plan of patches, then tokens"),
        ({"plan": {"documents": "separate"}}, "documents: mixed"),
    ],
)
def test_a_recipe_that_no_study_can_be_made_of(
    stores: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    values = recipe(stores["bpe"].path)
    values = {**values, **change, "plan": {**values["plan"], **change.get("plan", {})}}
    with pytest.raises(UsageError, match=message):
        base(values, "the recipe")


def test_contexts_that_patches_do_not_divide(stores: dict[str, Any]) -> None:
    values = recipe(stores["bpe"].path, patch_size=8, step_fraction=0.3, context_length=8,
                    steps=100)  # fmt: skip
    with pytest.raises(UsageError, match="a multiple of 8, at least 16"):
        ablation_study(base(values, "tiny"), (0,), {})
    values = recipe(stores["bpe"].path, patch_size=2, step_fraction=0.3, steps=100)
    values["model"]["config"]["max_position_embeddings"] = 16
    with pytest.raises(UsageError, match="no room for rows of 32"):
        ablation_study(base(values, "tiny"), (0,), {})


def test_the_small_recipe_takes_overrides_and_is_one(stores: dict[str, Any]) -> None:
    values = small_recipe("ablation", ["plan.patch_size=2"], str(stores["bpe"].path))
    found = base(values, "small", steps=100)
    assert (found.patch_size, found.steps) == (2, 100)
    assert found.recipe["plan"]["hold"] == "compute"
    assert {"steps", "stages", "step_fraction"}.isdisjoint(found.recipe["plan"])


def test_a_folder_is_claimed_and_another_study_refused(
    stores: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else"):
        claim(tmp_path)
    with pytest.raises(UsageError, match="is a file"):
        claim(tmp_path / "thesis.tex")
    folder = tmp_path / "study"
    claim(folder)
    study = tiny_study(stores["bpe"].path)
    refuse_another_study(study, folder)
    write_json(folder / "study.json", {**study.to_dict(), "versions": {"torch": "other"}})
    refuse_another_study(study, folder)
    refuse_another_study(
        tiny_study(stores["bpe"].path, seeds=(0, 1, 2)), folder
    )  # more of the same
    with pytest.raises(UsageError, match=r"another study: recipe, arms differ from .*--overwrite"):
        refuse_another_study(tiny_study(stores["bpe"].path, steps=20), folder)
    for text in ("{", "[]"):
        (folder / "study.json").write_text(text)
        with pytest.raises(PatchtrainError, match=r"is not what a study wrote.*--overwrite"):
            refuse_another_study(study, folder)


def test_at_compute_is_of_the_baseline_it_names(stores: dict[str, Any]) -> None:
    study = tiny_study(stores["bpe"].path)
    other = at_compute(study, "patches")
    assert other.equality["patches"].off == 0
