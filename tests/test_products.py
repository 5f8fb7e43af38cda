"""The loss's matrix products: the same from either library, and which of them is taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchtrain import patch_loss, products
from patchtrain.products import has_onednn, multiply, prefers_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this torch is without oneDNN")
sizes = st.integers(1, 40)


def force(patch: pytest.MonkeyPatch, onednn: bool) -> None:
    patch.setattr(products, "prefers_onednn", lambda: onednn)
    patch.setattr(products, "SLAB", 16)  # several slabs, the last one short


@needs_onednn
@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.booleans(), st.booleans(), st.booleans())
def test_onednn_gives_what_torch_gives(
    rows: int, inner: int, columns: int, add: bool, turned: bool, is_view: bool
) -> None:
    generator = torch.Generator().manual_seed(rows * inner + columns)
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    before = torch.randn(rows, columns, generator=generator)
    if turned:  # as the loss hands in the head, and the gradient of the logits
        left, right = left.T.contiguous().T, right.T.contiguous().T
    out = torch.zeros(rows + 3, columns)[2:-1] if is_view else torch.zeros(rows, columns)
    out.copy_(before)
    expected = left.double() @ right.double() + (before if add else 0.0)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, onednn=True)
        multiply(left, right, out, add=add)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_onednn_fills_what_held_no_number() -> None:
    with pytest.MonkeyPatch.context() as patch:
        force(patch, onednn=True)
        out = torch.full((20, 20), float("nan"))
        multiply(torch.eye(20), torch.eye(20), out)
    assert torch.equal(out, torch.eye(20))


@needs_onednn
def test_the_loss_is_the_same_with_either(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 24, requires_grad=True), torch.randn(60, 24)
    weight.requires_grad_()
    targets = torch.randint(0, 60, (50, 4))
    found = []
    for onednn in (False, True):
        force(monkeypatch, onednn)
        loss = patch_loss(hidden, weight, targets)
        found.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_right_side_with_gaps_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN multiplies such a matrix right, and so slowly that it seems to hang."""
    force(monkeypatch, onednn=True)
    monkeypatch.setattr(products, "_with_onednn", None)
    left, right = torch.randn(5, 6), torch.randn(6, 14)[:, ::2]
    out = torch.empty(5, 7)
    multiply(left, right, out)
    torch.testing.assert_close(out, left @ right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    force(monkeypatch, onednn=True)
    monkeypatch.setattr(products, "_with_onednn", None)
    left, right = torch.randn(5, 6).to(dtype), torch.randn(6, 7).to(dtype)
    out = torch.empty(5, 7, dtype=dtype)
    multiply(left, right, out)
    assert torch.equal(out, left @ right)
    multiply(left, right, out, add=True)
    torch.testing.assert_close(out, 2 * (left @ right))


@needs_onednn
@pytest.mark.parametrize(
    ("vendor", "capability", "taken"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        (None, "DEFAULT", False),
    ],
)
def test_the_processor_decides(
    monkeypatch: pytest.MonkeyPatch, vendor: str | None, capability: str, taken: bool
) -> None:
    monkeypatch.setattr(products, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    prefers_onednn.cache_clear()
    try:
        assert prefers_onednn() is taken
    finally:
        prefers_onednn.cache_clear()
