"""Every causal LM family of transformers, tiny and with random weights, and what patchtrain makes
of it. ``python -m tests.families`` writes the findings to results/models.json and docs/models.md.

``tiny_config`` shrinks a family's default config by the names of its numbers, so that a family
needs a line in ``OVERRIDES`` only where names do not say enough.
"""

from __future__ import annotations

import functools
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from patchtrain.errors import UsageError
from patchtrain.files import write_text
from patchtrain.probing import probe, probe_documents

COMMAND = "python -m tests.families"
ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "results" / "models.json", ROOT / "docs" / "models.md"
TEMPLATE = Path(__file__).with_name("models.md")
VOCAB = 61
FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# The first pattern that a name matches in full gives its value.
SIZES: list[tuple[str, float]] = [
    (r".*dropout.*|.*pdrop|.*drop_rate|.*jitter.*|.*drop_path.*", 0.0),
    (r"vocab_size\w*|\w*_vocab_size", VOCAB),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length"
        r"|context_length|max_\w+_positions|model_max_length",
        128,
    ),
    (r"num_key_value_heads|n_kv_heads?|num_kv_heads|\w*num_key_value_heads", 2),
    (
        r"num_attention_heads|n_heads?|num_heads|(en|de)coder_attention_heads|\w*_num_heads"
        r"|\w*num_attention_heads|\w+_n_heads|n_local_heads|num_mem_heads",
        4,
    ),
    (r"index_topk", 4),
    (r"head_dim|\w*_head_dim|attention_head_size|d_head|rotary_dim", 8),
    (r"\w+_d_head|mamba_head_dim", 16),  # four heads of an expansion by two
    (r"\w*lora_rank|\w*_rank", 8),
    (r"\w*intermediate_size|\w*ffn_dim|d_ff|n_inner|\w*ffn_hidden_size|dim_ff|inner_dim", 48),
    (
        r"hidden_size|d_model|n_embd|n_embed|embed_dim|hidden_dim|d_embed|embedding_size|dim"
        r"|hidden_sizes|word_embed_proj_dim|embedding_dim|adapter_in_dim|attention_hidden_size|lru_width|emb_dim",
        32,
    ),
    (r"num_experts_per_tok|moe_topk|moe_top_k|num_experts_per_token|top_k_experts|moe_k", 2),
    (r"num_experts|n_routed_experts|num_local_experts|moe_num_experts", 4),
    (r"n_group|num_expert_group|topk_group|n_groups|\w*_n_groups", 1),
    (r"first_k_dense_replace|num_dense_layers|n_shared_experts|num_shared_experts", 1),
    (r"sliding_window\w*|\w*local_attention|attention_window_size|attention_chunk_size", 8),
    (r"state_size|mamba_d_state|ssm_state_size", 8),
    (r"mamba_d_ssm", 64),
]
LAYERS = r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|depth|num_blocks"
DROPPED = r"model_type|transformers_version|dtype|per_layer_config|qk_head_dim"

MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16}
GEMMA_LAYERS = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "intermediate_size": 48,
}
BLT_PART = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "blt": {
        "encoder_hash_byte_group_vocab": VOCAB,
        "encoder_config": BLT_PART | {"hidden_size_global": 32},
        "decoder_config": BLT_PART | {"hidden_size_global": 32},
        "global_config": BLT_PART,
        "patcher_config": BLT_PART,
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {
        "ffn_config": {"moe_top_k": 2},
        "attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"per_layer_config": {}, "head_dim": 16},
    # As released; with the default of 1 there is nothing to refuse.
    "falcon_h1": MAMBA
    | {"mamba_d_ssm": 64, "embedding_multiplier": 5.65, "lm_head_multiplier": 0.04},
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": GEMMA_LAYERS | {"activation_sparsity_pattern": [0.95, 0.0] * 2},
    "granitemoehybrid": MAMBA | {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {
        "num_hidden_layers": 2,
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 0,
    },
    "longcat_flash": {"zero_expert_num": 1},  # of more, some experts would be hit by chance only
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [8, 24]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    },
    "zamba2": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_headdim": 16,
        "num_hidden_layers": 3,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention"],
        "hybrid_layer_ids": [1],
        "n_mamba_heads": 4,
    },
}


def tiny_config(family: str, **settings: Any) -> Any:
    """The shrunken config of ``family``, with ``settings`` on top."""
    kind = CONFIG_MAPPING[family]
    values = _shrunk(kind().to_dict())
    return kind(**_merged(_merged(values, OVERRIDES.get(family, {})), settings))


def tiny_family(family: str, **settings: Any) -> Any:
    """A tiny model of ``family``, in fp32 and eval mode, the same for the same call."""
    config = tiny_config(family, **settings)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def _shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a config, small: every kind of layer once, every number by its name."""
    layers = next((n for name, n in values.items() if re.fullmatch(LAYERS, name)), None)
    patterns = {
        name: list(dict.fromkeys(value))
        for name, value in values.items()
        if isinstance(value, list) and len(value) == layers and not _is_index(value, layers)
    }
    depth = max([2, *map(len, patterns.values())])
    small: dict[str, Any] = {}
    for name, value in values.items():
        if re.fullmatch(DROPPED, name) or _is_index(value, layers):
            continue
        if name in patterns:
            kinds = [_size(name, kind) for kind in patterns[name]]
            small[name] = kinds + kinds[-1:] * (depth - len(kinds))
        elif isinstance(value, dict) and name.endswith("config"):
            small[name] = _shrunk(value)
        elif re.fullmatch(LAYERS, name) and isinstance(value, int):
            small[name] = depth
        elif name.endswith("token_id") and isinstance(value, int):
            small[name] = min(value, VOCAB - 1)
        elif name in ("is_decoder", "output_router_logits"):
            small[name] = True
        else:
            small[name] = _size(name, value)
    if "kv_lora_rank" in small and "num_key_value_heads" in small:  # latents have no groups
        small["num_key_value_heads"] = small["num_attention_heads"]
    return small


def _is_index(value: Any, layers: int | None) -> bool:
    """Whether a value lists all layers by their numbers, as llama4's ``moe_layers`` does."""
    return isinstance(value, list) and layers is not None and value == list(range(layers))


def _size(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    for pattern, size in SIZES:
        if re.fullmatch(pattern, name):
            return type(value)(size) if isinstance(size, float) else min(value, size)
    return value


def _merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in more.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


# ---- what patchtrain makes of a family


class NotBuiltError(Exception):
    """Why there is no tiny model of a family."""


def built(family: str) -> Any:
    """A tiny model that runs on plain token ids.

    Raises:
        NotBuiltError: if there is none.
    """
    ids = torch.arange(3, 27).unsqueeze(0)
    try:
        model = tiny_family(family)
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    except Exception as error:  # transformers, or a default config, may fail in any way
        raise NotBuiltError(f"{type(error).__name__}: {_one_line(error)}") from error
    return model


@functools.cache
def findings(family: str) -> dict[str, Any]:
    """One row of the table: what the two probes find on a tiny model of ``family``."""
    row: dict[str, Any] = {"family": family, "class": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]}
    try:
        model = built(family)
    except NotBuiltError as error:
        return row | {"verdict": "not built", "reason": str(error)}
    prefix = f"{type(model).__name__} cannot "
    try:
        found = probe(model)
    except UsageError as error:
        return row | {"verdict": "refused", "reason": _after(error, prefix)}
    row |= {"verdict": "exact", "fused": found.fused, "reason": found.reason}
    row |= {"scale": found.logit_scale, "softcap": found.softcap, "auxiliary": found.auxiliary}
    try:
        probe_documents(model)
    except UsageError as error:
        return row | {"documents": _after(error, prefix)}
    return row | {"documents": "separate"}


def _after(error: UsageError, prefix: str) -> str:
    text = str(error)
    assert text.startswith(prefix), text  # a refusal names the class
    return text.removeprefix(prefix).partition(": ")[2]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def table(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """The page for readers, from the rows."""
    groups: dict[str, list[str]] = {"exact": [], "refused": [], "not built": []}
    for row in rows:
        cells = [f"`{row['family']}`", row["class"]]
        if row["verdict"] == "exact":
            cells += [_loss(row), "yes" if row["documents"] == "separate" else row["documents"]]
        else:
            cells.append(row["reason"])
        groups[row["verdict"]].append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return TEMPLATE.read_text().format(
        command=COMMAND,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        **{name.replace(" ", "_"): "\n".join(lines) for name, lines in groups.items()},
        **{f"{name.replace(' ', '_')}_count": len(lines) for name, lines in groups.items()},
    )


def _loss(row: dict[str, Any]) -> str:
    if not row["fused"]:
        return f"plain: {row['reason']}"
    notes = [
        *([f"scale {row['scale']:g}"] if row["scale"] != 1 else []),
        *([f"softcap {row['softcap']:g}"] if row["softcap"] else []),
        *([f"router loss {row['auxiliary']:g}"] if row["auxiliary"] else []),
    ]
    return "fused" + (f" ({', '.join(notes)})" if notes else "")


def main() -> None:
    transformers.logging.set_verbosity_error()
    versions = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
    }
    rows = [findings(family) for family in FAMILIES]
    record = {"command": COMMAND, "seed": 0, "versions": versions, "families": rows}
    write_text(RESULTS, json.dumps(record, indent=1) + "\n")
    write_text(DOCS, table(rows, versions))


if __name__ == "__main__":
    main()
