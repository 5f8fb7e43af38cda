"""Patch level on transformers models: exact, reversible, and refused where it would be wrong."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchtrain import UsageError, patch_level, patch_loss_reference, patch_targets, slot_weights
from tests.models import VOCAB, tiny_model

FAMILIES = ["llama", "qwen3", "gpt2"]


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("kind", ["uniform", "power"])
def test_loss_and_gradients_equal_the_formula_on_full_logits(
    family: str, patch_size: int, kind: str, ids: Tensor
) -> None:
    model = tiny_model(family)
    weights = slot_weights(patch_size, kind)
    with patch_level(model, patch_size, kind):
        fast = model(input_ids=ids, labels=ids).loss
    fast_gradients = gradients(model, fast)

    embeddings = model.get_input_embeddings()(ids)
    pooled = torch.stack([embeddings[:, slot::patch_size] for slot in range(patch_size)]).mean(0)
    logits = model(inputs_embeds=pooled).logits
    slow = patch_loss_reference(logits[:, :-1], patch_targets(ids, patch_size), weights)
    slow_gradients = gradients(model, slow)

    torch.testing.assert_close(fast.double(), slow, rtol=1e-6, atol=1e-6)
    assert fast_gradients.keys() == slow_gradients.keys()
    for name, gradient in fast_gradients.items():
        torch.testing.assert_close(gradient, slow_gradients[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_identical_tokens_give_the_token_models_hidden_states(family: str, ids: Tensor) -> None:
    model = tiny_model(family).eval()
    plain = model(input_ids=ids, output_hidden_states=True).hidden_states
    with patch_level(model, 3):
        pooled = model(
            input_ids=ids.repeat_interleave(3, dim=1), output_hidden_states=True
        ).hidden_states
    for got, expected in zip(pooled, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_patch_size_one_changes_nothing(family: str, ids: Tensor) -> None:
    model = tiny_model(family)
    plain = model(input_ids=ids, labels=ids).loss
    with patch_level(model, 1):
        assert "forward" not in model.__dict__
        assert torch.equal(model(input_ids=ids, labels=ids).loss, plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_class_parameters_and_state_dict_stay_and_remove_restores(family: str, ids: Tensor) -> None:
    model = tiny_model(family)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys, kind = list(model.state_dict()), type(model)
    plain = model(input_ids=ids, labels=ids).loss
    handle = patch_level(model, 4)
    assert type(model) is kind
    assert list(model.state_dict()) == keys
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert not torch.equal(model(input_ids=ids, labels=ids).loss, plain)
    handle.remove()
    handle.remove()  # as with torch's handles, twice is fine
    assert "forward" not in model.__dict__
    assert torch.equal(model(input_ids=ids, labels=ids).loss, plain)
    assert "patch" not in model.config.to_json_string()


def test_tied_embedding_and_head_stay_the_same_object(ids: Tensor) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    with patch_level(model, 2):
        model(input_ids=ids, labels=ids).loss.backward()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_it_comes_off_when_the_block_raises() -> None:
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="inside"), patch_level(model, 2):
        raise RuntimeError("inside")
    assert "forward" not in model.__dict__


def test_a_second_handle_is_refused() -> None:
    model = tiny_model("llama")
    with patch_level(model, 2), pytest.raises(UsageError, match="already"):
        patch_level(model, 4)


def test_a_forward_set_by_another_tool_before_and_after_is_respected(ids: Tensor) -> None:
    model = tiny_model("llama")
    calls: list[str] = []
    plain = model.forward

    def before(*args: Any, **kwargs: Any) -> Any:
        calls.append("before")
        return plain(*args, **kwargs)

    model.forward = before
    handle = patch_level(model, 2)
    ours = model.forward

    def after(*args: Any, **kwargs: Any) -> Any:
        calls.append("after")
        return ours(*args, **kwargs)

    model.forward = after  # as accelerate does for autocast
    calls.clear()
    model(input_ids=ids, labels=ids)
    assert calls == ["after", "before"]
    handle.remove()
    assert model.forward is after
    expected = tiny_model("llama")(input_ids=ids, labels=ids).loss
    assert torch.equal(model(input_ids=ids, labels=ids).loss, expected)


def test_without_labels_the_logits_are_those_of_each_patch(ids: Tensor) -> None:
    model = tiny_model("llama")
    with patch_level(model, 4):
        assert model(input_ids=ids).logits.shape == (2, 6, VOCAB)


def test_ignored_labels_and_a_given_total(ids: Tensor) -> None:
    model = tiny_model("llama")
    labels = ids.clone()
    labels[0, 5:14] = -100
    with patch_level(model, 4):
        mean = model(input_ids=ids, labels=labels).loss
        total = (labels[:, 4:] != -100).sum()
        summed = model(input_ids=ids, labels=labels, total=2 * total).loss
        logits = model(input_ids=ids).logits
    reference = patch_loss_reference(logits[:, :-1], patch_targets(labels, 4))
    torch.testing.assert_close(mean.double(), reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(summed, mean / 2)


@pytest.mark.parametrize("kind", ["uniform", "power"])
def test_trainers_count_of_a_step_in_passes_gives_the_mean_of_the_step(
    kind: str, ids: Tensor
) -> None:
    model = tiny_model("llama")
    counted = (ids[:, 1:] != -100).sum()  # what transformers' Trainer passes
    with patch_level(model, 4, kind):
        whole = model(input_ids=ids, labels=ids).loss
        passes = [
            model(input_ids=row[None], labels=row[None], num_items_in_batch=counted).loss
            for row in ids
        ]
    torch.testing.assert_close(sum(passes), whole)


def test_masks_and_positions_come_at_token_length(ids: Tensor) -> None:
    model = tiny_model("llama").eval()
    mask = torch.ones_like(ids)
    mask[0, 16:] = 0  # the last two patches of row 0 are padding
    with patch_level(model, 4):
        masked = model(input_ids=ids, attention_mask=mask).logits
        short = model(input_ids=ids[:1, :16]).logits
        positions = torch.arange(24).expand(2, -1)
        placed = model(input_ids=ids, position_ids=positions).logits
        free = model(input_ids=ids).logits
    torch.testing.assert_close(masked[:1, :4], short, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(placed, free)


def test_rows_that_cannot_be_cut_are_refused(ids: Tensor) -> None:
    model = tiny_model("llama")
    with patch_level(model, 5), pytest.raises(UsageError, match="multiple of 5"):
        model(input_ids=ids, labels=ids)


def test_generation_at_patch_level_is_refused(ids: Tensor) -> None:
    model = tiny_model("llama")
    with patch_level(model, 4), pytest.raises(UsageError, match="patch"):
        model.generate(ids, max_new_tokens=3)


def test_the_trainer_still_sees_the_plain_signature() -> None:
    import inspect

    model = tiny_model("llama")
    plain = inspect.signature(model.forward)
    with patch_level(model, 2):
        assert inspect.signature(model.forward) == plain


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_k1_loss_is_cross_entropy_of_shifted_labels(ids: Tensor) -> None:
    model = tiny_model("llama")
    logits = model(input_ids=ids).logits
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    torch.testing.assert_close(
        patch_loss_reference(logits[:, :-1], patch_targets(ids, 1)).float(), expected
    )


def test_packed_documents_are_each_on_its_own(ids: Tensor) -> None:
    model = tiny_model("llama").eval()
    positions = torch.cat([torch.arange(16), torch.arange(8)]).expand(2, -1)
    with patch_level(model, 4):
        packed = model(input_ids=ids, labels=ids, position_ids=positions).loss
        first = model(input_ids=ids[:, :16], labels=ids[:, :16]).loss
        second = model(input_ids=ids[:, 16:], labels=ids[:, 16:]).loss
    torch.testing.assert_close(packed, (3 * first + second) / 4)  # 3 and 1 predicted patches


def test_inputs_per_token_that_cannot_be_pooled_are_refused_by_name(ids: Tensor) -> None:
    model = tiny_model("llama")
    with patch_level(model, 4):
        with pytest.raises(UsageError, match="token_type_ids"):
            model(input_ids=ids, labels=ids, token_type_ids=torch.zeros_like(ids))
        with pytest.raises(UsageError, match="attention_mask"):
            model(input_ids=ids, attention_mask=torch.ones(2, 1, 24, 24))
