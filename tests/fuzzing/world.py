"""A small real corpus, store, run and model, made once and damaged many times (as copies)."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from patchtrain.data.prepare import prepare
from patchtrain.recipe import Recipe
from patchtrain.runs import RunFolder
from patchtrain.training.run import run_recipe
from tests.cli.corpus import write_corpus

RECIPES = Path(__file__).parents[2] / "recipes"

# A recipe of this project's own, for runs of a few steps.
TINY = """\
store: STORE
model:
  config:
    model_type: llama
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 1
    num_attention_heads: 2
plan:
  preset: superposition
  patch_size: 2
  step_fraction: 0.4
  context_length: 16
  tokens_per_step: 64
  steps: 5
training:
  learning_rate: 1.0e-2
  use_cpu: true
  eval_tokens: 64
  save_strategy: "no"
samples: ["The cat"]
out: OUT
"""

# What makes the shipped recipes affordable; their shape, keys and comments stay.
_SMALL = {
    "hidden_size": "16", "intermediate_size": "32", "num_hidden_layers": "1",
    "num_attention_heads": "2", "num_key_value_heads": "2", "context_length": "16",
    "tokens_per_step": "384", "steps": "10", "tokens": "7680", "warmup_steps": "2",
}  # fmt: skip


@dataclass(frozen=True)
class World:
    folder: Path
    store: Path
    run: Path
    interrupted: Path
    """A run of eight steps that was stopped, with checkpoints of steps 2 and 4."""
    recipes: dict[str, str]
    """The shipped recipes by name, made small, with this world's store and model in them."""

    @property
    def tokenizer(self) -> Path:
        return self.store / "tokenizer"

    def tiny(self, store: Path, out: Path) -> str:
        return TINY.replace("STORE", str(store)).replace("OUT", str(out))

    def resumed(self, out: Path) -> str:
        """The recipe of ``interrupted``, for a copy of it at ``out``."""
        return _to_be_resumed(self.tiny(self.store, out))


def make_world(folder: Path) -> World:
    """Prepare a store, train a model for a few steps, and take the shipped recipes along."""
    corpus, store, run = folder / "corpus.txt", folder / "store", folder / "run"
    write_corpus(corpus, sentences=3000)
    prepare(
        [corpus],
        store,
        train_tokenizer="bpe",
        vocab_size=300,
        validation_fraction=0.1,
        document_separator="\n",
    )
    (folder / "tiny.yaml").write_text(
        TINY.replace("STORE", str(store)).replace("OUT", str(run)), encoding="utf-8"
    )
    run_recipe(Recipe.load(folder / "tiny.yaml"), quiet=True)
    interrupted = folder / "interrupted"
    text = TINY.replace("STORE", str(store)).replace("OUT", str(interrupted))
    (folder / "interrupted.yaml").write_text(_to_be_resumed(text), encoding="utf-8")
    run_recipe(Recipe.load(folder / "interrupted.yaml"), quiet=True)
    for step in (6, 8):
        shutil.rmtree(interrupted / f"checkpoint-{step}")
    shutil.rmtree(interrupted / "model")
    made = RunFolder(interrupted)
    made.write_info({**made.info(), "status": "interrupted"})
    return open_world(folder)


def _to_be_resumed(text: str) -> str:
    saving = "save_steps: 2\n  save_total_limit: 9"
    return text.replace('save_strategy: "no"', saving).replace("steps: 5", "steps: 8")


def open_world(folder: Path) -> World:
    """A world that was made before."""
    store, run = folder / "store", folder / "run"
    recipes = {
        file.stem: _made_small(file.read_text(encoding="utf-8"), store, run / "model")
        for file in sorted(RECIPES.glob("*.yaml"))
    }
    return World(folder, store, run, folder / "interrupted", recipes)


def _made_small(text: str, store: Path, model: Path) -> str:
    for key, value in _SMALL.items():
        text = re.sub(rf"^(\s+{key}:) .*$", rf"\1 {value}", text, flags=re.MULTILINE)
    text = re.sub(r"^store: .*$", f"store: {store}", text, flags=re.MULTILINE)
    return re.sub(r"^(\s+pretrained:) .*$", rf"\1 {model}", text, flags=re.MULTILINE)
