"""From what a user names to what a bill needs: the model's sizes and the resolved plan.

A model is named by a recipe, by a config file or a folder that holds one, or by its name on the
Hugging Face hub. Its weights are never read, and no store has to be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from patchtrain.cost import ModelSize
from patchtrain.data.store import TokenStore
from patchtrain.errors import UsageError, one_line
from patchtrain.plan import Plan, PlanSpec
from patchtrain.recipe import Recipe, apply_override, build_config
from patchtrain.rehearsal import multiple_of_stages
from patchtrain.sizing import meta_model, model_size

if TYPE_CHECKING:
    from patchtrain.memory import Memory

# What both papers trained with, for a model that comes without a recipe.
CONTEXT_LENGTH, TOKENS_PER_STEP = 2048, 2**21
PASS_SEQUENCES = 8  # as transformers' Trainer has it
NODE_DEVICES = 8  # what fsdp_replicas: nodes is taken for, as a plan knows no nodes


@dataclass(frozen=True)
class Planned:
    """A run to be paid for."""

    recipe: Recipe
    config: Any  # of transformers
    size: ModelSize
    plan: Plan
    store_tokens: int | None  # of the recipe's store, where it is there

    @property
    def precision(self) -> str:
        """Whose peak counts: that of the matrix products."""
        half = self.recipe.training.get("bf16") or self.recipe.model.dtype == "bfloat16"
        return "bf16" if half else "fp32"

    def memory(self) -> list[Memory]:
        """What each stage takes of each device's memory (``memory.memory_of``); takes seconds."""
        from patchtrain.memory import memory_of

        given = self.recipe.training
        asked = SimpleNamespace(
            fsdp=given.get("fsdp"),
            fsdp_config=given.get("fsdp_config"),
            bf16=given.get("bf16", False),
            gradient_checkpointing=self.checkpointing,
            optim=given.get("optim", "adamw_torch_fused"),
            loss_backend=given.get("loss_backend", "auto"),
        )
        return memory_of(self.on_meta, self.plan, asked, shards=self._shards())

    def _shards(self) -> int | None:
        """Devices that share one copy of the model under hybrid sharding; None: all of them."""
        replicas, devices = self.recipe.training.get("fsdp_replicas", 1), self.plan.processes
        if replicas == "nodes":
            return min(NODE_DEVICES, devices)
        if replicas < 1 or devices % replicas:
            raise UsageError(
                f"training.fsdp_replicas is {replicas}, which does not divide the {devices} devices"
            )
        return None if replicas == 1 else devices // replicas

    @cached_property
    def on_meta(self) -> Any:
        """The model without memory, in the recipe's dtype."""
        section = self.recipe.model
        return meta_model(self.config, section.trust_remote_code, section.dtype)

    @property
    def checkpointing(self) -> bool:
        """Whether layers are computed again in the backward, as Trainer or as FSDP is asked to."""
        training = self.recipe.training  # the second name is the older one of the same argument
        names = ("activation_checkpointing", "gradient_checkpointing")
        sharded = training.get("fsdp_config")
        by_fsdp = isinstance(sharded, dict) and sharded.get("activation_checkpointing")
        return bool(by_fsdp or any(training.get(name) for name in names))


def planned(model: str, overrides: Sequence[str] = (), processes: int = 1) -> Planned:
    """The model and plan that ``model`` names, with ``key=value`` overrides of a recipe's entries.

    Args:
        model: a recipe (.yaml), a config.json or its folder, or a name on the hub.
        overrides: as on the command line of ``train``.
        processes: data-parallel processes, one a device.

    Raises:
        UsageError: naming what is missing or does not fit.
    """
    if processes < 1:
        raise UsageError(f"a run has at least 1 device, not {processes}")
    if Path(model).suffix in (".yaml", ".yml"):
        return planned_recipe(Recipe.load(model, overrides), processes)
    config = _config(model)
    return _planned(_plain_recipe(model, config, overrides, processes), config, None, processes)


def planned_recipe(recipe: Recipe, processes: int = 1) -> Planned:
    """The model and plan of a recipe; raises as ``planned``."""
    store = _store(recipe)
    return _planned(recipe, _recipe_config(recipe, store), store, processes)


def _planned(recipe: Recipe, config: Any, store: TokenStore | None, processes: int) -> Planned:
    size = _size(config, recipe)
    spec = PlanSpec.from_dict(recipe.plan).for_model(size.parameters)
    sequences = recipe.training.get("per_device_train_batch_size", PASS_SEQUENCES)
    tokens = len(store.train.tokens) if store else None
    plan = spec.resolve(
        store_tokens=tokens if spec.epochs is not None else None,
        device_sequences=sequences,
        processes=processes,
    )
    return Planned(recipe, config, size, plan, tokens)


def _store(recipe: Recipe) -> TokenStore | None:
    return TokenStore.open(recipe.store) if recipe.store.exists() else None


def _recipe_config(recipe: Recipe, store: TokenStore | None) -> Any:
    if recipe.model.pretrained is not None:
        return _config(recipe.model.pretrained, recipe.model.trust_remote_code)
    vocab_size = (recipe.model.config or {}).get("vocab_size")
    if store is not None:
        vocab_size = store.vocab_size
    elif not isinstance(vocab_size, int):
        raise UsageError(
            f"the size of the vocabulary is not known, as there is no store at {recipe.store}; "
            f"name it: model.config.vocab_size=32000"
        )
    return build_config(recipe, vocab_size)


def _config(name: str, trust_remote_code: bool = False) -> Any:
    """The config of a file, a folder or a name on the hub."""
    from transformers import AutoConfig

    from patchtrain.data import hub

    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{path} is no model folder: it has no config.json")
        name = str(path / "config.json")
    elif not path.is_file():
        if hub.looks_like_path(name):
            raise UsageError(f"there is no recipe, config file or model folder at {name}")
        if hub.unreachable():
            raise UsageError(
                f"there is no {name} here, and the Hugging Face hub cannot be reached; name a "
                f"recipe (.yaml), a config.json or a model folder"
            )
    try:
        with hub.quiet():
            return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a damaged or unknown config makes of it
        raise UsageError(f"the config of {name} cannot be read: {one_line(error, 300)}") from error


def _plain_recipe(name: str, config: Any, overrides: Sequence[str], processes: int) -> Recipe:
    """A recipe for a model that came without one: the default plan, with overrides."""
    values: dict[str, Any] = {
        "store": "stores/none", "out": "runs/plan", "model": {"pretrained": name}, "plan": {},
    }  # fmt: skip
    for override in overrides:
        apply_override(values, override)
    plan = values["plan"]
    if not isinstance(plan, dict):
        raise UsageError("plan is a section of keys, such as plan.tokens=100B")
    if not any(plan.get(key) is not None for key in ("steps", "tokens")):
        raise UsageError("say how long the run is to be: plan.tokens=100B, or plan.steps=20000")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    context = min(CONTEXT_LENGTH, longest) if isinstance(longest, int) else CONTEXT_LENGTH
    context = plan.setdefault("context_length", context)
    if "tokens_per_step" not in plan and isinstance(context, int) and context > 0:
        unit = multiple_of_stages(plan) * context * processes
        plan["tokens_per_step"] = max(1, round(TOKENS_PER_STEP / unit)) * unit
    return Recipe.check(values, "the plan")


def _size(config: Any, recipe: Recipe) -> ModelSize:
    try:
        return model_size(meta_model(config, recipe.model.trust_remote_code))
    except UsageError:
        raise
    except Exception as error:  # models check little: a wrong size ends in any kind of error
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise UsageError(f"the config does not make a causal language model: {reason}") from error
