"""Recipes: what is shipped resolves, and every wrong key or value is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchtrain import PlanSpec, UsageError
from patchtrain.presets import OF_SMALL, SMALL
from patchtrain.recipe import Recipe, build_model

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED = sorted([*RECIPES.glob("*.yaml"), *RECIPES.glob("papers/*.yaml")])

GOOD: dict[str, Any] = {
    "store": "stores/text",
    "out": "runs/x",
    "model": {
        "config": {
            "model_type": "llama",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
    },
    "plan": {"preset": "paper", "context_length": 16, "tokens_per_step": 512, "steps": 40},
}


def write(folder: Path, values: Any) -> Path:
    file = folder / "mine.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return file


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_recipe_is_valid_and_its_plan_resolves(file: Path) -> None:
    recipe = Recipe.load(file)
    plan = PlanSpec.from_dict(recipe.plan).resolve(store_tokens=10**13, device_sequences=8)
    assert plan.total_steps > 0
    assert Recipe.check(yaml.safe_load(recipe.to_yaml())) == recipe


def test_the_small_recipe_is_the_default_of_its_size() -> None:
    plan = PlanSpec.from_dict(Recipe.load(RECIPES / "small.yaml").plan)
    still_open = replace(plan, patch_size=None, rows=None, step_fraction=None)
    resolved = [spec.for_model(SMALL - 1).resolve().stages for spec in (plan, still_open)]
    assert resolved[0] == resolved[1]


def test_recipes_are_shipped() -> None:
    assert len(SHIPPED) >= 12


def test_overrides_replace_single_entries(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    recipe = Recipe.load(
        file, ["plan.patch_size=2", "training.learning_rate=3e-4", "out=there", "samples=[a, b]"]
    )
    assert recipe.plan["patch_size"] == 2
    assert recipe.training == {"learning_rate": 3e-4}
    assert recipe.out == Path("there")
    assert recipe.samples == ["a", "b"]
    assert recipe.plan["steps"] == 40


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    recipe = Recipe.load(file, ["plan.tokens=1e9", "plan.min_rate=1e-1", "plan.steps=null"])
    assert recipe.plan["tokens"] == 10**9
    assert isinstance(recipe.plan["tokens"], int)
    assert recipe.plan["min_rate"] == 0.1


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes(tmp_path: Path, seed: int) -> None:
    with pytest.raises(UsageError, match="seed is"):
        Recipe.load(write(tmp_path, GOOD), [f"seed={seed}"])


def test_a_bare_no_is_a_strategy(tmp_path: Path) -> None:
    recipe = Recipe.load(write(tmp_path, GOOD), ["training.save_strategy=no"])
    assert recipe.training["save_strategy"] == "no"


def test_the_run_folder_is_named_after_the_file(tmp_path: Path) -> None:
    values = {key: value for key, value in GOOD.items() if key != "out"}
    assert Recipe.load(write(tmp_path, values)).out == Path("runs/mine")


def test_all_wrong_keys_are_named_at_once_with_the_nearest_right_one(tmp_path: Path) -> None:
    values = {
        **GOOD,
        "stor": "x",
        "seed": "many",
        "model": {**GOOD["model"], "pretraind": "y"},
        "plan": {**GOOD["plan"], "patch_sise": 2},
        "training": {
            "learning_rat": 1,
            "per_device_train_batch_size": "lots",
            "max_steps": 3,
            "seed": 1,
        },
    }
    with pytest.raises(UsageError) as caught:
        Recipe.load(write(tmp_path, values))
    message = str(caught.value)
    for part in (
        "no key 'stor'; did you mean 'store'?",
        "seed is 'many'",
        "model: no key 'pretraind'; did you mean 'pretrained'?",
        "no key 'patch_sise'; did you mean 'patch_size'?",
        "no key 'learning_rat'; did you mean 'learning_rate'?",
        "training.per_device_train_batch_size is 'lots'",
        "training.max_steps is not for recipes: set plan.steps",
        "training.seed is not for recipes",
    ):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("store: [", "line 1: not valid YAML"),
        ("a: 1\nb: : 2\n", "line 2: not valid YAML"),
        ("- a\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("plan: {}\n", "'store' is missing"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe.load(write(tmp_path, text))


def test_a_missing_recipe_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(UsageError, match=r"no recipe at .*other\.yaml; .* has mine\.yaml"):
        Recipe.load(tmp_path / "other.yaml")


def test_a_recipe_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"store: \xff\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        Recipe.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("override", ["plan.patch_size", "=2", "plan..x=1", "out.x=1", "seed=[1"])
def test_overrides_that_make_no_sense(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError, match=r"key=value|not a section|not valid YAML"):
        Recipe.load(write(tmp_path, GOOD), [override])


def config(**values: Any) -> Recipe:
    merged = {**GOOD["model"]["config"], **values}
    return Recipe.check({**GOOD, "model": {"config": merged}})


def test_a_model_takes_vocabulary_and_context_from_store_and_plan() -> None:
    model = build_model(config(), 300, SPECIAL)
    assert model.config.vocab_size == 300
    assert model.config.max_position_embeddings == 16
    assert model.config.eos_token_id == 0


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (build_model(config(), 50, SPECIAL).state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "lama"}, "'lama' is no model type .* did you mean .*llama"),
        ({"model_type": None}, "'None' is no model type"),
        ({"hiden_size": 8}, "llama has no key 'hiden_size'; did you mean 'hidden_size'"),
        ({"vocab_size": 10}, "tokenizer has 300 tokens and model.config.vocab_size is 10"),
        ({"hidden_size": "big"}, "model.config"),
        ({"num_attention_heads": 3}, "model.config"),
    ],
)
def test_a_config_that_makes_no_model(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(config(**values), 300, SPECIAL)


def test_going_on_from_a_checkpoint(tmp_path: Path) -> None:
    build_model(config(), 50, SPECIAL).save_pretrained(tmp_path / "model")
    recipe = Recipe.check({**GOOD, "model": {"pretrained": str(tmp_path / "model")}})
    assert build_model(recipe, 50, SPECIAL).config.vocab_size == 50
    with pytest.raises(
        UsageError, match="tokenizer has 51 tokens and the model's vocabulary only 50"
    ):
        build_model(recipe, 51, SPECIAL)


def test_a_checkpoint_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from patchtrain.data import tokenizer as tokenizers

    own = tokenizers.train("byte", ["some text"])
    build_model(config(), 300, SPECIAL).save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    section = {"pretrained": str(tmp_path / "model")}
    recipe = Recipe.check({**GOOD, "model": section})
    assert build_model(recipe, 257, SPECIAL, own.get_vocab())
    other = {token: 256 - number for token, number in own.get_vocab().items()}
    with pytest.raises(UsageError, match=r"another tokenizer .* prepare the text with --tokenizer"):
        build_model(recipe, 257, SPECIAL, other)
    meant = Recipe.check({**GOOD, "model": {**section, "new_tokenizer": True}})
    assert build_model(meant, 257, SPECIAL, other)


def test_the_resolved_recipe_has_the_presets_values_and_reads_back() -> None:
    recipe = config().resolved()
    assert recipe.plan["schedule"] == "cosine"
    assert recipe.plan["patch_size"] == 4
    assert Recipe.check(yaml.safe_load(recipe.to_yaml())).resolved() == recipe
    plan = {"context_length": 16, "tokens_per_step": 512, "steps": 40}
    still_open = Recipe.check({**GOOD, "plan": plan}).resolved()
    sized = still_open.resolved(parameters=1000)
    assert sized == Recipe.check({**GOOD, "plan": plan}).resolved(parameters=1000)
    assert sized.plan["preset"] == "patchtrain"
    assert (sized.plan["patch_size"], sized.plan["rows"]) == OF_SMALL
    assert not {"patch_size", "rows"} & still_open.plan.keys()
    assert Recipe.check(yaml.safe_load(sized.to_yaml())).resolved() == sized


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    recipe = Recipe.check({**GOOD, "model": {"pretrained": str(tmp_path / "nothing")}})
    with pytest.raises(UsageError, match=r"model\.pretrained") as caught:
        build_model(recipe, 50, SPECIAL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [{}, {"pretrained": "a", "config": {"model_type": "llama"}}])
def test_a_model_is_either_new_or_pretrained(model: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="either config"):
        Recipe.check({**GOOD, "model": model})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"log_level": "x"}, "training.log_level is 'x': input should be 'detail'"),
        ({"logging_steps": float("inf")}, "training.logging_steps is inf: no setting is infinite"),
        ({"adam_beta2": "nan"}, "training.adam_beta2 is 'nan': no setting is infinite"),
        ({7: 1}, "training: no key '7'"),
        ({None: 1}, "training: no key 'None'"),
        ({"learning_rate": "a" * 500}, r"training.learning_rate is 'aaa.{70}.*\.\.\.: input"),
    ],
)
def test_training_settings_that_no_trainer_takes(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Recipe.check({**GOOD, "training": values})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", ["store", "out"])
def test_a_path_with_a_null_byte(key: str) -> None:
    with pytest.raises(UsageError, match=rf"{key} is .*: no path holds a null byte"):
        Recipe.check({**GOOD, key: "a\0b"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 2**20, "intermediate_size": 2**20}, "GB of weights, and this machine has"),
        ({"hidden_size": 2**62}, "does not make a model|model.config"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers are more than"),
        ({"vocab_size": "many"}, "model.config.vocab_size is 'many'"),
        ({"model_type": ["llama"]}, "is no model type"),
    ],
)
def test_a_config_that_no_machine_can_hold_or_that_is_none(
    values: dict[Any, Any], message: str
) -> None:
    merged = {**GOOD["model"]["config"], **values}
    recipe = Recipe.check({**GOOD, "model": {"config": merged}})
    with pytest.raises(UsageError, match=message) as caught:
        build_model(recipe, 300, SPECIAL)
    assert "\n" not in str(caught.value)


def test_a_recipe_is_read_no_further_than_a_recipe_is_long(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# comment\n" * 100_000)
    with pytest.raises(UsageError, match=r"mine\.yaml: too long for a recipe"):
        Recipe.load(file)


def test_a_config_with_a_key_that_is_no_text() -> None:
    with pytest.raises(UsageError, match=r"model\.config\.7.*valid string"):
        Recipe.check({**GOOD, "model": {"config": {7: 8}}})


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe at .*; it is a folder$"):
        Recipe.load(tmp_path)
