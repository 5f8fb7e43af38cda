"""A model folder looked over before transformers opens it: nothing in it is executed.

Weights come from safetensors, which holds numbers and nothing else. A pickle may run code when it
is opened, so it is not opened. Python files that come with a model are not imported unless the
user says so (``trust_remote_code``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path, PurePath
from typing import Any

from patchtrain.errors import UsageError, one_line
from patchtrain.files import sha256

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "spiece.model",
)  # fmt: skip
CARD = "README.md"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a model's folder."""
    return any((folder / name).is_file() for name in _TOKENIZERS)


def check_model_folder(folder: Path, trust_remote_code: bool = False) -> None:
    """Refuse a model that is not plain: pickled weights, code of its own, kernels from the hub.

    Raises:
        UsageError: naming the folder, what is wrong with it and the way out.
    """
    config = _read(folder / "config.json")
    if not trust_remote_code and _needs_code(config):
        raise UsageError(
            f"the model in {folder} needs Python code that comes with it (auto_map in "
            f"config.json), and patchtrain does not run it; if you trust its author, train it with "
            f"model.trust_remote_code=true or open it with transformers itself"
        )
    if kernel := _kernel(config):
        raise UsageError(
            f"{folder / 'config.json'} asks for code from the hub ({one_line(kernel, 60)}) to "
            f"compute attention; take attn_implementation out of it"
        )
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{folder} holds an adapter (adapter_config.json); merge it into its model first"
        )
    _check_weights(folder, config)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that ``check_model_folder`` took."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    return [folder / name for name in sorted(set(_read(folder / _INDEX)["weight_map"].values()))]


def keep_card(model: Path, new: Path) -> None:
    """Take the card over into the folder that replaces ``model``: its user may have edited it."""
    file = model / CARD
    if file.is_file() and not file.is_symlink():
        shutil.copyfile(file, new / CARD)


def fingerprint(folder: Path) -> str:
    """SHA-256 over what decides what a model writes: weights, configs, tokenizer, template."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model") and file.is_file():
            total.update(f"{file.name} {sha256(file)}\n".encode())
    return total.hexdigest()


def _check_weights(folder: Path, config: dict[str, Any]) -> None:
    if "transformers_weights" in config:
        raise UsageError(
            f"{folder / 'config.json'} names a weights file of its own (transformers_weights); "
            f"take that entry out and call the file {_WEIGHTS}"
        )
    if (folder / _WEIGHTS).is_file():
        return
    if (folder / _INDEX).is_file():
        names = _read(folder / _INDEX).get("weight_map")
        parts = names.values() if isinstance(names, dict) else [names]
        for name in parts:
            beside = isinstance(name, str) and PurePath(name).name == name
            if not beside or not str(name).endswith(".safetensors"):
                raise UsageError(
                    f"{folder / _INDEX} names {one_line(repr(name), 60)}, which is no safetensors "
                    f"file in its folder"
                )
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UsageError(
            f"the weights in {folder} are pickled ({pickles[0]}), and opening a pickle can run "
            f"code; patchtrain reads safetensors only: convert them where you trust them, with "
            f"transformers' save_pretrained"
        )
    raise UsageError(f"{folder} has no weights: there is no {_WEIGHTS}")


def _needs_code(config: dict[str, Any]) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return "auto_map" in config and str(config.get("model_type")) not in CONFIG_MAPPING_NAMES


def _kernel(config: Any) -> str | None:
    """An attention implementation that is the name of a repository, in ``config`` or below."""
    if not isinstance(config, dict):
        return None
    for key, value in config.items():
        if key.endswith("attn_implementation") and "/" in str(value):
            return str(value)
        if found := _kernel(value):
            return found
    return None


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UsageError(f"{file.parent} is no model folder: it has no {file.name}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{file} is not a JSON object")
    return values
