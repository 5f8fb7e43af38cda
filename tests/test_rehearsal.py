"""The papers' runs as recipes: what they plan is what was published, and each can be rehearsed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from patchtrain.cli.main import main
from patchtrain.cost import Rates, bill
from patchtrain.data.prepare import prepare
from patchtrain.devices import device
from patchtrain.errors import UsageError
from patchtrain.memory import fits
from patchtrain.planning import planned
from patchtrain.presets import OF_LARGE, OF_SMALL
from patchtrain.recipe import Recipe
from patchtrain.rehearsal import rehearsal
from patchtrain.runs import RunFolder
from tests.cli.corpus import write_corpus

PAPERS = Path(__file__).parents[1] / "recipes" / "papers"
# Millions of parameters: of the names' sizes, which are rounded.
SIZES = {
    "patch-370m": 370, "patch-780m": 780, "patch-1.3b": 1300, "patch-2.7b": 2700, "patch-7b": 6700,
    "superposition-270m": 270, "superposition-600m": 600, "superposition-3b": 3000,
    "superposition-10b-a1b": 10_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_corpus(folder / "corpus.txt")
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="bpe", vocab_size=300)
    return folder / "store"


def test_every_paper_recipe_is_known_here() -> None:
    assert sorted(file.stem for file in PAPERS.glob("*.yaml")) == sorted(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_those_of_the_papers(name: str) -> None:
    run = planned(str(PAPERS / f"{name}.yaml"), processes=8)
    assert run.size.parameters / 1e6 == pytest.approx(SIZES[name], rel=0.06)
    if name.endswith("a1b"):
        assert run.size.active_parameters / 1e9 == pytest.approx(1, rel=0.25)


@pytest.mark.parametrize("name", [name for name in SIZES if name.startswith("patch-")])
@pytest.mark.parametrize(("fraction", "ratio"), [("0.6667", 0.5), ("0.5", 0.625), ("0.8", 0.4)])
def test_the_cost_ratios_are_the_published_ones(name: str, fraction: str, ratio: float) -> None:
    run = planned(str(PAPERS / f"{name}.yaml"), [f"plan.patch_fraction={fraction}"], processes=8)
    found = bill(run.size, run.plan, Rates())
    assert found.ratio_at_equal_data == pytest.approx(ratio, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "tokens", "token_level"),  # read, and by the token-level run of equal compute
    [
        ("superposition-270m", 105e9, 42e9),
        ("superposition-600m", 105e9, 42e9),
        ("superposition-3b", 105e9, 42e9),
        ("superposition-10b-a1b", 2e12, 0.4 * 1.05e12),
    ],
)
def test_superposition_reads_what_was_published(
    name: str, tokens: float, token_level: float
) -> None:
    run = planned(str(PAPERS / f"{name}.yaml"), processes=64)
    found = bill(run.size, run.plan, Rates())
    assert run.plan.total_tokens == pytest.approx(tokens, rel=0.01)
    assert found.tokens_at_equal_compute == pytest.approx(token_level, rel=0.01)


@pytest.mark.parametrize("name", SIZES)
def test_both_stages_run_on_tensors_without_data_and_fit(name: str) -> None:
    """Forward, backward and optimizer, on the devices that the recipe's first lines name."""
    file = PAPERS / f"{name}.yaml"
    found = re.search(r"--device (\S+) --devices (\d+)", file.read_text())
    assert found
    memory = planned(str(file), processes=int(found[2])).memory()
    assert len(memory) == 2
    assert fits(memory, device(found[1]).memory)


@pytest.mark.parametrize("name", SIZES)
def test_three_steps_of_a_rehearsal(name: str, store: Path, tmp_path: Path) -> None:
    recipe = PAPERS / f"{name}.yaml"
    overrides = ["rehearse=true", f"store={store}", f"out={tmp_path / 'run'}",
                 "training.eval_tokens=256"]  # fmt: skip
    assert main(["train", str(recipe), *overrides, "--quiet"]) == 0
    folder = RunFolder.open(tmp_path / "run-rehearsal")
    rows = folder.metrics("train")
    full = Recipe.load(recipe)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {row["patch_size"] for row in rows} == {1, full.plan["patch_size"]}
    assert folder.info()["plan"]["preset"] == full.plan["preset"]
    model = AutoModelForCausalLM.from_pretrained(folder.model)
    assert model.config.model_type == (full.model.config or {})["model_type"]
    assert sum(p.numel() for p in model.parameters()) < 1e6


def test_a_rehearsal_keeps_the_groups_of_queries_and_the_kinds_of_layers() -> None:
    config = {
        "num_attention_heads": 16, "num_key_value_heads": 4, "num_hidden_layers": 6,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"], "hidden_size": 2048,
        "rms_norm_eps": 1e-6,
    }  # fmt: skip
    small = rehearsal({"model": {"config": config}})["model"]["config"]
    assert (small["num_attention_heads"], small["num_key_value_heads"]) == (4, 1)
    assert small["layer_types"] == ["sliding_attention", "full_attention"]
    assert small["rms_norm_eps"] == 1e-6


def test_every_stage_of_a_long_list_has_a_step() -> None:
    stages = [[16, 0.2], [8, 0.2], [4, 0.2], [2, 0.2], [1, 0.2]]
    plan = {
        "preset": "paper",
        "context_length": 2048,
        "tokens_per_step": 2**21,
        "tokens": 1e12,
        "stages": stages,
    }
    small = rehearsal({"plan": plan})["plan"]
    assert small["steps"] == 5
    assert small["context_length"] == 32
    assert small["tokens_per_step"] % (16 * 32) == 0


def test_a_step_fits_stages_that_are_mappings() -> None:
    stages = [{"patch_size": 3, "share": 0.5}, [1, 0.5]]
    small = rehearsal({"plan": {"hold": "tokens", "context_length": 2048, "stages": stages}})[
        "plan"
    ]
    assert small["tokens_per_step"] % (3 * 32) == 0


def test_a_step_fits_any_patch_size_of_the_default() -> None:
    small = rehearsal({"plan": {"hold": "tokens", "context_length": 2048}})["plan"]
    assert small["tokens_per_step"] % (math.lcm(OF_SMALL[0], OF_LARGE[0]) * 32) == 0


def test_what_is_wrong_with_a_recipe_is_said_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("store: s\nmodel: 3\nplan: [1]\ntrainnig: {}\nrehearse: true\n")
    with pytest.raises(UsageError, match="trainnig"):
        Recipe.load(file)
    with pytest.raises(UsageError, match="rehearse is true or false"):
        Recipe.load(file, ["rehearse=maybe"])
