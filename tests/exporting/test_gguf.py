"""A GGUF file is the same model: for transformers' own reader, and for llama.cpp itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex, normalizers, pre_tokenizers

from patchtrain import chat
from patchtrain.errors import PatchtrainError, UsageError
from patchtrain.evaluation.loading import load_model
from patchtrain.exporting import gguf_tokenizer, llama_cpp
from patchtrain.exporting.gguf_file import obstacles, write_gguf
from patchtrain.exporting.loaders import unlikely
from tests.exporting.small import CONFIGS, TEXT, VOCAB, save, tokenizer

gguf = pytest.importorskip("gguf")
needs_llama_cpp = pytest.mark.skipif(not llama_cpp.available(), reason="needs xllamacpp")

IDS = torch.arange(1, 60)[None] * 5 % VOCAB


def through_transformers(folder: Path, file: Path) -> torch.Tensor:
    """The logits of a GGUF file as transformers reads it, ``(1, S, V)``."""
    config = transformers.AutoConfig.from_pretrained(folder)
    own = {} if config.model_type == "mistral" else {"config": config}  # it is read as a llama
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, **own
    ).eval()
    with torch.no_grad():
        return model(IDS).logits


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_file_is_the_same_model(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    seen: list[int] = []
    found = write_gguf(folder, tmp_path / "m.gguf", "f32", advance=seen.append)
    assert found.weights == len(gguf.GGUFReader(found.path).tensors) == len(seen)
    torch.testing.assert_close(
        through_transformers(folder, found.path), logits(folder), atol=2e-5, rtol=1e-4
    )
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@needs_llama_cpp
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_writes_the_likeliest_tokens(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name)
    found = write_gguf(folder, tmp_path / "m.gguf", "f32")
    loaded, prompt = load_model(folder, "cpu"), IDS[0, :20].tolist()
    tokens = llama_cpp.run(found.path, prompt, 12).tokens
    assert len(tokens) == 12
    assert unlikely(loaded, prompt, tokens) is None
    other = [*tokens[:5], (tokens[5] + 1) % VOCAB, *tokens[6:]]
    assert unlikely(loaded, prompt, other) == 5


@needs_llama_cpp
@pytest.mark.parametrize("text", [
    TEXT[0], "  two  spaces\n\n\nlines\t", "don't 12345 ünïcode 你好 \N{GRINNING FACE}",
])  # fmt: skip
def test_llama_cpp_reads_text_and_conversations_as_we_do(text: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    chat.use_template(words)
    words.save_pretrained(folder)
    found = write_gguf(folder, tmp_path / "m.gguf", "f32")
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "A leaf?"},
    ]
    answers = llama_cpp.run(found.path, [1, 2], 1, text, talk)
    assert answers.text_ids == words(text)["input_ids"]
    assert answers.rendered == chat.render(words, talk, "here", prompt=True)


@pytest.mark.parametrize(("dtype", "apart"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 2e-2)])
def test_smaller_numbers_stay_near(dtype: str, apart: float, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", intermediate_size=80)
    found = write_gguf(folder, tmp_path / "m.gguf", dtype)
    assert found.fallback == (2 if dtype == "q8_0" else 0)  # 80 is no multiple of 32
    whole = logits(folder)
    error = (through_transformers(folder, found.path) - whole).norm() / whole.norm()
    assert 0 < error < apart
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(found.path).tensors}
    assert kinds["blk.0.attn_q.weight"] == dtype.upper()
    assert kinds["output_norm.weight"] == "F32"
    assert "output.weight" not in kinds  # it is tied


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", vocab_size=VOCAB + 4)
    write_gguf(folder, tmp_path / "m.gguf", "f32", name="a name")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert field("general.name") == "a name"
    assert field("tokenizer.ggml.pre") == "gpt-2"
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    size = len(words)
    assert tokens[:size] == words.convert_ids_to_tokens(range(size))
    assert types[words.eos_token_id] == gguf.TokenType.CONTROL
    assert types[size:] == [gguf.TokenType.UNUSED] * (VOCAB + 4 - size)
    assert field("tokenizer.ggml.eos_token_id") == words.eos_token_id
    assert field("tokenizer.ggml.add_bos_token") is False
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert again("The cell is")["input_ids"] == words("The cell is")["input_ids"]


def test_weights_in_several_files_are_all_written(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    one = write_gguf(folder, tmp_path / "one.gguf", "f32", name="m")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    several = write_gguf(folder, tmp_path / "several.gguf", "f32", name="m")
    read = [
        {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
        for path in (one.path, several.path)
    ]
    assert read[0].keys() == read[1].keys()
    assert all(np.array_equal(read[0][name], read[1][name]) for name in read[0])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
         r"positions are scaled \(linear\)"),
        ("mistral", {"sliding_window": 16}, "slides over 16 tokens"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "model", name, **changes)
    with pytest.raises(UsageError, match=f"cannot be written as GGUF: .*{message}"):
        write_gguf(folder, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [("unigram", "Unigram"), ("char", "character"), ("byte", "no merges")],
)
def test_other_tokenizers_are_named(kind: str, message: str, tmp_path: Path) -> None:
    (found,) = obstacles(save(tmp_path / "model", "llama", kind, vocab_size=400))
    assert message in found


def _split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def test_each_way_to_cut_words_has_its_name_or_none() -> None:
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    for cut, name in (
        (plain, "gpt-2"),
        (pre_tokenizers.Sequence([digits, plain]), "smollm"),
        (pre_tokenizers.Sequence([_split(gguf_tokenizer._QWEN2), bare]), "qwen2"),
        (pre_tokenizers.Sequence([_split(r"\w+"), bare]), None),
        (pre_tokenizers.Sequence([_split(gguf_tokenizer._LLAMA3), bare]), None),  # it merges words
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (bare, None),
    ):
        words = tokenizer()
        words.backend_tokenizer.pre_tokenizer = cut
        assert (gguf_tokenizer.obstacles(words) == []) == (name is not None), name
        if name:
            assert gguf_tokenizer.vocabulary(words, VOCAB).pre == name
    words = tokenizer()
    words.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert "no name for" in gguf_tokenizer.obstacles(words)[0]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    (tmp_path / "m.gguf").write_text("mine", encoding="utf-8")

    def fail(read: int) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_gguf(folder, tmp_path / "m.gguf", advance=fail)
    assert (tmp_path / "m.gguf").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "model"]


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama", vocab_size=100)
    with pytest.raises(PatchtrainError, match="the model only 100 rows"):
        write_gguf(folder, tmp_path / "m.gguf")
