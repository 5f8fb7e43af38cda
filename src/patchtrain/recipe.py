"""A recipe: one YAML file that is one run.

::

    store: stores/text               # made by `patchtrain prepare`
    model:
      config: {model_type: llama, hidden_size: 256, ...}    # from scratch: any transformers config
      # pretrained: path-or-name                            # or go on from a checkpoint
    plan: {preset: paper, patch_size: 4, ...}               # fields of PlanSpec
    training: {learning_rate: 3e-4, ...}                    # transformers.TrainingArguments
    samples: ["Once upon a time"]    # prompts the final model completes for the page
    seed: 0
    out: runs/small                  # the run folder; default runs/<name of the file>
    rehearse: true                   # the same run, tiny, for three steps (``rehearsal.py``)

``key=value`` pairs on the command line replace single entries (``plan.patch_size=2``). Every wrong
key or value is named, all at once, with the nearest right key.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from patchtrain.errors import UsageError, nearest, one_line
from patchtrain.model_folder import check_model_folder
from patchtrain.plan import PlanSpec
from patchtrain.rehearsal import rehearsal
from patchtrain.yaml_reader import LONGEST, read_yaml


def _without_null_byte(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("no path holds a null byte")
    return path


# As transformers has it, which looks them up unchecked.
_LogLevel = Literal["detail", "debug", "info", "warning", "error", "critical", "passive"]
# Deeper ones than were ever published take minutes to build, layer by layer.
_MOST_LAYERS = 2000
_Path = Annotated[Path, AfterValidator(_without_null_byte)]


class ModelSection(BaseModel):
    """Exactly one of ``config`` (from scratch) and ``pretrained`` (go on from a checkpoint)."""

    model_config = ConfigDict(extra="forbid")

    config: dict[str, Any] | None = None
    """Train from scratch: `model_type` of transformers and fields of its config. Vocabulary and
    special tokens come from the store, the longest context from the plan."""
    pretrained: str | None = None
    """Or go on from a checkpoint: a Hugging Face name or folder (safetensors)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. For mixed precision keep float32 and set `training.bf16`."""
    trust_remote_code: bool = False
    """Run the checkpoint's own code; off unless you say so."""
    new_tokenizer: bool = False
    """The store's tokenizer is not the checkpoint's, and that is meant; refused unless you say
    so."""


class Recipe(BaseModel):
    """One run as asked for. ``load`` reads and checks it."""

    model_config = ConfigDict(extra="forbid")

    store: _Path
    """Token store made by `patchtrain prepare`."""
    model: ModelSection
    """What is trained: see *The model*."""
    plan: dict[str, Any]
    """The stages: see *The plan*."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Anything of `transformers.TrainingArguments` that the plan does not decide, and what stands
    under *Training*."""
    samples: list[str] = Field(default_factory=list)
    """Prompts that the final model completes for the page."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of initial weights and data order."""
    out: _Path
    """Run folder; `runs/NAME` unless given, where the recipe is NAME.yaml."""

    @classmethod
    def load(cls, file: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read ``file``, apply ``key=value`` overrides, check everything.

        Raises:
            UsageError: no such file, no YAML, or the list of all wrong keys and values.
        """
        file = Path(file)
        if not file.is_file():
            found = "; it is a folder" if file.is_dir() else _other_recipes(file)
            raise UsageError(f"no recipe at {file}{found}")
        try:
            with file.open(encoding="utf-8") as stream:
                text = stream.read(LONGEST + 1)
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{file}: not UTF-8 text: {error.reason} at byte {error.start}"
            ) from error
        values = read_yaml(text, str(file))
        if not isinstance(values, dict):
            raise UsageError(
                f"{file}: a recipe is a mapping of keys, starting with store and model"
            )
        for override in overrides:
            apply_override(values, override)
        values.setdefault("out", str(Path("runs") / file.stem))
        return cls.check(values, str(file))

    @classmethod
    def check(cls, values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """A recipe from plain values; ``UsageError`` names every problem."""
        problems: list[str] = []
        recipe = None
        values = dict(_with_numbers(values))
        if (rehearse := values.pop("rehearse", False)) is True:
            values = rehearsal(values)
        elif rehearse is not False:
            problems.append(f"rehearse is true or false, not {_shown(rehearse)}")
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            problems += [_explain(item, cls) for item in error.errors()]
        if recipe is not None and (recipe.model.config is None) == (
            recipe.model.pretrained is None
        ):
            problems.append("model: give either config (from scratch) or pretrained")
        plan, training = values.get("plan"), values.get("training")
        if isinstance(plan, Mapping):
            try:
                PlanSpec.from_dict(plan)
            except UsageError as error:
                problems.append(str(error))
        if isinstance(training, Mapping):
            checked, wrong = _check_training(training)
            problems += wrong
            if recipe is not None:
                recipe.training = checked
        if recipe is None or problems:
            raise UsageError(f"{where}: " + "; ".join(problems))
        return recipe

    def resolved(self, parameters: int | None = None) -> Recipe:
        """The recipe with everything filled in that its plan leaves to defaults and preset.

        ``parameters`` is the size of its model; without it, K and rows stay open where they go by
        that.
        """
        spec = PlanSpec.from_dict(self.plan)
        spec = spec if parameters is None else spec.for_model(parameters)
        plan = asdict(spec.filled())
        values = {key: value for key, value in plan.items() if value is not None}
        return self.model_copy(update={"plan": values})

    def to_yaml(self) -> str:
        """The recipe as YAML; ``load`` reads it back."""
        values = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def build_model(
    recipe: Recipe,
    vocab_size: int,
    special_tokens: Mapping[str, int | None],
    vocabulary: Mapping[str, int] | None = None,
) -> Any:
    """The model of a recipe, on the CPU, in the recipe's dtype.

    ``special_tokens`` (``bos_token_id`` and the like) and the vocabulary come from the store's
    tokenizer, as does ``vocabulary`` (token to id), which a checkpoint's own tokenizer must share.
    Weights are read from safetensors only.

    Raises:
        UsageError: an unknown model type or key, a checkpoint that cannot be read, or a vocabulary
            smaller than the tokenizer's.
    """
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from patchtrain.sizing import check_size, meta_model

    section = recipe.model
    dtype = getattr(torch, section.dtype)
    if section.pretrained is not None:
        _check_place(section.pretrained, section.trust_remote_code)
        if vocabulary is not None and not section.new_tokenizer:
            _check_tokenizer(section.pretrained, vocabulary, section.trust_remote_code)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                section.pretrained,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=section.trust_remote_code,
            )
        except Exception as error:  # whatever a damaged or unknown checkpoint makes of it
            raise UsageError(
                f"model.pretrained '{section.pretrained}': {one_line(error, 300)}"
            ) from error
    else:
        config = build_config(recipe, vocab_size, special_tokens)
        try:
            shapes = meta_model(config, dtype=section.dtype)
            check_size(sum(weight.numel() for weight in shapes.parameters()), dtype.itemsize)
            set_seed(recipe.seed)
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        except UsageError:
            raise
        except Exception as error:  # models check little: a wrong size ends in any kind of error
            reason = one_line(f"{type(error).__name__}: {error}", 300)
            raise UsageError(f"model.config does not make a model: {reason}") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocab_size:
        raise UsageError(
            f"the store's tokenizer has {vocab_size:,} tokens and the model's vocabulary only "
            f"{rows:,}; use the tokenizer the model was made with, or leave vocab_size out"
        )
    return model


def _check_place(name: str, trust_remote_code: bool) -> None:
    """Refuse at once what cannot be had, where the libraries would try for half a minute.

    A folder is looked over before anything in it is opened.
    """
    from patchtrain.data import hub

    if Path(name).is_dir():
        check_model_folder(Path(name), trust_remote_code)
        return
    if hub.looks_like_path(name):
        raise UsageError(f"model.pretrained: no folder {name}")
    if hub.unreachable():
        raise UsageError(
            f"model.pretrained: no folder {name}, and the Hugging Face hub cannot be reached"
        )


def _check_tokenizer(name: str, vocabulary: Mapping[str, int], trust_remote_code: bool) -> None:
    """Refuse a checkpoint whose own tokenizer gives other ids than the store's."""
    from transformers import AutoTokenizer

    from patchtrain.data import hub

    try:
        with hub.quiet():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
            own = tokenizer.get_vocab()
    except Exception:  # a checkpoint without a tokenizer, or one that needs code of its own
        return
    if own != dict(vocabulary):
        raise UsageError(
            f"the store was made with another tokenizer than the checkpoint {name}, so its ids "
            f"mean something else; prepare the text with --tokenizer {name}, or, if the "
            f"embeddings are to be learned anew, set model.new_tokenizer=true"
        )


def build_config(
    recipe: Recipe, vocab_size: int, special_tokens: Mapping[str, int | None] | None = None
) -> Any:
    """The transformers config of a recipe whose model starts from scratch.

    ``UsageError``: an unknown model type or key, a value it does not take, or a vocabulary smaller
    than ``vocab_size``, the tokenizer's.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    values = dict(recipe.model.config or {})
    kind = values.pop("model_type", None)
    known_types = list(CONFIG_MAPPING_NAMES)
    if kind not in known_types:
        close = difflib.get_close_matches(str(kind), known_types, n=3)
        hint = (
            f"; did you mean {' or '.join(close)}?" if close else ", such as llama, qwen3 or gpt2"
        )
        raise UsageError(f"model.config.model_type '{kind}' is no model type of transformers{hint}")
    try:
        plain = AutoConfig.for_model(kind)
    except Exception as error:  # made of the configs of other models
        raise UsageError(f"model.config: {kind} cannot be trained: {one_line(error)}") from error
    known = [*plain.to_dict(), *plain.attribute_map]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UsageError(
            "; ".join(
                f"model.config: {kind} has no key '{key}'{nearest(key, known)}" for key in unknown
            )
        )
    values.setdefault("vocab_size", vocab_size)
    asked = values["vocab_size"]
    if not isinstance(asked, int) or asked < vocab_size:
        raise UsageError(
            f"the store's tokenizer has {vocab_size:,} tokens and model.config.vocab_size is "
            f"{_shown(asked)}; leave vocab_size out to take the tokenizer's"
        )
    longest = PlanSpec.from_dict(recipe.plan).longest_context()
    if hasattr(plain, "max_position_embeddings") and longest is not None:
        values.setdefault("max_position_embeddings", longest)
    try:
        config = AutoConfig.for_model(kind, **{**(special_tokens or {}), **values})
        layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    except Exception as error:  # configs check their values with errors of many types
        raise UsageError(f"model.config: {one_line(error, 300)}") from error
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise UsageError(
            f"model.config: {layers:,} layers are more than the {_MOST_LAYERS:,} that can be built"
        )
    return config


def _check_training(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``training`` with its values converted, and what is wrong with it."""
    from patchtrain.training.config import DERIVED, PatchConfig, wrong_values

    hints = {**get_type_hints(PatchConfig), "log_level": _LogLevel, "log_level_replica": _LogLevel}
    known = [item.name for item in fields(PatchConfig) if item.init and item.name != "plan"]
    checked, problems = {}, []
    for key, value in values.items():
        if str(key).endswith("_strategy") and value is False:
            value = "no"  # what YAML 1.1 makes of a bare no
        if key in DERIVED:
            problems.append(f"training.{key} is not for recipes: {DERIVED[key]}")
        elif key not in known:
            problems.append(f"training: no key '{key}'{nearest(key, known)}")
        else:
            try:
                checked[key] = TypeAdapter(hints[key]).validate_python(value)
            except ValidationError as error:
                problems.append(f"training.{key} is {_shown(value)}: {_reason(error.errors()[0])}")
                continue
            if isinstance(checked[key], float) and not math.isfinite(checked[key]):
                problems.append(f"training.{key} is {_shown(value)}: no setting is infinite")
    return checked, problems + [f"training.{problem}" for problem in wrong_values(checked)]


def _with_numbers(value: Any) -> Any:
    """``1e9`` and ``3e-4`` as the numbers they look like: YAML 1.1 reads them as text."""
    if isinstance(value, Mapping):
        return {key: _with_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_numbers(inner) for inner in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        number = float(value)
        return int(number) if number.is_integer() else number
    return value


def apply_override(values: dict[str, Any], override: str) -> None:
    """``a.b=value`` into nested mappings; the value is YAML."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise UsageError(f"'{override}' is not key=value, such as plan.patch_size=2")
    value = read_yaml(text, f"'{one_line(override, 80)}'")
    place = values
    for key in keys[:-1]:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UsageError(f"'{override}': {key} is a value, not a section")
        place = inner
    place[keys[-1]] = value


def _explain(item: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors in our words."""
    path = [str(part) for part in item["loc"]]
    if item["type"] == "extra_forbidden":
        owner: type[BaseModel] = ModelSection if path[0] == "model" and len(path) > 1 else model
        section = f"{path[0]}: " if len(path) > 1 else ""
        known = [*owner.model_fields, *(["rehearse"] if owner is Recipe else [])]
        return f"{section}no key '{path[-1]}'{nearest(path[-1], known)}"
    if item["type"] == "missing":
        return f"'{'.'.join(path)}' is missing"
    return f"{'.'.join(path)} is {_shown(item['input'])}: {_reason(item)}"


def _shown(value: Any) -> str:
    return one_line(repr(value), 80)


def _reason(item: Mapping[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _other_recipes(file: Path) -> str:
    folder = file.parent
    names = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
    return f"; {folder} has {', '.join(names)}" if names else ""
