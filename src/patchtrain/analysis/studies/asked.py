"""What a study is made from: a recipe, or a corpus and the small recipe that comes with this."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from patchtrain.data.prepare import prepare
from patchtrain.data.store import TokenStore, is_store
from patchtrain.data.tokenizer import check_request
from patchtrain.errors import UsageError
from patchtrain.plan import Plan
from patchtrain.planning import planned_recipe
from patchtrain.recipe import Recipe, apply_override

CORPUS = "stdlib"
# Of a plan: what says which stages there are and how long they last. A study says it anew.
_STAGES = (
    "patch_size", "patch_fraction", "step_fraction", "stages", "share_of", "steps", "tokens",
    "epochs", "hold",
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """The recipe that the arms of a study share, and what it says of patches."""

    recipe: Mapping[str, Any]  # without stages, seed and out
    patch_size: int
    step_fraction: float  # share of the compute at patch level
    steps: int  # token-level steps of the same compute

    def stages(self, first: Mapping[str, Any] | None) -> dict[str, Any]:
        """Entries of an arm's recipe: a first stage, then token level; None: token level only."""
        r = self.step_fraction
        last = {"patch_size": 1, "share": round(1 - r, 6)}
        if first is None:
            return {"plan.stages": [{"patch_size": 1, "share": 1.0}]}
        return {"plan.stages": [{"share": round(r, 6), **first}, last]}


def small_recipe(study: str, overrides: Sequence[str] = (), store: str = "none") -> dict[str, Any]:
    """The values of the recipe that comes with this, at the length it has in ``study``."""
    settings = _settings()
    values: dict[str, Any] = copy.deepcopy(settings["recipe"])
    values["plan"]["steps"] = settings["steps"][study]
    values["store"] = store
    for override in overrides:
        apply_override(values, override)
    return values


def small_tokenizer() -> dict[str, Any]:
    """Kind and size of the tokenizer that goes with it."""
    found: dict[str, Any] = _settings()["tokenizer"]
    return found


def base(values: Mapping[str, Any], where: str, steps: int | None = None) -> Base:
    """What the arms share, from a recipe's values.

    Args:
        values: of a recipe, ``out`` and ``seed`` aside.
        where: what messages call it.
        steps: token-level steps to train for instead of the recipe's own length.

    Raises:
        UsageError: the recipe is wrong, goes on from a checkpoint, or has no patches.
    """
    values = {**copy.deepcopy(dict(values)), "out": "none"}
    if steps is not None and isinstance(values.get("plan"), dict):
        values["plan"].update(steps=steps, tokens=None, epochs=None)
    recipe = Recipe.check(values, where)
    if recipe.model.config is None:
        raise UsageError(f"{where}: a study trains from scratch; give model.config")
    if recipe.plan.get("documents") == "separate":
        raise UsageError(f"{where}: a study reads documents: mixed")
    plan = planned_recipe(recipe).plan
    patched = [stage for stage in plan.stages if stage.patch_size > 1]
    if not patched or len(patched) == len(plan.stages):
        raise UsageError(f"{where}: a study needs a plan of patches, then tokens")
    kept = {
        name: value
        for name, value in recipe.plan.items()
        if name not in _STAGES and value is not None
    }
    if plan.spec.epochs is not None:  # asks no leave to read so often; the steps it becomes do
        kept["max_epochs"] = max(plan.spec.max_epochs, plan.spec.epochs)
    dumped = recipe.model_dump(mode="json", exclude_none=True)
    shared: dict[str, Any] = {name: dumped[name] for name in ("store", "model", "training")}
    return Base(
        recipe={**shared, "plan": {**kept, "hold": "compute", "share_of": "steps"}},
        patch_size=patched[0].patch_size,
        step_fraction=sum(stage.positions for stage in patched) / plan.total_positions,
        steps=_token_steps(plan),
    )


def corpus_store(
    sources: Sequence[str],
    path: Path,
    *,
    kind: str | None = None,
    vocab_size: int | None = None,
    tokenizer: str | None = None,
    progress: bool = False,
) -> TokenStore:
    """The store at ``path``, made now from ``sources`` if it is not there.

    Raises:
        UsageError: as ``prepare``; or it is there, and was made from something else.
    """
    if is_store(path):
        store = TokenStore.open(path)
        _refuse_another_corpus(store, sources, kind, vocab_size, tokenizer)
        return store
    return prepare(
        list(sources),
        path,
        tokenizer=tokenizer,
        train_tokenizer=kind,
        vocab_size=vocab_size,
        progress=progress,
    )


def _refuse_another_corpus(
    store: TokenStore,
    sources: Sequence[str],
    kind: str | None,
    vocab_size: int | None,
    tokenizer: str | None,
) -> None:
    """``UsageError`` where a store was not made from what is asked for, by its record."""
    there: Mapping[str, Any] = store.meta["tokenizer"]
    made = [str(item.get("source")) for item in store.meta.get("sources", [])]
    size = None if kind is None else check_request(kind, vocab_size)
    # Earlier versions wrote down only how many entries there are, which may be fewer.
    made_size = there.get("asked_size", max(store.vocab_size, size or 0))
    now = _in_words(sources, kind, size, tokenizer)
    then = _in_words(made, there.get("trained"), made_size, there.get("source"))
    if now != then:
        raise UsageError(
            f"{store.path} was made from {then}, not from {now}; name another --out, or start over "
            f"with --overwrite"
        )


def _in_words(
    sources: Sequence[str], kind: str | None, size: int | None, tokenizer: str | None
) -> str:
    how = f"tokenizer {tokenizer}" if kind is None else f"{kind}, {size} entries"
    return f"{', '.join(map(str, sources))} ({how})"


def describe(store: TokenStore) -> dict[str, Any]:
    """What a study says about a store; equal for equal text and tokenizer.

    ``UsageError`` where bits per byte, which studies compare, cannot be measured on it.
    """
    train = store.train
    if not store.validation.utf8_bytes:
        raise UsageError(
            f"runs are compared in bits per byte, and {store.path} has no validation text whose "
            f"size is known; hold documents out, and name the tokenizer of linked files"
        )
    return {
        "fingerprint": store.fingerprint,
        "vocab_size": store.vocab_size,
        "train_tokens": len(train.tokens),
        "train_bytes": train.utf8_bytes,
        "validation_bytes": store.validation.utf8_bytes,
        "bytes_per_token": round(train.utf8_bytes / max(len(train.tokens), 1), 4),
    }


def _token_steps(plan: Plan) -> int:
    return max(1, round(plan.total_positions / plan.spec.tokens_per_step))


def _settings() -> dict[str, Any]:
    text = files(__package__).joinpath("small.yaml").read_text(encoding="utf-8")
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings
