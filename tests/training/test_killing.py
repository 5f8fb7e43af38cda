"""A run that is killed, however often and at whatever moment, ends as if nothing had happened."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchtrain.data.prepare import prepare
from tests.cli.corpus import write_corpus
from tests.training.killing import outcome, survives, train

SEEDS = 20


def make_recipe(folder: Path) -> Path:
    """A run with dropout, three stages and a checkpoint every third step, between two logs."""
    write_corpus(folder / "corpus.txt", sentences=2000)
    prepare([folder / "corpus.txt"], folder / "store", train_tokenizer="bpe", vocab_size=300)
    recipe = {
        "store": str(folder / "store"),
        "out": str(folder / "run"),
        "model": {
            "config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2,
                       "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
        },
        "plan": {
            "preset": "paper", "stages": [[4, 0.4], [2, 0.2], [1, 0.4]], "context_length": 8,
            "tokens_per_step": 128, "steps": 12,
        },
        "samples": ["the"],
        "training": {
            "learning_rate": 1e-2, "use_cpu": True, "per_device_train_batch_size": 4,
            "logging_steps": 2, "eval_steps": 4, "save_steps": 3, "eval_tokens": 200,
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], dict[str, Any]]:
    """The recipe, the events of a run that nothing happens to, and what it leaves."""
    recipe = make_recipe(tmp_path_factory.mktemp("whole"))
    events = train(recipe)
    return recipe, events, outcome(recipe.parent / "run")


def again(recipe: Path, folder: Path) -> Path:
    """The same recipe in another folder, over the same store."""
    values = yaml.safe_load(recipe.read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**values, "out": str(folder / "run")}))
    return folder / "recipe.yaml"


def test_the_run_has_moments_of_every_kind(
    whole: tuple[Path, list[str], dict[str, Any]],
) -> None:
    _, events, found = whole
    assert [event for event in events if event.startswith("step")] == [
        f"step {n}" for n in range(12)
    ]
    writing = [event for event in events if ".partial" in event or "safetensors" in event]
    assert len(writing) > 20
    assert any(event.startswith("os.rename .checkpoint-3.partial") for event in events)
    names = {name.split("/")[0] for name in found if name.startswith("checkpoint")}
    assert names == {"checkpoint-9", "checkpoint-12"}
    assert [row["step"] for row in found["metrics"] if row["event"] == "switch"] == [5, 7]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_at_random_moments(
    whole: tuple[Path, list[str], dict[str, Any]], tmp_path: Path, seed: int
) -> None:
    recipe, events, expected = whole
    survives(again(recipe, tmp_path), tmp_path / "run", len(events), expected, seed)


@pytest.mark.parametrize(
    "moment",
    [
        "step 5",  # at the switch
        "os.rename .checkpoint-6.partial",  # the instant a checkpoint becomes one
        "os.rename .checkpoint.json.partial",
        "os.rename checkpoint-3",  # an old one about to be deleted
        "open .metrics.jsonl.partial",
        "os.rename .model.partial",
        "open .report.html.partial",
    ],
)
def test_killed_at_the_worst_moments(
    whole: tuple[Path, list[str], dict[str, Any]], tmp_path: Path, moment: str
) -> None:
    recipe, events, expected = whole
    here = again(recipe, tmp_path)
    at = next(n for n, event in enumerate(events) if event.startswith(moment))
    assert train(here, at) == []
    if moment == "os.rename .model.partial":  # and again, when it has nothing left to train
        assert train(here, 40) == []
    train(here)
    assert outcome(tmp_path / "run") == expected
    shutil.rmtree(tmp_path / "run")
