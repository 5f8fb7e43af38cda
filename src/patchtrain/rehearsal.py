"""A big recipe made tiny by one entry, ``rehearse: true``: a run of three steps on any machine.

What is tried is everything but the size: the same kind of model, preset, patch sizes, optimizer,
precision and sharding, through all stages, to an exported model. Sizes are cut by the names that
configs of transformers share; a config's other numbers stay. A patch size that the preset takes
from the model's size is that of the tiny one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from patchtrain.patch_settings import AFTER_SWITCH
from patchtrain.presets import OF_LARGE, OF_SMALL, decided_by

# The most of each number of a config that a rehearsal keeps.
_MOST = {
    "hidden_size": 64, "n_embd": 64, "d_model": 64,
    "intermediate_size": 128, "ffn_dim": 128, "n_inner": 128, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_key_value_heads": 4,
    "head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "sliding_window": 16,
}  # fmt: skip
_LEFT_OUT = ("vocab_size", "max_position_embeddings", "n_positions")  # store and plan decide
_STEPS, _CONTEXT_LENGTH, _SEQUENCES = 3, 32, 64
_PASS_SEQUENCES = 2
_ANY_PATCH_SIZE = math.lcm(OF_SMALL[0], OF_LARGE[0])


def rehearsal(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values with model, plan and passes cut to a rehearsal's; nothing is checked."""
    small = {**values}
    model, plan, training = (
        dict(section) if isinstance(section := values.get(name), Mapping) else {}
        for name in ("model", "plan", "training")
    )
    if isinstance(config := model.get("config"), Mapping):
        model["config"] = _small_config(config)
    small["model"], small["plan"] = model, _small_plan(plan)
    batch = training.get("per_device_train_batch_size", _PASS_SEQUENCES)
    training["per_device_train_batch_size"] = _least(batch, _PASS_SEQUENCES)
    training["torch_compile"] = False  # which takes minutes, and tries nothing of ours
    small["training"] = {**training, "logging_steps": 1}
    if "out" in values:
        small["out"] = f"{values['out']}-rehearsal"
    return small


def _small_config(config: Mapping[str, Any]) -> dict[str, Any]:
    small = {
        name: _least(value, _MOST[name]) if name in _MOST else value
        for name, value in config.items()
        if name not in _LEFT_OUT
    }
    heads, groups = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if _whole(heads) and _whole(groups) and heads % groups == 0:  # as many queries a group
        small["num_key_value_heads"] = max(1, small["num_attention_heads"] * groups // heads)
    layers = small.get("num_hidden_layers")
    for name in ("layer_types", "layers_block_type", "mlp_layer_types"):
        kinds = small.get(name)
        if isinstance(kinds, list) and _whole(layers):
            small[name] = (list(dict.fromkeys(kinds)) * layers)[:layers]
    return small


def _small_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    small = {
        name: value
        for name, value in plan.items()
        if name not in ("tokens", "epochs", "warmup_steps", *AFTER_SWITCH)
    }
    stages = plan.get("stages")
    context = _least(plan.get("context_length"), _CONTEXT_LENGTH)
    held = plan.get("hold", decided_by(plan.get("preset"))["hold"])
    sequences = _SEQUENCES * (multiple_of_stages(plan) if held == "tokens" else 1)
    small["context_length"] = context
    small["tokens_per_step"] = sequences * (context if _whole(context) else 1)
    small["steps"] = max(_STEPS, len(stages) if isinstance(stages, list) else 0)
    small["max_epochs"] = 1000.0
    return small


def _least(value: Any, most: int) -> Any:
    return min(value, most) if _whole(value) else value


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def multiple_of_stages(values: Mapping[str, Any]) -> int:
    """The least number that every patch size divides, as far as ``values`` can be read unchecked.

    For who chooses ``tokens_per_step`` for a plan that has yet to be checked.
    """
    usual = decided_by(values.get("preset")).get("patch_size", _ANY_PATCH_SIZE)
    sizes = [values.get("patch_size") or usual]
    if isinstance(stages := values.get("stages"), list):
        sizes = [
            item.get("patch_size") if isinstance(item, Mapping) else item[0]
            for item in stages
            if isinstance(item, Mapping) or (isinstance(item, list) and item)
        ]
    return math.lcm(*(size for size in sizes if isinstance(size, int) and 0 < size <= 1024))
