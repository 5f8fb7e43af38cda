"""Patch level on every causal LM family of transformers, against slow and independent formulas."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from patchtrain import UsageError, patch_level, patch_loss_reference, patch_targets
from patchtrain.modeling import Probe
from tests.families import (
    COMMAND,
    DOCS,
    FAMILIES,
    RESULTS,
    built,
    findings,
    table,
    tiny_family,
)

PATCH_SIZE, POSITIONS = 4, 24
RECORD = json.loads(RESULTS.read_text())
ROWS = {row["family"]: row for row in RECORD["families"]}
# Without which there would be little point: the families that pretraining is done with.
EXPECTED = """
bloom cohere cohere2 deepseek_v3 falcon gemma gemma2 gemma3_text gpt2 gpt_neox gpt_oss gptj
granite granitemoe llama mamba minicpm3 mistral mixtral mpt nanochat olmo2 olmo3 olmoe opt phi
phi3 qwen2 qwen3 qwen3_moe smollm3 stablelm starcoder2
"""


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact_or_refused_by_name_as_recorded(family: str) -> None:
    row = findings(family)
    if transformers.__version__ == RECORD["versions"]["transformers"]:
        assert comparable(row) == comparable(ROWS[family]), f"stale: run {COMMAND}"
    if row["verdict"] == "refused":
        model = built(family)
        with pytest.raises(UsageError, match=type(model).__name__):
            patch_level(model, PATCH_SIZE)
        assert "forward" not in model.__dict__
    elif row["verdict"] == "exact":
        found = Probe(row["fused"], row["scale"], row["softcap"], row["auxiliary"], row["reason"])
        check(built(family), found)


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what rounding may change."""
    rounded = {key: f"{x:.3g}" if isinstance(x, float) else x for key, x in row.items()}
    return rounded if row["verdict"] == "exact" else {**rounded, "reason": None}


def check(model: Any, found: Probe) -> None:
    ids = torch.randint(3, 50, (2, PATCH_SIZE * POSITIONS), generator=generator())
    tokens = ids[:, :POSITIONS]
    keys, kind = list(model.state_dict()), type(model)
    plain = model(input_ids=tokens, labels=tokens, output_hidden_states=True, use_cache=False)
    reached = trained(model, plain.loss)
    with patch_level(model, 1):
        assert torch.equal(model(input_ids=tokens, labels=tokens, use_cache=False).loss, plain.loss)

    with patch_level(model, PATCH_SIZE, checked=found):
        repeated = tokens.repeat_interleave(PATCH_SIZE, dim=1)
        pooled = model(input_ids=repeated, output_hidden_states=True)
        states = [(pooled.logits, plain.logits)]
        if getattr(plain, "hidden_states", None):
            states += zip(pooled.hidden_states, plain.hidden_states, strict=True)
        for got, expected in states:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)

        output = model(input_ids=ids, labels=ids)
        assert trained(model, output.loss) == reached
    # Not pool_embeddings: the patches that the method defines, formed in another way.
    embeddings = model.get_input_embeddings()(ids)
    patches = sum(embeddings[:, slot::PATCH_SIZE] for slot in range(PATCH_SIZE)) / PATCH_SIZE
    slow = model(inputs_embeds=patches, use_cache=False)
    expected = patch_loss_reference(slow.logits[:, :-1], patch_targets(ids, PATCH_SIZE))
    if isinstance(getattr(slow, "aux_loss", None), Tensor):
        expected = expected + router_weight(model, plain, tokens) * slow.aux_loss
    torch.testing.assert_close(output.loss.double(), expected.double(), rtol=1e-5, atol=1e-6)

    assert (list(model.state_dict()), type(model)) == (keys, kind)
    assert "forward" not in model.__dict__
    again = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    assert torch.equal(again, plain.loss)


def router_weight(model: Any, plain: Any, tokens: Tensor) -> float:
    """From the config, and checked against the model's loss: not as the probe finds it."""
    config = model.config.get_text_config()
    if hasattr(config, "ffn_config"):
        weight = config.ffn_config.moe_loss_weight
    else:
        weight = getattr(config, "router_aux_loss_coef", None)
        weight = config.aux_loss_coef if weight is None else weight
    entropy = F.cross_entropy(plain.logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(plain.loss, entropy + weight * plain.aux_loss)
    return weight


def trained(model: Any, loss: Tensor) -> set[str]:
    """The parameters that a loss trains."""
    model.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and bool(parameter.grad.any())
    }


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_families_that_pretraining_is_done_with_are_exact() -> None:
    assert {family for family, row in ROWS.items() if row["verdict"] == "exact"} >= {
        *EXPECTED.split()
    }


def test_the_page_is_written_from_the_record() -> None:
    assert DOCS.read_text() == table(RECORD["families"], RECORD["versions"])


def test_encoders_are_refused_as_not_causal_unless_they_are_decoders() -> None:
    with pytest.raises(UsageError, match=r"BertLMHeadModel .* not causal"):
        patch_level(tiny_family("bert", is_decoder=False), 2)
    patch_level(tiny_family("bert", is_decoder=True), 2).remove()


def test_what_is_silently_wrong_is_refused_for_the_right_reason() -> None:
    with pytest.raises(UsageError, match=r"Gemma3nForCausalLM .*embed_tokens_per_layer"):
        patch_level(tiny_family("gemma3n_text"), 2)
    with pytest.raises(UsageError, match=r"FalconH1ForCausalLM .*layers.0.input_layernorm"):
        patch_level(tiny_family("falcon_h1"), 2)
    # With no multiplier on the path of input_ids nothing is wrong with it.
    patch_level(tiny_family("falcon_h1", embedding_multiplier=1.0), 2).remove()
