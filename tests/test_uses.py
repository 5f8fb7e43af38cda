"""How often a position uses a parameter, and that nothing is left of having looked."""

from __future__ import annotations

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from patchtrain import patch_level
from patchtrain.uses import uses
from tests.families import tiny_family


def test_a_plain_model_is_passed_once() -> None:
    found = uses(tiny_family("llama"))
    assert found is not None
    assert {times for name, times in found.parameters.items() if "embed" not in name} == {1.0}
    assert set(found.attention.values()) == {1.0}


def test_towers_are_not_passed() -> None:
    found = uses(tiny_family("gemma3"))
    assert found is not None
    towers = {name for name in found.parameters if "vision" in name or "projector" in name}
    assert {name for name, times in found.parameters.items() if not times} == towers != set()
    found = uses(tiny_family("fuyu"))  # a tower that is one layer, right below the model
    assert found is not None
    assert found.parameters["model.vision_embed_tokens.weight"] == 0


def test_cycles_count_and_those_without_gradients_count_a_third() -> None:
    """Twice three low cycles, and after them a high one; a low one of each three has gradients."""
    found = uses(tiny_family("hrm_text", H_cycles=2, L_cycles=3, L_bp_cycles=[1, 1]))
    assert found is not None
    low, high = (
        found.parameters[f"model.{part}_module.layers.0.self_attn.q_proj.weight"] for part in "LH"
    )
    assert abs(low - 2 * (1 + 2 / 3)) < 1e-9
    assert high == 2


def test_weights_that_layers_share_are_passed_by_each() -> None:
    found = uses(tiny_family("zamba"))
    assert found is not None
    assert max(found.parameters.values()) == 2.0


def test_the_model_is_as_it_was() -> None:
    """Also one that has run, and that others have hung something on."""
    model, ids = tiny_family("mixtral").train(), torch.randint(3, 50, (1, 8))
    before, calls = uses(model), []
    hook = model.model.norm.register_forward_hook(lambda *args: calls.append(1))
    state, implementation = torch.get_rng_state(), model.config._attn_implementation
    first = model(input_ids=ids, labels=ids)
    calls.clear()
    assert uses(model) == before is not None
    with patch_level(model, 2):
        calls.clear()
        assert uses(model) == before
    assert not calls
    hook.remove()
    assert model.training
    assert model.config._attn_implementation == implementation
    assert "patchtrain_counted" not in ALL_ATTENTION_FUNCTIONS
    assert torch.equal(model(input_ids=ids, labels=ids).loss, first.loss)
    assert torch.equal(torch.get_rng_state(), state)
