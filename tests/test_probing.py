"""The probe: what it finds out about a model, and what it refuses, by name and with the reason."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from patchtrain import UsageError, patch_level, patch_loss_reference, patch_targets
from patchtrain.probing import probe, probe_documents
from tests.models import VOCAB, tiny_model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("family", "settings", "scale"),
    [("granite", {"logits_scaling": 8.0}, 0.125), ("cohere", {"logit_scale": 0.5}, 0.5)],
)
def test_a_scale_on_the_logits_is_found_by_the_probe(
    family: str, settings: dict[str, Any], scale: float, ids: Tensor
) -> None:
    model = tiny_model(family, **settings)
    found = probe(model)
    assert found.fused
    assert found.logit_scale == pytest.approx(scale, rel=1e-4)
    with patch_level(model, 4):
        loss = model(input_ids=ids, labels=ids).loss
        logits = model(input_ids=ids).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cap", [3.0, 30.0])
@pytest.mark.parametrize("family", ["gemma2", "nanochat"])
def test_softcapping_is_measured_on_a_fresh_model(family: str, cap: float, ids: Tensor) -> None:
    model = tiny_model(family, final_logit_softcapping=cap)
    found = probe(model)
    assert found.fused
    assert (found.logit_scale, found.softcap) == (pytest.approx(1), pytest.approx(cap))
    with patch_level(model, 4):
        loss = model(input_ids=ids, labels=ids).loss
        logits = model(input_ids=ids).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


class OtherLogits(transformers.LlamaForCausalLM):
    """Makes its logits from the head's output by any function, and its loss from these."""

    bend: Any = None

    def forward(self, labels: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        output = super().forward(**kwargs)
        output.logits = type(self).bend(output.logits)
        if labels is not None:
            output.loss = self.loss_function(output.logits, labels, self.vocab_size)
        return output


@pytest.mark.parametrize(
    ("bend", "scale", "cap"),
    [
        (lambda z: 30 * torch.tanh(0.25 * z / 30), 0.25, 30),  # a scale before the cap
        (lambda z: 0.5 * 15 * torch.tanh(z / 15), 0.5, 7.5),  # and after it
        (lambda z: 4 * torch.tanh(z), 4, 4),
    ],
)
def test_a_scale_and_a_cap_are_told_apart(bend: Any, scale: float, cap: float, ids: Tensor) -> None:
    OtherLogits.bend = staticmethod(bend)
    model = OtherLogits(tiny_model("llama").config)
    found = probe(model)
    assert found.fused
    assert found.logit_scale == pytest.approx(scale, rel=1e-3)
    assert found.softcap == pytest.approx(cap, rel=1e-3)


@pytest.mark.parametrize("bend", [torch.arctan, lambda z: z.clamp(-20, 20), lambda z: z + z**3])
def test_any_other_bend_takes_the_loss_from_full_logits(bend: Any, ids: Tensor) -> None:
    OtherLogits.bend = staticmethod(bend)
    model = OtherLogits(tiny_model("llama").config)
    found = probe(model)
    assert not found.fused
    assert "bends its logits" in found.reason
    with patch_level(model, 4):
        loss = model(input_ids=ids, labels=ids).loss
        logits = model(input_ids=ids).logits
    expected = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_probing_leaves_no_trace(ids: Tensor) -> None:
    model = tiny_model("llama").train()
    expected = model(input_ids=ids, labels=ids).loss
    state = torch.get_rng_state()
    probe(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.lm_head._forward_pre_hooks
    assert torch.equal(model(input_ids=ids, labels=ids).loss, expected)


class ReadsIdsTwice(transformers.LlamaForCausalLM):
    """Adds something to the logits that depends on input_ids beyond their embedding."""

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.logits = output.logits + input_ids.unsqueeze(-1)
        return output


class TakesOnlyIds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        return transformers.modeling_outputs.CausalLMOutput(logits=self.head(self.embed(input_ids)))


def test_a_model_that_fails_the_invariant_is_refused_by_name() -> None:
    config = tiny_model("llama").config
    with pytest.raises(UsageError, match="ReadsIdsTwice cannot be trained at patch level"):
        patch_level(ReadsIdsTwice(config), 2)
    with pytest.raises(UsageError, match=r"TakesOnlyIds .* inputs_embeds"):
        patch_level(TakesOnlyIds(), 2)


class LooksIdsUp(transformers.LlamaForCausalLM):
    """A second look-up by input_ids whose weights are zero in a fresh model."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.extra = nn.Embedding(VOCAB, VOCAB)
        nn.init.zeros_(self.extra.weight)

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.logits = output.logits + self.extra(input_ids)
        return output


def test_a_module_that_only_input_ids_reach_is_refused_even_if_it_does_nothing_yet() -> None:
    with pytest.raises(UsageError, match=r"LooksIdsUp .* its extra is run on input_ids"):
        patch_level(LooksIdsUp(tiny_model("llama").config), 2)


def test_a_head_of_zeros_still_trains(ids: Tensor) -> None:
    model = tiny_model("llama")
    nn.init.zeros_(model.lm_head.weight)
    assert probe(model).fused
    assert not model.lm_head.weight.any()  # random while it was probed
    with patch_level(model, 4):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(VOCAB).log().item(), rel=1e-5)
    assert model.lm_head.weight.grad.abs().max() > 0


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        patch_level(model, 2)


def test_a_frozen_part_stays_in_eval_mode() -> None:
    model = tiny_model("llama").train()
    model.model.layers[0].eval()
    probe(model)
    assert model.training
    assert not model.model.layers[0].training


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3_text"])
def test_packed_documents_that_stay_apart_are_accepted(family: str) -> None:
    model = tiny_model(family).train()
    state = torch.get_rng_state()
    probe_documents(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bloom", "BloomForCausalLM .* takes no position_ids"),
        ("mpt", "MptForCausalLM .* takes no position_ids"),
        ("mamba", "MambaForCausalLM .* takes no position_ids"),
        ("opt", "OPTForCausalLM .* depends on the one before it"),
    ],
)
def test_packed_documents_that_mix_are_refused_by_name(family: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        probe_documents(tiny_model(family))


class MixesInTraining(transformers.LlamaForCausalLM):
    """Forgets the packed mask in train mode only."""

    def forward(self, position_ids: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if self.training:
            position_ids = None
        return super().forward(position_ids=position_ids, **kwargs)


def test_documents_that_mix_in_train_mode_only_are_refused() -> None:
    with pytest.raises(UsageError, match=r"MixesInTraining .* in train mode"):
        probe_documents(MixesInTraining(tiny_model("llama").config))


class LooksAhead(transformers.LlamaForCausalLM):
    """Adds a little of the next token's embedding to each token's."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        ahead = torch.cat([inputs_embeds[:, 1:], inputs_embeds[:, -1:]], dim=1)
        return super().forward(inputs_embeds=inputs_embeds + 1e-4 * ahead, **kwargs)


class TakesTheBest(transformers.LlamaForCausalLM):
    """The half of a row's tokens with the largest embeddings passes: an expert's own choice."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        sizes = inputs_embeds.detach().norm(dim=-1, keepdim=True)
        passed = inputs_embeds * (sizes >= sizes.median(1, keepdim=True).values)
        return super().forward(inputs_embeds=passed, **kwargs)


@pytest.mark.parametrize("kind", [LooksAhead, TakesTheBest])
def test_a_model_that_sees_later_tokens_is_refused(kind: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match=rf"{kind.__name__} .* not causal"):
        patch_level(kind(tiny_model("llama").config), 2)


class HiddenTable(transformers.LlamaForCausalLM):
    """A table looked up by input_ids that is no module, and zero in a fresh model."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.table = nn.Parameter(torch.zeros(VOCAB, config.hidden_size))

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids) + self.table[input_ids]
        return super().forward(inputs_embeds=inputs_embeds, **kwargs)


def test_weights_of_zero_hide_nothing_and_stay_zero() -> None:
    model = HiddenTable(tiny_model("llama").config)
    with pytest.raises(UsageError, match=r"HiddenTable .*more with input_ids"):
        patch_level(model, 2)
    assert not model.table.any()


def test_a_multiplier_on_the_path_of_input_ids_is_refused_where_it_enters() -> None:
    class Multiplies(transformers.LlamaForCausalLM):
        def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids) * 3
            return super().forward(inputs_embeds=inputs_embeds, **kwargs)

    with pytest.raises(UsageError, match=r"Multiplies .*layers.0.input_layernorm other numbers"):
        patch_level(Multiplies(tiny_model("llama").config), 2)


class NoShift(transformers.LlamaForCausalLM):
    """Its own loss predicts the token it reads."""

    def forward(self, labels: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        output = super().forward(**kwargs)
        if labels is not None:
            output.loss = nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
        return output


def test_a_model_whose_own_loss_is_not_next_token_cross_entropy_is_refused() -> None:
    with pytest.raises(UsageError, match=r"NoShift .* its own loss at token level is"):
        patch_level(NoShift(tiny_model("llama").config), 2)


EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.37}


def test_the_weight_of_the_router_loss_is_measured(ids: Tensor) -> None:
    model = tiny_model("mixtral", output_router_logits=True, **EXPERTS)
    assert probe(model).auxiliary == pytest.approx(0.37)
    del model.router_aux_loss_coef  # it is not looked up
    model.router_aux_loss_coef = torch.tensor(0.2)
    with patch_level(model, 4):
        output = model(input_ids=ids, labels=ids)
        logits = model(input_ids=ids).logits
    entropy = patch_loss_reference(logits[:, :-1], patch_targets(ids, 4))
    torch.testing.assert_close(output.loss, entropy.float() + 0.2 * output.aux_loss)


def test_a_router_loss_that_appears_after_the_probe_is_refused(ids: Tensor) -> None:
    model = tiny_model("mixtral", **EXPERTS)
    assert probe(model).auxiliary is None
    with patch_level(model, 4):
        model(input_ids=ids, labels=ids)
        with pytest.raises(UsageError, match=r"MixtralForCausalLM .* before patch_level"):
            model(input_ids=ids, labels=ids, output_router_logits=True)


class OnlyWithLabels(transformers.MixtralForCausalLM):
    """Makes its router loss only where it makes its own loss."""

    def forward(self, labels: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(labels=labels, output_router_logits=labels is not None, **kwargs)


def test_a_router_loss_that_patch_level_would_lose_is_refused() -> None:
    with pytest.raises(UsageError, match=r"OnlyWithLabels .* auxiliary loss only where"):
        patch_level(OnlyWithLabels(tiny_model("mixtral", **EXPERTS).config), 2)


def test_a_model_that_cannot_run_in_train_mode_is_refused_before_training() -> None:
    class NeedsMore(transformers.LlamaForCausalLM):
        def forward(self, **kwargs: Any) -> Any:  # type: ignore[override]
            if self.training:
                raise ValueError("token_type_ids are required when training")
            return super().forward(**kwargs)

    with pytest.raises(UsageError, match=r"NeedsMore .*token_type_ids are required"):
        patch_level(NeedsMore(tiny_model("llama").config), 2)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "cohere", "nanochat"])
def test_in_bf16_the_findings_are_the_same(family: str) -> None:
    model = tiny_model(family)
    expected = probe(model)
    found = probe(model.to(torch.bfloat16))
    assert found.fused
    assert found.logit_scale == pytest.approx(expected.logit_scale, rel=1e-2)
    assert found.softcap == expected.softcap
    probe_documents(model)
