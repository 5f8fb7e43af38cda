"""The K-target loss against the papers' formula: value and every gradient."""

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchtrain import UsageError, patch_loss, patch_loss_reference, slot_weights
from patchtrain import loss as loss_module
from patchtrain.loss import IGNORE, patch_loss_from_logits

V, D = 37, 12


def make(
    rows: int, patch_size: int, dtype: torch.dtype = torch.float32, ignored: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + patch_size)
    hidden = torch.randn(2, rows, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (2, rows, patch_size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < ignored] = IGNORE
    return hidden, weight, targets


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one short, in every test."""
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", V * 4)
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 1)


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["uniform", "power"])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_and_gradients_equal_the_papers_formula(
    patch_size: int, kind: str, ignored: float, with_bias: bool, scale: float
) -> None:
    hidden, weight, targets = make(7, patch_size, ignored=ignored)
    bias = torch.randn(V, requires_grad=True) if with_bias else None
    weights = slot_weights(patch_size, kind)

    fast = patch_loss(hidden, weight, targets, bias=bias, scale=scale, weights=weights)
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    # A factor above the loss, so that the upstream gradient is used too.
    fast_gradients = torch.autograd.grad(3.0 * fast, inputs)

    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    slow = patch_loss_reference(logits * scale, targets, weights)
    slow_gradients = torch.autograd.grad(3.0 * slow, inputs)

    torch.testing.assert_close(fast.double(), slow, rtol=1e-6, atol=1e-6)
    for got, expected in zip(fast_gradients, slow_gradients, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8])
def test_in_fp64_the_formula_is_met_to_rounding(patch_size: int) -> None:
    hidden, weight, targets = make(9, patch_size, torch.float64, ignored=0.2)
    weights = slot_weights(patch_size, "power")
    fast = patch_loss(hidden, weight, targets, weights=weights)
    slow = patch_loss_reference(F.linear(hidden, weight), targets, weights)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    for got, expected in zip(
        torch.autograd.grad(fast, (hidden, weight)),
        torch.autograd.grad(slow, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    patch_size=st.integers(1, 9),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    power=st.booleans(),
)
def test_all_three_agree_on_any_shape(
    rows: int, patch_size: int, ignored: float, power: bool
) -> None:
    hidden, weight, targets = make(rows, patch_size, torch.float64, ignored)
    weights = slot_weights(patch_size, "power" if power else "uniform")
    logits = F.linear(hidden, weight)
    expected = patch_loss_reference(logits, targets, weights)
    torch.testing.assert_close(patch_loss(hidden, weight, targets, weights=weights), expected)
    torch.testing.assert_close(patch_loss_from_logits(logits, targets, weights=weights), expected)


def test_one_target_is_cross_entropy() -> None:
    hidden, weight, targets = make(11, 1, ignored=0.2)
    expected = F.cross_entropy(F.linear(hidden, weight).view(-1, V), targets.view(-1))
    got = patch_loss(hidden, weight, targets)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(got, patch_loss(hidden, weight, targets.squeeze(-1)))


@pytest.mark.parametrize("kind", ["uniform", "power"])
def test_zero_logits_cost_log_vocabulary(kind: str) -> None:
    hidden, weight, targets = make(5, 4)
    weights = slot_weights(4, kind)
    loss = patch_loss(torch.zeros_like(hidden), weight, targets, weights=weights)
    assert loss.item() == pytest.approx(math.log(V), rel=1e-6)


def test_a_token_that_stands_twice_counts_twice() -> None:
    hidden, weight, _ = make(1, 2)
    hidden = hidden[:1]
    twice = patch_loss(hidden, weight, torch.tensor([[[5, 5]]]))
    once = patch_loss(hidden, weight, torch.tensor([[[5]]]))
    torch.testing.assert_close(twice, once)
    for got, expected in zip(
        torch.autograd.grad(twice, (hidden, weight)),
        torch.autograd.grad(once, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_ignored_targets_do_not_touch_loss_or_gradient() -> None:
    hidden, weight, targets = make(6, 3)
    targets[0, 2] = IGNORE  # a whole position
    loss = patch_loss(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient[0, 2].abs().max() == 0
    assert gradient[0, 1].abs().max() > 0


def test_nothing_to_predict_costs_nothing() -> None:
    hidden, weight, targets = make(3, 2)
    loss = patch_loss(hidden, weight, torch.full_like(targets, IGNORE))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_parts_divided_by_the_global_total_sum_to_the_whole() -> None:
    hidden, weight, targets = make(8, 3, ignored=0.4)
    whole = patch_loss(hidden, weight, targets)
    total = (targets != IGNORE).sum()
    parts = sum(patch_loss(hidden[row], weight, targets[row], total=total) for row in range(2))
    torch.testing.assert_close(parts, whole)
    # A mean of means would be another number: the rows have different counts.
    means = sum(patch_loss(hidden[row], weight, targets[row]) for row in range(2)) / 2
    assert (targets[0] != IGNORE).sum() != (targets[1] != IGNORE).sum()
    assert abs(means.item() - whole.item()) > 1e-4


def test_bf16_stays_within_its_rounding_and_sums_in_fp32() -> None:
    hidden, weight, targets = make(64, 4, torch.bfloat16)
    loss = patch_loss(hidden, weight, targets)
    assert loss.dtype == torch.float32
    gradients = torch.autograd.grad(loss, (hidden, weight))
    wide = [hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()]
    expected = patch_loss_reference(F.linear(*wide), targets)
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for got, want in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() / want.norm() < 2e-2


def test_under_autocast_products_are_bf16_and_the_heads_gradient_is_fp32() -> None:
    hidden, weight, targets = make(16, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = patch_loss(hidden, weight, targets)
    loss.backward()
    narrow = patch_loss(hidden.detach().bfloat16(), weight.detach().bfloat16(), targets)
    assert loss.item() == pytest.approx(narrow.item(), rel=1e-6)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_under_no_grad_no_gradient_is_kept() -> None:
    hidden, weight, targets = make(5, 2)
    with torch.no_grad():
        loss = patch_loss(hidden, weight, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, patch_loss(hidden, weight, targets).detach())


def test_a_frozen_head_still_lets_the_gradient_through() -> None:
    hidden, weight, targets = make(5, 2)
    loss = patch_loss(hidden, weight.detach(), targets)
    (gradient,) = torch.autograd.grad(loss, hidden)
    (expected,) = torch.autograd.grad(patch_loss(hidden, weight, targets), hidden)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("shape", [(2, 4, 2), (3, 5, 2), (2, 5, 2, 2)])
def test_targets_of_another_shape_are_refused(shape: Sequence[int]) -> None:
    hidden, weight, _ = make(5, 2)
    with pytest.raises(UsageError, match="do not fit"):
        patch_loss(hidden, weight, torch.zeros(shape, dtype=torch.long))


def test_weights_of_another_length_are_refused() -> None:
    hidden, weight, targets = make(5, 2)
    with pytest.raises(UsageError, match="3 slot weights for 2 targets"):
        patch_loss(hidden, weight, targets, weights=[1.0, 1.0, 1.0])


def test_no_gradient_is_computed_under_no_grad(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = make(5, 2)
    monkeypatch.setattr(Tensor, "scatter_add_", None)  # what only the gradient needs
    with torch.no_grad():
        patch_loss(hidden, weight, targets)
    with pytest.raises(TypeError):
        patch_loss(hidden, weight, targets)


@pytest.mark.parametrize("wrong", [-1, V])
def test_ids_outside_the_vocabulary_are_an_error_not_token_zero(wrong: int) -> None:
    hidden, weight, targets = make(3, 2)
    targets[0, 1, 0] = wrong
    with pytest.raises((RuntimeError, IndexError)):
        patch_loss(hidden, weight, targets)
    with pytest.raises((RuntimeError, IndexError)):
        patch_loss_from_logits(F.linear(hidden, weight), targets)


@pytest.mark.parametrize("softcap", [None, 300.0])
def test_targets_whose_probability_is_no_number_of_its_own(softcap: float | None) -> None:
    """A loss of hundreds: the probabilities of all targets are zero in fp32."""
    hidden, weight, targets = make(7, 2)
    hidden = (100 * hidden).detach().requires_grad_()
    bias = torch.randn(V)
    fast = patch_loss(hidden, weight, targets, bias=bias, softcap=softcap)
    logits = F.linear(hidden.double(), weight.double(), bias.double())
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    slow = patch_loss_reference(logits, targets)
    assert slow.item() > 150
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)
    (got,), (want,) = (torch.autograd.grad(loss, [hidden]) for loss in (fast, slow))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
