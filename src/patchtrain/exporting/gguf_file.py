"""A plain model folder as one GGUF file, for llama.cpp and what is built on it.

The file is written weight by weight, straight from the safetensors: the memory it takes is that of
the largest weight. Vectors stay in float32, as llama.cpp wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchtrain.errors import PatchtrainError, UsageError, one_line
from patchtrain.exporting import gguf_model, gguf_tokenizer
from patchtrain.extras import require
from patchtrain.files import check_place, whole_file
from patchtrain.model_folder import check_model_folder, weight_files


@dataclass(frozen=True)
class Written:
    """What was written: ``fallback`` weights did not fit ``q8_0``'s blocks and are f16."""

    path: Path
    architecture: str
    weights: int
    fallback: int
    bytes: int


def obstacles(folder: Path) -> list[str]:
    """Why the model in ``folder`` cannot be written as GGUF, in words; empty if it can."""
    config, tokenizer = _open(folder)
    return gguf_model.obstacles(config) + gguf_tokenizer.obstacles(tokenizer)


def write_gguf(
    folder: Path,
    out: Path,
    dtype: str = "f16",
    name: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> Written:
    """Write the model in ``folder`` to the file ``out``, which is replaced whole or not at all.

    Args:
        folder: a plain model folder with its tokenizer.
        out: the file to write.
        dtype: of the matrices: ``f32``, ``f16``, ``bf16`` or ``q8_0``.
        name: what the file says it is (default: the folder's name).
        advance: told of the bytes of each weight that was read.

    Raises:
        UsageError: the package gguf is missing, or the model cannot be written, and why.
        PatchtrainError: the weights do not fit the architecture.
    """
    require("gguf", "writing GGUF")
    import gguf

    check_model_folder(folder)
    config, tokenizer = _open(folder)
    if wrong := gguf_model.obstacles(config) + gguf_tokenizer.obstacles(tokenizer):
        raise UsageError(f"{folder} cannot be written as GGUF: {'; '.join(wrong)}")
    architecture = gguf_model.ARCHITECTURES[config.model_type]
    plan = _plan(folder, config, architecture, dtype)
    try:
        words = gguf_tokenizer.vocabulary(tokenizer, _rows(plan))
    except ValueError as error:
        raise PatchtrainError(f"{folder}: {error}") from error
    check_place(out, "the model")
    with whole_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        try:
            writer.add_name(name or folder.resolve().name)
            most = "ALL" if dtype == "f32" else "MOSTLY"
            writer.add_file_type(int(gguf.LlamaFileType[f"{most}_{dtype.upper()}"]))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            gguf_model.add_settings(writer, config)
            words.add_to(writer)
            for weight in plan:
                writer.add_tensor_info(
                    weight.name, weight.stored_shape, weight.stored_dtype, weight.bytes, weight.kind
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for weight, values in _read(plan):
                tensor = gguf_model.as_gguf(weight.source, values, config).float().contiguous()
                writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), weight.kind))
                if advance:
                    advance(values.nbytes)
        finally:
            writer.close()
    fallback = sum(weight.fallback for weight in plan)
    return Written(out, architecture, len(plan), fallback, out.stat().st_size)


@dataclass(frozen=True)
class _Weight:
    """One weight to write. ``kind`` is a ``gguf.GGMLQuantizationType``."""

    source: str
    file: Path
    name: str
    shape: tuple[int, ...]
    kind: Any
    fallback: bool

    @property
    def stored_shape(self) -> tuple[int, ...]:
        import gguf

        if self.stored_dtype == "uint8":
            return tuple(gguf.quant_shape_to_byte_shape(self.shape, self.kind))
        return self.shape

    @property
    def stored_dtype(self) -> Any:
        import gguf
        import numpy as np

        kinds = gguf.GGMLQuantizationType
        return np.dtype({kinds.F32: "float32", kinds.F16: "float16"}.get(self.kind, "uint8"))

    @property
    def bytes(self) -> int:
        import numpy as np

        return int(np.prod(self.stored_shape)) * self.stored_dtype.itemsize


def _plan(folder: Path, config: Any, architecture: str, dtype: str) -> list[_Weight]:
    """What is written, in the order of the files: names, shapes and types, without the values."""
    import gguf
    from safetensors import safe_open

    kinds = gguf.GGMLQuantizationType
    wanted = kinds[dtype.upper()]
    number = {arch: key for key, arch in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    plan = []
    for file in weight_files(folder):
        with safe_open(file, "pt") as weights:
            for source in weights.keys():  # noqa: SIM118 - no mapping
                if source == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                name = names.get_name(source, (".weight", ".bias"))
                if name is None:
                    raise PatchtrainError(
                        f"{file} holds {one_line(source, 80)}, which no {architecture} has in GGUF"
                    )
                shape = tuple(weights.get_slice(source).get_shape())
                if config.model_type == "gpt2" and len(shape) == 2 and ".c_" in source:
                    shape = shape[::-1]
                kind, fallback = wanted if len(shape) > 1 else kinds.F32, False
                if kind == kinds.Q8_0 and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
                    kind, fallback = kinds.F16, True
                plan.append(_Weight(source, file, name, shape, kind, fallback))
    return plan


def _read(plan: list[_Weight]) -> Iterator[tuple[_Weight, torch.Tensor]]:
    from safetensors import safe_open

    for weight in plan:
        with safe_open(weight.file, "pt") as weights:
            yield weight, weights.get_tensor(weight.source)


def _rows(plan: list[_Weight]) -> int:
    return next(weight.shape[0] for weight in plan if weight.name == "token_embd.weight")


def _open(folder: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer of a model folder."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        options = {"local_files_only": True, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(folder, **options)
        return config, AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:
        raise PatchtrainError(f"cannot read the model in {folder}: {one_line(error)}") from error
