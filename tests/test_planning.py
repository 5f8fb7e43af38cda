"""What a user names, and the plan that comes of it, without weights or a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from patchtrain.errors import UsageError
from patchtrain.planning import planned
from patchtrain.presets import OF_SMALL, SMALL

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                vocab_size=1000, max_position_embeddings=512).save_pretrained(tmp_path)  # fmt: skip
    return tmp_path


def test_a_config_file_and_its_folder(config: Path) -> None:
    both = [planned(str(path), ["plan.tokens=1B"]) for path in (config, config / "config.json")]
    assert both[0].size == both[1].size
    run = both[0]
    assert run.size.vocab_size == 1000
    assert run.plan.context_length == 512
    assert run.plan.total_tokens == pytest.approx(1e9, rel=0.01)
    assert run.size.parameters < SMALL
    assert run.plan.stages[0].patch_size == OF_SMALL[0]
    assert run.precision == "fp32"


@pytest.mark.parametrize("devices", [1, 3, 96])
def test_the_step_fits_any_number_of_devices(config: Path, devices: int) -> None:
    run = planned(str(config), ["plan.tokens=10B", "plan.patch_size=6"], devices)
    assert run.plan.processes == devices
    assert run.plan.stages[-1].tokens_per_step == pytest.approx(2**21, rel=0.1)


def test_free_stages_for_a_config(config: Path) -> None:
    run = planned(str(config), ["plan.tokens=10B", "plan.stages=[[8, 0.3], [3, 0.3], [1, 0.4]]"])
    assert [stage.patch_size for stage in run.plan.stages] == [8, 3, 1]
    stages = "[{patch_size: 3, share: 0.6}, [1, 0.4]]"  # one of them as a mapping
    run = planned(str(config), ["plan.tokens=10B", f"plan.stages={stages}"])
    assert [stage.patch_size for stage in run.plan.stages] == [3, 1]


def test_a_recipe_without_its_store_names_its_vocabulary() -> None:
    recipe = str(RECIPES / "small.yaml")
    with pytest.raises(UsageError, match=r"model\.config\.vocab_size"):
        planned(recipe, ["store=stores/not-there"])
    run = planned(recipe, ["store=stores/not-there", "model.config.vocab_size=1024"])
    assert run.size.vocab_size == 1024


@pytest.mark.parametrize(
    "name",
    [
        "activation_checkpointing",
        "gradient_checkpointing",
        "fsdp_config.activation_checkpointing",
    ],
)
def test_checkpointing_is_counted_by_any_of_its_names(name: str) -> None:
    recipe, given = str(RECIPES / "small.yaml"), ["store=none", "model.config.vocab_size=1024"]
    assert not planned(recipe, given).checkpointing
    assert planned(recipe, [*given, f"training.{name}=true"]).checkpointing


def test_short_for_large_numbers(config: Path) -> None:
    tokens = [planned(str(config), [f"plan.tokens={text}"]).plan.spec.tokens
              for text in ("360B", "1.5T", "900M", "360e9")]  # fmt: skip
    assert tokens == [360 * 10**9, 1_500 * 10**9, 900 * 10**6, 360 * 10**9]


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("no/such/recipe.yaml", [], "no recipe at"),
        ("./nowhere", [], "no recipe, config file or model folder at"),
        ("nowhere.json", [], "no recipe, config file or model folder at"),
        ("{config}", [], "how long the run is to be"),
        ("{config}", ["plan=3"], "plan is a section"),
        ("{config}", ["plan.tokens=12X"], "tokens must be a whole number"),
        ("{config}", ["plan.tokens=1B", "plan.patch_sise=2"], "patch_size"),
        ("{broken}", ["plan.tokens=1B"], "cannot be read"),
        ("{encoder}", ["plan.tokens=1B"], "causal language model"),
    ],
)
def test_what_is_wrong_is_one_line(
    model: str,
    overrides: list[str],
    message: str,
    config: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "broken.json").write_text("{")
    (other / "encoder.json").write_text(json.dumps({"model_type": "vit"}))
    places = {"config": config, "broken": other / "broken.json", "encoder": other / "encoder.json"}
    with pytest.raises(UsageError, match=message):
        planned(model.format(**places), overrides)


def test_at_least_one_device(config: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 device"):
        planned(str(config), ["plan.tokens=1B"], 0)


def test_hybrid_sharding_keeps_more_on_each_device(config: Path) -> None:
    sharded = ["plan.tokens=10B", "training.fsdp=true"]

    def parameters(*more: str) -> int:
        return planned(str(config), [*sharded, *more], 32).memory()[0].parameters

    whole = parameters("training.fsdp=false")
    assert parameters() < parameters("training.fsdp_replicas=4") < whole
    assert parameters("training.fsdp_replicas=nodes") == parameters("training.fsdp_replicas=4")
    with pytest.raises(UsageError, match="does not divide the 32 devices"):
        parameters("training.fsdp_replicas=5")
