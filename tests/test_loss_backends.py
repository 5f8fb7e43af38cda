"""Every loss backend against the formula, and the choice between them."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchtrain import UsageError, patch_level, patch_loss_reference, slot_weights
from patchtrain import loss as loss_module
from patchtrain import loss_backends as backends
from patchtrain.loss import IGNORE
from patchtrain.loss_backends import LOSSES, Backend, check, choose, loss_with_kernel, unavailable
from patchtrain.modeling import Probe
from tests.models import VOCAB, tiny_model

V, D = 37, 12
HERE = [name for name in LOSSES if unavailable(name, "cpu") is None]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", V * 4)
    monkeypatch.setattr(loss_module, "CHUNK_ROWS", 1)


def make(rows: int, patch_size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """States, head, bias and targets of which some are ignored, one row's all."""
    generator = torch.Generator().manual_seed(rows * 10 + patch_size)
    hidden = torch.randn(2, rows, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (2, rows, patch_size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.3] = IGNORE
    targets[0, 0] = IGNORE
    return hidden, weight, bias, targets


def formula(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
    weights: Any,
) -> Tensor:
    logits = F.linear(hidden.double(), weight.double(), None if bias is None else bias.double())
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return patch_loss_reference(logits, targets, weights)


def dense_kernel(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """A kernel for one target as plain as can be, which has all that any of them has."""
    logits = F.linear(hidden, weight, None if bias is None else bias.to(weight.dtype))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORE)


def through_dense_kernel(*args: Any, **kwargs: Any) -> Tensor:
    return loss_with_kernel(dense_kernel, *args, **kwargs)


@pytest.mark.parametrize("name", [*HERE, "dense"])
@pytest.mark.parametrize("patch_size", [1, 2, 4])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("kind", ["uniform", "power"])
def test_value_and_gradients_are_the_formulas(
    name: str, patch_size: int, with_bias: bool, scale: float, softcap: float | None, kind: str
) -> None:
    if name == "torch" and softcap is not None:
        pytest.skip("it has no softcapping, and is not chosen where there is one")
    loss = through_dense_kernel if name == "dense" else LOSSES[name]
    hidden, weight, bias, targets = make(7, patch_size)
    inputs = [hidden, weight, *([bias] if with_bias else [])]
    offset = bias if with_bias else None
    weights = slot_weights(patch_size, kind)
    got = loss(hidden, weight, targets, bias=offset, scale=scale, softcap=softcap, weights=weights)
    expected = formula(hidden, weight, targets, offset, scale, softcap, weights)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    for gradient, want in zip(
        torch.autograd.grad(3 * got, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        assert gradient.dtype == want.dtype
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("with_bias", [False, True])
def test_in_bf16_they_stay_within_its_rounding_and_sum_in_fp32(name: str, with_bias: bool) -> None:
    hidden, weight, bias, targets = make(64, 4, torch.bfloat16)
    inputs = [hidden, weight, *([bias] if with_bias else [])]
    offset = bias if with_bias else None
    loss = LOSSES[name](hidden, weight, targets, bias=offset, scale=0.3)
    assert loss.dtype == torch.float32
    expected = formula(hidden, weight, targets, offset, 0.3, None, None)
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    for gradient, want in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - want.double()).norm() / want.double().norm() < 2e-2


@pytest.mark.parametrize("name", HERE)
def test_many_small_gradients_are_not_lost_in_bf16(name: str) -> None:
    # 4,096 positions with one common target: each adds too little to move a bf16 sum.
    hidden = torch.ones(4096, D, dtype=torch.bfloat16)
    weight = torch.zeros(V, D, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.full((4096, 2), 5)
    (gradient,) = torch.autograd.grad(LOSSES[name](hidden, weight, targets), weight)
    torch.testing.assert_close(
        gradient[5].float(), torch.full((D,), 1 / V - 1), rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("name", HERE)
def test_under_autocast_the_heads_gradient_is_fp32(name: str) -> None:
    hidden, weight, bias, targets = make(16, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](hidden, weight, targets, bias=bias)
    loss.backward()
    expected = formula(hidden, weight, targets, bias, 1.0, None, None)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), patch_size=st.integers(1, 6), cap=st.booleans())
def test_the_identity_holds_on_any_shape(rows: int, patch_size: int, cap: bool) -> None:
    hidden, weight, bias, targets = make(rows, patch_size, torch.float64)
    weights, softcap = slot_weights(patch_size, "power"), 1.5 if cap else None
    got = through_dense_kernel(
        hidden, weight, targets, bias=bias, scale=0.7, softcap=softcap, weights=weights
    )
    expected = formula(hidden, weight, targets, bias, 0.7, softcap, weights)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    for gradient, want in zip(
        torch.autograd.grad(got, (hidden, weight, bias)),
        torch.autograd.grad(expected, (hidden, weight, bias)),
        strict=True,
    ):
        torch.testing.assert_close(gradient, want, rtol=1e-8, atol=1e-12)


# ---- the choice


def head(bias: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    return torch.nn.Linear(D, V, bias=bias).to(dtype)


def test_auto_takes_the_chunked_loss_and_plain_where_the_logits_do_not_allow_it() -> None:
    chosen = choose("auto", Probe(True), head())
    assert chosen.name == "chunked"
    assert "one pass" in chosen.reason
    chosen = choose("auto", Probe(False, reason="its logits are odd"), head())
    assert chosen == Backend("plain", "its logits are odd")
    assert str(chosen) == "plain (its logits are odd)"


@pytest.mark.parametrize("name", HERE)
def test_each_can_be_forced_and_gives_the_same_loss_in_a_model(name: str) -> None:
    ids = torch.randint(0, VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    model = tiny_model("granite", logits_scaling=8.0)
    with patch_level(model, 4) as handle:
        assert handle.backend.name == "chunked"
        expected = model(input_ids=ids, labels=ids).loss
    with patch_level(model, 4, backend=name) as handle:
        assert handle.backend.name == name
        loss = model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "found", "with_bias", "message"),
    [
        ("fast", Probe(True), False, "use auto, chunked"),
        ("chunked", Probe(False, reason="its logits are odd"), False, "its logits are odd"),
        ("torch", Probe(True, softcap=3.0), False, "no softcapping"),
        ("liger", Probe(True), False, "runs on a GPU"),
        ("cce", Probe(True), True, "runs on a GPU"),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_the_reason(
    name: str, found: Probe, with_bias: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose(name, found, head(with_bias))


@pytest.mark.parametrize("name", ["liger", "cce"])
def test_on_a_gpu_what_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, backends._PACKAGES[name], None)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda _: None)
    assert "pip install 'patchtrain[gpu]'" in (unavailable(name, "cuda") or "")


def test_a_wrong_backend_is_found_out_and_auto_falls_back_loudly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(hidden: Tensor, weight: Tensor, targets: Tensor, **kwargs: Any) -> Tensor:
        return loss_module.patch_loss(hidden, weight, targets, **kwargs) * 1.01

    monkeypatch.setitem(LOSSES, "chunked", wrong)
    with pytest.raises(UsageError, match="its loss is"):
        choose("chunked", Probe(True), head())
    with pytest.warns(UserWarning, match="full logits"):
        assert choose("auto", Probe(True), head()).name == "plain"


def test_a_wrong_gradient_is_found_out_and_so_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def biased(hidden: Tensor, weight: Tensor, targets: Tensor, **kwargs: Any) -> Tensor:
        loss = loss_module.patch_loss(hidden, weight.detach(), targets, **kwargs)
        return loss + 0 * weight.sum()

    def broken(*args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(LOSSES, "chunked", biased)
    assert "gradient is off by 100" in (check("chunked", Probe(True), head().weight, None) or "")
    monkeypatch.setitem(LOSSES, "chunked", broken)
    assert "no kernel image" in (check("chunked", Probe(True), head().weight, None) or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", HERE)
def test_the_check_passes_what_is_right(name: str, dtype: torch.dtype) -> None:
    linear = head(True, dtype)
    assert check(name, Probe(True, 0.5), linear.weight, linear.bias) is None


@pytest.mark.parametrize("name", ["liger", "cce"])
def test_the_gpu_kernels_are_called_as_their_packages_want(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their calls, on a stand-in with their signature: no gradient filter, sums in fp32."""
    calls: list[dict[str, Any]] = []

    def liger(
        input: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None,
        ignore_index: int = -100, reduction: str = "mean", softcap: float | None = None,
        accum_dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        calls.append({"accum_dtype": accum_dtype, "reduction": reduction, "ignore": ignore_index})
        return dense_kernel(input, weight, target, bias, softcap)

    def cce(
        e: Tensor, c: Tensor, targets: Tensor, ignore_index: int = -100,
        softcap: float | None = None, reduction: str = "mean", filter_eps: float | None = 1.0,
    ) -> Tensor:  # fmt: skip
        calls.append({"filter_eps": filter_eps, "reduction": reduction, "ignore": ignore_index})
        return dense_kernel(e, c, targets, None, softcap)

    functional = SimpleNamespace(liger_fused_linear_cross_entropy=liger)
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", SimpleNamespace(linear_cross_entropy=cce))
    linear = head(bias=name == "liger")
    assert check(name, Probe(True, 0.5, softcap=3.0), linear.weight, linear.bias) is None
    kind = {"liger": {"accum_dtype": torch.float32}, "cce": {"filter_eps": None}}[name]
    assert calls == [{**kind, "reduction": "none", "ignore": IGNORE}]
