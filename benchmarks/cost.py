"""How right the cost model is: its FLOPs against torch's counter, its hours against published ones.

Counted: forward and backward of a small model of each family, with the eager attention kernel,
which computes the whole square, so the formula is taken at full reach. Published: B200 hours of
arXiv:2605.06546 (main table, token superposition at 20,000 steps and the 10B-A1B mixture), over
our FLOPs of the recipe of that size, which gives the share of the device's peak that those runs
reached. Shapes and context length of these recipes are partly ours, so the shares are too.

    python benchmarks/cost.py            a minute, on any machine
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import about, write
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from patchtrain import patch_level, products
from patchtrain.cost import Rates, bill
from patchtrain.devices import device
from patchtrain.planning import planned
from patchtrain.sizing import model_size

RECIPES = Path(__file__).parents[1] / "recipes" / "papers"
T, ROWS = 128, 2
COMMON = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
MIXTURE = {"moe_intermediate_size": 64, "num_experts_per_tok": 2, "head_dim": 32}
# What each stands for, and its config.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("grouped queries", COMMON),
    "gpt2": ("learned positions, biases",
             {"vocab_size": 1024, "n_embd": 128, "n_layer": 2, "n_head": 4}),
    "gemma2": ("sliding windows, softcapping", {**COMMON, "head_dim": 32, "sliding_window": 32}),
    "qwen3": ("head size of its own", {**COMMON, "head_dim": 64}),
    "mixtral": ("mixture of experts", {**COMMON, "num_local_experts": 8}),
    "qwen3_moe": ("fine-grained mixture", {**COMMON, **MIXTURE, "num_experts": 16}),
    "deepseek_v3": ("latent attention, shared experts",
                    {**COMMON, **MIXTURE, "n_routed_experts": 16, "n_group": 1, "topk_group": 1,
                     "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 32,
                     "qk_rope_head_dim": 16, "v_head_dim": 32, "head_dim": 16,
                     "num_key_value_heads": 4,
                     "first_k_dense_replace": 1}),
}  # fmt: skip
# Recipe, B200 hours of the paper, and how its cost compares with the recipe's.
PUBLISHED_HOURS = {"superposition-270m": 34, "superposition-600m": 61, "superposition-3b": 247,
                   "superposition-10b-a1b": 4768}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, default=Path("results/cost.json"))
    args = parser.parse_args()
    result = about("cost", "model, positions, patch size")
    result["settings"] = {"context_length": T, "rows": ROWS, "seed": 0}
    result["rows"] = [row for name in args.models for row in counted(name)]
    result["published"] = [hours(name, count) for name, count in PUBLISHED_HOURS.items()]
    write(args.out, result)


def counted(name: str) -> list[dict[str, Any]]:
    """FLOPs a position by formula and by torch's counter, at token level and at patch level."""
    stands_for, values = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **values)
    config._attn_implementation = "eager"
    if "experts" in stands_for or "mixture" in stands_for:
        config._experts_implementation = "eager"  # expert by expert, on its own positions
    model = AutoModelForCausalLM.from_config(config).train()
    size, rows = model_size(model), []
    for K in (1, 4):
        ids = torch.randint(0, 1024, (ROWS, T * K))
        in_place = {torch.ops.aten.addmm_: added_in_place}
        counter = FlopCounterMode(display=False, custom_mapping=in_place)
        # The counter knows nothing of oneDNN's product, which some processors take.
        by_torch = mock.patch.object(products, "prefers_onednn", return_value=False)
        with patch_level(model, K), by_torch, counter:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        position = size.flops_per_position(T, K)
        # At patch level the last position predicts nothing, and its logits are not formed.
        head = position.head * ((T - 1) / T if K > 1 else 1)
        formula = position.body + head + sum(part.flops(T) for part in size.attention)
        count = counter.get_total_flops() / (ROWS * T)
        rows.append({
            "model": name, "stands_for": stands_for, "patch_size": K, "formula": formula,
            "counted": count, "ratio": formula / count,
        })  # fmt: skip
        print(f"{name:12} K={K} {formula / count:.4f}", flush=True)
    return rows


def added_in_place(into: Any, first: Any, second: Any, **kwargs: Any) -> int:
    """FLOPs of ``addmm_``, as our loss uses it; torch's counter has no entry for it."""
    return int(2 * first[0] * first[1] * second[1])


def hours(name: str, published: float) -> dict[str, Any]:
    """What share of the device's peak the published hours come to."""
    run = planned(str(RECIPES / f"{name}.yaml"), processes=64)
    found = bill(run.size, run.plan, Rates())
    peak = device("b200").peak("bf16")
    assert peak is not None
    share = found.flops.total / (published * 3600 * peak)
    print(f"{name}: {share:.2f} of the peak", flush=True)
    return {"recipe": name, "device": "b200", "device_hours": published,
            "flops": found.flops.total, "utilisation": share}  # fmt: skip


if __name__ == "__main__":
    main()
