"""What a model folder may hold; how the commands refuse the rest is in test_safe.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchtrain.errors import UsageError
from patchtrain.model_folder import check_model_folder


def write(folder: Path, config: object = None, **files: str) -> Path:
    values = {"model_type": "llama"} if config is None else config
    (folder / "config.json").write_text(json.dumps(values))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_plain_models_pass(tmp_path: Path) -> None:
    check_model_folder(write(tmp_path, model__safetensors=""))
    (tmp_path / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check_model_folder(tmp_path)
    check_model_folder(write(tmp_path, {"model_type": "llama", "auto_map": {"AutoConfig": "x.Y"}}))
    check_model_folder(write(tmp_path, {"model_type": "x", "auto_map": {}}), trust_remote_code=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "is not a JSON object"),
        ({"model_type": ["x"], "auto_map": 1}, "needs Python code"),
        (
            {"model_type": "llama", "text_config": {"_attn_implementation": "a/b"}},
            "code from the hub",
        ),
        ({"model_type": "llama"}, "has no weights: there is no model.safetensors"),
    ],
)
def test_others_do_not(tmp_path: Path, config: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_model_folder(write(tmp_path, config))


@pytest.mark.parametrize("names", [None, {"a": 1}, {"a": "x/model.safetensors"}, {"a": "/x.bin"}])
def test_an_index_names_files_beside_it(tmp_path: Path, names: object) -> None:
    write(tmp_path)
    file = tmp_path / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UsageError, match="is no safetensors file in its folder"):
        check_model_folder(tmp_path)


def test_a_config_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no model folder: it has no config\.json"):
        check_model_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        check_model_folder(tmp_path)
