"""Sizes read off models, and the FLOPs they give, against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from patchtrain import products
from patchtrain.cost import AttentionLayers
from patchtrain.modeling import patch_level
from patchtrain.sizing import meta_model, model_size
from tests.families import tiny_family

T = 128
# Grouped queries, learned positions, ALiBi, windows, soft capping, mixtures of experts (stacked,
# with shared ones, with biases), latent attention. No state-space layers: torch counts the gradient
# of their grouped convolution as if it had no groups.
FAMILIES = [
    *("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "bloom", "gemma2", "phi3", "olmo2"),
    *("starcoder2", "mixtral", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v3", "gpt_oss"),
]


@pytest.fixture(autouse=True)
def products_that_torch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counter knows nothing of oneDNN's product, which some processors take."""
    monkeypatch.setattr(products, "prefers_onednn", lambda: False)


def added_in_place(into: Any, first: Any, second: Any, **kwargs: Any) -> int:
    """FLOPs of ``addmm_``, as our loss uses it; torch's counter has no entry for it."""
    return int(2 * first[0] * first[1] * second[1])


def counted(model: Any, K: int = 1, rows: int = 2) -> float:
    """FLOPs of forward and backward by torch's counter, a position."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (rows, T * K))
    in_place = {torch.ops.aten.addmm_: added_in_place}
    with (
        patch_level(model, K),
        FlopCounterMode(display=False, custom_mapping=in_place) as counter,
    ):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops() / (rows * T)


def expected(model: Any, reach: float) -> float:
    """The matrix products of the formula, where a position attends to ``reach`` others."""
    size = model_size(model)
    position = size.flops_per_position(T)
    attention = sum(part.flops(reach) for part in size.attention)
    return position.body + position.head + attention


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_are_those_that_torch_counts(family: str) -> None:
    settings = {"attn_implementation": "eager"}
    if "mo" in family or family in ("mixtral", "gpt_oss", "deepseek_v3"):
        settings["experts_implementation"] = "eager"  # expert by expert, on its own positions
    model = tiny_family(family, **settings).train()
    # The eager kernel computes the whole square, also where a window or causality masks it.
    assert counted(model) == pytest.approx(expected(model, T), rel=0.01)


@pytest.mark.parametrize("K", [2, 4, 8])
def test_a_position_at_patch_level_costs_what_it_costs_at_token_level(K: int) -> None:
    model = tiny_family("llama", attn_implementation="eager", vocab_size=256).train()
    head = model_size(model).flops_per_position(T).head
    # The last position predicts nothing, and its logits are not formed.
    assert counted(model, K) == pytest.approx(expected(model, T) - head / T, rel=0.01)


def test_the_parts_of_a_known_model() -> None:
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000,
    )  # fmt: skip
    size = model_size(meta_model(config))  # Llama-2 7B: 6,738,415,616 parameters
    assert size.parameters == size.active_parameters == 6_738_415_616
    assert size.head_parameters == 32000 * 4096
    norms = 65 * 4096
    assert size.matrix_parameters == size.body_parameters - norms
    assert size.attention == (AttentionLayers(32, 4096, 4096),)


def test_of_experts_only_the_chosen_ones_are_active() -> None:
    model = tiny_family("mixtral", num_local_experts=4, num_experts_per_tok=1)
    size = model_size(model)
    experts = sum(p.numel() for n, p in model.named_parameters() if "experts" in n)
    assert size.parameters - size.active_parameters == pytest.approx(experts * 3 / 4)


def test_windows_and_layers_without_attention() -> None:
    gemma = model_size(tiny_family("gemma2"))
    assert {part.window for part in gemma.attention} == {8, None}
    assert model_size(tiny_family("mamba")).attention == ()
