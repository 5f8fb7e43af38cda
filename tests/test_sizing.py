"""Sizes read off models, and the FLOPs they give, against torch's own counter."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from patchtrain import products, sizing
from patchtrain.cost import AttentionLayers
from patchtrain.modeling import patch_level
from patchtrain.sizing import meta_model, model_size
from patchtrain.uses import uses
from tests.families import RESULTS, tiny_family

T = 128
# Grouped queries, learned positions, ALiBi, windows, soft capping, mixtures of experts (stacked,
# with shared ones, with biases), latent attention. No state-space layers: torch counts the gradient
# of their grouped convolution as if it had no groups.
FAMILIES = [
    *("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "bloom", "gemma2", "phi3", "olmo2"),
    *("starcoder2", "mixtral", "qwen3_moe", "olmoe", "granitemoe", "deepseek_v3", "gpt_oss"),
]
EXACT = [
    row["family"]
    for row in json.loads(RESULTS.read_text())["families"]
    if row["verdict"] == "exact"
]
# Not counted, as documented: the products of activations in a scan, or of an indexer that chooses
# what attention may see. What is multiplied by parameters is compared there.
SCANS = [
    *("bailing_hybrid", "bamba", "granitemoehybrid", "kimi_linear", "mamba2", "minimax"),
    *("nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text"),
    *("qwen3_next", "qwen4_exp", "qwen4_exp_text", "xlstm", "zamba2"),
]
INDEXERS = ["axk2", "deepseek_v32", "dots3_note_text", "glm_moe_dsa", "hy_v4"]
# Runs each expert on all positions, most of them zeros, where others send each position to a few.
ALL_EXPERTS: dict[str, dict[str, Any]] = {
    "llama4": {"text_config": {"num_local_experts": 1}},
    "llama4_text": {"num_local_experts": 1},
}
TOLERANCES = {
    "longcat_flash": 0.1,  # how many positions are sent to idle experts is chance
    "rwkv": 0.02,  # factors of channels have more dimensions than one, and are taken for matrices
}


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


def grouped(gradient: Any, inputs: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    """FLOPs of a convolution's two gradients; torch counts them as if it had no groups."""
    return 4 * int(gradient[0] * math.prod(gradient[2:]) * math.prod(weight))


@pytest.mark.parametrize("family", EXACT)
def test_flops_of_every_family_that_is_taken(family: str) -> None:
    length, settings = 32, {"attn_implementation": "eager", **ALL_EXPERTS.get(family, {})}
    try:
        model = tiny_family(family, experts_implementation="eager", **settings).train()
    except (TypeError, ValueError):  # no experts, or in one way only
        model = tiny_family(family, **settings).train()
    model.config.get_text_config().output_router_logits = False
    ids = torch.randint(3, 50, (1, length), generator=torch.Generator().manual_seed(0))
    convolution = {torch.ops.aten.convolution_backward: grouped}
    with FlopCounterMode(display=False, custom_mapping=convolution) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    found = dict(counter.get_flop_counts()["Global"])
    size = model_size(model)
    position = size.flops_per_position(length)
    expected = position.body + position.head
    if family in (*SCANS, *INDEXERS):
        found.pop(torch.ops.aten.bmm, None)
    else:
        expected += sum(part.flops(length) for part in size.attention)
    tolerance = TOLERANCES.get(family, 0.01)
    assert expected == pytest.approx(sum(found.values()) / length, rel=tolerance)


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4_unified", "gemma4_unified_text"])
@pytest.mark.parametrize("seen", [True, False])
def test_heads_that_differ_by_layer(
    family: str, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a family that is refused later, by its own name."""
    if not seen:
        monkeypatch.setattr(sizing, "uses", lambda model: None)
    model = tiny_family(family, attn_implementation="eager")
    narrow, wide = sorted(model_size(model).attention, key=lambda part: part.score_width)
    assert (narrow.score_width, narrow.window) == (4 * 8, 8)
    assert (wide.score_width, wide.window) == (4 * 512, None)


def test_chunks_and_hybrid_layers() -> None:
    assert {part.chunk for part in model_size(tiny_family("llama4_text")).attention} == {8, None}
    (attention,) = model_size(tiny_family("zamba2")).attention
    assert attention.layers == 1


def test_what_does_not_run_on_shapes_is_taken_as_its_config_says() -> None:
    class Looking(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden if bool(hidden.sum() > 0) else -hidden

    plain = tiny_family("llama")
    size = model_size(plain)
    plain.model.norm = torch.nn.Sequential(plain.model.norm, Looking())
    assert uses(plain) is None
    assert model_size(plain) == size


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
