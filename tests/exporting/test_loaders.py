"""Who takes a model: those that do, and for those that do not the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from patchtrain.exporting import llama_cpp
from patchtrain.exporting.loaders import Loader, check_loaders
from tests.exporting.small import save

pytest.importorskip("gguf")


def found(folder: Path) -> dict[str, Loader]:
    return {loader.name: loader for loader in check_loaders(folder)}


def test_everybody_takes_a_plain_llama(tmp_path: Path) -> None:
    loaders = found(save(tmp_path / "model", "llama"))
    assert {name: loader.takes for name, loader in loaders.items()} == {
        "transformers": True,
        "gguf": True,
        "llama.cpp": True if llama_cpp.available() else None,
        "vllm": True,
    }
    assert any("same logits through transformers" in line for line in loaders["gguf"].done)
    if llama_cpp.available():
        assert loaders["llama.cpp"].done == [
            "each of the 16 tokens it writes is the likeliest",
            "it cuts text in the same tokens",
        ]
    assert "LlamaForCausalLM is in its registry" in loaders["vllm"].done


def test_an_architecture_without_gguf_is_said(tmp_path: Path) -> None:
    loaders = found(save(tmp_path / "model", "llama", "unigram"))
    assert loaders["gguf"].takes is False
    assert "only byte-level BPE" in loaders["gguf"].reasons[0]
    assert loaders["llama.cpp"].takes is False
    assert loaders["transformers"].takes is loaders["vllm"].takes is True


def test_a_conversion_that_is_wrong_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "model", "llama")
    monkeypatch.setattr(
        "patchtrain.exporting.gguf_model.as_gguf", lambda name, weight, config: weight
    )
    loader = found(folder)["gguf"]
    assert loader.takes is False
    assert "reads another model from it" in loader.reasons[0]


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    loaders = found(folder)
    assert loaders["transformers"].takes is False
    assert "1 weights are missing: model.norm.weight" in loaders["vllm"].reasons
    assert "there is no tokenizer.json" in loaders["vllm"].reasons
    assert loaders["gguf"].reasons == ["transformers does not load the model"]


def test_an_index_that_disagrees_and_an_unknown_architecture_are_told(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = []
    (folder / "config.json").write_text(json.dumps(config))
    assert found(folder)["vllm"].reasons == ["config.json names no architectures"]


@pytest.mark.skipif(not llama_cpp.available(), reason="needs xllamacpp")
def test_llama_cpp_says_no_to_what_is_no_model(tmp_path: Path) -> None:
    from patchtrain.errors import PatchtrainError

    (tmp_path / "m.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(PatchtrainError, match=r"llama\.cpp does not take it"):
        llama_cpp.run(tmp_path / "m.gguf", [1, 2], 2)
